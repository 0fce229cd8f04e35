"""Training in several processes: gradients averaged, variables started alike and checked to have stayed alike.

Horovod's own Keras layer is not used: with Keras 3 it runs without an error and never reduces a gradient. Its plain operations work
inside a `tf.function` that is not compiled by XLA.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


class DivergedError(RuntimeError):
    """The processes of one run do not hold the same weights any more."""


class Single:
    """One process alone; also what every group of processes offers.

    Attributes:
      rank: number of this process, from 0.
      size: how many there are.
    """

    rank, size = 0, 1

    def average(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The mean of each tensor over the ranks; in a `tf.function`, on all ranks in the same order."""
        return list(tensors)

    def broadcast(self, variables: Sequence[Any]) -> None:
        """Gives every rank the values of rank 0."""

    def gather(self, data: bytes) -> list[bytes]:
        """What every rank gave, by rank."""
        return [data]

    def check_equal(self, named: Mapping[str, Any], when: str) -> None:
        """Compares checksums of variables over the ranks.

        Args:
          named: name -> variable, the same names on every rank.
          when: for the message, such as `at step 100`.

        Raises:
          DivergedError: names the first variable that differs.
        """
        own = np.array([zlib.crc32(np.ascontiguousarray(_numpy(v)).tobytes()) for v in named.values()], np.uint32)
        sums = [np.frombuffer(data, np.uint32) for data in self.gather(own.tobytes())]
        if any(len(other) != len(own) for other in sums):
            counts = sorted({len(s) for s in sums})
            raise DivergedError(f"{when} the ranks hold {counts} variables: start all of them with the same flags")
        differ = np.flatnonzero([len(set(column)) > 1 for column in zip(*sums, strict=True)])
        if differ.size:
            raise DivergedError(
                f"{when} the ranks hold different weights: {list(named)[differ[0]]} and {differ.size - 1} more of {len(own)}. "
                "Their gradients were not averaged, or they started differently; the last checkpoint is from before and is kept"
            )


class Horovod(Single):
    """The processes that mpirun or horovodrun started.

    Args:
      compression: `none`, or `fp16` to halve what is sent.

    Raises:
      ModuleNotFoundError: Horovod is not installed.
      ValueError: another compression.
    """

    def __init__(self, compression: str = "none"):
        try:
            import horovod.tensorflow as hvd
        except ImportError as error:
            raise ModuleNotFoundError(
                f"Horovod is not installed ({error}): `make env` builds it into .venv, scripts/build_horovod.sh PYTHON into "
                "another environment; or leave --horovod out to run one process"
            ) from error
        if compression not in ("none", "fp16"):
            raise ValueError(f"unknown compression {compression!r}; known: none, fp16")
        hvd.init()
        self._hvd, self._compression = hvd, getattr(hvd.Compression, compression)
        self.rank, self.size = hvd.rank(), hvd.size()
        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            tf.config.set_visible_devices(gpus[hvd.local_rank() % len(gpus)], "GPU")

    def average(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        if self.size == 1 or not tensors:
            return list(tensors)
        # Horovod cannot add bfloat16 up on a CPU.
        wide = [tf.cast(t, tf.float32) if t.dtype == tf.bfloat16 else t for t in tensors]
        mean = self._hvd.grouped_allreduce(wide, op=self._hvd.Average, compression=self._compression)
        return [tf.cast(new, old.dtype) for new, old in zip(mean, tensors, strict=True)]

    def broadcast(self, variables: Sequence[Any]) -> None:
        self._hvd.broadcast_variables([v if isinstance(v, tf.Variable) else v.value for v in variables], 0)

    def gather(self, data: bytes) -> list[bytes]:
        sizes = self._hvd.allgather(tf.constant([len(data)], tf.int64), name="tfquant.gather.sizes").numpy()
        joined = self._hvd.allgather(tf.constant(np.frombuffer(data, np.uint8)), name="tfquant.gather.data")
        joined = joined.numpy().tobytes()
        ends = np.cumsum(sizes)
        return [joined[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _numpy(variable: Any) -> np.ndarray:
    return variable.numpy() if hasattr(variable, "numpy") else np.asarray(variable)
