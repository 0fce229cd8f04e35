"""Lazily loaded public names and the modules that define them."""

from calib import methods, rows
from calib.calibration import Calibration, SiteCalibration
from calib.codebook import Codebook, ScaledCodebook, UniformCodebook
from calib.dimensions import DimensionObserver
from calib.errors import (
    CalibrationError,
    CalibrationFileError,
    EmptyStatisticsError,
    MissingHistogramError,
    NonFiniteError,
)
from calib.grouping import Grouping
from calib.methods import Method
from calib.observer import Observer
from calib.statistics import Histogram, Statistics, merge
from calib.weights import per_channel_range, weight_statistics

Grid = UniformCodebook  # the former name

__all__ = [
    "Calibration",
    "CalibrationError",
    "CalibrationFileError",
    "Codebook",
    "DimensionObserver",
    "EmptyStatisticsError",
    "Grid",
    "Grouping",
    "Histogram",
    "Method",
    "MissingHistogramError",
    "NonFiniteError",
    "Observer",
    "ScaledCodebook",
    "SiteCalibration",
    "Statistics",
    "UniformCodebook",
    "merge",
    "methods",
    "per_channel_range",
    "rows",
    "weight_statistics",
]
