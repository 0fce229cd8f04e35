"""Equalization report by pair."""

from __future__ import annotations

import dataclasses

import numpy as np

from calib import tables


@dataclasses.dataclass(frozen=True, eq=False)
class PairResult:
    """Result of one pair.

    Attributes:
      name: `<kind>:<layer path>`.
      factors: float32 [channels]; activations and what makes them are divided by these, the weights
        that they meet multiplied.
      activation: max|x| of each channel before, [channels]; None where no data was looked at.
      divided, multiplied: max|w| of each channel before, of the weights on either side, float64
        [channels].
      difference: largest change of a float output, as a share of its spread; from what it was
        before this pair or before the first.
    """

    name: str
    factors: np.ndarray
    activation: np.ndarray | None
    divided: np.ndarray
    multiplied: np.ndarray
    difference: float


@dataclasses.dataclass(frozen=True, eq=False)
class EqualizationReport:
    """Report of `equalize`, for `print`.

    Attributes:
      pairs: what was rescaled, in the order that was done in.
      skipped: (name, reason) of what looked like a pair and is none.
      difference: largest change of a float output from first to last, as a share of its spread.
    """

    pairs: tuple[PairResult, ...]
    skipped: tuple[tuple[str, str], ...]
    difference: float

    @property
    def factors(self) -> dict[str, np.ndarray]:
        """Map name of a pair -> its factors, as `rescale` takes them."""
        return {pair.name: pair.factors for pair in self.pairs}

    def pair(self, name: str) -> PairResult:
        """Result of a pair.

        Raises:
          KeyError: it was not rescaled.
        """
        for result in self.pairs:
            if result.name == name:
                return result
        raise KeyError(
            f"{name} was not rescaled: {dict(self.skipped).get(name, 'there is no such pair')}"
        )

    def __str__(self) -> str:
        """Table of all pairs, with the spread of channels before and after, and of rejected
        candidates.
        """
        title = (
            f"{len(self.pairs)} pairs rescaled, outputs changed by {self.difference:.2g} of"
            " their spread"
        )
        names = (
            "pair",
            "channels",
            "factors",
            "activation widest / median",
            "divided",
            "multiplied",
            "difference",
        )
        rows = []
        for one in self.pairs:
            sides = (
                (one.activation, 1 / one.factors),
                (one.divided, 1 / one.factors),
                (one.multiplied, one.factors),
            )
            apart = [_apart(before, by) for before, by in sides]
            span = f"{one.factors.min():.3g} .. {one.factors.max():.3g}"
            rows.append((one.name, str(one.factors.size), span, *apart, f"{one.difference:.2g}"))
        grid = tables.build(title, names, rows, left=("pair",))
        skipped = (f"unchanged: {name}: {reason}" for name, reason in self.skipped)
        return "\n".join([tables.render(grid), *skipped])

    def _repr_html_(self) -> str:
        return tables.as_html(str(self))


def _apart(amax: np.ndarray | None, factors: np.ndarray) -> str:
    """Ratio of the widest channel to the median, before and after."""
    if amax is None:
        return "-"
    ratios = [
        float(values.max() / median) if (median := np.median(values)) else np.nan
        for values in (amax, amax * factors)
    ]
    return f"{ratios[0]:.3g} -> {ratios[1]:.3g}"
