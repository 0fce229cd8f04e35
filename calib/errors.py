"""What can go wrong while ranges are estimated; every message names the site and how to mend it."""


class CalibrationError(ValueError):
    """Base class of all calibration errors."""


class NonFiniteError(CalibrationError):
    """NaN or Inf was met in calibration data or in a weight."""


class EmptyStatisticsError(CalibrationError):
    """A range was asked of a site that has seen no value."""


class MissingHistogramError(CalibrationError):
    """The method needs a histogram and the statistics hold only extremes."""


class CalibrationFileError(CalibrationError):
    """A calibration file is damaged, of another version, or not a calibration file."""
