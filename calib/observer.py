"""Collects the statistics of one tensor inside a TensorFlow graph, in constant memory."""

import math

import numpy as np
import tensorflow as tf

from calib import binning, sampling
from calib.errors import NonFiniteError
from calib.statistics import Histogram, Statistics

# Rows of the two small state variables.
_MINIMUM, _MAXIMUM, _EMA_MINIMUM, _EMA_MAXIMUM = range(4)
_COUNT, _BATCHES, _UPDATES, _NONFINITE, _EXPONENT = range(5)


class Observer:
    """Statistics of one tensor over all calibration batches, kept in three non-trainable variables.

    Extremes are exact over all valid elements. The histogram of a tensor with at most ``sample`` elements is exact
    too; of a larger one it is made of two parts. The cells with the largest magnitudes, ``sample // 2`` elements, are
    counted in full, so every value larger than anything outside them (the tail that percentile methods cut) is counted
    exactly. All other values are counted by a random element of every stretch of n elements, weighted by n, so the
    counts estimate the true ones without bias and long batches weigh more than short ones.

    Deterministic: the same seed and batches give the same statistics. Memory does not grow with batches.
    """

    def __init__(
        self,
        name: str,
        *,
        signed: bool,
        bins: int = 2048,
        sample: int = 65536,
        decay: float = 0.99,
        seed: int,
    ):
        """Creates an empty observer.

        Args:
            name: address of the observed site; appears in every message.
            signed: keep both signs apart (for asymmetric formats), else the histogram is of |x|.
            bins: number of histogram bins, a power of two from 8 to 2**20.
            sample: most elements of one batch the histogram looks at, at least 1024.
            decay: of the moving averages of batch minimum and maximum, 0 <= decay < 1.
            seed: of the random sample; mixed with the batch number.

        Raises:
            ValueError: an argument is out of range.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"{name}: observer decay must be in [0, 1), got {decay}")
        if sample < 1024:
            raise ValueError(f"{name}: observer sample must be at least 1024 elements, got {sample}")
        self.name, self.signed, self.sample, self.decay, self.seed = name, bool(signed), int(sample), decay, int(seed)
        self.bins = binning.check_bins(bins)
        with tf.init_scope():
            self._ranges = tf.Variable(self._initial_ranges(), trainable=False, name="observer_ranges")
            self._counters = tf.Variable(self._initial_counters(), trainable=False, name="observer_counters")
            self._counts = tf.Variable(tf.zeros([self.bins], tf.int64), trainable=False, name="observer_counts")

    @staticmethod
    def _initial_ranges() -> np.ndarray:
        return np.array([np.inf, -np.inf, 0, 0], np.float32)

    @staticmethod
    def _initial_counters() -> np.ndarray:
        return np.array([0, 0, 0, -1, binning.MIN_EXPONENT], np.int64)

    @property
    def variables(self) -> list[tf.Variable]:
        return [self._ranges, self._counters, self._counts]

    @property
    def nbytes(self) -> int:
        """Bytes of state."""
        return sum(math.prod(variable.shape) * variable.dtype.size for variable in self.variables)

    def update(self, x: tf.Tensor, valid: tf.Tensor | None = None) -> None:
        """Counts one batch; to be called while a `tf.function` is traced (or eagerly).

        A batch with NaN or Inf among its valid elements is noted (see `check`) and left out, one without any valid
        element changes nothing.

        Args:
            x: floating tensor of any shape; float16 and bfloat16 are converted to float32.
            valid: None, or bool/number tensor broadcastable to ``x``; elements where it is zero (padding) do not count.
                Axes along which it does not vary should have static size 1: [B, S, 1], [B, 1, S, S].

        Raises:
            TypeError: ``x`` is not floating.
            ValueError: ``valid`` does not fit ``x``.
        """
        x = tf.convert_to_tensor(x)
        if not x.dtype.is_floating:
            raise TypeError(f"{self.name}: only floating tensors can be observed, got {x.dtype.name}")
        if valid is not None:
            valid = tf.convert_to_tensor(valid)
            valid = valid if valid.dtype == tf.bool else tf.not_equal(valid, tf.zeros([], valid.dtype))
        with tf.name_scope("observer"):
            cells = sampling.split(x, valid, self.name)
            count, smallest, largest = _extremes(cells)
            sound = tf.math.is_finite(smallest) & tf.math.is_finite(largest)
            use = sound & (count > 0)
            counters = tf.unstack(self._counters.read_value())
            exponent = tf.maximum(counters[_EXPONENT], _exponent(tf.maximum(-smallest, largest), use))
            added = self._histogram(cells, exponent, counters[_UPDATES])
            self._update_ranges(smallest, largest, counters[_BATCHES], use)
            self._counts.assign(
                _coarsen(self._counts.read_value(), exponent - counters[_EXPONENT], self.signed)
                + tf.where(use, added, tf.zeros([], tf.int64))
            )
            step = tf.cast(use, tf.int64)
            first_bad = ~sound & (counters[_NONFINITE] < 0) & (count > 0)
            self._counters.assign(
                tf.stack([
                    counters[_COUNT] + step * count,
                    counters[_BATCHES] + step,
                    counters[_UPDATES] + 1,
                    tf.where(first_bad, counters[_UPDATES], counters[_NONFINITE]),
                    exponent,
                ])
            )

    def _update_ranges(self, smallest: tf.Tensor, largest: tf.Tensor, batches: tf.Tensor, use: tf.Tensor) -> None:
        old = self._ranges.read_value()
        batch = tf.stack([smallest, largest])
        decay = tf.where(batches > 0, tf.constant(self.decay, tf.float32), 0.0)
        new = tf.stack([
            tf.minimum(old[_MINIMUM], smallest),
            tf.maximum(old[_MAXIMUM], largest),
            *tf.unstack(decay * old[_EMA_MINIMUM:] + (1 - decay) * batch),
        ])
        self._ranges.assign(tf.where(use, new, old))

    def _histogram(self, cells: sampling.Cells, exponent: tf.Tensor, update: tf.Tensor) -> tf.Tensor:
        """int64 [bins]: the batch's counts over bins that span ``2**exponent``."""
        total = cells.cells * cells.width
        whole = total <= self.sample
        stride = tf.where(whole, tf.ones([], tf.int64), -(-total // (self.sample // 2)))
        tail, threshold = self._tail(cells, whole)
        bulk = self._bulk(cells, stride, threshold, update)
        scale = _power_of_two(int(math.log2(binning.side_bins(self.bins, self.signed))) - exponent)
        # One pass over both: the tail's bins are numbered after the bulk's.
        index = tf.concat([self._bin(*bulk, scale), self._bin(*tail, scale) + self.bins + 1], 0)
        counts = tf.raw_ops.DenseBincount(
            input=index, size=2 * (self.bins + 1), weights=tf.zeros([0], tf.int64), binary_output=False
        )
        bulk_counts, tail_counts = tf.split(counts, 2)
        return (bulk_counts * stride + tail_counts)[: self.bins]

    def _tail(self, cells: sampling.Cells, whole: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], tf.Tensor]:
        """((values, which count), threshold): all elements above the threshold, which is the largest outside them."""
        amax = tf.maximum(cells.largest, -cells.smallest)
        if cells.valid is not None:
            amax = tf.where(cells.valid, amax, -1.0)
        room = tf.where(whole, tf.zeros([], tf.int64), self.sample // 2)
        wanted = tf.minimum(room // tf.maximum(cells.width, 1), cells.cells)
        top = tf.math.top_k(amax, tf.cast(tf.minimum(wanted + 1, cells.cells), tf.int32))
        threshold = tf.where(wanted < cells.cells, tf.reduce_min(top.values), -1.0)
        threshold = tf.where(wanted > 0, threshold, np.inf)
        values = cells.whole(tf.cast(top.indices[:wanted], tf.int64))
        counted = (tf.abs(values) > threshold) & (top.values[:wanted, tf.newaxis] >= 0)
        return (tf.reshape(values, [-1]), tf.reshape(counted, [-1])), threshold

    def _bulk(
        self, cells: sampling.Cells, stride: tf.Tensor, threshold: tf.Tensor, update: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """(values, which count): one random element of every ``stride`` elements, tail excluded."""
        total = cells.cells * cells.width
        first = tf.range(0, total, stride)
        seed = tf.stack([tf.cast(self.seed, tf.int64), update])
        position = first + tf.random.stateless_uniform(tf.shape(first), seed, 0, stride, tf.int64)
        inside = position < total
        values, valid = cells.elements(tf.minimum(position, total - 1))
        counted = inside & (tf.abs(values) <= threshold)
        return values, counted if valid is None else counted & valid

    def _bin(self, values: tf.Tensor, counted: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """int32 bin of each value; ``bins``, one past the last, for those that do not count."""
        side = binning.side_bins(self.bins, self.signed)
        index = tf.cast(tf.math.ceil(tf.clip_by_value(tf.abs(values) * scale, 1.0, float(side))), tf.int32) - 1
        if self.signed:
            index = tf.where(values < 0, side - 1 - index, side + index)
        # NaN never counts: it compares false with the threshold.
        return tf.where(counted, index, self.bins)

    def check(self) -> None:
        """Raises NonFiniteError, naming site and batch, if a batch so far held NaN or Inf."""
        batch = int(self._counters.numpy()[_NONFINITE])
        if batch >= 0:
            raise NonFiniteError(
                f"{self.name}: NaN or Inf in calibration batch {batch}; check this batch's inputs and the model's "
                "weights, or leave the batch out"
            )

    def statistics(self) -> Statistics:
        """What was collected so far; NonFiniteError if a batch held NaN or Inf."""
        self.check()
        ranges, counters, counts = (variable.numpy() for variable in self.variables)
        seen = counters[_BATCHES] > 0
        return Statistics(
            minimum=ranges[_MINIMUM],
            maximum=ranges[_MAXIMUM],
            count=int(counters[_COUNT]),
            batches=int(counters[_BATCHES]),
            histogram=Histogram(
                counts, binning.bin_width(int(counters[_EXPONENT]), self.bins, self.signed), self.signed
            ),
            ema_minimum=ranges[_EMA_MINIMUM] if seen else None,
            ema_maximum=ranges[_EMA_MAXIMUM] if seen else None,
        )

    def reset(self) -> None:
        """Forgets all batches."""
        self._ranges.assign(self._initial_ranges())
        self._counters.assign(self._initial_counters())
        self._counts.assign(tf.zeros_like(self._counts))


def _extremes(cells: sampling.Cells) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(valid elements, smallest, largest) of the batch; NaN spreads, no valid element gives (0, inf, -inf)."""
    if cells.valid is None:
        count, smallest, largest = cells.cells, cells.smallest, cells.largest
    else:
        count = tf.math.count_nonzero(cells.valid)
        smallest = tf.where(cells.valid, cells.smallest, np.inf)
        largest = tf.where(cells.valid, cells.largest, -np.inf)
    return count * cells.width, tf.reduce_min(smallest), tf.reduce_max(largest)


def _exponent(amax: tf.Tensor, use: tf.Tensor) -> tf.Tensor:
    """`binning.exponent_of` in the graph, from the bits of the float; int64."""
    bits = tf.bitcast(tf.where(use, amax, 0.0), tf.int32)
    exponent = tf.bitwise.right_shift(bits, 23) - 127 + tf.cast(bits & 0x7FFFFF > 0, tf.int32)
    return tf.cast(tf.clip_by_value(exponent, binning.MIN_EXPONENT, binning.MAX_EXPONENT), tf.int64)


def _power_of_two(exponent: tf.Tensor) -> tf.Tensor:
    """float32 ``2**exponent``, exact, for -126 <= exponent <= 127."""
    return tf.bitcast(tf.bitwise.left_shift(tf.cast(exponent, tf.int32) + 127, 23), tf.float32)


def _coarsen(counts: tf.Tensor, doublings: tf.Tensor, signed: bool) -> tf.Tensor:
    """`binning.coarsen` in the graph."""
    bins = counts.shape[0]
    zero = bins // 2 if signed else 0
    offset = tf.range(bins) - zero
    target = tf.bitwise.right_shift(offset, tf.cast(tf.minimum(doublings, 31), tf.int32)) + zero
    return tf.math.unsorted_segment_sum(counts, target, bins)
