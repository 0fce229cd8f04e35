"""Range estimation: statistics of tensors, methods that turn them into ranges, and a portable file
of both.

Independent of models and recipes. Only `Observer` and `DimensionObserver` use TensorFlow.
"""

from typing import TYPE_CHECKING

from fileio.lazy import lazy_names

if TYPE_CHECKING:
    from calib.public import *  # noqa: F403

__getattr__ = lazy_names(globals())
