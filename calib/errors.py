"""Exceptions of range estimation; every message names the site and a remedy."""


class CalibrationError(ValueError):
    """Base class of all calibration errors."""


class NonFiniteError(CalibrationError):
    """NaN or Inf in calibration data or in a weight."""


def check_finite(name: str, batch: int) -> None:
    """Raise NonFiniteError if a calibration batch had NaN or Inf.

    Args:
        name: address of the site.
        batch: number of the first such batch; negative where there is none.
    """
    if batch >= 0:
        raise NonFiniteError(
            f"{name}: NaN or Inf in calibration batch {batch}; check this batch's inputs and the"
            " model's weights, or leave the batch out"
        )


class EmptyStatisticsError(CalibrationError):
    """A range was requested for a site that has seen no value."""


class MissingHistogramError(CalibrationError):
    """The method needs a histogram and the statistics hold only extremes."""


class CalibrationFileError(CalibrationError):
    """A calibration file is damaged, of another version, or not a calibration file."""
