"""Training hooks: schedules of ranges, masks of sparsity, evaluation."""

from collections.abc import Mapping
from typing import Any


class Hook:
    """Base class of hooks, without effect.

    `Trainer` calls its hooks in the order they were given.
    """

    def state(self) -> Mapping[str, Any]:
        """Map checkpoint name -> variable, for all that a resumed run needs."""
        return {}

    def before_step(self, step: int) -> None:
        """Called eagerly before each step with the number of completed steps."""

    def after_training(self, step: int) -> None:
        """Called eagerly with the number of steps when all are made and saved; also when a finished
        run is started again.
        """

    def after_update(self) -> None:
        """Called in the step's graph after the optimizer's update; not called in skipped steps."""
