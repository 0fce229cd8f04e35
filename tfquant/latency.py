"""Latency measurement of exported files.

Files take turns on the same inputs, so that drift of the machine's speed affects all alike.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Mapping, Sequence

import numpy as np

from tfquant.host_memory import check_fits
from tfquant.runtimes.session import Input, Session

WARM_UP = 3
FEWEST = 10  # calls of each file, however long they take
# A turn: calls one after another, behind one that is not timed; more where they are short.
TURN, TURN_S, LONGEST_TURN = 5, 0.05, 200
# Before each turn: idle threads of a runtime go on spinning for a while, at the cost of who comes
# next.
PAUSE_S = 0.1


@dataclasses.dataclass(frozen=True)
class Measured:
    """Latency statistics of one exported file.

    Attributes:
      p50, p95, p99: percentiles of the milliseconds of a call.
      rows_per_second: over all calls.
      calls: how many were timed.
    """

    p50: float
    p95: float
    p99: float
    rows_per_second: float
    calls: int

    def figures(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Workload:
    """Inputs of the timed calls.

    Attributes:
      feeds: inputs of a call by name.
      batch: rows of each.
    """

    feeds: Sequence[Mapping[str, np.ndarray]]
    batch: int

    @classmethod
    def of(
        cls,
        inputs: Sequence[Input],
        batch: int,
        length: int | str,
        rows: Mapping[str, np.ndarray] | None = None,
    ) -> Workload:
        """Inputs for calls with a fixed number of examples each.

        Args:
          inputs: of the files.
          batch: rows of a call.
          length: of every open axis beside the rows: rows are cut off or padded with zeros; `real`
            makes a call as long as its longest row, as the input whose name has `mask` in it says.
          rows: data by input name; without it inputs are zeros, and ones where the name has `mask`
            in it.

        Raises:
          ValueError: `rows` lacks an input or has too few rows, `real` finds no mask, or inputs do
            not fit into memory.
        """
        open_size = 1 if length == "real" else int(length)
        sizes = [
            [batch, *(open_size if size is None else size for size in entry.shape[1:])]
            for entry in inputs
        ]
        needed = sum(
            math.prod(size) * entry.dtype.itemsize
            for size, entry in zip(sizes, inputs, strict=True)
        )
        check_fits(needed, f"inputs of {batch} rows of length {length}")
        if rows is None:
            return cls(
                [{entry.name: _constant(entry, batch, int(length)) for entry in inputs}], batch
            )
        missing = [entry.name for entry in inputs if entry.name not in rows]
        if missing:
            raise ValueError(
                f"the data has no input {missing[0]!r}; the file takes"
                f" {', '.join(entry.name for entry in inputs)}"
            )
        count = len(rows[inputs[0].name])
        if count < batch:
            raise ValueError(f"the data has {count} rows, fewer than a batch of {batch}")
        mask = next((rows[entry.name] for entry in inputs if "mask" in entry.name), None)
        if length == "real" and mask is None:
            raise ValueError("real lengths need an input with `mask` in its name")
        feeds = []
        for start in range(0, count - batch + 1, batch):
            chosen = slice(start, start + batch)
            if length == "real" and mask is not None:
                size = max(1, int(mask[chosen].sum(-1).max()))
            else:
                size = int(length)
            feeds.append(
                {entry.name: _sized(rows[entry.name][chosen], entry, size) for entry in inputs}
            )
        return cls(feeds, batch)


def measure(
    sessions: Mapping[str, Session], workload: Workload, seconds: float
) -> dict[str, Measured]:
    """Time every file for about `seconds`, pauses included, alternating between files every few
    calls.
    """
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    feeds = itertools.cycle(workload.feeds)
    slowest = 0.0
    for feed in itertools.islice(feeds, WARM_UP):
        slowest = max([_seconds(session, feed) for session in sessions.values()])
    turn = min(max(TURN, math.ceil(TURN_S / slowest)), LONGEST_TURN)
    began = time.perf_counter()
    while len(min(taken.values(), key=len)) < FEWEST or time.perf_counter() - began < seconds * len(
        sessions
    ):
        untimed, *timed = itertools.islice(feeds, 1 + turn)
        for name, session in sessions.items():
            time.sleep(PAUSE_S)
            session(untimed)
            taken[name] += [_seconds(session, feed) for feed in timed]
    return {name: _measured(times, workload.batch) for name, times in taken.items()}


def _seconds(session: Session, feed: Mapping[str, np.ndarray]) -> float:
    start = time.perf_counter()
    session(feed)
    return time.perf_counter() - start


def _measured(times: list[float], batch: int) -> Measured:
    p50, p95, p99 = (1000.0 * value for value in np.percentile(times, (50, 95, 99)))
    return Measured(p50, p95, p99, batch * len(times) / sum(times), len(times))


def _constant(entry: Input, batch: int, length: int) -> np.ndarray:
    sizes = [batch, *(length if size is None else size for size in entry.shape[1:])]
    return np.full(sizes, "mask" in entry.name, entry.dtype)


def _sized(rows: np.ndarray, entry: Input, length: int) -> np.ndarray:
    """Crop or pad examples along the open axes."""
    for axis, size in enumerate(entry.shape):
        if axis and size is None and axis < rows.ndim:
            rows = rows.take(range(min(length, rows.shape[axis])), axis)
            rows = np.pad(
                rows,
                [
                    (0, length - rows.shape[axis] if other == axis else 0)
                    for other in range(rows.ndim)
                ],
            )
    return rows
