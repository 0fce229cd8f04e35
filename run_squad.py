"""Fine-tune, calibrate, quantize and evaluate BERT on SQuAD.

    python run_squad.py         a small example from data to quantized accuracy, on its own data
    python run_squad.py --help  all flags, see docs/squad.md

A run does, in this order and as its flags say: calibration (--do_calib) or training (--do_train),
export (--do_export), then prediction (--do_predict). What it leaves in --output_dir:
model.ckpt-<step>, model.ckpt-calibrated and the calibration file, model.onnx or another exported
file, predictions.json, nbest_predictions.json (null_odds.json for SQuAD 2.0), results.json,
tensorboard/.
"""

import os
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "10")  # seconds; a bar in a file is a line at each

from runs.squad.command_line import parse
from runs.squad.flags import Settings


def run(settings: Settings) -> dict[str, Any]:
    """Run with the settings; return the figures that results.json holds."""
    from runs.squad import pipeline

    return pipeline.run(settings)


def command() -> None:
    """Run the script, as `python run_squad.py` and `tfquant-squad` do."""
    settings = parse(sys.argv[1:], __doc__) if sys.argv[1:] else None
    # Imported once the flags are known to be good: TensorFlow takes seconds.
    from runs.script import execute
    from runs.squad import pipeline

    execute(
        "run_squad.py",
        lambda: pipeline.main(settings),
        trace=settings is not None and settings.verbose_logging,
    )


if __name__ == "__main__":
    command()
