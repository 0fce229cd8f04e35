"""The search.

Which sites get another format, from measured trials of a network whose sites are behind switches.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Mapping, Sequence

from tqdm.auto import tqdm

from tfquant.mixed_precision.report import Try
from tfquant.sensitivity.groups import parameter_bits
from tfquant.sensitivity.measures import Reading
from tfquant.sensitivity.network import FLOAT, OWN, Trial
from tfquant.sensitivity.trials import Trials
from tfquant.site import Site

# Unit -> number of its format, from 1; units that are not in it have their own.
Levels = Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Unit:
    """Sites that have one format: one site, or those that share a common range.

    Attributes:
      name: address of the first.
      sites: all of them.
    """

    name: str
    sites: tuple[Site, ...]


class Unreachable(Exception):
    """The loss is above the limit whatever is chosen; the argument says of what."""


class Search:
    """See the module.

    Attributes:
      tries: what was measured, by what makes trials differ, in this order.
      orders: see `SearchReport`.

    Args:
      trials: of the network.
      units: what may have another format, in graph order.
      formats: that they may have.
      parameters: sites of all quantized parameters.
      max_loss: see `tfquant.mixed_precision`.
      progress: show a bar.
    """

    def __init__(
        self,
        trials: Trials,
        units: Sequence[Unit],
        formats: Sequence[str],
        parameters: Sequence[Site],
        max_loss: float,
        progress: bool,
    ):
        self._trials, self._formats, self._parameters, self._max_loss = (
            trials,
            formats,
            parameters,
            max_loss,
        )
        self._units = {unit.name: unit for unit in units}
        self._progress = progress
        self.tries: dict[str, Try] = {}
        self.orders: list[tuple[tuple[str, float], ...]] = []

    def fewest(self) -> dict[str, int]:
        """As few units as possible with the one format, the most sensitive first.

        Each of them is needed: without it alone the loss is too large.

        Raises:
          Unreachable: even with all of them the loss is too large.
        """
        if self._fits({}):
            return {}
        if not self._fits(dict.fromkeys(self._units, 1)):
            raise Unreachable(f"with all {len(self._units)} at {self._formats[0]}")
        base = self._trials.network.base(FLOAT)
        trials = {name: base | self._switched(name, OWN) for name in self._units}
        order = self._ordered(trials, base, most_first=True)
        count = _first(len(order), lambda count: self._fits(dict.fromkeys(order[:count], 1)))
        chosen = dict.fromkeys(order[:count], 1)
        for name in self._bar(
            order[: count - 1][::-1], "leaving out"
        ):  # the last is needed: bisection has tried without it
            without = {other: 1 for other in chosen if other != name}
            if self._fits(without):
                chosen = without
        return chosen

    def smallest(self) -> dict[str, int]:
        """As many units as possible with a format of fewer bits, the least sensitive first; those
        again with the next format.

        Raises:
          Unreachable: the loss is too large as it is.
        """
        if not self._fits({}):
            raise Unreachable("with no weight lowered")
        levels: dict[str, int] = {}
        left = list(self._units)
        for level in range(1, len(self._formats) + 1):
            base = self._state(levels)
            trials = {name: base | self._switched(name, OWN + level) for name in left}
            order = self._ordered(trials, base, most_first=False)
            levels, left = self._lowered(levels, order, level)
            if not left:
                break
        return levels

    def _lowered(
        self, levels: dict[str, int], order: list[str], level: int
    ) -> tuple[dict[str, int], list[str]]:
        """The levels with as many of `order` as possible at one more, and which these are."""

        def fits(count: int) -> bool:
            return self._fits(levels | dict.fromkeys(order[:count], level))

        count = (
            len(order)
            if fits(len(order))
            else _first(len(order), lambda count: not fits(count)) - 1
        )
        lowered = order[:count]
        for name in self._bar(
            order[count + 1 :], "lowering more"
        ):  # the next one does not fit: bisection has tried it
            if self._fits(levels | dict.fromkeys([*lowered, name], level)):
                lowered.append(name)
        return levels | dict.fromkeys(lowered, level), lowered

    def formats_of(self, levels: Levels) -> dict[str, str]:
        """Address -> format, of all sites of units that do not have their own."""
        return {
            site.address: self._formats[level - 1]
            for name, unit in self._units.items()
            if (level := levels.get(name, 0))
            for site in unit.sites
        }

    def entry(self, formats: Mapping[str, str], reading: Reading) -> Try:
        bits = sum(parameter_bits(site, formats.get(site.address)) for site in self._parameters)
        return Try(dict(formats), reading.value, self._trials.loss(reading), bits)

    def _ordered(
        self, states: Mapping[str, Mapping[str, int]], base: Mapping[str, int], most_first: bool
    ) -> list[str]:
        """Units by the loss that each has in its state."""
        readings = self._trials.each(
            base, [Trial(name, state) for name, state in states.items()], "sensitivity"
        )
        losses = {
            name: self._trials.loss(reading) for name, reading in zip(states, readings, strict=True)
        }
        order = sorted(losses, key=losses.__getitem__, reverse=most_first)
        self.orders.append(tuple((name, losses[name]) for name in order))
        return order

    def _fits(self, levels: Levels) -> bool:
        trial = Trial(f"try with {len(levels)} of {len(self._units)}", self._state(levels))
        if trial.key not in self.tries:
            self.tries[trial.key] = self.entry(self.formats_of(levels), self._trials.one(trial))
        return self.tries[trial.key].loss <= self._max_loss

    def _state(self, levels: Levels) -> dict[str, int]:
        state = self._trials.network.base(OWN)
        for name, level in levels.items():
            state |= self._switched(name, OWN + level)
        return state

    def _switched(self, name: str, number: int) -> dict[str, int]:
        return {site.address: number for site in self._units[name].sites}

    def _bar(self, names: Sequence[str], label: str) -> tqdm:
        return tqdm(names, label, unit="try", disable=not self._progress)


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """The least number in 1 ... count for which `holds`, which does for `count` and for all above
    one that does.
    """
    return 1 + bisect.bisect_left(range(1, count), True, key=holds)
