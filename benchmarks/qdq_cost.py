"""Cost of quantize-dequantize by number format: python -m benchmarks.qdq_cost

Times one QDQ of a [8, 384, 1536] tensor in turn with the native int8 kernel, and prints the median
ratios; results/qdq_cost.json keeps them. Microscaling formats compute the scales of their blocks on
the way.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import tensorflow as tf

from benchmarks.results import Results
from benchmarks.timing import interleaved, ratio
from tfquant import QuantSpec, blocks, qdq

SHAPE, AMAX = (8, 384, 1536), 4.0
FORMATS = (
    *("e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "posit8_0", "posit8_1", "posit8_2", "p2_5", "nf4"),
    *("mxfp8", "mxfp6", "mxfp4", "mxint8"),
)


def kernel(spec: QuantSpec) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the rounding of a tensor with known range, or in blocks."""
    if spec.layout.per_block:
        return lambda x: blocks.quantize_dequantize(x, spec, -1)
    return lambda x: qdq.quantize_dequantize(x, -AMAX, AMAX, spec.codebook)


def measure(formats: list[str], rounds: int) -> dict[str, float]:
    """Median time of each format as a multiple of int8's."""
    x, calls = tf.random.stateless_normal(SHAPE, [1, 2]), {}
    for name in ["int8", *formats]:
        function = tf.function(
            kernel(QuantSpec(name)),
            input_signature=[tf.TensorSpec([None, None, SHAPE[-1]])],
            autograph=False,
        ).get_concrete_function()
        calls[name] = lambda function=function: function(x)[0, 0, 0].numpy()
    seconds = interleaved(calls, rounds=rounds, warm_up=3, label="QDQ")
    return {name: round(ratio(seconds, name, "int8"), 2) for name in calls}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", help="number formats; others are not kept")
    parser.add_argument("--rounds", type=int, default=30, help="calls of each")
    arguments = parser.parse_args()
    times = measure(list(arguments.formats or FORMATS), arguments.rounds)
    if arguments.formats:
        print(json.dumps(times))
        return
    results = Results("qdq_cost", seed=1, fresh=True)
    for name, ratio_to_int8 in times.items():
        figures = {"times_int8": ratio_to_int8, "shape": SHAPE, "rounds": arguments.rounds}
        results.row(name, lambda figures=figures: figures)


if __name__ == "__main__":
    main()
