"""Word error rate of KerasHub's Whisper on LibriSpeech, in float and quantized.

    python examples/run_librispeech.py --preset whisper_tiny_en --data_dir LibriSpeech/test-clean
    python examples/run_librispeech.py --preset FOLDER --data_dir LibriSpeech/test-clean \\
        --recipe int8_residual_float_asymmetric --calibration_dir LibriSpeech/dev-clean \\
        --output_dir output/whisper
    python examples/run_librispeech.py --compare output/a/quantized output/b/quantized \\
        --output_dir output/comparison

Decoding is greedy. References and transcripts pass Whisper's text normalizer. The last line of
stdout is the result as JSON; --output_dir gets results.json, float/ and quantized/ with
predictions.txt and references.txt, and the comparison of the two. See docs/examples.md.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# As a script, Python looks for modules in this folder alone.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from examples.librispeech.settings import Settings
from examples.settings import parse


def main() -> None:
    """Run the script."""
    settings = parse("run_librispeech.py", Settings, sys.argv[1:], __doc__)
    # Imported once the options are known to be good: TensorFlow takes seconds.
    from runs.script import execute

    def work():
        from examples.librispeech.checks import check

        check(settings)
        from examples.librispeech import pipeline

        return pipeline.summary(settings, pipeline.run(settings))

    execute("run_librispeech.py", work)


if __name__ == "__main__":
    main()
