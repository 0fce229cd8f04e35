"""Observer of the statistics of one tensor, in a TensorFlow graph and constant memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from calib import binning, sampling
from calib.errors import check_finite
from calib.statistics import DECAY, Histogram, Statistics
from calib.update import (
    BATCHES,
    COUNT,
    EXPONENT,
    NONFINITE,
    UPDATES,
    joined_counters,
    replayed,
    updated,
)


class Observer:
    """Statistics of one tensor over all calibration batches, kept in three non-trainable variables.

    Extremes are exact over all valid elements. The histogram of a tensor with at most ``sample``
    elements is exact too; of a larger one it is made of two parts. The cells (some dozen
    neighbours) with the largest magnitudes, three quarters of ``sample``, are counted in full, so
    every value larger than anything outside them (the tail that percentile methods cut) is counted
    exactly. All other values are counted by a random element of every stretch of n elements,
    weighted by n, so the counts estimate the true ones without bias and long batches weigh more
    than short ones. With the default, the 99.999th percentile of a batch of 16 windows of 384
    tokens is exact on every tensor of BERT, and the 99.99th on those up to the hidden size.

    Deterministic: the same seed and batches give the same statistics, also when the batches are
    numbered and shared out to several observers, which are joined afterwards (`join`). Memory does
    not grow with batches.
    """

    def __init__(
        self,
        name: str,
        *,
        signed: bool,
        bins: int = 2048,
        sample: int = 65536,
        decay: float = DECAY,
        seed: int,
    ):
        """Create an empty observer.

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
            raise ValueError(
                f"{name}: observer sample must be at least 1024 elements, got {sample}"
            )
        self.name, self.signed, self.sample, self.decay, self.seed = (
            name,
            bool(signed),
            int(sample),
            decay,
            int(seed),
        )
        self.bins = binning.check_bins(bins)
        with tf.init_scope():
            self._ranges = tf.Variable(
                self._initial_ranges(), trainable=False, name="observer_ranges"
            )
            self._counters = tf.Variable(
                self._initial_counters(), trainable=False, name="observer_counters"
            )
            self._counts = tf.Variable(
                tf.zeros([self.bins], tf.int64), trainable=False, name="observer_counts"
            )

    @staticmethod
    def _initial_ranges() -> Any:
        return np.array([np.inf, -np.inf, 0, 0], np.float32)

    @staticmethod
    def _initial_counters() -> Any:
        return np.array([0, 0, 0, -1, binning.MIN_EXPONENT], np.int64)

    @property
    def variables(self) -> list[tf.Variable]:
        return [self._ranges, self._counters, self._counts]

    @property
    def nbytes(self) -> int:
        """Size of the state in bytes."""
        return sum(
            variable.shape.num_elements() * variable.dtype.size for variable in self.variables
        )

    def update(
        self, x: tf.Tensor, valid: tf.Tensor | None = None, batch: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Add one batch; call it while a `tf.function` is traced (or eagerly).

        A batch with NaN or Inf among its valid elements is noted (see `check`) and left out, one
        without any valid element changes nothing.

        Args:
            x: floating tensor of any shape; float16 and bfloat16 are converted to float32.
            valid: None, or bool/number tensor broadcastable to ``x``; elements where it is zero
              (padding) do not count.
                Axes along which it does not vary should have static size 1: [B, S, 1], [B, 1, S,
                  S].
            batch: integer scalar, the number of this batch among all, which seeds its random sample
              and is named by `check`;
                None: one after the last. Numbers must grow.

        Returns:
            float32 [2], the batch's minimum and maximum, which `join` wants; NaN if it was left
            out.

        Raises:
            TypeError: ``x`` is not floating.
            ValueError: ``valid`` does not fit ``x``.
        """
        x, valid = sampling.checked(x, valid, self.name)
        ranges, counters, counts = (variable.read_value() for variable in self.variables)
        number = counters[UPDATES] if batch is None else tf.cast(batch, tf.int64)
        state, extremes = updated(
            x,
            valid,
            ranges,
            counters,
            counts,
            tf.stack([tf.constant(self.seed, tf.int64), number]),
            signed=self.signed,
            sample=self.sample,
            decay=self.decay,
        )
        for variable, value in zip(self.variables, state, strict=True):
            variable.assign(value)
        return extremes

    def tallies(self) -> tuple[np.ndarray, np.ndarray]:
        """State as arrays: (int64 counters, int64 [bins] counts).

        What, with the extremes of each batch, `join` makes up the whole from.
        """
        return self._counters.numpy(), self._counts.numpy()

    def join(self, tallies: Sequence[tuple[np.ndarray, np.ndarray]], extremes: np.ndarray) -> None:
        """Merge the states of observers that saw disjoint batches; the result is equal bit for bit
        to that of one observer.

        Args:
            tallies: of every such observer, this one among them, all made with the same arguments;
              in any order.
            extremes: float32 [batches, 2], what `update` returned for each batch of all the
              observers, in the order of the
                batches' numbers: moving averages depend on it.

        Raises:
            ValueError: the extremes are not of the batches that were counted, or the bins differ.
        """
        counters = np.stack([counters for counters, _ in tallies])
        extremes = np.asarray(extremes, np.float32).reshape(-1, 2)
        extremes = extremes[~np.isnan(extremes[:, 0])]
        if len(extremes) != counters[:, BATCHES].sum():
            raise ValueError(
                f"{self.name}: {counters[:, BATCHES].sum()} batches were counted, extremes are of"
                f" {len(extremes)}"
            )
        if any(counts.shape != (self.bins,) for _, counts in tallies):
            raise ValueError(f"{self.name}: cannot join observers of other than {self.bins} bins")
        joined = joined_counters(counters)
        exponent = joined[EXPONENT]
        decay: Any = np.float32(self.decay)
        self._ranges.assign(replayed(self._initial_ranges(), extremes, decay))
        self._counters.assign(joined)
        self._counts.assign(
            sum(binning.coarsen(n, int(exponent - c[EXPONENT]), self.signed) for c, n in tallies)
        )

    def check(self) -> None:
        """Raise NonFiniteError, naming site and batch, if a batch so far contained NaN or Inf."""
        check_finite(self.name, int(self._counters.numpy()[NONFINITE]))

    def statistics(self) -> Statistics:
        """Statistics of the batches so far; raise NonFiniteError if a batch had NaN or Inf."""
        self.check()
        return self.statistics_of([variable.numpy() for variable in self.variables])

    def statistics_of(self, state: Sequence[np.ndarray]) -> Statistics:
        """Statistics at the time when the `variables` had these values."""
        ranges, counters, counts = state
        seen = counters[BATCHES] > 0
        minimum, maximum, ema_minimum, ema_maximum = ranges
        return Statistics(
            minimum=minimum,
            maximum=maximum,
            count=int(counters[COUNT]),
            batches=int(counters[BATCHES]),
            histogram=Histogram(
                counts,
                binning.bin_width(int(counters[EXPONENT]), self.bins, self.signed),
                self.signed,
            ),
            ema_minimum=ema_minimum if seen else None,
            ema_maximum=ema_maximum if seen else None,
            ema_decay=self.decay,
        )

    def reset(self) -> None:
        """Forget all batches."""
        self._ranges.assign(self._initial_ranges())
        self._counters.assign(self._initial_counters())
        self._counts.assign(tf.zeros_like(self._counts))
