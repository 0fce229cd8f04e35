"""Mixed precision.

Formats of single sites, chosen so that the outputs stay as close to the float network's as is
wanted.
"""

from tfquant.mixed_precision.choose import mixed_precision
from tfquant.mixed_precision.report import SearchReport, TargetError, Try

__all__ = ["SearchReport", "TargetError", "Try", "mixed_precision"]
