"""Perplexity of a KerasHub language model, in float and quantized.

    python examples/run_wikitext.py --preset gpt2_base_en --text_file wiki.test.raw
    python examples/run_wikitext.py --preset FOLDER --text_file wiki.test.raw \\
        --recipe int8_residual_float_asymmetric --calibration_file wiki.valid.raw

The text is tokenised once and cut into windows of --max_length tokens that begin --stride tokens
apart. A window scores the tokens that no earlier one has covered. Perplexity is exp of the mean of
the windows' mean losses; the one in which every token counts alike is shown as well. The last line
of stdout is the result as JSON; --output_dir gets results.json. See docs/examples.md.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# As a script, Python looks for modules in this folder alone.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from examples.settings import parse
from examples.wikitext.settings import Settings


def main() -> None:
    """Run the script."""
    settings = parse("run_wikitext.py", Settings, sys.argv[1:], __doc__)
    # Imported once the options are known to be good: TensorFlow takes seconds.
    from runs.script import execute

    def work():
        from examples.wikitext.checks import check

        check(settings)
        from examples.wikitext import pipeline

        return pipeline.summary(settings, pipeline.run(settings))

    execute("run_wikitext.py", work)


if __name__ == "__main__":
    main()
