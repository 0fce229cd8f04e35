"""Codebooks: the values that a number format can hold within a range, and the boundaries between
them.

A range method scores a range by the quantization error, so all it needs from a number format are
the values that exist for that range and the boundaries of rounding. Two kinds:

- `UniformCodebook`: integers times a scale, with a zero point where the range is asymmetric.
- `ScaledCodebook`: fixed signed values in units of the scale, such as those of float8 or posit
formats.

No format has a name here; `tfquant.formats` makes the codebook of a format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

Range = tuple[np.ndarray, np.ndarray]


class Codebook(Protocol):
    """Interface between range methods and number formats.

    The width of a range is amax = max(|lower|, |upper|) where symmetric, and upper - lower
    otherwise; scale = width / quant_max.
    """

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is 0, so that amax alone defines a range."""
        ...

    @property
    def unsigned(self) -> bool:
        """Whether the codebook is symmetric without negative values; negative inputs become 0."""
        ...

    @property
    def uniform(self) -> bool:
        """Whether all steps between neighbouring values have one size."""
        ...

    @property
    def num_codes(self) -> int:
        """Number of values."""
        ...

    @property
    def quant_max(self) -> float:
        """Width of a range in units of the scale."""
        ...

    @property
    def extremes(self) -> tuple[float, float]:
        """Smallest and largest value in units of the scale, before a zero point is taken off."""
        ...

    @property
    def limit(self) -> float:
        """Largest value in units of the scale; values beyond saturate.

        Where the range is asymmetric, it counts from the lower end.
        """
        ...

    def symmetric_range(self, amax: np.ndarray | float) -> Range:
        """(lower, upper), float32, of a symmetric codebook."""
        ...

    def quantize(
        self, x: np.ndarray, lower: np.ndarray | float, upper: np.ndarray | float
    ) -> np.ndarray:
        """Quantized and dequantized values of ``x`` in its own type, at least float32; arguments
        broadcast.

        An empty range gives zeros.
        """
        ...

    def values(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """All values of ranges, ascending along a last axis: float64 [..., num_codes]."""
        ...

    def boundaries(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """Decision boundaries between neighbouring `values`: float64 [..., num_codes - 1]."""
        ...

    def to_dict(self) -> dict:
        """Return the codebook as a JSON dictionary for `codebook_from_dict`."""
        ...


@dataclass(frozen=True)
class UniformCodebook:
    """Integer codes times a scale.

    Symmetric codes have zero point 0 and scale ``amax / qmax``: narrow (-127..127), full
    (-128..127) or unsigned (0..255). Asymmetric codes map [lower, upper] to [qmin, qmax] with a
    rounded zero point.

    Attributes:
        qmin: smallest code.
        qmax: largest code.
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
                f"symmetric grid {self.qmin}..{self.qmax}: qmin must be 0 (unsigned), "
                f"{-self.qmax} (narrow) or {-self.qmax - 1} (full)"
            )

    @classmethod
    def integer(
        cls, bits: int, *, symmetric: bool = True, signed: bool = True, narrow: bool = True
    ) -> "UniformCodebook":
        """Codes of a ``bits``-wide integer; ``narrow`` drops the lowest of signed symmetric
        ones.
        """
        if bits < (2 if signed else 1) or bits > 32:
            raise ValueError(f"grid of {bits} bits: use 2 to 32 bits (1 bit only when unsigned)")
        if not signed:
            return cls(0, 2**bits - 1, symmetric)
        half = 2 ** (bits - 1)
        return cls(1 - half if narrow and symmetric else -half, half - 1, symmetric)

    @property
    def unsigned(self) -> bool:
        return self.symmetric and self.qmin == 0

    @property
    def uniform(self) -> bool:
        return True

    @property
    def num_codes(self) -> int:
        return self.qmax - self.qmin + 1

    @property
    def quant_max(self) -> int:
        return self.qmax if self.symmetric else self.qmax - self.qmin

    @property
    def extremes(self) -> tuple[int, int]:
        return self.qmin, self.qmax

    @property
    def limit(self) -> int:
        return self.quant_max

    def symmetric_range(self, amax: np.ndarray | float) -> Range:
        return _symmetric_range(amax, self.unsigned)

    def scale_and_zero(self, lower: np.ndarray, upper: np.ndarray) -> Range:
        """(scale, zero point) of ranges, in the type of their ends.

        The scale of an empty range is 0; its zero point counts steps of 1.
        """
        if self.symmetric:
            scale = np.maximum(np.abs(lower), np.abs(upper)) / lower.dtype.type(self.quant_max)
            return scale, np.zeros_like(scale)
        scale = (upper - lower) / lower.dtype.type(self.quant_max)
        return scale, self.zero_point(lower, np.where(scale > 0, scale, 1).astype(lower.dtype))

    def zero_point(self, lower: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Zero point of asymmetric ranges, from their lower end and scale, in the type of these."""
        return np.rint(self.qmin - lower / scale)

    def quantize(
        self, x: np.ndarray, lower: np.ndarray | float, upper: np.ndarray | float
    ) -> np.ndarray:
        """Quantize and dequantize, rounding half to even; see `Codebook.quantize`."""
        dtype = np.result_type(x, np.float32)
        scale, zero = self.scale_and_zero(np.asarray(lower, dtype), np.asarray(upper, dtype))
        codes = np.rint(x / np.where(scale > 0, scale, 1).astype(dtype))
        if self.symmetric:
            np.clip(codes, self.qmin, self.qmax, out=codes)
        else:
            codes = np.clip(codes + zero, self.qmin, self.qmax) - zero
        return codes * np.where(scale > 0, scale, 0).astype(dtype)

    def values(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        scale, zero = self.scale_and_zero(lower, upper)
        codes = np.arange(self.qmin, self.qmax + 1)
        return (codes - zero[..., np.newaxis]) * scale[..., np.newaxis].astype(np.float64)

    def boundaries(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        values = self.values(lower, upper)
        return (values[..., :-1] + values[..., 1:]) / 2

    def __str__(self):
        return f"{self.qmin}..{self.qmax}"

    def to_dict(self) -> dict:
        return {"qmin": self.qmin, "qmax": self.qmax, "symmetric": self.symmetric}


@dataclass(frozen=True)
class ScaledCodebook:
    """Values in units of a scale, amax / quant_max; zero is one of them, or the middle of all, so
    that there is no zero point.

    Attributes:
        levels: the values in units of the scale, ascending, exact in float32.
        thresholds: where rounding switches from one level to the next, in units of the scale, exact
            in float32. A number on a threshold is rounded up; where it is to be rounded down, the
            threshold is the float32 number above.
        quant_max: what amax is mapped to.
        name: of the number format, for tables; equal levels are equal codebooks.
    """

    levels: tuple[float, ...]
    thresholds: tuple[float, ...]
    quant_max: float
    name: str = field(default="", compare=False)

    def __post_init__(self):
        for name in ("levels", "thresholds"):
            exact = tuple(float(value) for value in getattr(self, name))
            if not np.isfinite(exact).all() or (np.diff(exact) <= 0).any():
                raise ValueError(f"codebook: {name} must be finite numbers in ascending order")
            if tuple(np.asarray(exact, np.float32).tolist()) != exact:
                raise ValueError(f"codebook: {name} must be exact in float32")
            object.__setattr__(self, name, exact)
        below, above = np.asarray(self.levels[:-1]), np.asarray(self.levels[1:])
        if len(self.levels) < 2 or len(self.thresholds) != len(self.levels) - 1:
            raise ValueError(
                f"codebook: {len(self.levels)} levels have {len(self.levels) - 1} thresholds "
                "between them"
            )
        if ((self.thresholds <= below) | (self.thresholds > above)).any():
            raise ValueError("codebook: each threshold must lie between its two levels")
        mirrored = self.levels == tuple(-level for level in reversed(self.levels))
        if not (0.0 in self.levels or mirrored) or self.levels[-1] <= 0:
            raise ValueError(
                "codebook: 0 and a positive number must be among the levels, or they must mirror"
                " themselves at 0"
            )
        if not 0 < self.quant_max <= self.limit:
            raise ValueError(
                f"codebook: quant_max must lie above 0 and not above {self.limit:g}, "
                f"got {self.quant_max!r}"
            )
        object.__setattr__(self, "quant_max", float(self.quant_max))

    @classmethod
    def nearest(
        cls, levels: Sequence[float], quant_max: float | None = None, name: str = ""
    ) -> "ScaledCodebook":
        """Codebook that rounds to the nearest value, ties to the one of even index counted from
        zero.

        That is round half to even of floating point formats, whose codes count up from zero.

        Args:
            levels: ascending.
            quant_max: what amax is mapped to; None: the largest level.
            name: of the number format, for tables.
        """
        numbers = np.asarray(levels, np.float64)
        middles = ((numbers[:-1] + numbers[1:]) / 2).astype(np.float32)
        ranks = np.arange(numbers.size) - int(np.searchsorted(numbers, 0.0))
        down = ranks[:-1] % 2 == 0
        thresholds = np.where(down, np.nextafter(middles, np.float32(np.inf)), middles)
        return cls(
            tuple(levels),
            tuple(thresholds.tolist()),
            numbers[-1] if quant_max is None else quant_max,
            name,
        )

    @property
    def symmetric(self) -> bool:
        return True

    @property
    def unsigned(self) -> bool:
        return self.levels[0] == 0

    @property
    def uniform(self) -> bool:
        return False

    @property
    def num_codes(self) -> int:
        return len(self.levels)

    @property
    def extremes(self) -> tuple[float, float]:
        return self.levels[0], self.levels[-1]

    @property
    def limit(self) -> float:
        return self.levels[-1]

    def symmetric_range(self, amax: np.ndarray | float) -> Range:
        return _symmetric_range(amax, self.unsigned)

    def scale(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """Scale of ranges, in the type of their ends; a product, which compilers do not rewrite."""
        dtype = lower.dtype.type
        return np.maximum(np.abs(lower), np.abs(upper)) * (dtype(1) / dtype(self.quant_max))

    def quantize(
        self, x: np.ndarray, lower: np.ndarray | float, upper: np.ndarray | float
    ) -> np.ndarray:
        dtype = np.result_type(x, np.float32)
        scale = self.scale(np.asarray(lower, dtype), np.asarray(upper, dtype))
        units = x / np.where(scale > 0, scale, 1).astype(dtype)
        codes = np.searchsorted(np.asarray(self.thresholds, dtype), units, side="right")
        return np.asarray(self.levels, dtype)[codes] * np.where(scale > 0, scale, 0).astype(dtype)

    def values(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        return np.asarray(self.levels) * self.scale(lower, upper)[..., np.newaxis].astype(
            np.float64
        )

    def boundaries(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        return np.asarray(self.thresholds) * self.scale(lower, upper)[..., np.newaxis].astype(
            np.float64
        )

    def __str__(self):
        return self.name or f"{self.num_codes} values up to {self.limit:g}"

    def to_dict(self) -> dict:
        data = {
            "levels": list(self.levels),
            "thresholds": list(self.thresholds),
            "quant_max": self.quant_max,
        }
        return data | ({"name": self.name} if self.name else {})


def codebook_from_dict(data: Mapping) -> Codebook:
    """Return the codebook that `to_dict` serialized.

    Raises:
        ValueError, KeyError, TypeError: ``data`` describe none.
    """
    if "levels" in data:
        return ScaledCodebook(
            tuple(data["levels"]),
            tuple(data["thresholds"]),
            float(data["quant_max"]),
            str(data.get("name", "")),
        )
    return UniformCodebook(int(data["qmin"]), int(data["qmax"]), bool(data["symmetric"]))


def _symmetric_range(amax: np.ndarray | float, unsigned: bool) -> Range:
    amax = np.asarray(amax, np.float32)
    return np.asarray(np.zeros_like(amax) if unsigned else np.float32(0) - amax), amax
