"""An exported file against the simulation that it was made from, on the same batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant.error_messages import one_line
from tfquant.export.errors import ExportError, MismatchError
from tfquant.export.output_kinds import is_real, kinds_of
from tfquant.export.output_parity import ExactParity, OutputAgreement, OutputParity, collector
from tfquant.export.request import ExportRequest
from tfquant.runtimes.session import Outputs, Session
from tfquant.store import non_finite

Score = Callable[[Sequence[Outputs]], float]
Network = Callable[[list[tf.Tensor]], Outputs]


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """Agreement of two networks.

    Attributes:
      largest, mean: absolute difference over all elements of all outputs.
      same: share of rows with the same answer, of the output in which it is smallest; what counts
        as the same depends on the kind of the output, see `OutputAgreement`.
      spread: mean absolute value of the simulation's outputs about their mean, what the differences
        are to be seen against.
      batches: how many were compared.
      scores: what the caller's score gave the simulation and the file; None without one.
      outputs: every output by itself.
    """

    largest: float
    mean: float
    same: float
    spread: float
    batches: int
    scores: tuple[float, float] | None = None
    outputs: tuple[OutputAgreement, ...] = ()

    def __str__(self) -> str:
        scores = (
            ""
            if self.scores is None
            else f", score {self.scores[0]:.2f}, of the file {self.scores[1]:.2f}"
        )
        notes = "".join(f"; output {o.name!r}: {o.note}" for o in self.outputs if o.note)
        return (
            f"largest difference {self.largest:.3g}, mean {self.mean:.3g} (outputs vary by"
            f" {self.spread:.3g}), same answer in {100 * self.same:.2f} % of rows, {self.batches}"
            f" batches{scores}{notes}"
        )

    def table(self) -> str:
        """A line for each output: its kind, and how far it agrees."""
        return "\n".join(map(str, self.outputs))

    def disagreeing(self, tolerance: float) -> list[OutputAgreement]:
        """Outputs of which more than the share `tolerance` of rows has another answer."""
        return [output for output in self.outputs if not output.agrees(tolerance)]


def check_tolerance(tolerance: float, name: str = "tolerance") -> None:
    """Raise ValueError if it is no share; `name` is what the message calls it."""
    number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
    if not number or not 0.0 <= tolerance <= 1.0:
        raise ValueError(f"{name}={tolerance}: is a share of rows, from 0 to 1")


def check_weights(request: ExportRequest) -> None:
    """Raise ExportError if a variable holds NaN or Inf: no file with it could be compared or
    loaded.
    """
    if name := non_finite(request.engine):
        raise ExportError(f"variable {name} holds NaN or Inf: load or train the weights again")


def agreement(
    request: ExportRequest,
    session: Session,
    batches: Iterable[Any],
    score: Score | None = None,
    kinds: Mapping[str, str] | None = None,
) -> ParityReport:
    """Run the simulation and an opened file on every batch.

    Args:
      request: what the file was made from.
      session: the file.
      batches: of inputs, or of (inputs, targets).
      score: the outputs of all batches, in order -> how good they are.
      kinds: output name -> kind, of `tfquant.export.KINDS`; found out where not given.

    Raises:
      MismatchError: the file answers NaN.
      ValueError: there is no batch, it does not fit, the network itself answers NaN, or an output
        or kind is not known.
    """
    engine, interface = request.engine, request.interface

    def network(mode: str) -> Network:
        function = engine.function(mode)
        return lambda flat: interface.named_outputs(
            [out.numpy() for out in tf.nest.flatten(function(*flat))]
        )

    def exported(flat: list[tf.Tensor]) -> Outputs:
        return session(interface.named_inputs([value.numpy() for value in flat]))

    simulated = network(request.mode)
    unrounded = network("float") if request.sites() else None
    parity = _Parity(request, dict(kinds or {}))
    answers: tuple[list[Outputs], list[Outputs]] = ([], [])
    for number, batch in enumerate(batches):
        flat, where = engine.inputs.flatten_batch(batch), f"check_data, batch {number}"
        expected = _answer(simulated, flat, f"{where}: the network cannot answer it")
        result = _answer(exported, flat, f"{where}: the exported file cannot answer it")
        parity.add(where, expected, result, expected if unrounded is None else unrounded(flat))
        if score is not None:
            answers[0].append(expected)
            answers[1].append(result)
    if parity.batches == 0:
        raise ValueError("no batch was given to compare on: pass at least one as check_data")
    scores = None if score is None else (float(score(answers[0])), float(score(answers[1])))
    return parity.agreement(scores)


class _Parity:
    """Comparison of every output of a network, collected over batches."""

    def __init__(self, request: ExportRequest, kinds: Mapping[str, str]):
        self._trace, self._names, self._kinds = (
            request.engine.inference,
            request.interface.outputs,
            kinds,
        )
        self._outputs: dict[str, OutputParity | ExactParity] = {}
        self._elements: dict[str, int] = dict.fromkeys(self._names, 0)
        self.batches = 0

    def add(self, where: str, simulated: Outputs, found: Outputs, unrounded: Outputs) -> None:
        """Take the answers to one batch."""
        _check_answers(where, simulated, found)
        if not self._outputs:
            kinds = kinds_of(self._trace, self._names, simulated, self._kinds)
            tensors = zip(self._names, self._trace.outputs, strict=True)
            self._outputs = {name: collector(name, kinds[name], tensor) for name, tensor in tensors}
        for name, output in self._outputs.items():
            output.add(simulated[name], found[name], unrounded[name])
            self._elements[name] += simulated[name].size
        self.batches += 1

    def agreement(self, scores: tuple[float, float] | None) -> ParityReport:
        """Return the agreement over all batches."""
        outputs = tuple(output.result() for output in self._outputs.values())
        sizes = [self._elements[output.name] for output in outputs]
        mean, spread = (
            sum(getattr(output, part) * size for output, size in zip(outputs, sizes, strict=True))
            / max(sum(sizes), 1)
            for part in ("mean", "spread")
        )
        largest = max((output.largest for output in outputs), default=0.0)
        return ParityReport(
            largest,
            mean,
            min((output.same for output in outputs), default=1.0),
            spread,
            self.batches,
            scores,
            outputs,
        )


def _answer(network: Network, flat: list[tf.Tensor], otherwise: str) -> Outputs:
    try:
        return network(flat)
    except KeyError:
        raise
    except Exception as error:  # TensorFlow's and the runtimes' own, many lines about nodes
        raise ValueError(f"{otherwise}: {one_line(error, 300)}") from error


def _check_answers(where: str, simulated: Outputs, found: Outputs) -> None:
    """Raise ValueError for answers that cannot be compared, MismatchError for NaN of the file."""
    if simulated.keys() != found.keys():
        names = f"{sorted(simulated)} in the simulation, {sorted(found)} in the exported file"
        raise ValueError(f"outputs differ: {names}")
    for name, one in simulated.items():
        other = found[name]
        if one.shape != other.shape:
            shapes = f"{list(one.shape)}, in the exported file {list(other.shape)}"
            raise ValueError(f"output {name!r} has shape {shapes}")
        if not is_real(one):
            continue
        if np.isnan(one).any():
            raise ValueError(f"{where}: the network itself answers NaN in output {name!r}")
        if np.isnan(other).any():
            raise MismatchError(f"{where}: the exported file answers NaN in output {name!r}")
