"""Uniform integers of 2 to 16 bits: `int2` ... `int16`."""

from __future__ import annotations

import dataclasses
import re

from calib.grid import Grid

MIN_BITS, MAX_BITS = 2, 16


@dataclasses.dataclass(frozen=True)
class IntegerFormat:
    """Integers of `bits` bits; whether they carry a sign or a zero point is the QuantSpec's choice, not the format's."""

    bits: int

    @classmethod
    def parse(cls, name: str) -> IntegerFormat | None:
        match = re.fullmatch(r"int([0-9]{1,3})", name)
        if match is None:
            return None
        bits = int(match.group(1))
        if not MIN_BITS <= bits <= MAX_BITS:
            raise ValueError(f"number format {name!r}: bits must lie in {MIN_BITS} ... {MAX_BITS}")
        return cls(bits)

    @property
    def name(self) -> str:
        return f"int{self.bits}"

    def grid(self, *, symmetric: bool, narrow_range: bool, unsigned: bool) -> Grid:
        """The integer codes in use.

        Args:
          symmetric: zero point 0. Then the codes are -B..B (narrow), -B-1..B (full) or 0..2B+1 (unsigned), B = 2**(bits-1) - 1.
          narrow_range: leave the lowest signed code out, so that the grid mirrors itself.
          unsigned: the tensor is never negative, all codes go to the positive side.
        """
        if unsigned or not symmetric:
            return Grid(qmin=0, qmax=2**self.bits - 1, symmetric=symmetric)
        high = 2 ** (self.bits - 1) - 1
        return Grid(qmin=-high if narrow_range else -high - 1, qmax=high, symmetric=True)
