"""Calibration of a quantized model: estimate ranges from data, or apply stored ones.

Statistics of every activation site are collected over batches, weights are read once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

import calib
from tfquant.choices import ORDERS
from tfquant.distributed.errors import agree, shard_by_cost, together
from tfquant.distributed.group import Group, Single, structure_of
from tfquant.engine import Engine
from tfquant.layout import static_shape
from tfquant.model import QuantizedFunction, QuantizedModel, engine_of
from tfquant.observer_runner import Observation
from tfquant.older_files import lacking, with_partners
from tfquant.resume import digest
from tfquant.sequential_calibration import SequentialObservation
from tfquant.site import Site
from tfquant.weights import parameter_values


def calibrate(
    model: QuantizedModel | QuantizedFunction,
    batches: Iterable[Any],
    *,
    order: str = "parallel",
    mask: str | Sequence[str] | None = "auto",
    bins: int = 2048,
    sample: int = 65536,
    seed: int = 0,
    progress: bool = True,
    group: Group | None = None,
    dimensions: bool = False,
) -> calib.Calibration:
    """Calibrate every site from data and switch the model to mode `quantized`.

    The network runs on the batches, without dropout; statistics are collected inside its graph.

    With a `group` of several processes each runs some of the batches and searches the ranges of
    some of the sites, and all end with the calibration that one process alone would have found, bit
    for bit, as far as their devices and threads compute the same activations.

    Args:
      model: from `tfquant.quantize`.
      batches: inputs of the model, or (inputs, targets) pairs of which the inputs are taken; sizes
        and lengths may differ. None are needed where all activations are in float or have dynamic
        ranges.
      order: which network runs. `parallel`, the default: the float one, so that no range depends on
        another, batches can be distributed to processes, and ranges estimated again without data.
        `sequential`: the one that is quantized with the ranges so far, so that a site sees the
        errors of the quantizers before it; one pass as well, with a search for the range of every
        site in every batch, on every rank. See `tfquant.sequential_calibration`, and
        docs/calibration.md for figures.
      mask: name of the input that marks real tokens with nonzero values, [batch, tokens], or names
        of several: padding then stays out of the statistics. `auto` finds inputs of conventional
        names (`input_mask`, `attention_mask`, `decoder_padding_mask` ...), else the masks of Keras
        (`mask_zero=True`, `Masking`); None counts padding as well. What cannot be told from padding
        is counted, and a warning says so.
      bins: of the histograms.
      sample: most elements of a batch that a histogram counts one by one; extremes see all.
      seed: of that sample.
      progress: show a bar; rank 0 alone does.
      group: the processes that share the work, from `tfquant.distributed`; every one must call this
        with the same weights, arguments and sequence of batches. None: this process alone.
      dimensions: also keep the extremes of every embedding dimension of all activation sites that
        have such an axis, for `tfquant.outlier_report`. Those whose ranges lie along it are always
        kept.

    Returns:
      The statistics and ranges; a file that can be saved, merged, plotted and estimated again by
      another method.

    Raises:
      ValueError: no batch, a batch that does not fit the model, NaN or infinity
        (`calib.NonFiniteError`, naming site and batch). The model's ranges are as before then. An
        error on one rank is raised on all: that of the earliest batch.
      TypeError: `model` is not quantized.
      tfquant.distributed.errors.OtherRankError: another rank failed in another way.
    """
    engine = engine_of(model)
    engine.check_merged("calibration")
    group = group or Single()
    check_batches(batches)
    if order not in ORDERS:
        raise ValueError(f"unknown order {order!r} of calibration; known: {', '.join(ORDERS)}")
    sequential = order == "sequential"
    observation = SequentialObservation if sequential else Observation
    options = {
        "order": order,
        "mask": mask,
        "bins": bins,
        "sample": sample,
        "seed": seed,
        "dimensions": dimensions,
    }
    _agree(engine, options, group)
    collector = observation(
        engine, mask=mask, bins=bins, sample=sample, seed=seed, dimensions=dimensions
    )
    with together(group, lambda: (0, "the ranges of weights")):
        entries = _weight_entries(
            engine, Single() if sequential else group, progress and group.rank == 0
        )
        if isinstance(collector, SequentialObservation):
            collector.set_weights(entries)
    with together(group, lambda: (collector.number, f"calibration batch {collector.number}")):
        collector.run(batches, progress, group)
    if group.size > 1:
        collector.join(group)
    address = ""
    owners = shard_by_cost([1] * len(collector.observers), group.size)
    with together(
        group, lambda: (list(engine.quantizers).index(address), f"the range of {address}")
    ):
        for (site, observer), owner in zip(collector.observers, owners, strict=True):
            if owner == group.rank:
                address = site.address
                entries[address] = calib.SiteCalibration.estimate(
                    collector.statistics(site, observer),
                    site.spec.method,
                    site.spec.codebook,
                    address=address,
                )
        seen = {
            address: observer.statistics() for address, observer in collector.dimensions.items()
        }
        for site in engine.plan.sites:
            if (
                site.spec.layout.per_embedding and site.spec.scale.calibrated
            ):  # on every rank, as there is nothing to search
                address = site.address
                entries[address] = dimension_entry(site, seen)
    if group.size > 1:
        shares = group.gather(calib.Calibration(entries).to_bytes())
        entries = {
            address: entry
            for share in shares
            for address, entry in calib.Calibration.from_bytes(share).items()
        }
    beside = {
        address: statistics
        for address, statistics in seen.items()
        if address not in entries or not entries[address].statistics.per_channel
    }
    calibration = calib.Calibration(
        {
            address: entries[address]
            for address, quantizer in engine.quantizers.items()
            if quantizer.site.spec.scale.calibrated
        },
        samples=collector.samples,
        dimensions=beside,
    )
    engine.quantizers.apply(calibration)
    model.set_mode("quantized")
    return calibration


def apply(
    model: QuantizedModel | QuantizedFunction, calibration: calib.Calibration | str | os.PathLike
) -> None:
    """Set the range of every site from an existing calibration and switch the model to mode
    `quantized`.

    Args:
      model: from `tfquant.quantize`.
      calibration: what `calibrate` returned, perhaps merged or estimated again by another method,
        or the path of its file. It may hold sites that the model lacks.

    Raises:
      ValueError: it lacks a site, or a range is for another format or shape. The model's ranges are
        as before then.
      TypeError: `model` is not quantized, or `calibration` is none.
      FileNotFoundError, calib.CalibrationFileError: the file is missing or damaged.
    """
    engine = engine_of(model)
    if isinstance(calibration, (str, os.PathLike)):
        calibration = calib.Calibration.load(calibration)
    if not isinstance(calibration, calib.Calibration):
        raise TypeError(
            "a calibration is what tfquant.calibrate returns or its file, got"
            f" {type(calibration).__name__}"
        )
    for site in engine.plan.sites:
        if site.address not in engine.quantizers or site.address not in calibration:
            continue
        codebooks = calibration[site.address].codebook, site.spec.codebook
        if codebooks[0] != codebooks[1]:
            result, wanted = (
                f"codes {codebook}{'' if codebook.symmetric else ' asymmetric'}"
                for codebook in codebooks
            )
            raise ValueError(
                f"site {site.address}: the calibration is for {result}, the recipe wants {wanted}:"
                " calibrate with this recipe"
            )
    engine.quantizers.apply(_with_parted_weights(engine, calibration))
    model.set_mode("quantized")


def _with_parted_weights(engine: Engine, calibration: calib.Calibration) -> calib.Calibration:
    """Return a calibration with the ranges of parameters that an earlier version did not tell
    apart, found in the weights.
    """
    missing = [site.address for site in lacking(engine.plan.sites, calibration) if site.is_weight]
    if not missing:
        return calibration
    values = parameter_values(engine)
    parted = with_partners(engine.plan.sites, missing)
    own = {
        address: weight_entry(engine.quantizers[address].site, values[address])
        for address in parted
    }
    return calib.Calibration(
        {**calibration, **own}, samples=calibration.samples, dimensions=calibration.dimensions
    )


def set_ranges_of_weights(engine: Engine, addresses: Iterable[str]) -> None:
    """Set ranges of parameter sites to those of the current weights.

    Args:
      engine: of the model.
      addresses: of the sites.

    Raises:
      calib.NonFiniteError: a weight is NaN or infinite.
    """
    addresses = list(addresses)
    values = parameter_values(engine) if addresses else {}
    for address in addresses:
        quantizer = engine.quantizers[address]
        entry, shape = weight_entry(quantizer.site, values[address]), quantizer.site.range_shape
        quantizer.set_range(entry.lower.reshape(shape), entry.upper.reshape(shape))


def check_batches(batches: Any, what: str = "calibration") -> None:
    """Raise ValueError if `batches` is a single batch or no iterable; `what` names the caller."""
    if isinstance(batches, (Mapping, np.ndarray)) or tf.is_tensor(batches):
        raise ValueError(f"{what} takes an iterable of batches, got one batch: put it into a list")
    if not isinstance(batches, Iterable) or isinstance(batches, (str, bytes)):
        raise ValueError(f"{what} takes an iterable of batches, got {type(batches).__name__}")


def _weight_entries(
    engine: Engine, group: Group, progress: bool
) -> dict[str, calib.SiteCalibration]:
    """Estimate the ranges of this rank's share of the parameter sites, partitioned by size."""
    values = parameter_values(engine)
    sites = [
        site for site in engine.plan.sites if site.address in values and site.spec.scale.calibrated
    ]
    owners = shard_by_cost([values[site.address].size for site in sites], group.size)
    own = [site for site, owner in zip(sites, owners, strict=True) if owner == group.rank]
    # Most methods take no time worth a bar.
    bar = tqdm(own, "ranges of weights", unit="weight", disable=not progress, delay=2, leave=False)
    return {site.address: weight_entry(site, values[site.address]) for site in bar}


