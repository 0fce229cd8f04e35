"""Bias correction: subtract the mean output error of quantization from each channel's bias.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
arXiv:1906.04721, section 4.2, with means measured on data, layer after layer, so that each layer
sees what the corrected ones before it give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from calib import tables
from tfquant.calibration import check_batches
from tfquant.engine import Engine
from tfquant.model import QuantizedFunction, QuantizedModel, engine_of
from tfquant.ptq.adaround.layer_function import Form
from tfquant.ptq.buffers import Space
from tfquant.ptq.layer_samples import Outputs
from tfquant.ptq.layers import Layer, LayerFinder, Unsuitable, choose, grouped, variable_read
from tfquant.ptq.paired_forward import PairedForward
from tfquant.ptq.weight import Weight
from tfquant.site import address


@dataclasses.dataclass(frozen=True)
class BiasShift:
    """Correction of one bias.

    Attributes:
      path: of the layer.
      mean: mean magnitude of the shift over channels, in units of the output.
      largest: largest magnitude.
    """

    path: str
    mean: float
    largest: float


@dataclasses.dataclass(frozen=True)
class BiasReport:
    """Report of `correct_bias`; `print` shows one layer per line.

    Attributes:
      shifts: one a layer, in graph order.
      skipped: (layer path, reason) of what was left as it was.
    """

    shifts: tuple[BiasShift, ...]
    skipped: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        rows = [(shift.path, f"{shift.mean:.4g}", f"{shift.largest:.4g}") for shift in self.shifts]
        columns = ("layer", "mean shift", "largest shift")
        table = tables.build(None, columns, rows, left=("layer",))
        unchanged = (f"unchanged: {path}: {reason}" for path, reason in self.skipped)
        return "\n".join([tables.render(table), *unchanged])

    def _repr_html_(self) -> str:
        return tables.as_html(str(self))


def correct_bias(
    model: QuantizedModel | QuantizedFunction,
    batches: Iterable[Any],
    *,
    sites: str | Sequence[str] = "kernels",
    mask: str | Sequence[str] | None = "auto",
    memory_limit: int = 1 << 30,
    progress: bool = True,
) -> BiasReport:
    """Correct the bias of each quantized linear by its mean output error, float minus quantized,
    over real tokens.

    The quantized network rounds weights and activations. Biases are assigned at the very end: an
    error leaves them as they were. They are those of the float network too, which differs from then
    on.

    Args:
      model: from `tfquant.quantize`, calibrated.
      batches, mask, memory_limit, progress: as for `adaround`.
      sites: whose layers, as for `adaround`.

    Returns:
      The shifts, and layers without a bias of their own.

    Raises:
      ValueError, UncalibratedError, TypeError, OSError: as for `adaround`.
    """
    engine = engine_of(model)
    engine.check_merged("bias correction")
    check_batches(batches, "bias correction")
    engine.quantizers.check_calibrated()
    layers, left_out = choose(engine, sites)
    finder = LayerFinder(engine)
    biases, skipped = _biases(finder, engine, layers)
    kept = [layer for layer in layers if layer.address in biases]
    substitutes: dict[str, tf.Variable] = {}
    shifts: list[BiasShift] = []
    with Space(memory_limit) as space:
        groups = grouped(finder, kept)
        uses = [[layer.uses[0] for layer in group] for group in groups]
        walk = PairedForward(
            engine,
            list(batches),
            uses,
            space,
            mask=mask,
            quantize_activations=True,
            progress=progress,
        )
        for number, group in enumerate(
            tqdm(groups, "correcting biases", unit="stop", disable=not progress)
        ):
            for layer, error in zip(
                group, _mean_errors(engine, finder, walk, number, group, substitutes), strict=True
            ):
                handle = biases[layer.address]
                variable = engine.inference.variables[handle]
                # Axes of the output before those of the bias, of a convolution its positions, have
                # one bias in common.
                shift = error.reshape(-1, *variable.shape).mean(0)
                substitutes[handle] = tf.Variable(
                    variable + tf.cast(shift, variable.dtype), trainable=False
                )
                shifts.append(
                    BiasShift(layer.site.path, float(abs(shift).mean()), float(abs(shift).max()))
                )
    for handle, corrected in substitutes.items():
        engine.inference.variables[handle].assign(corrected)
    return BiasReport(tuple(shifts), (*left_out, *skipped))


def _biases(
    finder: LayerFinder, engine: Engine, layers: Sequence[Layer]
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Map address of a layer -> handle of its own bias; list (path, reason) of other layers."""
    edges, flow = engine.placements().edges, finder.flow
    result: dict[str, str] = {}
    skipped: list[tuple[str, str]] = []
    for layer in layers:
        path = layer.site.path
        edge = edges.get(address("bias", path, "bias"))
        use, *others = layer.uses
        if others:
            skipped.append((path, "its weight is used in several places"))
        elif use.lookup or edge is None:
            skipped.append((path, "it has no bias"))
        else:
            try:
                handle = variable_read(flow, edge.tensor)
            except Unsuitable as error:
                skipped.append((path, f"its bias cannot be shifted: {error}"))
                continue
            readers = [op for op, _ in flow.consumers[handle] if op.name in flow.used]
            following = [
                op
                for read in readers
                for op, _ in flow.value_consumers(read.outputs[0])
                if op.name in flow.used
            ]
            if len(readers) > 1 or len(following) > 1:
                skipped.append((path, "its bias is used in several places"))
            else:
                result[layer.address] = handle
    return result, skipped


def _mean_errors(
    engine: Engine,
    finder: LayerFinder,
    walk: PairedForward,
    number: int,
    group: Sequence[Layer],
    substitutes: dict[str, tf.Variable],
) -> list[np.ndarray]:
    """Mean float minus quantized product of each layer of a group over real samples, float64
    [outputs].
    """
    outputs = Outputs(engine)
    forms = [Form(finder.flow, layer, layer.uses[0], include_activation=False) for layer in group]
    quantized = [tf.constant(Weight.of(engine, layer).nearest) for layer in group]
    sums: list[np.ndarray] = [np.zeros(())] * len(group)
    counts = [0] * len(group)
    for seen in walk.visit(number, substitutes):
        for index, (layer, form, what) in enumerate(zip(group, forms, seen, strict=True)):
            exact = outputs(layer, form, form.rows(what.exact, what.valid))
            result = outputs(layer, form, form.rows(what.quantized, what.valid), quantized[index])
            sums[index] = sums[index] + (exact.astype(np.float64) - result).sum(0)
            counts[index] += len(exact)
    return [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]
