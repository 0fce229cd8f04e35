"""Range methods: each module has ``estimate(stats, codebook, **options) -> (lower, upper)``.

Ranges are float32 of shape () or (C,). Symmetric grids get (-amax, amax), unsigned ones (0, amax);
asymmetric grids get a range that holds 0, so that 0 is representable. All-zero data give (0, 0).
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calib.codebook import Codebook
from calib.errors import CalibrationError
from calib.methods import (
    cross_entropy,
    current_minmax,
    entropy,
    maximum,
    moving_average,
    mse,
    percentile,
    token_wise,
)
from calib.names import GENERAL, NAMES
from calib.statistics import DECAY, Statistics

Estimate = Callable[..., tuple[np.ndarray, np.ndarray]]

_MODULES = {
    "max": maximum,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
    "moving_average": moving_average,
    "current_minmax": current_minmax,
    "token_wise": token_wise,
    "cross_entropy": cross_entropy,
}
if different := set(_MODULES) ^ set(NAMES):
    raise ImportError(
        f"range method {min(different)!r}: add it to both _MODULES and calib/names.py"
    )


def get(name: str) -> Estimate:
    """Return the estimator called ``name``; raise ValueError with the valid names otherwise."""
    if not isinstance(name, str) or name not in _MODULES:
        raise ValueError(f"unknown range method {name!r}; choose one of {', '.join(NAMES)}")
    return _MODULES[name].estimate


@dataclass(frozen=True)
class Method:
    """A range method with all its options; two with the same settings are equal.

    Attributes:
        name: one of `NAMES`.
        options: keyword options of the method, defaults filled in.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        defaults = _defaults(get(self.name))
        for option in self.options:
            if option not in defaults:
                raise ValueError(
                    f"range method {self.name!r} has no option {option!r}; "
                    f"valid options: {', '.join(defaults) or 'none'}"
                )
        options = {**defaults, **self.options}
        check = getattr(_MODULES[self.name], "check_options", None)
        if check:
            check(**options)
        object.__setattr__(self, "options", options)

    def __hash__(self):
        return hash((self.name, tuple(sorted(self.options.items()))))

    def __str__(self):
        """Name, the option of that name (`percentile 99.99`), and the options that differ from
        their default.
        """
        defaults = _defaults(get(self.name))
        words = [
            self.name,
            *(f"{value}" for key, value in self.options.items() if key == self.name),
        ]
        words += [
            f"{k}={v}" for k, v in self.options.items() if k != self.name and v != defaults[k]
        ]
        return " ".join(words)

    @classmethod
    def parse(cls, name: str, **options) -> "Method":
        """Create a method from its name and options.

        Raises:
            ValueError: unknown name or option, or an option out of range; the message lists what is
              valid.
        """
        return cls(name, options)

    @property
    def needs_histogram(self) -> bool:
        return _MODULES[self.name].NEEDS_HISTOGRAM

    @property
    def decay(self) -> float:
        """Decay of the moving averages that an observer maintains for the method."""
        return self.options.get("decay", getattr(_MODULES[self.name], "DECAY", DECAY))

    @property
    def rows(self) -> int:
        """Number of unbinned rows that a calibration stores for the method."""
        return self.options.get("rows", 0)

    @property
    def tokens(self) -> int:
        """Number of tokens whose extremes a calibration stores for the method."""
        return self.options.get("tokens", 0)

    def can_use(self, stats: Statistics) -> bool:
        """Return whether the statistics are sufficient for the method."""
        if self.needs_histogram and stats.histogram is None:
            return False
        able = getattr(_MODULES[self.name], "can_use", None)
        return able is None or able(stats, **self.options)

    def check_codebook(self, codebook: Codebook) -> None:
        """Raise CalibrationError if the method cannot estimate ranges of the number format."""
        if codebook.uniform or not _uniform_only(self.name):
            return
        able = [name for name in GENERAL if not _uniform_only(name)]
        raise CalibrationError(
            f"range method {self.name!r} needs codes that are equally far apart, and those of"
            f" {codebook} are not; use one of {', '.join(able)}"
        )

    def estimate(
        self, stats: Statistics, codebook: Codebook, *, site: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Estimate a range.

        Args:
            stats: what was observed.
            codebook: values of the number format.
            site: name that error messages begin with.

        Returns:
            (lower, upper), float32 of shape () or (C,).
        """
        try:
            self.check_codebook(codebook)
            return get(self.name)(stats, codebook, **self.options)
        except CalibrationError as error:
            raise type(error)(f"{site}: {error}" if site else str(error)) from None

    def to_dict(self) -> dict:
        return {"name": self.name, **self.options}

    @classmethod
    def from_dict(cls, data: Mapping) -> "Method":
        options = dict(data)
        if "name" not in options:
            raise ValueError(f"range method without a name: {dict(data)!r}")
        return cls(options.pop("name"), options)


def _uniform_only(name: str) -> bool:
    return getattr(_MODULES[name], "UNIFORM_ONLY", False)


def _defaults(estimate: Estimate) -> dict:
    parameters = inspect.signature(estimate).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