def _agree(engine: Engine, options: dict[str, Any], group: Group) -> None:
    """Raise DivergedError on every rank if the ranks differ in network, recipe or options."""
    if group.size == 1:
        return
    variables = engine.inference.variables
    values = {
        **options,
        "recipe": digest([engine.plan.recipe.to_json().encode()]),
        "sites": digest(
            [
                json.dumps(
                    [[site.address, list(site.range_shape)] for site in engine.plan.sites]
                ).encode()
            ]
        ),
        "variables": structure_of(list(variables.values())),
    }
    agree(group, values, "models or arguments of calibration")
    group.check_equal(variables, "before calibration")


def dimension_entry(site: Site, seen: Mapping[str, calib.Statistics]) -> calib.SiteCalibration:
    """Calibrate a site with ranges along the embedding axis.

    Args:
      seen: address -> statistics of each dimension, of this site and of what its dimensions are
        sorted by.
    """
    statistics, grouping = seen[site.address], None
    if site.spec.layout.groups is not None:
        (size,) = static_shape(site.shape[-1:])
        grouping = calib.Grouping.of(
            site.spec.layout.groups,
            size,
            site.order,
            seen[site.order] if site.order else None,
        )
    return calib.SiteCalibration.estimate(
        statistics, site.spec.method, site.spec.codebook, grouping, address=site.address
    )


def weight_entry(site: Site, value: np.ndarray) -> calib.SiteCalibration:
    """Calibrate a parameter from its values; several channel axes count as one, flattened."""
    axis = None
    if site.channel_axes:
        value = np.moveaxis(value, site.channel_axes, range(len(site.channel_axes)))
        value, axis = value.reshape(int(np.prod(site.range_shape)), -1), 0
    return calib.SiteCalibration.of_weight(
        value, axis, site.spec.method, site.spec.codebook, address=site.address
    )
