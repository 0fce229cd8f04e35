"""What takes part in training beside the optimizer: schedules of ranges, masks of sparsity."""

from collections.abc import Mapping
from typing import Any


class Hook:
    """Does nothing; subclasses say what happens when.

    `Trainer` calls its hooks in the order they were given.
    """

    def state(self) -> Mapping[str, Any]:
        """Checkpoint name -> variable, for all that a resumed run needs."""
        return {}

    def before_step(self, step: int) -> None:
        """Called eagerly before each step with the number of steps made."""

    def after_training(self, step: int) -> None:
        """Called eagerly when all steps are made and saved, with their number; also where a run
        that is done is started again.
        """

    def after_update(self) -> None:
        """Called in the step's graph after the optimizer's update; steps that are skipped leave it
        out.
        """
