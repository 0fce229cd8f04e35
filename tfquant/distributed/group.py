"""Training in several processes: gradients averaged, variables started alike and checked to have
stayed alike.

Horovod's own Keras layer is not used: with Keras 3 it runs without an error and never reduces a
gradient. Its plain operations work inside a `tf.function` that is not compiled by XLA.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import os
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant.choices import COMPRESSIONS
from tfquant.distributed import watchdog
from tfquant.error_messages import one_line
from tfquant.variables import resource

# How often Horovod's ranks ask each other what is ready. Its own 1 ms is for GPUs: on CPUs MPI
# waits by spinning and takes a fourth of the cores from the computation (measured: 2.8 instead of
# 3.7 examples/s of the 6-layer model in 2 processes).
CYCLE_MILLISECONDS = "50"
Gradient = tf.Tensor | tf.IndexedSlices


class DivergedError(RuntimeError):
    """The processes of one run do not hold the same weights any more, or were not started alike."""


class Group(abc.ABC):
    """The processes that work on one thing together.

    Attributes:
      rank: number of this process, from 0.
      size: how many there are.
      local_rank: number of this process on its machine, from 0.
    """

    rank, size, local_rank = 0, 1, 0

    @abc.abstractmethod
    def average(self, tensors: Sequence[Gradient]) -> list[Gradient]:
        """The mean of each tensor over the ranks; in a `tf.function`, on all ranks in the same
        order.

        Sparse ones may come back sparse: the slices of every rank, divided by the number of ranks.
        """

    @abc.abstractmethod
    def extremes(self, lowest: tf.Tensor, highest: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The smallest of the one and the largest of the other over the ranks, element by element;
        of one shape, float32.
        """

    @abc.abstractmethod
    def broadcast(self, variables: Sequence[Any]) -> None:
        """Gives every rank the values of rank 0."""

    @abc.abstractmethod
    def gather(self, data: bytes) -> list[bytes]:
        """What every rank gave, by rank."""

    @contextlib.contextmanager
    def waiting(self, where: str) -> Iterator[None]:
        """To be entered around what waits for the other ranks inside of a graph, such as a step of
        training.

        Args:
          where: for the line with which the process ends if a rank is frozen, such as `step 100`.
        """
        yield

    def check_equal(self, named: Mapping[str, Any], when: str) -> None:
        """Compares checksums of variables over the ranks.

        Args:
          named: name -> variable, the same names on every rank.
          when: for the message, such as `at step 100`.

        Raises:
          DivergedError: names the first variable that differs.
        """
        own = np.array(
            [zlib.crc32(np.ascontiguousarray(_numpy(v)).tobytes()) for v in named.values()],
            np.uint32,
        )
        sums = [np.frombuffer(data, np.uint32) for data in self.gather(own.tobytes())]
        if any(len(other) != len(own) for other in sums):
            counts = sorted({len(s) for s in sums})
            raise DivergedError(
                f"{when} the ranks hold {counts} variables: start all of them with the same flags"
            )
        differ = np.flatnonzero([len(set(column)) > 1 for column in zip(*sums, strict=True)])
        if differ.size:
            raise DivergedError(
                f"{when} the ranks hold different weights: {list(named)[differ[0]]} and"
                f" {differ.size - 1} more of {len(own)}. Their gradients were not averaged, or they"
                " started differently; the last checkpoint is from before and is kept"
            )


