"""Training of a float or quantized classifier: log, test accuracy of each epoch, best weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfquant
from examples.ag_news.data import INPUTS, LABELS, Tokens
from runs.logging import log
from tfquant import checkpoint
from tfquant.training import BertAdamW, Hook, Trainer, TrainOptions, seed_variables
from tfquant.variables import state_variable

_STATE = "ag_news/"
_EVALUATION_BATCH = 64
_NONE = -1.0  # not logged yet; checkpoints hold no NaN


@dataclasses.dataclass(frozen=True)
class Phase:
    """Epochs that are trained with one optimizer.

    Attributes:
      first, last: epochs, from 0; `last` is not one of them.
      folder: of its checkpoints.
    """

    first: int
    last: int
    folder: str


class Log(Hook):
    """Running averages of an epoch every few iterations, and test accuracy after each epoch; a hook
    of `Trainer`. Everything lies in the checkpoints, so that a run that was cut off resumes with
    what it had.

    Args:
      network: what is trained.
      test: what it is tested on.
      phase: epochs of this training.
      of_epoch: iterations of an epoch.
      every: iterations between two rows.
    """

    def __init__(self, network: Any, test: Tokens, phase: Phase, of_epoch: int, every: int):
        self._network, self._test, self._phase = network, test, phase
        self._predict = predictor(network)
        self._of_epoch, self._every = of_epoch, every
        epochs = phase.last - phase.first
        rows = epochs * -(-of_epoch // every)
        self._sums = state_variable(np.zeros(3), "sums")  # of loss and hits, number of texts
        self._rows = state_variable(np.full((rows, 4), _NONE), "rows")
        self._accuracy = state_variable(np.full(epochs, _NONE), "accuracy")
        self._best = {
            variable.path: tf.Variable(variable.value, trainable=False)
            for variable in network.weights
        }

    @property
    def rows(self) -> np.ndarray:
        """float64 [rows, 4]: epoch, iteration, mean loss and accuracy in percent of the epoch so
        far."""
        rows = self._rows.numpy()
        return rows[rows[:, 0] != _NONE]

    @property
    def accuracy(self) -> np.ndarray:
        """float64 [epochs], of the test, in percent."""
        return self._accuracy.numpy()

    @property
    def best(self) -> dict[str, np.ndarray]:
        """Weights at the best test accuracy."""
        return {name: variable.numpy() for name, variable in self._best.items()}

    def state(self) -> Mapping[str, Any]:
        own = {"sums": self._sums, "rows": self._rows, "accuracy": self._accuracy}
        return {_STATE + name: variable for name, variable in own.items()} | {
            f"{_STATE}best/{name}": variable for name, variable in self._best.items()
        }

    def add(self, losses: tf.Tensor, hits: tf.Tensor) -> None:
        """Count the texts of a batch; called in the step's graph."""
        terms = [tf.reduce_sum(losses), tf.math.count_nonzero(hits), tf.size(hits)]
        self._sums.assign_add(tf.stack([tf.cast(term, tf.float64) for term in terms]))

    def before_step(self, step: int) -> None:
        epoch, iteration = divmod(step, self._of_epoch)
        if step and iteration == 0:
            self._test_after(epoch - 1)
            self._sums.assign(tf.zeros_like(self._sums))
        elif iteration and iteration % self._every == 0:
            row = epoch * -(-self._of_epoch // self._every) + iteration // self._every
            self._write(row, epoch, iteration)

    def after_training(self, step: int) -> None:
        self._test_after(step // self._of_epoch - 1)

    def _write(self, row: int, epoch: int, iteration: int) -> None:
        loss, hits, texts = self._sums.numpy()
        if texts:
            values = [self._phase.first + epoch, iteration, loss / texts, 100.0 * hits / texts]
            self._rows.scatter_nd_update([[row]], [values])

    def _test_after(self, epoch: int) -> None:
        if self.accuracy[epoch] != _NONE:
            return
        value, best = accuracy(self._predict, self._test), self.accuracy.max()
        self._accuracy.scatter_nd_update([[epoch]], [value])
        if value > best:
            for variable in self._network.weights:
                self._best[variable.path].assign(variable.value)
        log(f"epoch {self._phase.first + epoch}: test accuracy {value:.2f}")


def train(
    model: keras.Model,
    network: Any,
    train_set: Tokens,
    test_set: Tokens,
    phase: Phase,
    *,
    batch_size: int,
    learning_rate: float,
    seed: int,
    log_every: int,
    hooks: tuple[Hook, ...] = (),
) -> Log:
    """Train for the epochs of a phase with a fresh optimizer, from the last checkpoint if there is
    one.

    Args:
      model: the float model, whose weights are trained.
      network: the model itself, or what it was quantized to.
      train_set, test_set: data.
      phase: which epochs.
      batch_size: texts in a batch.
      learning_rate: of Adam.
      seed: of the order.
      log_every: iterations between rows of the log.
      hooks: further ones.

    Returns:
      What was logged.
    """
    of_epoch = len(train_set.batches(batch_size, seed=seed))
    logged = Log(network, test_set, phase, of_epoch, log_every)

    def loss(network: Any, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        logits = tf.cast(network({name: batch[name] for name in INPUTS}, training=True), tf.float32)
        labels = batch[LABELS]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        hits = tf.equal(tf.argmax(logits, -1, tf.int32), labels)
        logged.add(tf.stop_gradient(losses), hits)
        return tf.reduce_mean(losses)

    def write(prefix: str, tensors: Mapping[str, Any]) -> None:
        if network is model:
            checkpoint.write(prefix, tensors)
        else:
            tfquant.save(network, prefix, extra=tensors)

    options = TrainOptions(
        phase.folder,
        (phase.last - phase.first) * of_epoch,
        clip_norm=None,
        checkpoint_every=of_epoch,
        log_every=log_every,
    )
    trainer = Trainer(
        network,
        loss,
        BertAdamW(learning_rate, weight_decay=0.0),
        options,
        weights=model.weights,
        seeds=seed_variables(model),
        write=write,
        hooks=[*hooks, logged],
    )
    if os.path.isdir(phase.folder):
        done = trainer.restore()
        if done:
            log(f"resuming from step {done} of {options.total_steps} ({phase.folder})")
    first = phase.first * of_epoch
    trainer.fit(lambda start: train_set.endless(batch_size, seed, first + start))
    return logged


def predictor(network: Any) -> Any:
    """Return a function from inputs to logits, traced once for all shapes."""
    return tf.function(
        lambda batch: network(batch, training=False),
        input_signature=[{name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}],
        autograph=False,
        jit_compile=False,
    )


def accuracy(predict: Any, test: Tokens) -> float:
    """Accuracy of a `predictor` in percent."""
    hits = 0
    for rows in test.batches(_EVALUATION_BATCH, seed=None):
        batch = test.batch(rows)
        logits = predict({name: tf.constant(batch[name]) for name in INPUTS}).numpy()
        hits += int((logits.argmax(-1) == batch[LABELS]).sum())
    return 100.0 * hits / len(test)
