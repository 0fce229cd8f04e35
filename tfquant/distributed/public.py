"""The public names, from where they are defined; `tfquant.distributed` loads this module when one
is used.
"""

from tfquant.distributed.errors import OtherRankError
from tfquant.distributed.group import DivergedError, Group, Horovod, Single, start

__all__ = ["DivergedError", "Group", "Horovod", "OtherRankError", "Single", "start"]
