"""Sensitivity.

How far the outputs move when one site, or group of sites, is quantized alone, or alone is not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfquant.calibration import check_batches
from tfquant.dynamic_range import refuse as refuse_dynamic
from tfquant.model import QuantizedFunction, QuantizedModel, engine_of
from tfquant.ptq.buffers import Space
from tfquant.ptq.paired_forward import flattened
from tfquant.sensitivity.groups import chosen_sites, make_groups, parameter_bits
from tfquant.sensitivity.measures import Metric, Reading
from tfquant.sensitivity.network import FLOAT, OWN, Trial
from tfquant.sensitivity.report import GroupSensitivity, SensitivityReport
from tfquant.sensitivity.trials import Trials
from tfquant.site import Site

SWITCHES = ("on", "off")


def sensitivity(
    model: QuantizedModel | QuantizedFunction,
    batches: Iterable[Any],
    *,
    groups: str | Mapping[str, str | Sequence[str]] = "sites",
    sites: str | Sequence[str] = "all",
    switch: str = "on",
    measure: str | Metric = "sqnr",
    better: str = "higher",
    mask: str | Sequence[str] | None = "auto",
    folder: str | os.PathLike[str] | None = None,
    memory_limit: int = 1 << 30,
    progress: bool = True,
) -> SensitivityReport:
    """Measures what every quantizer costs, on unlabelled data, against the outputs of the float
    network.

    The model stays as it is. A trial costs less than a forward pass: what lies before the switched
    sites is computed once for all.

    Args:
      model: from `tfquant.quantize`, calibrated.
      batches: inputs of the model, or (inputs, targets) pairs, as for `tfquant.calibrate`. All are
        held in memory, and the float network's outputs.
      groups: what is switched together: `sites`, each alone; `layers`, all sites of a layer path;
        `roles`; or a mapping from names to one or several of what `sites` takes.
      sites: which there are: `all`, `activations`, `weights`, a role, or a glob (after `re:` a
        regular expression) of addresses or layer paths; or several of these. Others stay in float
        with `on`, quantized with `off`.
      switch: `on`: everything in float but one group. `off`: everything quantized but one group.
      measure: `sqnr`: ratio of the power of the float outputs to that of the difference, in dB.
        `kl`: Kullback-Leibler divergence of the softmax over the last axis from that of the float
        network, in nats, mean over rows. Of several outputs the mean counts. Tokens that are
        padding have no part. Or a callable that takes the outputs of all batches, a list of arrays
        in the structure of the model's outputs, and returns a number.
      better: which numbers of a callable are the better ones: `higher` or `lower`.
      mask: name of the input that marks real tokens, see `tfquant.calibrate`.
      folder: keeps what is finished; a second call with the same model, data and options goes on
        behind it.
      memory_limit: bytes of tensors inside the network that are kept in memory; more go to files in
        the temporary folder.
      progress: show a bar.

    Returns:
      The measure with each group switched, the most sensitive first.

    Raises:
      ValueError: an option does not fit, a batch does not fit, outputs are NaN, or `folder` holds
        another run.
      UncalibratedError: a site has no range.
      TypeError: `model` is not quantized.
      OSError: the folder, or the disk for tensors, is full.
    """
    engine = engine_of(model)
    engine.check_merged("sensitivity analysis")
    check_batches(batches, "sensitivity analysis")
    refuse_dynamic(engine.plan.sites, "sensitivity analysis")
    engine.quantizers.check_calibrated()
    if switch not in SWITCHES:
        raise ValueError(f"unknown switch {switch!r}; known: {', '.join(SWITCHES)}")
    there = [site for site in engine.plan.sites if site.enabled]
    switched = make_groups(chosen_sites(there, sites), groups)
    flats = flattened(engine, batches)
    with Space(memory_limit) as space:
        trials = Trials(
            engine,
            flats,
            space,
            measure=measure,
            better=better,
            mask=mask,
            folder=folder,
            options={"switch": switch},
            what="sensitivity analysis",
            progress=progress,
        )
        base = trials.network.base(FLOAT if switch == "on" else OWN)
        to = OWN if switch == "on" else FLOAT
        chosen = [
            Trial(name, base | {site.address: to for site in group})
            for name, group in switched.items()
        ]
        readings = trials.each(base, chosen, "sensitivity")
        ends = trials.float_value, trials.one(Trial("quantized", trials.network.base(OWN))).value
    return _report(switched, readings, trials, switch, ends)


def _report(
    groups: Mapping[str, Sequence[Site]],
    readings: Sequence[Reading],
    trials: Trials,
    switch: str,
    ends: tuple[float, float],
) -> SensitivityReport:
    baseline = "float" if switch == "on" and trials.measure.name != "sqnr" else "quantized"
    to = ends[0] if baseline == "float" else ends[1]
    result = []
    for (name, sites), reading in zip(groups.items(), readings, strict=True):
        bits = sum(map(parameter_bits, sites))
        addresses = tuple(site.address for site in sites)
        difference = (
            reading.value - to if reading.value != to else 0.0
        )  # also where both are infinite
        result.append(
            (
                trials.loss(reading),
                GroupSensitivity(name, addresses, reading.value, difference, bits, reading.outputs),
            )
        )
    result.sort(key=lambda pair: pair[0], reverse=switch == "on")
    return SensitivityReport(
        tuple(group for _, group in result),
        trials.measure.name,
        switch,
        baseline,
        *ends,
        trials.samples,
    )
