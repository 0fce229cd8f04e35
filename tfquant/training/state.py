"""State of a training run: what a checkpoint holds, and exact resume from it."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant import checkpoint
from tfquant.distributed.group import Group, structure_of
from tfquant.training.optimizer import BertAdamW
from tfquant.variables import is_finite, names_of, path_of, resource

GLOBAL_STEP = "global_step"
STATE = "tfquant/state/"
REMEDY = "Lower the learning rate or warm up for longer"


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient became NaN or Inf; the weights are those before that step."""


def seed_variables(*models: Any) -> list[Any]:
    """States of all random number generators (dropout) of some models, without duplicates, in the
    models' order.
    """
    result = {
        id(v): v
        for model in models
        for v in model.variables
        if v.name.split("/")[-1] == "seed_generator_state"
    }
    return list(result.values())


class TrainingState:
    """Weights, optimizer slots, step and seeds of dropout, by their names in the checkpoint.

    Args:
        model: that is trained.
        trained: variables that the optimizer updates.
        weights: variables to save beside the state of training.
        seeds: states of random number generators. Every rank gets its own random numbers; a
          checkpoint holds those of rank 0.
        optimizer: built for `trained`.
        group: the processes that train together.
    """

    def __init__(
        self,
        model: Any,
        trained: Sequence[Any],
        weights: Sequence[Any],
        seeds: Sequence[Any],
        optimizer: BertAdamW,
        group: Group,
    ):
        self._model, self._trained, self._weights = model, trained, weights
        self._seeds, self._optimizer, self._group = seeds, optimizer, group
        self._names = names_of([*weights, *trained, *model.variables])
        self._further: dict[str, Any] = {}
        self._own_seeds()

    def add(self, named: Mapping[str, Any]) -> None:
        """Save and restore further variables.

        Raises:
            ValueError: a name is taken.
        """
        taken = [name for name in named if name in self.named()]
        if taken:
            raise ValueError(
                f"a hook's state names what the checkpoint already has: {', '.join(taken)};"
                " choose other names"
            )
        self._further |= named

    def named(self) -> dict[str, Any]:
        """Map checkpoint name -> variable, for everything that training changes."""
        named = {self._name(v): v for v in self._weights}
        for variable, (m, v) in zip(self._trained, self._optimizer.slots(), strict=True):
            named[self._name(variable) + "/adam_m"], named[self._name(variable) + "/adam_v"] = m, v
        # Numbered, not named: Keras counts the names of seed generators per process.
        named |= {f"{STATE}seed_{i}": variable for i, variable in enumerate(self._seeds)}
        return named | self._further | {GLOBAL_STEP: self._optimizer.iterations}

    def structure(self) -> str:
        """Number, shapes and types of the variables, which must be equal on all ranks."""
        return structure_of([*self._weights, *self._trained, *self._further.values()])

    def _name(self, variable: Any) -> str:
        """Return the name of a variable in the checkpoint."""
        return self._names.get(id(resource(variable))) or path_of(variable)

    def _alike(self) -> dict[str, Any]:
        """Values that must be equal on all ranks.

        What is saved and what else the model has, but for the random states.
        """
        own = {id(resource(v)) for v in self._seeds}
        state = self.named()
        state |= {self._name(v): v for v in self._model.variables if self._name(v) not in state}
        return {name: v for name, v in state.items() if id(resource(v)) not in own}

    def save(self, prefix: str, step: int, write: Callable[[str, Mapping[str, Any]], None]) -> None:
        """Write a checkpoint on rank 0, after a check that all ranks hold the same weights.

        Args:
            prefix: of the files.
            step: number of completed optimizer steps.
            write: `write(prefix, tensors)`.

        Raises:
            NonFiniteLossError: a weight is NaN or Inf; nothing is written.
        """
        self._group.check_equal(self._alike(), f"at step {step}")
        for variable in self._trained:
            if not np.isfinite(variable.numpy()).all():
                raise NonFiniteLossError(
                    f"step {step} made {path_of(variable)} NaN or Inf. {REMEDY}; it was not saved,"
                    " the checkpoint before is kept"
                )
        if not self._group.rank:  # the step is int64 as TensorFlow has it
            write(prefix, self.named() | {GLOBAL_STEP: np.int64(step)})

    def restore(self, prefix: str | os.PathLike) -> None:
        """Assign the values of a checkpoint, all of them or none.

        Raises:
            ValueError: the checkpoint is not one of this model's training; all differences are
              listed.
        """
        stored, wanted = checkpoint.read(prefix), self.named()
        wrong = [f"{name} is missing" for name in wanted if name not in stored]
        wrong += [
            f"{name} has shape {stored.shapes[name]} instead of {tuple(variable.shape)}"
            for name, variable in wanted.items()
            if name in stored and stored.shapes[name] != tuple(variable.shape)
        ]
        if wrong:
            raise ValueError(
                f"cannot resume training from {prefix}: {'; '.join(wrong)}. "
                "Use a folder without checkpoints, or the settings that this one was trained with"
            )
        values = {name: stored[name] for name in wanted}  # read before the first is assigned
        broken = [name for name, value in values.items() if not is_finite(value)]
        if broken:
            raise ValueError(
                f"cannot resume training from {prefix}: {broken[0]} is NaN or Inf; use an earlier"
                " checkpoint"
            )
        for name, variable in wanted.items():
            # Masks of earlier versions were floating point numbers.
            variable.assign(tf.cast(values[name], variable.dtype))
        self._own_seeds()

    def _own_seeds(self) -> None:
        """Give every rank its own random numbers."""
        for variable in self._seeds:
            seed = tf.convert_to_tensor(variable)
            variable.assign(seed + tf.cast([self._group.rank, 0], seed.dtype))
