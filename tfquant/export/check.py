"""An exported file against the simulation that it was made from, on the same batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant.export.order import Order
from tfquant.messages import one_line
from tfquant.runtimes.session import Outputs, Session

Score = Callable[[Sequence[Outputs]], float]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far two networks agree.

    Attributes:
      largest, mean: absolute difference over all elements of all outputs.
      same: share of rows (all axes but the last) whose largest element is at the same place.
      spread: mean absolute value of the simulation's outputs about their mean, what the differences are to be seen against.
      batches: how many were compared.
      scores: what the caller's score gave the simulation and the file; None without one.
    """

    largest: float
    mean: float
    same: float
    spread: float
    batches: int
    scores: tuple[float, float] | None = None

    def __str__(self) -> str:
        scores = "" if self.scores is None else f", score {self.scores[0]:.2f}, of the file {self.scores[1]:.2f}"
        return (
            f"largest difference {self.largest:.3g}, mean {self.mean:.3g} (outputs vary by {self.spread:.3g}), "
            f"same answer in {100 * self.same:.2f} % of rows, {self.batches} batches{scores}"
        )


def compared(
    simulated: Callable[[object], Outputs],
    exported: Callable[[object], Outputs],
    batches: Iterable[object],
    score: Score | None = None,
) -> Agreement:
    """Runs both on every batch.

    Raises:
      ValueError: there is no batch, or the outputs differ in name or shape.
    """
    largest, sums, variation, sizes, same, count = 0.0, 0.0, 0.0, 0, [], 0
    answers: tuple[list[Outputs], list[Outputs]] = ([], [])
    for batch in batches:
        count += 1
        expected = _answer(simulated, batch, f"check_data, batch {count - 1}: the network cannot answer it")
        found = _answer(exported, batch, f"check_data, batch {count - 1}: the exported file cannot answer it")
        if expected.keys() != found.keys():
            raise ValueError(f"outputs differ: {sorted(expected)} in the simulation, {sorted(found)} in the exported file")
        if score is not None:
            answers[0].append(expected)
            answers[1].append(found)
        for name, one in expected.items():
            if one.shape != found[name].shape:
                raise ValueError(f"output {name!r} has shape {list(one.shape)}, in the exported file {list(found[name].shape)}")
            difference = np.abs(one.astype(np.float64) - found[name])
            largest, sums = max(largest, float(difference.max(initial=0.0))), sums + float(difference.sum())
            variation, sizes = variation + float(np.abs(one - one.mean()).sum(dtype=np.float64)), sizes + one.size
            if one.ndim > 1:
                same.append((one.argmax(-1) == found[name].argmax(-1)).ravel())
    if count == 0:
        raise ValueError("no batch was given to compare on: pass at least one as check_data")
    share = float(np.concatenate(same).mean()) if same else 1.0
    scores = None if score is None else (float(score(answers[0])), float(score(answers[1])))
    return Agreement(largest, sums / max(sizes, 1), share, variation / max(sizes, 1), count, scores)


def _answer(network: Callable[[object], Outputs], batch: object, otherwise: str) -> Outputs:
    try:
        return network(batch)
    except KeyError:
        raise
    except Exception as error:  # TensorFlow's and the runtimes' own, many lines about nodes
        raise ValueError(f"{otherwise}: {one_line(error, 300)}") from error


def agreement(order: Order, session: Session, batches: Iterable[Any], score: Score | None = None) -> Agreement:
    """Of the simulation and an opened file.

    Args:
      order: what the file was made from.
      session: the file.
      batches: of inputs, or of (inputs, targets).
      score: the outputs of all batches, in order -> how good they are.

    Raises:
      ValueError: there is no batch, or it does not fit.
    """
    engine, interface = order.engine, order.interface
    simulation = engine.function(order.mode)

    def simulated(flat: list[tf.Tensor]) -> Outputs:
        return interface.named_outputs([out.numpy() for out in tf.nest.flatten(simulation(*flat))])

    def exported(flat: list[tf.Tensor]) -> Outputs:
        return session(interface.named_inputs([value.numpy() for value in flat]))

    return compared(simulated, exported, (engine.flatten_inputs(engine.inputs_of(batch)) for batch in batches), score)
