"""Timing several ways to do one thing in turn, so that a machine whose speed drifts slows all of
them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from tqdm.auto import tqdm


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 10,
    warm_up: int = 2,
    label: str = "timing",
) -> dict[str, list[float]]:
    """Seconds of each call, for each contender; one call of each in every round.

    Args:
      contenders: name -> what to time.
      rounds: counted calls of each.
      warm_up: calls before, not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in tqdm(range(warm_up + rounds), label, unit="round", leave=False):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, reference: str) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[reference], strict=True))


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values), 5) for name, values in seconds.items()}
