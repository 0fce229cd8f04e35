"""Quantization and binarization of a transformer classifier on AG News.

    python examples/run_ag_news.py --data_dir=ag_news_csv --vocab_file=vocab.txt
    python examples/run_ag_news.py --data_dir=ag_news_csv --vocab_file=vocab.txt \\
        --quant_type=quantization --quant_method=fully --bit_num=8 --latent
    python examples/run_ag_news.py --data_dir=ag_news_csv --vocab_file=vocab.txt \\
        --quant_type=binarization --quant_method=ir --quant_pattern=ALL_QK
    python examples/run_ag_news.py --data_dir=ag_news_csv --vocab_file=bert/vocab.txt \\
        --encoder=bert --amp

Without --quant_type the float network is trained. --output_dir gets EXP_log.csv (running averages
of training), EXP_test.npy (test accuracy of each epoch in percent), EXP_best.npz,
EXP_curves.png and EXP_results.json, where EXP is --exp_name. The last line of stdout is the result
as JSON. The same command continues a run that was cut off. See docs/examples.md.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# As a script, Python looks for modules in this folder alone.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from examples.ag_news.settings import Settings
from examples.settings import parse


def main() -> None:
    """Run the script."""
    settings = parse("run_ag_news.py", Settings, sys.argv[1:], __doc__)
    # Imported once the options are known to be good: TensorFlow takes seconds.
    from runs.script import execute

    def work():
        from examples.ag_news.checks import check

        check(settings)
        from examples.ag_news import pipeline

        return pipeline.summary(settings, pipeline.run(settings))

    execute("run_ag_news.py", work)


if __name__ == "__main__":
    main()