class Single(Group):
    """One process alone."""

    def average(self, tensors: Sequence[Gradient]) -> list[Gradient]:
        return list(tensors)

    def extremes(self, lowest: tf.Tensor, highest: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return lowest, highest

    def broadcast(self, variables: Sequence[Any]) -> None:
        pass

    def gather(self, data: bytes) -> list[bytes]:
        return [data]


class Horovod(Group):
    """The processes that mpirun or horovodrun started.

    Args:
      compression: `none`, or `fp16` to halve what is sent of dense tensors.
      sparse_as_dense: sparse gradients are made dense first, which sends less where most rows of a
        table occur.
      timeout: seconds that a rank waits for the others in one place before it ends the process with
        a line; 0 for ever.

    Raises:
      ModuleNotFoundError: Horovod is not installed, or cannot be loaded.
      ValueError: another compression.
    """

    def __init__(
        self,
        compression: str = "none",
        sparse_as_dense: bool = False,
        timeout: float = watchdog.TIMEOUT,
    ):
        try:
            import horovod.tensorflow as hvd  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            missing = (
                isinstance(error, ModuleNotFoundError)
                and (error.name or "").partition(".")[0] == "horovod"
            )
            raise ModuleNotFoundError(
                f"Horovod {'is not installed' if missing else 'is installed but cannot be loaded'}"
                f" ({error}): `make env` builds it into .venv, scripts/build_horovod.sh PYTHON into"
                " another environment; or leave --horovod out to run one process"
            ) from error
        if compression not in COMPRESSIONS:
            raise ValueError(
                f"unknown compression {compression!r}; known: {', '.join(COMPRESSIONS)}"
            )
        if not tf.config.list_physical_devices("GPU"):
            os.environ.setdefault("HOROVOD_CYCLE_TIME", CYCLE_MILLISECONDS)
        self._identities: list[str] = []
        self._watchdog = watchdog.Watchdog(timeout, 0.0, self._overdue)
        with self.waiting("the start"):
            hvd.init()
        self._hvd, self._compression = hvd, getattr(hvd.Compression, compression)
        self._sparse_as_dense = sparse_as_dense
        self.rank, self.size, self.local_rank = hvd.rank(), hvd.size(), hvd.local_rank()
        # The lowest rank that can speak does so, and the launcher ends the others.
        self._watchdog = watchdog.Watchdog(timeout, min(2.0 * self.rank, 30.0), self._overdue)
        _keep_one_gpu(self.local_rank)

    def waiting(self, where: str) -> contextlib.AbstractContextManager[None]:
        return self._watchdog.waiting(where)

    def _overdue(self, where: str, seconds: float) -> str:
        result = (
            watchdog.silent(self._identities, self.rank)
            or "one of them is frozen, or was started for something else"
        )
        return (
            f"rank {self.rank} of {self.size} has waited for the others for {seconds:g} s at"
            f" {where}: {result}. Start all of them again; training resumes from its last"
            " checkpoint. The time-out is --rank_timeout"
        )

    def average(self, tensors: Sequence[Gradient]) -> list[Gradient]:
        if self.size == 1:
            return list(tensors)
        hvd = self._hvd
        sent = [_wide(tf.convert_to_tensor(t) if self._sparse_as_dense else t) for t in tensors]
        # One call for all dense ones: Horovod sends them together.
        dense = [t for t in sent if not isinstance(t, tf.IndexedSlices)]
        means = iter(
            hvd.grouped_allreduce(dense, op=hvd.Average, compression=self._compression)
            if dense
            else []
        )
        mean = [
            hvd.allreduce(t, op=hvd.Average) if isinstance(t, tf.IndexedSlices) else next(means)
            for t in sent
        ]
        return [_cast(new, old.dtype) for new, old in zip(mean, tensors, strict=True)]

    def extremes(self, lowest: tf.Tensor, highest: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if self.size == 1:
            return lowest, highest
        # One exchange for both: the smallest is the largest of the negated.
        lowest, highest = tf.unstack(
            self._hvd.allreduce(tf.stack([-lowest, highest]), op=self._hvd.Max)
        )
        return -lowest, highest

    def broadcast(self, variables: Sequence[Any]) -> None:
        with self.waiting("the start of training"):
            _check_alike(self, variables)
            self._hvd.broadcast_variables([resource(v) for v in variables], 0)

    def gather(self, data: bytes) -> list[bytes]:
        with self.waiting("an exchange"):
            if not self._identities:
                self._identities = [
                    text.decode() for text in self._gather(watchdog.identity().encode())
                ]
            return self._gather(data)

    def _gather(self, data: bytes) -> list[bytes]:
        sizes = self._hvd.allgather(
            tf.constant([len(data)], tf.int64), name="tfquant.gather.sizes"
        ).numpy()
        joined = self._hvd.allgather(
            tf.constant(np.frombuffer(data, np.uint8)), name="tfquant.gather.data"
        )
        joined = joined.numpy().tobytes()
        ends = np.cumsum(sizes)
        return [joined[end - size : end] for end, size in zip(ends, sizes, strict=True)]


class _Fake(Group):
    """One thread of several that stand for processes; eager."""

    def __init__(self, rank: int, slots: list[Any], barrier: threading.Barrier):
        self.rank = self.local_rank = rank
        self.size = len(slots)
        self._slots, self._barrier = slots, barrier

    def average(self, tensors: Sequence[Gradient]) -> list[Gradient]:
        return [_mean(one) for one in zip(*self._exchange(list(tensors)), strict=True)]

    def extremes(self, lowest: tf.Tensor, highest: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        lows, highs = zip(*self._exchange((lowest, highest)), strict=True)
        return tf.reduce_min(tf.stack(lows), 0), tf.reduce_max(tf.stack(highs), 0)

    def broadcast(self, variables: Sequence[Any]) -> None:
        _check_alike(self, variables)
        first = self._exchange([_numpy(v) for v in variables])[0]
        for variable, value in zip(variables, first, strict=True):
            variable.assign(value)

    def gather(self, data: bytes) -> list[bytes]:
        return self._exchange(data)

    def _exchange(self, value: Any) -> list[Any]:
        if not tf.executing_eagerly():
            raise RuntimeError(
                "groups of fake_groups work eagerly: call them outside of tf.function, or use"
                " Horovod"
            )
        self._slots[self.rank] = value
        try:
            self._barrier.wait()
            values = list(self._slots)
            self._barrier.wait()  # nobody writes its next value before all have read this one
        except threading.BrokenBarrierError as error:
            raise RuntimeError(
                f"rank {self.rank} of {self.size} waited for another that failed or made fewer"
                " calls"
            ) from error
        return values


def timed_average(group: Group, tensors: Sequence[Gradient]) -> tuple[list[Gradient], tf.Tensor]:
    """`group.average`, and the seconds from when this rank has all tensors to when it has all
    means: float64 scalar.

    To be called in a `tf.function`. Waiting for the slowest rank is part of the time.
    """
    with tf.control_dependencies(tf.nest.flatten(list(tensors), expand_composites=True)):
        before = tf.timestamp()
    with tf.control_dependencies([before]):
        means = group.average([tf.identity(t) for t in tensors])
    with tf.control_dependencies(tf.nest.flatten(list(means), expand_composites=True)):
        return means, tf.timestamp() - before


def fake_groups(n: int, timeout: float = 60.0) -> list[Group]:
    """Groups for `n` threads of one process, one each: what several ranks do, without starting any.

    Args:
      n: number of ranks.
      timeout: seconds that a rank waits for the others before it raises RuntimeError.
    """
    slots, barrier = [None] * n, threading.Barrier(n, timeout=timeout)
    return [_Fake(rank, slots, barrier) for rank in range(n)]


def start(
    horovod: bool,
    compression: str = "none",
    sparse_as_dense: bool = False,
    timeout: float = watchdog.TIMEOUT,
) -> Group:
    """The group this process belongs to; with Horovod each process keeps the GPU of its local rank.

    Args:
      horovod: whether there are others, see `Horovod`; without it `Single`.
      compression, sparse_as_dense, timeout: see `Horovod`.

    Call it before anything uses a GPU: TensorFlow fixes what is visible then.

    Raises:
      ModuleNotFoundError: Horovod is asked for and not installed.
      ValueError: unknown compression.
    """
    return Horovod(compression, sparse_as_dense, timeout) if horovod else Single()


def launched() -> int:
    """How many processes the launcher (Open MPI, MPICH, horovodrun) started together with this one;
    1 without a launcher.
    """
    sizes = (
        os.environ.get(name, "") for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "HOROVOD_SIZE")
    )
    return max((int(size) for size in sizes if size.isdigit()), default=1)


def structure_of(variables: Sequence[Any]) -> str:
    """How many variables there are, and a hash of their shapes and types in their order, as text to
    compare.

    Without names: Keras numbers layers by how many a process has made before.
    """
    text = "\n".join(f"{list(v.shape)} {v.dtype}" for v in variables)
    return f"{len(variables)} variables, {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _check_alike(group: Group, variables: Sequence[Any]) -> None:
    """Raises DivergedError, on every rank, if the variables of the ranks differ in number, shape or
    type.

    Horovod waits for ever for what one of them does not have.
    """
    if group.size == 1:
        return
    result = [
        text.decode(errors="replace") for text in group.gather(structure_of(variables).encode())
    ]
    if len(set(result)) > 1:
        other = next(rank for rank, text in enumerate(result) if text != result[0])
        raise DivergedError(
            f"the ranks have different networks: rank 0 has {one_line(result[0], 100)}, rank"
            f" {other} {one_line(result[other], 100)}; start all of them with the same flags and"
            " files"
        )


def _keep_one_gpu(local_rank: int) -> None:
    """Hides all GPUs but one; where there are fewer than processes some share one, and none takes
    all of its memory.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        own = gpus[local_rank % len(gpus)]
        tf.config.set_visible_devices(own, "GPU")
        tf.config.experimental.set_memory_growth(own, True)


def _wide(tensor: Gradient) -> Gradient:
    # Horovod cannot add bfloat16 up on a CPU.
    return _cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor


def _cast(tensor: Gradient, dtype: tf.DType) -> Gradient:
    if isinstance(tensor, tf.IndexedSlices):
        return tf.IndexedSlices(tf.cast(tensor.values, dtype), tensor.indices, tensor.dense_shape)
    return tf.cast(tensor, dtype)


def _mean(tensors: Sequence[Gradient]) -> Gradient:
    first = tensors[0]
    if isinstance(first, tf.IndexedSlices):
        values = tf.concat([_wide(t).values for t in tensors], 0) / len(tensors)
        joined = tf.IndexedSlices(
            values, tf.concat([t.indices for t in tensors], 0), first.dense_shape
        )
        return _cast(joined, first.dtype)
    return tf.cast(tf.add_n([_wide(t) for t in tensors]) / len(tensors), first.dtype)


def _numpy(variable: Any) -> np.ndarray:
    return variable.numpy() if hasattr(variable, "numpy") else np.asarray(variable)
