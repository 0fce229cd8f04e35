"""Log lines of a run on stderr; with several processes rank 0 alone writes them."""

import logging
import sys

from tqdm import tqdm

from fileio.messages import printable_lines


class _AroundBars(logging.Handler):
    """Handler that writes lines to stderr without breaking progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(printable_lines(record.getMessage()), file=sys.stderr)


_LOGGER = logging.getLogger("runs")
_LOGGER.setLevel(logging.INFO)
_LOGGER.propagate = False
_LOGGER.addHandler(_AroundBars())


def log(text: str) -> None:
    _LOGGER.info("%s", text)


def is_chief() -> bool:
    """Whether this process shows anything."""
    return _LOGGER.isEnabledFor(logging.INFO)


def log_on_chief_only(rank: int) -> None:
    """Silence all ranks but 0."""
    _LOGGER.setLevel(logging.WARNING if rank else logging.INFO)
