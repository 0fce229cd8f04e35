"""Propagation of an exception on one rank to all ranks, so that no collective deadlocks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from calib import errors
from tfquant.distributed.group import DivergedError, Group
from tfquant.error_messages import one_line, shown

# Raised as what they are on the other ranks too: their messages say all there is to say.
_KNOWN = (
    ValueError,
    TypeError,
    errors.CalibrationError,
    errors.NonFiniteError,
    errors.EmptyStatisticsError,
    errors.MissingHistogramError,
)


class OtherRankError(RuntimeError):
    """Another process of the group failed; the message has its number and error."""


def agree(group: Group, values: Mapping[str, Any], what: str) -> None:
    """Makes sure that all ranks were started alike, before a difference makes them wait for each
    other for ever.

    Args:
      group: the ranks; each must call this, with the same `what`.
      values: name -> value of JSON that must be the same everywhere: flags, digests of data, the
        hash of a recipe.
      what: they are called in messages, such as `flags`.

    Raises:
      DivergedError: on every rank; names what differs, and how.
    """
    if group.size == 1:
        return
    result = []
    for rank, data in enumerate(
        group.gather(json.dumps({"agree": what, "values": dict(values)}, default=str).encode())
    ):
        try:
            entry = json.loads(data)
            if entry["agree"] != what:
                raise ValueError(f"compares {shown(entry['agree'])}")
            result.append(entry["values"])
        except (ValueError, TypeError, KeyError) as error:
            raise DivergedError(
                f"rank {rank} is not where rank {group.rank} is, at the comparison of {what}: start"
                f" all of them with the same command ({one_line(error, 100)})"
            ) from None
    names = dict.fromkeys(name for entry in result for name in entry)
    differing = [
        name for name in names if any(entry.get(name) != result[0].get(name) for entry in result)
    ]
    if differing:
        listed = []
        for name in differing[:5]:
            other = next(
                rank for rank, entry in enumerate(result) if entry.get(name) != result[0].get(name)
            )
            listed.append(
                f"{name} is {shown(result[0].get(name), 60)} on rank 0 and"
                f" {shown(result[other].get(name), 60)} on {other}"
            )
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise DivergedError(
            f"the ranks were started with different {what}: {'; '.join(listed)}{more}. Give all of"
            " them the same"
        )


def shard_by_cost(costs: Sequence[float], size: int) -> list[int]:
    """Which of `size` ranks does each piece of work, so that all have about as much: the dearest
    first, to whoever has least.

    Depends on its arguments alone: every rank finds the same.
    """
    loads, owners = np.zeros(size), [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owners[index] = int(np.argmin(loads))
        loads[owners[index]] += costs[index]
    return owners


@contextlib.contextmanager
def together(group: Group, place: Callable[[], tuple[int, str]]) -> Iterator[None]:
    """What every rank of `group` does inside is done by all of them, or an error is raised on all
    of them.

    Args:
      group: the ranks; each must enter this.
      place: how far this rank has come, as (number, name); asked after an error. Of several ranks'
        errors that of the lowest number is raised: the one that a process alone would have met
        first.

    Raises:
      Exception: what was raised on this rank, or on another: OtherRankError unless the kind is
        known here.
    """
    failure = None
    try:
        yield
    except Exception as error:  # whatever it is, the other ranks wait for this one
        if group.size == 1:
            raise
        failure = error
    if group.size == 1:
        return
    own = None
    if failure is not None:
        number, name = place()
        own = {"number": number, "name": name, "kind": type(failure).__name__, "text": str(failure)}
    gathered = [json.loads(data) for data in group.gather(json.dumps(own).encode())]
    failed = [rank for rank, entry in enumerate(gathered) if entry is not None]
    if not failed:
        return
    first = min(failed, key=lambda rank: gathered[rank]["number"])
    if failure is not None and first == group.rank:
        raise failure
    kind, text = gathered[first]["kind"], gathered[first]["text"]
    known = {c.__name__: c for c in _KNOWN}
    if kind in known:
        raise known[kind](text)
    raise OtherRankError(
        f"rank {first} failed at {gathered[first]['name']}: {kind}: {' '.join(text.split())}"
    )
