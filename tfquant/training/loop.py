"""A training loop for any loss: accumulation, clipping, checkpoints, exact resume.

The state of a run is what its checkpoint holds: weights, optimizer slots, step, and the seeds of dropout. Data comes
from a callable that can start at any batch, so a run that was cut off and resumed ends with the very same weights.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfquant import checkpoint
from tfquant.distributed import Single
from tfquant.training.optimizer import BertAdamW

GLOBAL_STEP = "global_step"
STATE = "tfquant/state/"
_LOSS, _GRADIENT = "tfquant: loss is not finite", "tfquant: gradient is not finite"  # how to know our checks by

Batch = Mapping[str, np.ndarray]
Gradients = list[tf.Tensor]


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient became NaN or Inf; the weights are those before that step."""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How long to train and what to write.

    Attributes:
        directory: where checkpoints (`model.ckpt-<step>`) and TensorBoard's `tensorboard/` go.
        total_steps: optimizer steps of the whole run, resumed ones included.
        accumulation: batches whose gradients are averaged for one step.
        clip_norm: largest global norm of a step's gradient; None does not clip.
        checkpoint_every: steps between checkpoints; the last step is always saved. 0 saves only that.
        keep_checkpoints: how many to keep; 0 keeps all.
        log_every: steps between TensorBoard scalars.
    """

    directory: str | os.PathLike
    total_steps: int
    accumulation: int = 1
    clip_norm: float | None = 1.0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 1
    log_every: int = 10

    def __post_init__(self) -> None:
        for name, least in (("total_steps", 1), ("accumulation", 1), ("checkpoint_every", 0), ("log_every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; it must be positive, or None for no clipping")


@dataclasses.dataclass(frozen=True)
class TrainSummary:
    """What a call of `Trainer.fit` did.

    Attributes:
        first_step, last_step: the model had made `first_step` steps before and `last_step` after.
        loss: mean loss of the last `log_every` steps; None when there was nothing to do.
        seconds: time spent, tracing and checkpoints included.
        examples_per_second: over all of that time.
        steady_examples_per_second: without the first step (tracing) and without writing checkpoints.
        checkpoint: prefix of the last checkpoint.
    """

    first_step: int
    last_step: int
    loss: float | None
    seconds: float
    examples_per_second: float
    steady_examples_per_second: float
    checkpoint: str


def seed_variables(*models: Any) -> list[Any]:
    """The states of all random number generators (dropout) of some models, each once, in the models' own order."""
    found = {id(v): v for model in models for v in model.variables if v.name.split("/")[-1] == "seed_generator_state"}
    return list(found.values())


