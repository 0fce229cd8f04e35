"""Training and calibration in several processes: process groups, errors on all ranks, time-outs."""

from typing import TYPE_CHECKING

from fileio.lazy import lazy_names

if TYPE_CHECKING:
    from tfquant.distributed.public import *  # noqa: F403

__getattr__ = lazy_names(globals())
