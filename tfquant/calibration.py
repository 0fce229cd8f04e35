"""Calibration: statistics of every activation site over batches, weights read once, ranges set from both."""

from __future__ import annotations

import functools
import io
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sized
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

import calib
from tfquant.distributed import Group, Single
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
    group: Group | None = None,
) -> calib.Calibration:
    """Sets the range of every site from data and switches the model to `quantized`.

    The float network runs on the batches, without dropout; statistics are collected inside its graph.

    With a `group` of several processes each runs every n-th batch of n, and all end with the calibration that one process alone
    would have found, bit for bit, as far as their devices and threads compute the same activations.

    Args:
      model: from `tfquant.quantize`.
      batches: inputs of the model, or (inputs, targets) pairs of which the inputs are taken; sizes and lengths may differ.
      mask: name of the input that marks real tokens with nonzero values, [batch, tokens]: padding then stays out of the
        statistics. `auto` takes the first of `input_mask`, `attention_mask`, `padding_mask`, `mask` that the model has; None
        counts padding as well.
      bins: of the histograms.
      sample: most elements of a batch that a histogram counts one by one; extremes see all.
      seed: of that sample.
      progress: show a bar; rank 0 alone does.
      group: the processes that share the work, from `tfquant.distributed`; every one must call this with the same weights,
        arguments and sequence of batches. None: this process alone.

    Returns:
      The statistics and ranges; a file that can be saved, merged, plotted and estimated again by another method.

    Raises:
      ValueError: no batch, a batch that does not fit the model, NaN or infinity (`calib.NonFiniteError`, naming site and batch).
        The model's ranges are as before then. An error on one rank is raised on all: that of the earliest batch.
      TypeError: `model` is not quantized.
      RuntimeError: another rank failed in another way.
    """
    engine = engine_of(model)
    group = group or Single()
    check_batches(batches)
    collector = Observation(engine, mask=mask, bins=bins, sample=sample, seed=seed)
    entries: dict[str, calib.SiteCalibration] = {}
    failure = None
    try:
        entries = _weight_entries(engine)
        collector.run(batches, progress, group)
    except Exception as error:  # whatever it is, the other ranks wait for this one
        if group.size == 1:
            raise
        failure = error
    if group.size > 1:
        _agree(group, failure, collector.number)
        collector.join(group)
    for site, observer in collector.observers:
        entries[site.address] = calib.SiteCalibration.estimate(
            observer.statistics(), site.spec.method, site.spec.grid, address=site.address
        )
    calibration = calib.Calibration({address: entries[address] for address in engine.quantizers}, samples=collector.samples)
    engine.apply(calibration)
    model.set_mode("quantized")
    return calibration


def apply(model: QuantizedModel | QuantizedFunction, calibration: calib.Calibration | str | os.PathLike) -> None:
    """Sets the range of every site from an earlier calibration and switches the model to `quantized`; no data is needed.

    Args:
      model: from `tfquant.quantize`.
      calibration: what `calibrate` returned, perhaps merged or estimated again by another method, or the path of its file. It may
        hold sites that the model lacks.

    Raises:
      ValueError: it lacks a site, or a range is for another format or shape. The model's ranges are as before then.
      TypeError: `model` is not quantized, or `calibration` is none.
      FileNotFoundError, calib.CalibrationFileError: the file is missing or damaged.
    """
    engine = engine_of(model)
    if isinstance(calibration, (str, os.PathLike)):
        calibration = calib.Calibration.load(calibration)
    if not isinstance(calibration, calib.Calibration):
        raise TypeError(f"a calibration is what tfquant.calibrate returns or its file, got {type(calibration).__name__}")
    for site in engine.plan.sites:
        if site.address in calibration and calibration[site.address].grid != site.spec.grid:
            grids = [f"codes {g.qmin}..{g.qmax}{'' if g.symmetric else ' asymmetric'}" for g in
                     (calibration[site.address].grid, site.spec.grid)]  # fmt: skip
            raise ValueError(
                f"site {site.address}: the calibration is for {grids[0]}, the recipe wants {grids[1]}: calibrate with this recipe"
            )
    engine.apply(calibration)
    model.set_mode("quantized")


def engine_of(model: QuantizedModel | QuantizedFunction) -> Engine:
    """The engine of a quantized model.

    Raises:
      TypeError: the model is not quantized.
    """
    if not isinstance(model, (QuantizedModel, QuantizedFunction)):
        raise TypeError(f"expected a model from tfquant.quantize or tfquant.load, got {type(model).__name__}")
    return model._engine


def check_batches(batches: Any) -> None:
    """Raises ValueError if `batches` are one batch, or nothing that could be."""
    if isinstance(batches, (Mapping, np.ndarray)) or tf.is_tensor(batches):
        raise ValueError("calibration takes an iterable of batches, got one batch: put it into a list")
    if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes)):
        raise ValueError(f"calibration takes an iterable of batches, got {type(batches).__name__}")


