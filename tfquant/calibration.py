"""Calibration: statistics of every activation site over batches, weights read once, ranges set from both."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

import calib
from tfquant.engine import Engine
from tfquant.graph.axes import TokenAxes, token_axes
from tfquant.graph.roles import Edge
from tfquant.model import QuantizedFunction, QuantizedModel
from tfquant.spec import Site

MASK_NAMES = ("input_mask", "attention_mask", "padding_mask", "mask")


def calibrate(
    model: QuantizedModel | QuantizedFunction,
    batches: Iterable[Any],
    *,
    mask: str | None = "auto",
    bins: int = 2048,
    sample: int = 65536,
    seed: int = 0,
    progress: bool = True,
) -> calib.Calibration:
    """Sets the range of every site from data and switches the model to `quantized`.

    The float network runs on the batches, without dropout; statistics are collected inside its graph.

    Args:
      model: from `tfquant.quantize`.
      batches: inputs of the model, or (inputs, targets) pairs of which the inputs are taken; sizes and lengths may differ.
      mask: name of the input that marks real tokens with nonzero values, [batch, tokens]: padding then stays out of the
        statistics. `auto` takes the first of `input_mask`, `attention_mask`, `padding_mask`, `mask` that the model has; None
        counts padding as well.
      bins: of the histograms.
      sample: most elements of a batch that a histogram counts one by one; extremes see all.
      seed: of that sample.
      progress: show a bar.

    Returns:
      The statistics and ranges; a file that can be saved, merged, plotted and estimated again by another method.

    Raises:
      ValueError: no batch, a batch that does not fit the model, NaN or infinity (`calib.NonFiniteError`, naming site and batch).
        The model's ranges are as before then.
    """
    engine = model._engine
    collector = Observation(engine, mask=mask, bins=bins, sample=sample, seed=seed)
    entries = _weight_entries(engine)
    collector.run(batches, progress)
    for site, observer in collector.observers:
        entries[site.address] = calib.SiteCalibration.estimate(
            observer.statistics(), site.spec.method, site.spec.grid, address=site.address
        )
    calibration = calib.Calibration({address: entries[address] for address in engine.quantizers}, samples=collector.samples)
    engine.apply(calibration)
    model.set_mode("quantized")
    return calibration


def _weight_entries(engine: Engine) -> dict[str, calib.SiteCalibration]:
    values = engine.parameter_values()
    return {s.address: weight_entry(s, values[s.address]) for s in engine.plan.sites if s.address in values}


def weight_entry(site: Site, value: np.ndarray) -> calib.SiteCalibration:
    """Statistics and range of a parameter, from its values; several channel axes count as one, flattened."""
    axis = None
    if site.channel_axes:
        value = np.moveaxis(value, site.channel_axes, range(len(site.channel_axes)))
        value, axis = value.reshape(int(np.prod(site.range_shape)), -1), 0
    return calib.SiteCalibration.of_weight(value, axis, site.spec.method, site.spec.grid, address=site.address)


class Observation:
    """Observers of all activation sites and the function that feeds them."""

    def __init__(self, engine: Engine, *, mask: str | None = "auto", bins: int = 2048, sample: int = 65536, seed: int = 0):
        self.engine = engine
        found: dict[str, tuple[Site, Edge]] = {}
        for site, edge in engine.placements():
            if not edge.parameter:
                found.setdefault(site.address, (site, edge))
        self.targets = list(found.values())
        self.observers = [
            (site, calib.Observer(
                site.address, signed=site.spec.grid.two_sided, bins=bins, sample=sample,
                seed=zlib.crc32(f"{seed}:{site.address}".encode()),
            ))
            for site, _ in self.targets
        ]  # fmt: skip
        self.mask_index = _mask_index(engine, mask)
        self.axes = self._token_axes(mask)
        self.function = self._make_function()
        self.samples = 0

    def _token_axes(self, mask: str | None) -> dict[str, TokenAxes]:
        if self.mask_index is None or not self.targets:
            return {}
        trace = self.engine.inference
        try:
            return token_axes(trace, trace.inputs[self.mask_index], [edge.tensor for _, edge in self.targets])
        except Exception as error:
            raise ValueError(
                f"cannot tell where padding lies in this model's tensors ({type(error).__name__}: {error}); calibrate with "
                f"mask=None (mask was {mask!r})"
            ) from error

    def _make_function(self):
        trace = self.engine.inference

        def observe(*flat):
            tensors = trace.emit(list(flat), targets=[edge.tensor for _, edge in self.targets])
            validity: dict[TokenAxes, tf.Tensor | None] = {}
            for (_, observer), (_, edge), tensor in zip(self.observers, self.targets, tensors, strict=True):
                valid = None
                axes = self.axes.get(edge.tensor.name)
                if axes is not None:
                    if axes not in validity:
                        validity[axes] = axes.validity(flat[self.mask_index])
                    valid = validity[axes]
                observer.update(tensor, valid)

        function = tf.function(observe, autograph=False, jit_compile=False, input_signature=trace.input_specs)
        return function.get_concrete_function()

    def run(self, batches: Iterable[Any], progress: bool) -> None:
        if isinstance(batches, Mapping) or tf.is_tensor(batches) or isinstance(batches, np.ndarray):
            raise ValueError("calibration takes an iterable of batches, got one batch: put it into a list")
        count = 0
        total = len(batches) if hasattr(batches, "__len__") else None
        for count, batch in enumerate(tqdm(batches, "calibrating", total, unit="batch", disable=not progress), start=1):
            try:
                flat = self.engine.flatten_inputs(self._inputs_of(batch))
            except ValueError as error:
                raise ValueError(f"calibration batch {count - 1}: {error}") from error
            self.function(*flat)
            self.samples += int(flat[0].shape[0]) if flat and flat[0].shape.rank else 1
            for _, observer in self.observers:
                observer.check()
        if count == 0 and self.observers:
            raise ValueError("no calibration batch was given: pass at least one")

    def _inputs_of(self, batch: Any) -> Any:
        """The inputs of (inputs, targets) pairs, and of a function's single argument."""
        structure = self.engine.inference.input_structure
        if _fits(structure, batch):
            return batch
        if self.engine.source.is_function:
            return batch if isinstance(batch, tuple) else (batch,)
        if isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 3 and _fits(structure, batch[0]):
            return batch[0]
        return batch


def _fits(structure: Any, value: Any) -> bool:
    if isinstance(structure, Mapping):
        return isinstance(value, Mapping)
    try:
        tf.nest.assert_same_structure(structure, value)
    except (ValueError, TypeError):
        return False
    return True


def _mask_index(engine: Engine, mask: str | None) -> int | None:
    names = engine.inference.input_names
    if mask is None:
        return None
    if mask == "auto":
        specs = engine.inference.input_specs
        known = [n for n in MASK_NAMES if n in names and specs[names.index(n)].shape.rank == 2]
        return names.index(known[0]) if known else None
    if mask not in names:
        raise ValueError(f"mask={mask!r} is no input of the model; it has {', '.join(names)}")
    if engine.inference.input_specs[names.index(mask)].shape.rank != 2:
        raise ValueError(f"mask={mask!r} must be [batch, tokens], its shape is {engine.inference.input_specs[names.index(mask)].shape}")
    return names.index(mask)
