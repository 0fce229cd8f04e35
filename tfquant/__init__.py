"""Graph-level quantization of TensorFlow and Keras 3 models.

    quantized = tfquant.quantize(model, calibration=batches)

See the README for a tour, `docs/` for the longer texts.

TensorFlow is imported when the first public name is used, so that `import tfquant` and `--help` of
the commands take milliseconds.
"""

# ruff: noqa: F405 (the names of `__all__` are found when they are used)

import importlib.util
import sys
import types
from typing import TYPE_CHECKING, Any

from tfquant.version import __version__

if TYPE_CHECKING:
    from tfquant.public import *  # noqa: F403

__all__ = [
    "__version__",
    "ActivationMemory",
    "Calibration",
    "ExponentHistograms",
    "Fuse",
    "OutlierReport",
    "Outliers",
    "QuantSpec",
    "QuantizedFunction",
    "QuantizedModel",
    "Recipe",
    "Rule",
    "SearchReport",
    "SensitivityReport",
    "Site",
    "Softmax",
    "TargetError",
    "UncalibratedError",
    "activation_memory",
    "add_training_args",
    "apply",
    "calibrate",
    "compare",
    "exponent_histograms",
    "export",
    "load",
    "load_packed",
    "mixed_precision",
    "outlier_report",
    "plan",
    "quantize",
    "recipe",
    "save",
    "sensitivity",
    "size_report",
]


class _Package(types.ModuleType):
    """Module type that imports public names and submodules on first use.

    All public names are imported together.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            if not name.startswith("_") and importlib.util.find_spec(f"{self.__name__}.{name}"):
                return importlib.import_module(f"{self.__name__}.{name}")
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        public = importlib.import_module(f"{self.__name__}.public")
        result = {one: getattr(public, one) for one in public.__all__}
        self.__dict__.update(result)
        return result[name]

    def __setattr__(self, name: str, value: Any) -> None:
        # Python binds a submodule to its parent's attribute. `tfquant.export` and others are
        # functions, which have the name of the subpackage that they are defined in.
        if name in __all__ and isinstance(value, types.ModuleType):
            return
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
