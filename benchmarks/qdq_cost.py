"""Cost of quantize-dequantize by number format: python -m benchmarks.qdq_cost

Times one QDQ of a [8, 384, 1536] tensor in turn with the native int8 kernel, and prints the median
ratios.
"""

from __future__ import annotations

import argparse

import tensorflow as tf

from benchmarks.timing import interleaved, ratio
from tfquant import qdq
from tfquant.formats import get
from tfquant.scale import Scale

SHAPE, AMAX = (8, 384, 1536), 4.0


def measure(formats: list[str], rounds: int) -> dict[str, float]:
    """Median time of each format as a multiple of int8's."""
    x, calls = tf.random.stateless_normal(SHAPE, [1, 2]), {}
    for name in ["int8", *formats]:
        book = get(name).codebook(Scale())
        function = tf.function(
            lambda x, book=book: qdq.quantize_dequantize(x, -AMAX, AMAX, book),
            input_signature=[tf.TensorSpec([None, None, SHAPE[-1]])],
            autograph=False,
        ).get_concrete_function()
        calls[name] = lambda function=function: function(x)[0, 0, 0].numpy()
    seconds = interleaved(calls, rounds=rounds, warm_up=3, label="QDQ")
    return {name: round(ratio(seconds, name, "int8"), 2) for name in calls}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", default=["e4m3", "e5m2"], help="number formats")
    parser.add_argument("--rounds", type=int, default=30, help="calls of each")
    arguments = parser.parse_args()
    for name, times in measure(arguments.formats, arguments.rounds).items():
        print(f"{name}: {times} x int8")


if __name__ == "__main__":
    main()
