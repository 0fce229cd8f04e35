"""Lazily loaded public names and the modules that define them."""

from calib import Calibration
from calib.outliers import OutlierReport, Outliers, outlier_report
from tfquant.api import plan, quantize
from tfquant.calibration import apply, calibrate
from tfquant.exponent_recorder import exponent_histograms
from tfquant.exponents import ExponentHistograms
from tfquant.export import compare, export
from tfquant.export.packed import load as load_packed
from tfquant.export.packed import size_report
from tfquant.liveness import ActivationMemory, activation_memory
from tfquant.mixed_precision import SearchReport, TargetError, mixed_precision
from tfquant.model import QuantizedFunction, QuantizedModel
from tfquant.quantizer import UncalibratedError
from tfquant.recipes import recipe
from tfquant.rules import Fuse, Recipe, Rule, Softmax
from tfquant.sensitivity import SensitivityReport, sensitivity
from tfquant.site import Site
from tfquant.spec import QuantSpec
from tfquant.store import load, save
from tfquant.training_args import add_training_args

__all__ = [
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
