"""Groups of embedding dimensions that share a range."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from calib.errors import EmptyStatisticsError
from calib.statistics import Statistics


@dataclass(frozen=True, eq=False)
class Grouping:
    """Assignment of the dimensions of a site to groups of equal size.

    Attributes:
        groups: K, how many there are.
        order: address of what the dimensions are sorted by, from the narrowest range to the widest;
          empty: they are not.
        group_of: int32 [dimensions], the group of each.
    """

    groups: int
    order: str
    group_of: np.ndarray

    def __post_init__(self):
        group_of = np.asarray(self.group_of, np.int32)
        sizes = (
            np.bincount(group_of, minlength=self.groups)
            if group_of.size and group_of.min() >= 0
            else ()
        )
        if group_of.ndim != 1 or len(sizes) != self.groups or len(set(sizes)) != 1:
            raise ValueError(
                f"group_of must assign its dimensions to {self.groups} groups of equal size"
            )
        object.__setattr__(self, "group_of", group_of)

    @classmethod
    def of(
        cls, groups: int, dimensions: int, order: str = "", statistics: Statistics | None = None
    ) -> "Grouping":
        """Group adjacent dimensions, after sorting them by range if there is an ``order``.

        Bondarenko et al. 2021, arXiv:2109.12948, section 4.2.

        Args:
            groups: K, a divisor of ``dimensions``.
            dimensions: how many there are.
            order: address of what they are sorted by; empty: they keep their order.
            statistics: of each dimension of ``order``; equal ranges keep their order.

        Raises:
            ValueError: ``groups`` is no divisor, or the statistics are of another number of
              dimensions.
            EmptyStatisticsError: nothing was seen at ``order``.
        """
        if groups < 1 or dimensions % groups:
            raise ValueError(
                f"{dimensions} dimensions cannot be divided into {groups} groups of equal size"
            )
        group_of = np.arange(dimensions, dtype=np.int32) // (dimensions // groups)
        if order:
            if statistics is None or statistics.minimum.shape != (dimensions,):
                raise ValueError(
                    f"the order of {dimensions} dimensions needs a range of each of them at {order}"
                )
            positions = np.argsort(widths(statistics, order), kind="stable")
            group_of[positions] = group_of.copy()
        return cls(groups, order, group_of)

    def reduced(self, statistics: Statistics) -> Statistics:
        """Statistics of the groups, [groups], from those of the dimensions."""
        if statistics.minimum.shape != self.group_of.shape:
            raise ValueError(
                f"{self.group_of.size} dimensions are grouped, statistics are of"
                f" {statistics.minimum.size}"
            )
        rows = np.argsort(self.group_of, kind="stable").reshape(self.groups, -1)
        return replace(
            statistics,
            minimum=statistics.minimum[rows].min(1),
            maximum=statistics.maximum[rows].max(1),
        )

    def equals(self, other: "Grouping | None") -> bool:
        return (
            other is not None
            and (self.groups, self.order) == (other.groups, other.order)
            and np.array_equal(self.group_of, other.group_of)
        )

    def to_dict(self) -> dict:
        """Return the number of groups and the order as a dictionary, without `group_of`."""
        return {"groups": self.groups, "order": self.order}

    @classmethod
    def from_dict(cls, data: Mapping, group_of: np.ndarray) -> "Grouping":
        return cls(int(data["groups"]), str(data["order"]), group_of)


def widths(statistics: Statistics, name: str) -> np.ndarray:
    """Range width (maximum - minimum) of each dimension, float64 [dimensions].

    Raises:
        EmptyStatisticsError: nothing was seen at ``name``.
    """
    if statistics.empty:
        raise EmptyStatisticsError(
            f"{name}: no value was seen, so its dimensions have no ranges; calibrate on data that"
            " reach it"
        )
    return statistics.maximum.astype(np.float64) - statistics.minimum.astype(np.float64)
