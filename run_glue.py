"""Fine-tune, quantize and score BERT, RoBERTa, DistilBERT or MobileBERT on GLUE.

    python run_glue.py train-baseline --task rte --model-path bert-base-uncased \\
        --output-dir output/rte
    python run_glue.py validate-quantized --task rte --model-path output/rte/out \\
        --qmethod symmetric_uniform
    python run_glue.py MODE --help    all options of a mode; docs/glue.md has worked examples

Training leaves in --output-dir: config.out, model.ckpt-<step>, out/ (the model), tb_logs/,
eval_results_<task>.txt, final_score.txt and results.json; with several tasks or seeds each in a
folder of its own, and summary.json beside these.
"""

import os
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "10")  # seconds; a bar in a file is a line at each

from runs.glue import command_line
from runs.glue.settings import Settings


def run(settings: Settings) -> dict[str, Any]:
    """Run all tasks with all seeds.

    Returns what the last line shows: medians in per cent, and averages.
    """
    from runs.glue import pipeline

    return pipeline.run(settings)


def main() -> None:
    """Run the script, as `python run_glue.py` and `tfquant-glue` do."""
    settings = command_line.parse(sys.argv[1:], __doc__)
    # Imported once the options are known to be good: TensorFlow takes seconds.
    from runs.glue import pipeline
    from runs.script import execute

    execute("run_glue.py", lambda: pipeline.run(settings))


if __name__ == "__main__":
    main()
