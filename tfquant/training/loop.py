"""Training loop for any loss: accumulation, clipping, checkpoints, exact resume.

The state of a run is what its checkpoint holds: weights, optimizer slots, step, and the seeds of
dropout. Data comes from a callable that can start at any batch, so a run that was cut off and
resumed ends with the very same weights.
"""

import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfquant import checkpoint
from tfquant.distributed.errors import agree
from tfquant.distributed.group import Gradient, Group, Single, timed_average
from tfquant.training.hooks import Hook
from tfquant.training.interrupt import Terminate, TrainingInterrupted
from tfquant.training.loss_scale import DynamicLossScale
from tfquant.training.meter import Meter, TrainSummary
from tfquant.training.optimizer import BertAdamW
from tfquant.training.options import TrainOptions
from tfquant.training.state import (
    REMEDY,
    STATE,
    NonFiniteLossError,
    TrainingState,
    seed_variables,
)
from tfquant.variables import path_of, resource

_MADE, _SKIPPED, _FAILED = 0, 1, 2  # what became of a step

Batch = Mapping[str, np.ndarray]


class Trainer:
    """Trainer of a model on a loss.

    Args:
        model: a `keras.Model`, or anything with `weights`, `trainable_variables` and `variables`
          whose names are paths.
        loss: `loss(model, batch)` -> scalar; calls the model itself, with `training=True`. Losses
          that layers add and
            regularizers (`model.losses`) are added to it.
        optimizer: see `BertAdamW`; must not be shared with another trainer.
        options: see `TrainOptions`.
        weights: what to save beside the state of training; `model.weights` when not given.
        seeds: states of random number generators; those that `model.variables` shows when not
          given.
        write: `write(prefix, tensors)` that saves a checkpoint; replace it to save more than the
          trainer knows of.
        group: the processes that train together: gradients are averaged over them, rank 0 alone
          writes and shows
            progress, and before a checkpoint all must hold the same weights.
        hooks: see `Hook`; their state is saved and restored.
        loss_variables: what the loss has to train beside the model, such as
          `Distillation.variables`: trained and saved with it.
    """

    def __init__(
        self,
        model: Any,
        loss: Callable[[Any, Mapping[str, tf.Tensor]], tf.Tensor],
        optimizer: BertAdamW,
        options: TrainOptions,
        *,
        weights: Sequence[Any] | None = None,
        seeds: Sequence[Any] | None = None,
        write: Callable[[str, Mapping[str, Any]], None] = checkpoint.write,
        group: Group | None = None,
        hooks: Sequence[Hook] = (),
        loss_variables: Sequence[Any] = (),
    ):
        self.model, self.optimizer, self.options = model, optimizer, options
        self._loss, self._write = loss, write
        self._group = group or Single()
        self._hooks = list(hooks)
        self._scale = DynamicLossScale() if options.loss_scale else None
        self._variables = list(model.trainable_variables)
        if not self._variables:
            raise ValueError("the model has no trainable variables: there is nothing to train")
        self._variables += loss_variables
        optimizer.build(self._variables)
        self._state = TrainingState(
            model,
            self._variables,
            [*(model.weights if weights is None else weights), *loss_variables],
            list(seed_variables(model) if seeds is None else seeds),
            optimizer,
            self._group,
        )
        # Which variables the loss depends on; known once the step is traced.
        self._reached: list[int] = []
        self._sums = (
            [tf.Variable(tf.zeros_like(v)) for v in self._variables]
            if options.accumulation > 1
            else []
        )
        self._steps: tuple[Callable, ...] = ()
        if self._scale:
            self._state.add({STATE + name: v for name, v in self._scale.state().items()})
        for hook in self._hooks:
            self._state.add(hook.state())

    @property
    def step(self) -> int:
        """Number of completed optimizer steps."""
        return int(resource(self.optimizer.iterations).numpy())

    def state(self) -> dict[str, Any]:
        """Map checkpoint name -> variable, for everything that training changes."""
        return self._state.named()

    def save(self) -> str:
        """Write `model.ckpt-<step>`, remove older checkpoints beyond those to keep, and return its
        prefix.

        Raises:
            tfquant.checkpoint.CheckpointError: it cannot be written; older ones stay.
            NonFiniteLossError: a weight is NaN or Inf; older ones stay.
        """
        step = self.step
        prefix = str(pathlib.Path(self.options.directory) / f"model.ckpt-{step}")
        self._state.save(prefix, step, self._write)
        if not self._group.rank:
            checkpoint.prune(self.options.directory, self.options.keep_checkpoints)
        return prefix

    def restore(self, prefix: str | os.PathLike | None = None) -> int:
        """Resume from a checkpoint of `save`: by default from the highest step in the folder, if
        there is one.

        Returns:
            The step.

        Raises:
            ValueError: the checkpoint is not one of this model's training; all differences are
              listed.
        """
        prefix = self._last_checkpoint() if prefix is None else prefix
        if prefix:
            self._state.restore(prefix)
        return self.step

    def fit(self, batches: Callable[[int], Iterable[Batch]]) -> TrainSummary:
        """Train up to `total_steps`, from the current step.

        Args:
            batches: `batches(n)` gives the run's batches from the n-th on, in an order that never
              changes.
                `accumulation` of them make a step.

        Raises:
            NonFiniteLossError: names the step and the first variable whose gradient is not finite.
            TrainingInterrupted: a SIGTERM or SIGUSR1 arrived; the step was finished, on every rank
              the same one, and saved.
            ValueError: the batches end too early.
        """
        options, first = self.options, self.step
        agree(self._group, self._course(first), "networks or options of training")
        if first >= options.total_steps:
            self._say(
                f"{options.directory} has already been trained for {first} steps of"
                f" {options.total_steps}: nothing to do. To train for longer start from its last"
                " checkpoint in a new folder: there the learning-rate schedule starts again"
            )
            for hook in self._hooks:
                hook.after_training(first)
            return TrainSummary(first, first, None, 0.0, 0.0, 0.0, self._last_checkpoint())
        pathlib.Path(options.directory).mkdir(parents=True, exist_ok=True)
        meter, prefix = Meter(), ""
        chief = self._group.rank == 0
        folder = os.path.join(options.directory, options.tensorboard)
        writer = tf.summary.create_file_writer(folder) if chief else tf.summary.create_noop_writer()
        stream = iter(batches(first * options.accumulation))
        for total in self._sums:  # what a fit that was cut off may have left
            total.assign(tf.zeros_like(total))
        with writer.as_default(), self._bar(first) as bar, Terminate() as terminate:
            for step in range(first + 1, options.total_steps + 1):
                for hook in self._hooks:
                    hook.before_step(step - 1)
                started = time.perf_counter()
                loss, norm, examples, stop, reducing = self._one_step(step, stream, terminate)
                meter.add(loss, examples, time.perf_counter() - started, reducing)
                bar.set_postfix_str(
                    f"loss {loss:.4f}, {meter.rate():.1f} examples/s", refresh=False
                )
                bar.update()
                last = step == options.total_steps or stop
                if (
                    last
                    or step % options.log_every == 0
                    or (options.log_first and step == first + 1)
                ):
                    self._log(step, meter.recent_loss(options.log_every), norm, meter)
                if last or (options.checkpoint_every and step % options.checkpoint_every == 0):
                    writer.flush()
                    prefix = self.save()
                if stop:
                    terminate.served()
                    break
            else:
                for hook in self._hooks:
                    hook.after_training(options.total_steps)
        writer.close()
        if stop:
            self._say(
                f"stopped by a signal after step {step} of {options.total_steps}, saved as {prefix}"
            )
            raise TrainingInterrupted(step, prefix)
        return meter.summary(first, self.step, options.log_every, prefix, self._group)

    def _course(self, first: int) -> dict[str, Any]:
        """Settings that must be equal on every rank, or collectives would deadlock."""
        options = dataclasses.asdict(self.options)
        shared = ("total_steps", "accumulation", "clip_norm", "checkpoint_every", "loss_scale")
        return {"first step": first, "variables": self._state.structure()} | {
            name: options[name] for name in shared
        }

    def _say(self, text: str) -> None:
        """Log a message once for all ranks."""
        if self._group.rank == 0:
            tqdm.write(text, file=sys.stderr)

    def _bar(self, first: int) -> tqdm:
        return tqdm(
            total=self.options.total_steps,
            initial=first,
            desc="train",
            unit="step",
            disable=bool(self._group.rank) or not self.options.progress,
        )

    def _last_checkpoint(self) -> str:
        numbered = checkpoint.steps(self.options.directory)
        return numbered[-1][1] if numbered else ""

    def _one_step(
        self, step: int, stream: Iterator[Batch], terminate: Terminate
    ) -> tuple[float, float, int, bool, float]:
        """Run one optimizer step: mean loss, gradient norm before clipping, number of examples,
        whether to stop after it, and seconds of averaging over the ranks.
        """
        earlier, examples = tf.zeros(()), 0
        for index in range(self.options.accumulation):
            batch = next(stream, None)
            if batch is None:
                raise ValueError(
                    f"the training data ended before step {step} of {self.options.total_steps}"
                )
            batch = {name: tf.convert_to_tensor(value) for name, value in batch.items()}
            examples += len(next(iter(batch.values())))
            self._steps = self._steps or self._compiled(batch)
            if index + 1 < self.options.accumulation:
                earlier += self._steps[0](batch)
        with self._group.waiting(f"step {step}"):
            results = self._steps[1](batch, earlier, tf.constant(bool(terminate.asked)))
        loss, norm, stop, outcome, bad, reducing = (t.numpy() for t in results)
        if outcome != _MADE:
            self._not_made(
                step, outcome, "loss" if not np.isfinite(loss) else self._gradient_name(bad)
            )
        return float(loss), float(norm), examples, bool(stop), float(reducing)

    def _not_made(self, step: int, outcome: int, what: str) -> None:
        """Log why a step was skipped, or raise."""
        if outcome == _FAILED:
            raise NonFiniteLossError(
                f"training stopped at step {step}: its {what} is NaN or Inf. {REMEDY}; "
                "the last checkpoint is from before that step"
            )
        if self._scale is not None:
            self._say(
                f"step {step} skipped: its {what} is NaN or Inf; loss scale halved to"
                f" {float(self._scale.factor):g}, weights unchanged"
            )

    def _gradient_name(self, index: int) -> str:
        return (
            "gradient's norm"
            if index < 0
            else f"gradient of {path_of(self._variables[self._reached[index]])}"
        )

    def _compiled(self, batch: Mapping[str, tf.Tensor]) -> tuple[Callable, Callable]:
        """Step functions (accumulate a batch's gradient; accumulate and update), each traced once.

        Every dimension is left open.
        """
        signature = {
            name: tf.TensorSpec([None] * value.shape.rank, value.dtype)
            for name, value in batch.items()
        }

        @tf.function(input_signature=[signature], autograph=False, jit_compile=False)
        def accumulate(batch):
            loss, gradients = self._gradients(batch)
            for index, gradient in zip(self._reached, gradients, strict=True):
                self._sums[index].assign_add(gradient)
            return loss

        scalars = [tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.bool)]

        @tf.function(input_signature=[signature, *scalars], autograph=False, jit_compile=False)
        def finish(batch, earlier, stop):
            loss, gradients = self._gradients(batch)
            if self._sums:
                sums = [self._sums[index] for index in self._reached]
                gradients = [
                    (s + tf.convert_to_tensor(g)) / self.options.accumulation
                    for s, g in zip(sums, gradients, strict=True)
                ]
                for total in sums:
                    total.assign(tf.zeros_like(total))
            return self._apply(gradients, (earlier + loss) / self.options.accumulation, stop)

        return accumulate, finish

    def _gradients(self, batch: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, Sequence[Gradient]]:
        with tf.GradientTape() as tape:
            loss = _with_added(tf.cast(self._loss(self.model, batch), tf.float32), self.model)
            target = self._scale.scale(loss) if self._scale else loss
        gradients = tape.gradient(target, [resource(v) for v in self._variables])
        self._reached = [i for i, gradient in enumerate(gradients) if gradient is not None]
        if not self._reached:
            raise ValueError("the loss depends on no trainable variable: there is nothing to train")
        reached = [gradients[i] for i in self._reached]
        # Those of embeddings stay sparse as long as they may: several ranks send each other only
        # the rows that occur.
        return loss, _dense(reached) if self._sums or self._group.size == 1 else reached

    def _apply(
        self, gradients: Sequence[Gradient], loss: tf.Tensor, stop: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """Average and clip gradients and update the weights.

        Only what all ranks know is tested: a rank that gave up alone would leave the others waiting
        for its gradients.

        Returns:
            Loss, norm, whether any rank wants to stop, outcome, which gradient is the first that is
            not finite, and seconds of averaging.
        """
        reducing = tf.zeros((), tf.float64)
        if self._group.size > 1:
            # Compressed to float16 a large loss would look infinite.
            sent = tf.where(tf.math.is_finite(loss), tf.clip_by_value(loss, -6e4, 6e4), np.nan)
            sent = tf.stack([sent, tf.cast(stop, tf.float32)])
            means, reducing = timed_average(self._group, [*gradients, sent])
            gradients, scalars = means[:-1], tf.convert_to_tensor(means[-1])
            loss, stop = scalars[0], scalars[1] > 0
        dense = _dense(gradients)
        if self._scale:
            dense = self._scale.unscale(dense)
        norm = tf.linalg.global_norm(dense)
        clipped, limit = dense, self.options.clip_norm
        if limit is not None:
            factor = limit / tf.maximum(norm, limit)
            clipped = [gradient * tf.cast(factor, gradient.dtype) for gradient in dense]

        def make() -> tuple[tf.Tensor, tf.Tensor]:
            self.optimizer.apply(clipped, [self._variables[i] for i in self._reached])
            for hook in self._hooks:
                hook.after_update()
            if self._scale:
                self._scale.good()
            return tf.constant(_MADE), tf.constant(-1)

        def refuse() -> tuple[tf.Tensor, tf.Tensor]:
            finite = tf.stack([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in dense])
            bad = tf.where(
                tf.reduce_all(finite),
                -1,
                tf.argmin(tf.cast(finite, tf.int32), output_type=tf.int32),
            )
            if not self._scale:
                return tf.constant(_FAILED), bad
            left = self._scale.bad()
            iterations = resource(self.optimizer.iterations)
            iterations.assign_add(tf.cast(left, iterations.dtype))
            return tf.where(left, _SKIPPED, _FAILED), bad

        outcome, bad = tf.cond(tf.math.is_finite(loss) & tf.math.is_finite(norm), make, refuse)
        if hasattr(self.model, "update_scales"):  # of a quantized model
            self.model.update_scales(self._group)
        return loss, norm, stop, outcome, bad, reducing

    def _log(self, step: int, loss: float, norm: float, meter: Meter) -> None:
        tf.summary.scalar("train/loss", loss, step)
        tf.summary.scalar("train/gradient_norm", norm, step)
        tf.summary.scalar("train/learning_rate", float(self.optimizer.learning_rate), step)
        tf.summary.scalar("train/examples_per_second", meter.rate() * self._group.size, step)
        if self._group.size > 1:
            tf.summary.scalar("train/allreduce_share", meter.allreduce_share(), step)
        if self._scale:
            tf.summary.scalar("train/loss_scale", float(self._scale.factor), step)


def _dense(gradients: Sequence[Gradient]) -> list[tf.Tensor]:
    """Convert gradients to dense tensors, so that a word that occurs twice counts as the sum of its
    gradients in the norm.
    """
    return [tf.convert_to_tensor(gradient) for gradient in gradients]


@tf.autograph.experimental.do_not_convert
def _with_added(loss: tf.Tensor, model: Any) -> tf.Tensor:
    """Add to the loss the losses that layers added in the last call, and weight regularizers."""
    for added in getattr(model, "losses", ()):
        loss = loss + tf.cast(added, loss.dtype)
    return loss