class Trainer:
    """Trains a model on a loss.

    Args:
        model: a `keras.Model`, or anything with `weights`, `trainable_variables` and `variables` whose names are paths.
        loss: `loss(model, batch)` -> scalar; calls the model itself, with `training=True`.
        optimizer: see `BertAdamW`; must not be shared with another trainer.
        options: see `TrainOptions`.
        reduce: what is done to the gradients of a step before clipping; the place to average over processes.
        weights: what to save beside the state of training; `model.weights` when not given.
        seeds: states of random number generators; those that `model.variables` shows when not given.
        write: `write(prefix, tensors)` that saves a checkpoint; replace it to save more than the trainer knows of.
        group: the processes that train together: gradients are averaged over them, rank 0 alone writes and shows
            progress, and before a checkpoint all must hold the same weights.
    """

    def __init__(
        self,
        model: Any,
        loss: Callable[[Any, Mapping[str, tf.Tensor]], tf.Tensor],
        optimizer: BertAdamW,
        options: TrainOptions,
        *,
        reduce: Callable[[Gradients], Gradients] = lambda gradients: gradients,
        weights: Sequence[Any] | None = None,
        seeds: Sequence[Any] | None = None,
        write: Callable[[str, Mapping[str, Any]], None] = checkpoint.write,
        group: Single | None = None,
    ):
        self.model, self.optimizer, self.options = model, optimizer, options
        self._loss, self._reduce, self._write = loss, reduce, write
        self._group = group or Single()
        self._variables = list(model.trainable_variables)
        if not self._variables:
            raise ValueError("the model has no trainable variables: there is nothing to train")
        optimizer.build(self._variables)
        self._weights = list(model.weights if weights is None else weights)
        self._seeds = list(seed_variables(model) if seeds is None else seeds)
        self._reached: list[int] = []  # which variables the loss depends on; known once the step is traced
        self._sums = [tf.Variable(tf.zeros_like(v)) for v in self._variables] if options.accumulation > 1 else []
        self._steps: tuple[Callable, ...] = ()
        self._own_seeds()

    @property
    def step(self) -> int:
        """Optimizer steps made so far."""
        return int(self.optimizer.iterations.numpy())

    def state(self) -> dict[str, Any]:
        """Checkpoint name -> variable, for everything that training changes."""
        named = {_name(v): v for v in self._weights}
        for variable, (m, v) in zip(self._variables, self.optimizer.slots(), strict=True):
            named[_name(variable) + "/adam_m"], named[_name(variable) + "/adam_v"] = m, v
        # Numbered, not named: Keras counts the names of seed generators per process.
        named |= {f"{STATE}seed_{i}": variable for i, variable in enumerate(self._seeds)}
        return named | {GLOBAL_STEP: self.optimizer.iterations}

    def save(self) -> str:
        """Writes `model.ckpt-<step>`, drops older checkpoints beyond those to keep, and returns its prefix.

        Raises:
            tfquant.checkpoint.CheckpointError: it cannot be written; older ones stay.
        """
        step = self.step
        self._group.check_equal({_name(v): v for v in self._weights}, f"at step {step}")
        prefix = str(pathlib.Path(self.options.directory) / f"model.ckpt-{step}")
        if self._group.rank:
            return prefix
        self._write(prefix, self.state() | {GLOBAL_STEP: np.int64(step)})  # int64 as TensorFlow has it
        checkpoint.prune(self.options.directory, self.options.keep_checkpoints)
        return prefix

    def restore(self, prefix: str | os.PathLike | None = None) -> int:
        """Continues from a checkpoint of `save`: by default from the highest step in the folder, if there is one.

        Returns:
            The step.

        Raises:
            ValueError: the checkpoint is not one of this model's training; all differences are listed.
        """
        if prefix is None:
            numbered = checkpoint.steps(self.options.directory)
            if not numbered:
                return self.step
            prefix = numbered[-1][1]
        stored, wanted = checkpoint.read(prefix), self.state()
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
        for name, variable in wanted.items():
            variable.assign(stored[name])
        self._own_seeds()
        return self.step

    def _own_seeds(self) -> None:
        """Gives every rank random numbers of its own; a checkpoint holds those of rank 0."""
        for variable in self._seeds:
            seed = tf.convert_to_tensor(variable)
            variable.assign(seed + tf.cast([self._group.rank, 0], seed.dtype))

    def fit(self, batches: Callable[[int], Iterable[Batch]]) -> TrainSummary:
        """Trains up to `total_steps`, from wherever the model is.

        Args:
            batches: `batches(n)` gives the run's batches from the n-th on, in an order that never changes.
                `accumulation` of them make a step.

        Raises:
            NonFiniteLossError: names the step.
            ValueError: the batches end too early.
        """
        options, first = self.options, self.step
        if first >= options.total_steps:
            tqdm.write(
                f"{options.directory} has already been trained for {first} steps of {options.total_steps}: nothing to "
                "do. Raise the number of epochs to go on, or use a new folder to start again"
            )
            return TrainSummary(first, first, None, 0.0, 0.0, 0.0, self._last_checkpoint())
        pathlib.Path(options.directory).mkdir(parents=True, exist_ok=True)
        meter, prefix = _Meter(), ""
        chief = self._group.rank == 0
        folder = os.path.join(options.directory, "tensorboard")
        writer = tf.summary.create_file_writer(folder) if chief else tf.summary.create_noop_writer()
        stream = iter(batches(first * options.accumulation))
        for total in self._sums:  # what a fit that was cut off may have left
            total.assign(tf.zeros_like(total))
        with writer.as_default(), self._bar(first) as bar:
            for step in range(first + 1, options.total_steps + 1):
                started = time.perf_counter()
                loss, norm, examples = self._one_step(step, stream)
                meter.add(loss, examples, time.perf_counter() - started)
                bar.set_postfix_str(f"loss {loss:.4f}, {meter.rate():.1f} examples/s", refresh=False)
                bar.update()
                last = step == options.total_steps
                if last or step % options.log_every == 0:
                    self._log(step, meter.recent_loss(options.log_every), norm, meter.rate())
                if last or (options.checkpoint_every and step % options.checkpoint_every == 0):
                    writer.flush()
                    prefix = self.save()
        writer.close()
        return meter.summary(first, self.step, options.log_every, prefix)

    def _bar(self, first: int) -> tqdm:
        hidden = {"disable": True} if self._group.rank else {}
        return tqdm(total=self.options.total_steps, initial=first, desc="train", unit="step", **hidden)

    def _last_checkpoint(self) -> str:
        numbered = checkpoint.steps(self.options.directory)
        return numbered[-1][1] if numbered else ""

    def _one_step(self, step: int, stream: Iterable[Batch]) -> tuple[float, float, int]:
        """Mean loss, gradient norm before clipping, and number of examples of one optimizer step."""
        losses, examples = [], 0
        try:
            for index in range(self.options.accumulation):
                batch = next(stream, None)
                if batch is None:
                    raise ValueError(f"the training data ended before step {step} of {self.options.total_steps}")
                batch = {name: tf.convert_to_tensor(value) for name, value in batch.items()}
                examples += int(next(iter(batch.values())).shape[0])
                self._steps = self._steps or self._compiled(batch)
                if index + 1 < self.options.accumulation:
                    losses.append(self._steps[0](batch))
                else:
                    loss, norm = self._steps[1](batch)
                    losses.append(loss)
            return float(np.mean([float(loss) for loss in losses])), float(norm), examples
        except tf.errors.InvalidArgumentError as error:
            if _LOSS not in str(error) and _GRADIENT not in str(error):
                raise
            what = "gradient" if _GRADIENT in str(error) else "loss"
            raise NonFiniteLossError(
                f"training stopped at step {step}: its {what} is NaN or Inf. "
                "Lower the learning rate or warm up for longer; the last checkpoint is from before that step"
            ) from error

    def _compiled(self, batch: Mapping[str, tf.Tensor]) -> tuple[Callable, Callable]:
        """(add a batch's gradient, add it and make the step), each traced once: every dimension is left open."""
        signature = {name: tf.TensorSpec([None] * value.shape.rank, value.dtype) for name, value in batch.items()}

        @tf.function(input_signature=[signature], autograph=False, jit_compile=False)
        def accumulate(batch):
            loss, gradients = self._gradients(batch)
            for index, gradient in zip(self._reached, gradients, strict=True):
                self._sums[index].assign_add(gradient)
            return loss

        @tf.function(input_signature=[signature], autograph=False, jit_compile=False)
        def finish(batch):
            loss, gradients = self._gradients(batch)
            if self._sums:
                sums = [self._sums[index] for index in self._reached]
                gradients = [(s + g) / self.options.accumulation for s, g in zip(sums, gradients, strict=True)]
                for total in sums:
                    total.assign(tf.zeros_like(total))
            return loss, self._apply(gradients, loss)

        return accumulate, finish

    def _gradients(self, batch: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, Gradients]:
        with tf.GradientTape() as tape:
            loss = tf.cast(self._loss(self.model, batch), tf.float32)
        gradients = tape.gradient(loss, [_tensorflow(v) for v in self._variables])
        self._reached = [i for i, gradient in enumerate(gradients) if gradient is not None]
        if not self._reached:
            raise ValueError("the loss depends on no trainable variable: there is nothing to train")
        # Dense, so that a word that occurs twice counts as the sum of its gradients in the norm.
        dense = [tf.convert_to_tensor(gradients[i]) for i in self._reached]
        return tf.debugging.check_numerics(loss, _LOSS), dense

    def _apply(self, gradients: Gradients, loss: tf.Tensor) -> tf.Tensor:
        """Reduces, clips and applies; every update waits for the checks that loss and norm are finite."""
        gradients = self._reduce(self._group.average(gradients))
        norm = tf.debugging.check_numerics(tf.linalg.global_norm(gradients), _GRADIENT)
        limit = self.options.clip_norm
        scale = tf.constant(1.0) if limit is None else limit / tf.maximum(norm, limit)
        with tf.control_dependencies([loss, norm]):
            gradients = [gradient * tf.cast(scale, gradient.dtype) for gradient in gradients]
            self.optimizer.apply(gradients, [self._variables[i] for i in self._reached])
        return norm

    def _log(self, step: int, loss: float, norm: float, rate: float) -> None:
        tf.summary.scalar("train/loss", loss, step)
        tf.summary.scalar("train/gradient_norm", norm, step)
        tf.summary.scalar("train/learning_rate", float(self.optimizer.learning_rate), step)
        tf.summary.scalar("train/examples_per_second", rate, step)


