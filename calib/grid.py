"""The integers a range is mapped to; range methods take one so that every bit width and sign convention works."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """An integer grid.

    Symmetric grids have zero point 0 and step ``amax / qmax``: narrow (-127..127), full (-128..127) or unsigned
    (0..255). Asymmetric grids map [lower, upper] to [qmin, qmax] with a rounded zero point.

    Attributes:
        qmin: smallest integer.
        qmax: largest integer.
        symmetric: whether the zero point is fixed at 0.
    """

    qmin: int
    qmax: int
    symmetric: bool = True

    def __post_init__(self):
        if self.qmin >= self.qmax:
            raise ValueError(f"grid {self.qmin}..{self.qmax}: qmin must be smaller than qmax")
        if self.symmetric and self.qmin not in (0, -self.qmax, -self.qmax - 1):
            raise ValueError(
                f"symmetric grid {self.qmin}..{self.qmax}: qmin must be 0 (unsigned), {-self.qmax} (narrow) "
                f"or {-self.qmax - 1} (full)"
            )

    @classmethod
    def integer(cls, bits: int, *, symmetric: bool = True, signed: bool = True, narrow: bool = True) -> "Grid":
        """The grid of a ``bits``-wide integer; ``narrow`` drops the lowest code of a signed symmetric grid."""
        if bits < (2 if signed else 1) or bits > 32:
            raise ValueError(f"grid of {bits} bits: use 2 to 32 bits (1 bit only when unsigned)")
        if not signed:
            return cls(0, 2**bits - 1, symmetric)
        half = 2 ** (bits - 1)
        return cls(1 - half if narrow and symmetric else -half, half - 1, symmetric)

    @property
    def unsigned(self) -> bool:
        """A symmetric grid without negative codes: negative values become 0."""
        return self.symmetric and self.qmin == 0

    @property
    def two_sided(self) -> bool:
        """Whether lower and upper end are chosen apart, which needs a histogram that keeps the signs."""
        return not self.symmetric

    @property
    def levels(self) -> int:
        """Codes available to the values a range method looks at: magnitudes when symmetric, all codes otherwise."""
        return self.qmax + 1 if self.symmetric else self.qmax - self.qmin + 1

    @property
    def steps(self) -> int:
        """How many steps the width of a range has: amax when symmetric, upper - lower otherwise."""
        return self.qmax if self.symmetric else self.qmax - self.qmin

    def interval(self, amax) -> tuple[np.ndarray, np.ndarray]:
        """(lower, upper) float32 of a symmetric range."""
        amax = np.asarray(amax, np.float32)
        return np.asarray(np.zeros_like(amax) if self.unsigned else np.float32(0) - amax), amax

    def fake_quantize(self, values: np.ndarray, lower, upper) -> np.ndarray:
        """Quantizes and dequantizes, rounding half to even; arguments broadcast, an empty range gives zeros."""
        dtype = np.result_type(values, np.float32)
        lower, upper = np.asarray(lower, dtype), np.asarray(upper, dtype)
        if self.symmetric:
            amax = np.maximum(np.abs(lower), np.abs(upper))
            step = amax / dtype.type(self.qmax)
        else:
            step = (upper - lower) / dtype.type(self.qmax - self.qmin)
        safe = np.where(step > 0, step, 1).astype(dtype)
        codes = np.rint(values / safe)
        if self.symmetric:
            np.clip(codes, self.qmin, self.qmax, out=codes)
        else:
            zero = np.rint(self.qmin - lower / safe)
            codes = np.clip(codes + zero, self.qmin, self.qmax) - zero
        return codes * np.where(step > 0, step, 0).astype(dtype)

    def to_dict(self) -> dict:
        return {"qmin": self.qmin, "qmax": self.qmax, "symmetric": self.symmetric}

    @classmethod
    def from_dict(cls, data: Mapping) -> "Grid":
        return cls(int(data["qmin"]), int(data["qmax"]), bool(data["symmetric"]))
