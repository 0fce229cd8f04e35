"""Errors that a user of a script can cause: shown as a line, without a trace."""

import re

import tensorflow as tf

from fileio.messages import printable_lines
from tfquant import UncalibratedError
from tfquant.distributed.errors import OtherRankError
from tfquant.distributed.group import DivergedError
from tfquant.error_messages import one_line
from tfquant.export.errors import ExportError
from tfquant.runtimes import RuntimeFileError
from tfquant.training import NonFiniteLossError

EXPECTED = (
    ValueError,
    OSError,
    ModuleNotFoundError,
    MemoryError,
    tf.errors.OpError,
    NonFiniteLossError,
    UncalibratedError,
    DivergedError,
    OtherRankError,
    ExportError,
    RuntimeFileError,
)
_LONGEST_LINE = 2000


def describe(error: BaseException) -> str:
    """Return the message of an expected error for the user, with control characters escaped.

    TensorFlow's own errors and those about memory become one line, without the names of operations.
    """
    if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
        cause = (
            _of_tensorflow(error) if isinstance(error, tf.errors.OpError) else one_line(error, 300)
        )
        text = (
            f"out of memory ({cause}): lower the batch size or the sequence length, or take a"
            " smaller model"
        )
    elif isinstance(error, tf.errors.OpError):
        text = f"TensorFlow: {_of_tensorflow(error)}"
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        text = str(error)
    lines = (
        line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ..."
        for line in text.split("\n")
    )
    return printable_lines("\n".join(lines))


def _of_tensorflow(error: tf.errors.OpError) -> str:
    """The cause alone: TensorFlow's messages carry names of operations before and after it."""
    text = re.sub(
        r"\{\{.*?\}\}|\[\[.*?\]\]|\[Op:.*?\]( name: .*)?", "", error.message or type(error).__name__
    )
    return one_line(Exception(text), 300).strip(" :;")
