"""Observer update as a pure function of its state; without variables, so that all observers share
few traces.
"""

import math

import numpy as np
import tensorflow as tf

from calib import binning
from calib.sampling import Cells, split

# Elements of the integer state. The float state is minimum, maximum and their moving averages.
# UPDATES is one more than the number of the last batch.
COUNT, BATCHES, UPDATES, NONFINITE, EXPONENT = range(5)

State = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def joined_counters(counters: np.ndarray) -> np.ndarray:
    """Merge the integer states of observers that saw disjoint batches, int64 [observers, ...]."""
    broken = counters[counters[:, NONFINITE] >= 0, NONFINITE]
    joined = counters.max(0)
    joined[[COUNT, BATCHES]] = counters[:, [COUNT, BATCHES]].sum(0)
    joined[NONFINITE] = broken.min() if broken.size else -1
    return joined


# Not inlined: the graph of all observers is then one small piece a site, and this body is optimized
# once for all of them.
@tf.function(autograph=False, experimental_attributes={"_noinline": True})
def updated(
    x: tf.Tensor,
    valid: tf.Tensor | None,
    ranges: tf.Tensor,
    counters: tf.Tensor,
    counts: tf.Tensor,
    seed: tf.Tensor,
    *,
    signed: bool,
    sample: int,
    decay: float,
) -> tuple[State, tf.Tensor]:
    """State after one more batch, and the float32 [2] extremes of that batch (NaN if it changed
    nothing).

    Args:
        x: floating tensor of any shape.
        valid: bool, broadcastable to ``x``, or None.
        ranges: float32 [4]: minimum, maximum, moving averages of both.
        counters: int64 [5]: elements, batches, number of the next batch, first number with NaN or
          Inf (-1: none), exponent of
            the span.
        counts: int64 [bins].
        seed: int64 [2]: the observer's seed and the batch's number, which the random sample depends
          on. Together, so that
            it is no constant: TensorFlow would make, and optimize, a copy of this function for
              each.
        signed: whether the histogram keeps the signs.
        sample: most elements the histogram looks at.
        decay: of the moving averages.
    """
    cells = split(x, valid)
    whole_cells = cells.cells if cells.valid is None else tf.math.count_nonzero(cells.valid)
    count = whole_cells * cells.width
    smallest, largest = tf.reduce_min(cells.smallest), tf.reduce_max(cells.largest)  # NaN spreads
    filled = count > 0
    sound = tf.math.is_finite(smallest) & tf.math.is_finite(largest)
    use = sound & filled
    elements, batches, _, nonfinite, exponent = tf.unstack(counters)
    number = seed[1]
    spans = tf.maximum(exponent, _exponent(tf.where(use, tf.maximum(-smallest, largest), 0.0)))
    added = _histogram(cells, spans, seed, counts.shape.num_elements(), signed, sample)
    step = tf.cast(use, tf.int64)
    state = (
        tf.where(
            use,
            _ranges(ranges, smallest, largest, tf.where(batches > 0, np.float32(decay), 0.0)),
            ranges,
        ),
        tf.stack(
            [
                elements + step * count,
                batches + step,
                number + 1,
                tf.where(filled & ~sound & (nonfinite < 0), number, nonfinite),
                spans,
            ]
        ),
        _coarsen(counts, spans - exponent, signed) + added * step,
    )
    return state, tf.where(use, tf.stack([smallest, largest]), np.nan)


