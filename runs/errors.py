"""Errors that a user of a script can cause: shown as a line, without a trace."""

from tfquant import UncalibratedError
from tfquant.agreement import OtherRankError
from tfquant.distributed import DivergedError
from tfquant.export.errors import ExportError
from tfquant.runtimes import RuntimeFileError
from tfquant.training import NonFiniteLossError

EXPECTED = (
    ValueError, OSError, ModuleNotFoundError,
    NonFiniteLossError, UncalibratedError, DivergedError, OtherRankError, ExportError, RuntimeFileError,
)  # fmt: skip
