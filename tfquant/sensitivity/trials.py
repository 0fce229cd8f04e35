"""Trials of a switched network, measured against the float one, kept by their state and shown in a
bar.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from tfquant import resume
from tfquant.engine import Engine
from tfquant.inputs import num_examples
from tfquant.ptq.buffers import Space
from tfquant.quantizer import Quantizer
from tfquant.sensitivity.measures import Measure, Metric, Reading
from tfquant.sensitivity.network import FLOAT, State, SwitchedNetwork, Trial

_FILE = "run.json"


class Trials:
    """Trials of a network with quantizers switched, measured once each.

    Attributes:
      network: that is tried.
      measure: see `Measure`.
      samples: how many examples there are.

    Args:
      engine: of a calibrated model.
      flats: the inputs of every batch.
      space: for tensors that are kept.
      alternatives: see `SwitchedNetwork`.
      measure, better, mask: see `Measure`.
      folder: for finished trials, or None.
      options: beside model, data and measure what decides the results, for the fingerprint of the
        folder.
      what: the run is called in messages.
      progress: show bars.

    Raises:
      ValueError: measure or mask do not fit, or the folder holds another run.
    """

    def __init__(
        self,
        engine: Engine,
        flats: Sequence[Sequence[tf.Tensor]],
        space: Space,
        alternatives: Mapping[str, Sequence[Quantizer]] | None = None,
        *,
        measure: str | Metric,
        better: str,
        mask: str | Sequence[str] | None,
        folder: str | os.PathLike[str] | None,
        options: Mapping[str, Any],
        what: str,
        progress: bool,
    ):
        self._flats, self._progress = flats, progress
        self.measure = Measure(engine, flats, measure, better, mask)
        own = {"measure": self.measure.name, "mask": mask, **options}
        if folder is not None:  # hashing takes as long as reading all
            own |= resume.fingerprint(engine, flats)
        self._results = resume.Results(folder, _FILE, own, what)
        self.network = SwitchedNetwork(engine, flats, space, alternatives)
        self.samples = sum(map(num_examples, flats))

    def one(self, trial: Trial) -> Reading:
        """The reading of a trial, run from the start of the network unless it is known."""
        if (known := self._known(trial.key)) is not None:
            return known
        return self._measured(
            trial.name, trial.key, self._shown(self.network.outputs(trial.state), trial.name)
        )

    def of_network(self, name: str, key: str, engine: Engine) -> Reading:
        """The reading of another network, quantized, on the same data."""
        if (known := self._known(key)) is not None:
            return known
        function = engine.function("quantized")
        return self._measured(
            name,
            key,
            self._shown(([t.numpy() for t in function(*flat)] for flat in self._flats), name),
        )

    def each(self, base: State, trials: Sequence[Trial], label: str) -> list[Reading]:
        """The readings of trials that differ in few sites from `base`."""
        different = {trial.key: trial for trial in trials}
        result = {key: known for key in different if (known := self._known(key)) is not None}
        left = [trial for key, trial in different.items() if key not in result]
        total = len(different) * len(self._flats)
        with tqdm(total=total, desc=label, unit="batch", disable=not self._progress) as bar:
            bar.update(total - len(left) * len(self._flats))
            for trial, outputs in self.network.each(base, left):
                result[trial.key] = self._measured(trial.name, trial.key, _counted(outputs, bar))
        return [result[trial.key] for trial in trials]

    @functools.cached_property
    def float_value(self) -> float:
        """The measure of the float network."""
        if self.measure.compares:
            return self.measure.of_equals
        return self.one(Trial("float", self.network.base(FLOAT))).value

    def loss(self, reading: Reading) -> float:
        """Loss of a reading against the float network."""
        return self.measure.loss(reading.value, self.float_value)

    @functools.cached_property
    def _exact(self) -> list[list[np.ndarray]]:
        """Outputs of the float network; not asked for where all is known."""
        return list(self._shown(self.network.outputs(self.network.base(FLOAT)), "float network"))

    def _measured(self, name: str, key: str, outputs: Iterable[list[np.ndarray]]) -> Reading:
        exact = self._exact if self.measure.compares else ()
        try:
            reading = self.measure(outputs, exact)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        self._results.put(key, dataclasses.asdict(reading))
        return reading

    def _known(self, key: str) -> Reading | None:
        return self._results.get(key, lambda result: Reading(**result))

    def _shown(self, outputs: Iterator[list[np.ndarray]], label: str) -> Iterator[list[np.ndarray]]:
        return iter(
            tqdm(
                outputs,
                label,
                len(self._flats),
                unit="batch",
                leave=False,
                disable=not self._progress,
            )
        )


def _counted(outputs: Iterator[list[np.ndarray]], bar: tqdm) -> Iterator[list[np.ndarray]]:
    for flat in outputs:
        yield flat
        bar.update()