@tf.function(
    autograph=False,
    input_signature=[tf.TensorSpec([4]), tf.TensorSpec([None, 2]), tf.TensorSpec([])],
)
def replayed(ranges: tf.Tensor, extremes: np.ndarray, decay: tf.Tensor) -> tf.Tensor:
    """Ranges after batches of which only the extremes are known.

    The operations of `updated` on the same scalars, one batch after the other, not their like in
    NumPy: so also the last bit and the sign of a zero are those of a run over the batches
    themselves.

    Args:
        ranges: float32 [4], of an observer that has seen nothing.
        extremes: float32 [batches, 2], only of batches that changed something.
        decay: float32 scalar, of the moving averages.
    """

    def step(index: tf.Tensor, ranges: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        smallest, largest = tf.unstack(extremes[index])
        return index + 1, _ranges(ranges, smallest, largest, tf.where(index > 0, decay, 0.0))

    def more(index: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        return index < tf.shape(extremes)[0]

    return tf.while_loop(more, step, (tf.constant(0), ranges), parallel_iterations=1)[1]


def _ranges(old: tf.Tensor, smallest: tf.Tensor, largest: tf.Tensor, decay: tf.Tensor) -> tf.Tensor:
    minimum, maximum = tf.minimum(old[0], smallest), tf.maximum(old[1], largest)
    averages = decay * old[2:] + (1 - decay) * tf.stack([smallest, largest])
    return tf.concat([tf.stack([minimum, maximum]), averages], 0)


def _histogram(
    cells: Cells, exponent: tf.Tensor, seed: tf.Tensor, bins: int, signed: bool, sample: int
) -> tf.Tensor:
    """Counts of the batch over bins that span ``2**exponent``, int64 [bins]."""
    total = tf.size(cells.flat, out_type=tf.int64)
    exact = total <= sample
    drawn = tf.constant(
        sample // 4, tf.int64
    )  # a drawn element costs several times one of the tail
    stride = tf.where(exact, tf.ones([], tf.int64), (total + drawn - 1) // drawn)
    tail, threshold = _tail(cells, tf.where(exact, tf.zeros([], tf.int64), sample - drawn))
    bulk = _bulk(cells, stride, threshold, seed)
    scale = _power_of_two(int(math.log2(binning.side_bins(bins, signed))) - exponent)
    # One pass over both: the tail's bins are numbered after the bulk's.
    index = tf.concat(
        [_bin(*bulk, scale, bins, signed), _bin(*tail, scale, bins, signed) + (bins + 1)], 0
    )
    counted = tf.raw_ops.DenseBincount(
        input=index, size=2 * (bins + 1), weights=tf.zeros([0], tf.int64), binary_output=False
    )
    bulk_counts, tail_counts = tf.unstack(tf.reshape(counted, [2, bins + 1]))
    return (bulk_counts * stride + tail_counts)[:bins]


def _tail(cells: Cells, room: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Elements above a threshold as ((values, which count), threshold); the threshold is the
    largest magnitude outside them.

    The values are those of the cells with the largest magnitudes, ``room`` elements together; none
    if room is 0.
    """
    run = cells.run
    amax = tf.maximum(cells.largest, -cells.smallest)  # -inf in padding
    if (
        run > 1
        # narrow cells are ranked in runs: sorting them one by one would take longer than all the
        # rest
    ):
        amax = tf.reduce_max(tf.reshape(_padded(amax, run), [-1, run]), 1)
    runs = tf.size(amax, out_type=tf.int64)
    wanted = tf.minimum(room // tf.maximum(cells.width * run, 1), runs)
    top = tf.math.top_k(amax, tf.cast(tf.minimum(wanted + 1, runs), tf.int32))
    threshold = tf.where(wanted < runs, tf.reduce_min(top.values), -1.0)
    threshold = tf.where(wanted > 0, threshold, np.inf)
    chosen = tf.cast(top.indices[:wanted], tf.int64)
    if run > 1:
        chosen = tf.reshape(chosen[:, tf.newaxis] * run + tf.range(run, dtype=tf.int64), [-1])
    inside = chosen < cells.cells
    chosen = tf.minimum(chosen, cells.cells - 1)
    values = cells.whole(chosen)
    counted = tf.abs(values) > threshold
    keep = inside if cells.valid is None else inside & tf.gather(cells.valid, chosen)
    return (tf.reshape(values, [-1]), tf.reshape(counted & keep[:, tf.newaxis], [-1])), threshold


def _padded(amax: tf.Tensor, run: int) -> tf.Tensor:
    """Pad ``amax`` with empty cells to a multiple of ``run``."""
    cells = amax.shape[0]
    if cells is not None and cells % run == 0:
        return amax
    return tf.pad(amax, [[0, -tf.size(amax) % run]], constant_values=-np.inf)


def _bulk(
    cells: Cells, stride: tf.Tensor, threshold: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Random sample outside of the tail: (values, which count).

    One random element of every ``stride`` elements, tail and padding excluded.
    """
    total = tf.size(cells.flat, out_type=tf.int64)
    first = tf.range(0, total, stride)
    position = first + tf.random.stateless_uniform(tf.shape(first), seed, 0, stride, tf.int64)
    values, valid = cells.elements(tf.minimum(position, total - 1))
    counted = (position < total) & (tf.abs(values) <= threshold)
    return values, counted if valid is None else counted & valid


def _bin(
    values: tf.Tensor, counted: tf.Tensor, scale: tf.Tensor, bins: int, signed: bool
) -> tf.Tensor:
    """Bin of each value, int32; ``bins``, one past the last, for values that do not count."""
    side = binning.side_bins(bins, signed)
    index = (
        tf.cast(tf.math.ceil(tf.clip_by_value(tf.abs(values) * scale, 1.0, float(side))), tf.int32)
        - 1
    )
    if signed:
        index = tf.where(values < 0, side - 1 - index, side + index)
    # NaN, whose index is arbitrary, never counts: it compares false with the threshold.
    return tf.where(counted, index, bins)


def _exponent(amax: tf.Tensor) -> tf.Tensor:
    """Compute `binning.exponent_of` in the graph, from the bits of the float; int64."""
    bits = tf.bitcast(amax, tf.int32)
    exponent = tf.bitwise.right_shift(bits, 23) - 127 + tf.cast(bits & 0x7FFFFF > 0, tf.int32)
    return tf.cast(tf.clip_by_value(exponent, binning.MIN_EXPONENT, binning.MAX_EXPONENT), tf.int64)


def _power_of_two(exponent: tf.Tensor) -> tf.Tensor:
    """Exact ``2**exponent``, float32, for -126 <= exponent <= 127."""
    return tf.bitcast(tf.bitwise.left_shift(tf.cast(exponent, tf.int32) + 127, 23), tf.float32)


def _coarsen(counts: tf.Tensor, doublings: tf.Tensor, signed: bool) -> tf.Tensor:
    """Apply `binning.coarsen` in the graph."""
    bins = counts.shape.num_elements()
    zero = bins // 2 if signed else 0
    offset = tf.range(bins) - zero
    target = tf.bitwise.right_shift(offset, tf.cast(tf.minimum(doublings, 31), tf.int32)) + zero
    return tf.math.unsorted_segment_sum(counts, target, bins)