def _agree(group: Group, failure: Exception | None, batch: int) -> None:
    """Raises, on all ranks alike, the failure of the earliest batch on any of them, if there is one.

    Args:
      group: the ranks.
      failure: of this rank, or None.
      batch: the number this rank came to.
    """
    own = None
    if failure is not None:
        own = {"batch": batch, "kind": type(failure).__name__, "text": str(failure)}
    gathered = [json.loads(data) for data in group.gather(json.dumps(own).encode())]
    failed = [rank for rank, entry in enumerate(gathered) if entry is not None]
    if not failed:
        return
    first = min(failed, key=lambda rank: gathered[rank]["batch"])
    if first == group.rank:
        raise failure
    kind, text = gathered[first]["kind"], gathered[first]["text"]
    known = {c.__name__: c for c in (ValueError, TypeError, calib.CalibrationError, calib.NonFiniteError)}
    if kind in known:
        raise known[kind](text)
    raise RuntimeError(f"rank {first} failed at calibration batch {gathered[first]['batch']}: {kind}: {' '.join(text.split())}")


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
        self.samples = 0
        self.number = 0  # of the batch at hand; after the last, how many there were
        self._extremes: dict[int, np.ndarray] = {}  # by batch, of this rank's; filled only where there are other ranks

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

    @functools.cached_property
    def function(self):
        """Made for the first batch that fits: a bad one shows at once."""
        trace = self.engine.inference

        def observe(number, *flat):
            tensors = trace.emit(list(flat), targets=[edge.tensor for _, edge in self.targets])
            validity: dict[TokenAxes, tf.Tensor | None] = {}
            extremes = [tf.zeros([0, 2])]
            for (_, observer), (_, edge), tensor in zip(self.observers, self.targets, tensors, strict=True):
                valid = None
                axes = self.axes.get(edge.tensor.name)
                if axes is not None:
                    if axes not in validity:
                        validity[axes] = axes.validity(flat[self.mask_index])
                    valid = validity[axes]
                extremes.append(observer.update(tensor, valid, number)[tf.newaxis])
            return tf.concat(extremes, 0)

        signature = [tf.TensorSpec([], tf.int64), *trace.input_specs]
        function = tf.function(observe, autograph=False, jit_compile=False, input_signature=signature)
        return function.get_concrete_function()

    def run(self, batches: Iterable[Any], progress: bool, group: Group | None = None) -> None:
        """Observes the batches that fall to this rank; with several ranks, `join` must follow."""
        group = group or Single()
        total, hidden = _length(batches), not progress or group.rank > 0
        self.number = 0
        for number, batch in enumerate(tqdm(batches, "calibrating", total, unit="batch", disable=hidden)):
            if number % group.size == group.rank:
                extremes = self._observe(batch)
                if group.size > 1:
                    self._extremes[number] = extremes.numpy()
            self.number = number + 1
        if self.number == 0 and self.observers:
            raise ValueError("no calibration batch was given: pass at least one")

    def _observe(self, batch: Any) -> tf.Tensor:
        """Observes the batch at hand; float32 [sites, 2], its extremes."""
        try:
            flat = self.engine.flatten_inputs(self._inputs_of(batch))
        except (ValueError, TypeError) as error:
            raise ValueError(f"calibration batch {self.number}: {' '.join(str(error).split())}") from error
        extremes = self.function(tf.constant(self.number, tf.int64), *flat)
        self.samples += int(flat[0].shape[0]) if flat and flat[0].shape.rank else 1
        for _, observer in self.observers:
            observer.check()
        return extremes

    def join(self, group: Group) -> None:
        """Makes up, on every rank, the statistics of all batches from those that each rank has observed.

        Raises:
          ValueError: the ranks were given different numbers of batches or have different sites.
        """
        ranks = [_unpacked(data) for data in group.gather(self._packed())]
        for what, found in (("batches", [int(r["total"]) for r in ranks]), ("sites", [len(r["counts"]) for r in ranks])):
            if len(set(found)) > 1:
                sizes = " and ".join(map(str, sorted(set(found))))
                raise ValueError(f"ranks were given {sizes} {what}: calibrate all of them with the same model and batches")
        order = np.argsort(np.concatenate([rank["numbers"] for rank in ranks]))
        extremes = np.concatenate([rank["extremes"] for rank in ranks])[order]
        for index, (_, observer) in enumerate(self.observers):
            observer.join([(rank["counters"][index], rank["counts"][index]) for rank in ranks], extremes[:, index])
        self.samples = sum(int(rank["samples"]) for rank in ranks)

    def _packed(self) -> bytes:
        tallies = [observer.tallies() for _, observer in self.observers]
        file = io.BytesIO()
        np.savez_compressed(
            file,
            counters=np.array([counters for counters, _ in tallies], np.int64),
            counts=np.array([counts for _, counts in tallies], np.int64),
            numbers=np.array(list(self._extremes), np.int64),
            extremes=np.array(list(self._extremes.values()), np.float32).reshape(len(self._extremes), len(tallies), 2),
            samples=np.int64(self.samples),
            total=np.int64(self.number),
        )
        return file.getvalue()

    def _inputs_of(self, batch: Any) -> Any:
        """The inputs of (inputs, targets) pairs, and of a function's single argument."""
        structure = self.engine.inference.input_structure
        if _fits(structure, batch) or (isinstance(batch, Mapping) and self.engine.takes_names(batch)):
            return batch
        if self.engine.source.is_function:
            return batch if isinstance(batch, tuple) else (batch,)
        if isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 3:
            by_name = isinstance(batch[0], Mapping) and self.engine.takes_names(batch[0])
            if by_name or _fits(structure, batch[0]):
                return batch[0]
        return batch


def _unpacked(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _length(batches: Iterable[Any]) -> int | None:
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except TypeError:  # a tf.data.Dataset that does not know
        return None


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
        shape = list(engine.inference.input_specs[names.index(mask)].shape)
        raise ValueError(f"mask={mask!r} must be [batch, tokens], its shape is {shape}")
    return names.index(mask)