class _Meter:
    """Losses and speed of the steps of one `fit`."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._losses: list[float] = []
        self._examples: list[int] = []
        self._seconds: list[float] = []

    def add(self, loss: float, examples: int, seconds: float) -> None:
        self._losses.append(loss)
        self._examples.append(examples)
        self._seconds.append(seconds)

    def recent_loss(self, count: int) -> float:
        return float(np.mean(self._losses[-count:]))

    def rate(self) -> float:
        """Examples a second over the last steps; the first, which traces, counts only while it is alone."""
        since = max(1, len(self._seconds) - 50) if len(self._seconds) > 1 else 0
        return sum(self._examples[since:]) / sum(self._seconds[since:])

    def summary(self, first: int, last: int, count: int, prefix: str) -> TrainSummary:
        total = time.perf_counter() - self._started
        since = 1 if len(self._seconds) > 1 else 0
        return TrainSummary(
            first_step=first,
            last_step=last,
            loss=self.recent_loss(count),
            seconds=total,
            examples_per_second=sum(self._examples) / total,
            steady_examples_per_second=sum(self._examples[since:]) / sum(self._seconds[since:]),
            checkpoint=prefix,
        )


def _tensorflow(variable: Any) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _name(variable: Any) -> str:
    """A variable's path: Keras has it as `path`, TensorFlow as `name` with the output's number behind."""
    return getattr(variable, "path", None) or variable.name.removesuffix(":0")
