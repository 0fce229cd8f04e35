"""Sensitivity analysis: loss of accuracy by quantizer.

Sites switched on or off, and how far the outputs are from those of the float network.
"""

from tfquant.sensitivity.analysis import sensitivity
from tfquant.sensitivity.report import GroupSensitivity, SensitivityReport

__all__ = ["GroupSensitivity", "SensitivityReport", "sensitivity"]
