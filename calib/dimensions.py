"""Observer of the extremes of every embedding dimension of one tensor, in a TensorFlow graph and
constant memory.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from calib import sampling
from calib.errors import check_finite
from calib.statistics import Statistics
from calib.update import BATCHES, COUNT, NONFINITE, UPDATES, joined_counters

State = tuple[tf.Tensor, tf.Tensor]


class DimensionObserver:
    """Minimum and maximum of each index of a tensor's last axis over all calibration batches.

    Exact, whatever the order of the batches and whoever saw which of them (`join`).
    """

    def __init__(self, name: str, dimensions: int):
        """Create an empty observer.

        Args:
            name: address of what is observed; appears in every message.
            dimensions: size of the last axis.
        """
        self.name, self.dimensions = name, int(dimensions)
        with tf.init_scope():
            self._extremes = tf.Variable(
                self._initial_extremes(), trainable=False, name="dimension_extremes"
            )
            self._counters = tf.Variable(
                tf.constant([0, 0, 0, -1], tf.int64), trainable=False, name="dimension_counters"
            )

    def _initial_extremes(self) -> Any:
        return np.outer([np.inf, -np.inf], np.ones(self.dimensions)).astype(np.float32)

    @property
    def variables(self) -> list[tf.Variable]:
        return [self._extremes, self._counters]

    def update(
        self, x: tf.Tensor, valid: tf.Tensor | None = None, batch: tf.Tensor | None = None
    ) -> None:
        """Add one batch; call it while a `tf.function` is traced (or eagerly).

        A batch with NaN or Inf among its valid elements is noted (see `check`) and left out, one
        without any valid element changes nothing.

        Args:
            x: floating tensor [..., dimensions]; float16 and bfloat16 are converted to float32.
            valid: None, or bool/number tensor broadcastable to ``x`` whose last axis has size 1;
              rows where it is zero
                (padding) do not count.
            batch: integer scalar, the number of this batch among all, named by `check`; None: one
              after the last.

        Raises:
            TypeError: ``x`` is not floating.
            ValueError: ``x`` has another last axis, or ``valid`` does not fit it.
        """
        x, valid = sampling.checked(x, valid, self.name)
        if x.shape.rank is None or x.shape[-1:] != [self.dimensions]:
            raise ValueError(
                f"{self.name}: the last axis must have size {self.dimensions}, the tensor is"
                f" {x.shape}"
            )
        rows = None if valid is None else self._valid_rows(x, valid)
        extremes, counters = (variable.read_value() for variable in self.variables)
        number = counters[UPDATES] if batch is None else tf.cast(batch, tf.int64)
        state = _updated(tf.reshape(x, [-1, self.dimensions]), rows, extremes, counters, number)
        for variable, value in zip(self.variables, state, strict=True):
            variable.assign(value)

    def _valid_rows(self, x: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """Flattened mask of valid rows, bool [rows]."""
        if valid.shape[-1:] != [1]:
            raise ValueError(
                f"{self.name}: a mask of rows has a last axis of size 1, got {valid.shape}"
            )
        return tf.reshape(tf.broadcast_to(valid, tf.concat([tf.shape(x)[:-1], [1]], 0)), [-1])

    def tallies(self) -> tuple[np.ndarray, np.ndarray]:
        """State as arrays: (int64 counters, float32 [2, dimensions] extremes).

        What `join` makes up the whole from.
        """
        return self._counters.numpy(), self._extremes.numpy()

    def join(self, tallies: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Merge the states of observers that saw disjoint batches; the result is equal bit for bit
        to that of one observer.

        Args:
            tallies: of every such observer, this one among them; in any order.
        """
        counters = np.stack([counters for counters, _ in tallies])
        extremes = np.stack([extremes for _, extremes in tallies])
        self._counters.assign(joined_counters(counters))
        self._extremes.assign(np.stack([extremes[:, 0].min(0), extremes[:, 1].max(0)]))

    def check(self) -> None:
        """Raise NonFiniteError, naming site and batch, if a batch so far contained NaN or Inf."""
        check_finite(self.name, int(self._counters.numpy()[NONFINITE]))

    def statistics(self) -> Statistics:
        """Statistics of the batches so far, [dimensions]; raise NonFiniteError if a batch contained
        NaN or Inf.
        """
        self.check()
        (smallest, largest), counters = self._extremes.numpy(), self._counters.numpy()
        return Statistics(
            smallest, largest, count=int(counters[COUNT]), batches=int(counters[BATCHES])
        )


# Not inlined, as `calib.update.updated`.
@tf.function(autograph=False, experimental_attributes={"_noinline": True})
def _updated(
    x: tf.Tensor,
    rows: tf.Tensor | None,
    extremes: tf.Tensor,
    counters: tf.Tensor,
    number: tf.Tensor,
) -> State:
    """State after one more batch.

    Args:
        x: floating [rows, dimensions].
        rows: bool [rows], which of them count; None: all.
        extremes: float32 [2, dimensions].
        counters: int64 [4]: elements, batches, number of the next batch, first number with NaN or
          Inf (-1: none).
        number: int64 scalar, of this batch.
    """
    x = x if rows is None else tf.boolean_mask(x, rows)
    smallest, largest = (
        tf.cast(reduce(x, 0), tf.float32) for reduce in (tf.reduce_min, tf.reduce_max)
    )  # NaN spreads
    count = tf.size(x, out_type=tf.int64)
    sound = tf.reduce_all(tf.math.is_finite(smallest) & tf.math.is_finite(largest))
    use = sound & (count > 0)
    step, (elements, batches, _, nonfinite) = tf.cast(use, tf.int64), tf.unstack(counters)
    joined = tf.stack([tf.minimum(extremes[0], smallest), tf.maximum(extremes[1], largest)])
    counters = tf.stack(
        [
            elements + step * count,
            batches + step,
            number + 1,
            tf.where((count > 0) & ~sound & (nonfinite < 0), number, nonfinite),
        ]
    )
    return tf.where(use, joined, extremes), counters
