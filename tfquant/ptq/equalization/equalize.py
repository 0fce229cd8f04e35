"""Equalization: rescale channels between parameters, so that ranges are more alike and the float
outputs unchanged.

Cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721, section 4.1) and SmoothQuant (Xiao et
al. 2023, arXiv:2211.10438), over all pairs of parameters that `tfquant.ptq.equalization.pairs`
finds in a graph.

Encoders with layer norms behind their residual additions, as BERT, have few such norms: what a norm
makes is carried past the next layers as well. The migration of its scale there (Outlier
Suppression, Wei et al. 2022, arXiv:2209.13325) needs an operation on that way, so it is no change
of variables but one of the graph: `gamma_migration` of a recipe, see
`tfquant.rewrites.gamma_migration`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from calib import patterns
from tfquant.calibration import check_batches
from tfquant.engine import Engine
from tfquant.error_messages import one_line, some_of
from tfquant.graph.model_adapter import is_keras_model, source_of
from tfquant.model import QuantizedFunction, QuantizedModel, engine_of
from tfquant.ptq.equalization import extremes, factors, rescaling
from tfquant.ptq.equalization.pairs import KINDS, Pair, find_pairs
from tfquant.ptq.equalization.rescaling import EqualizationReport
from tfquant.rules import Recipe, Rule

METHODS = ("smoothquant", "cross_layer")
_FLOAT = Recipe((Rule(None, optional=True),), "float")
_SWEEPS, _SETTLED = 50, 1e-3


def equalize(
    model: Any,
    batches: Iterable[Any] | None = None,
    *,
    method: str = "smoothquant",
    alpha: float = 0.5,
    pairs: str | Sequence[str] = "all",
    powers_of_two: bool = False,
    max_factor: float = 2.0**16,
    tolerance: float = 1e-4,
    mask: str | Sequence[str] | None = "auto",
    inputs: Any = None,
    signature: Any = None,
    progress: bool = True,
) -> EqualizationReport:
    """Rescale the channels of all pairs of parameters; variables are assigned, float outputs are
    preserved.

    Each pair is checked by the float outputs of the first batch before and after.

    Args:
      model: what `tfquant.quantize` takes, or what it returned, before calibration. Variables that
        other models share change there as well.
      batches: inputs of the model, or (inputs, targets) pairs. `cross_layer` needs none: the check
        then has random inputs, zeros and ones for integers.
      method: `smoothquant`, s = max|X|^alpha / max|W|^(1 - alpha) by activations in data and the
        weights they meet (query and key: their activations both); or `cross_layer`, s = sqrt(r1 /
        r2) by weights alone, again and again until all ranges settle.
      alpha: how much of the differences moves from activations to weights, from 0 to 1; of
        `smoothquant`.
      pairs: `all`, a kind (`layernorm`, `value`, `query_key`, `linear`) or a glob of names as the
        report has them (`value:*layer_3*`); or several of these.
      powers_of_two: round factors to powers of two, so that outputs stay the same to the last bit.
      max_factor: no factor exceeds it or lies below its reciprocal.
      tolerance: largest difference of a float output that is taken for rounding, as a share of the
        spread (largest minus smallest value) of that output.
      mask: see `tfquant.calibrate`: padding does not count.
      inputs, signature: as for `tfquant.plan`.
      progress: show bars.

    Returns:
      Factors and ranges of each pair; and what looked like a pair and is none, with the reason.

    Raises:
      ValueError: an argument does not fit, a batch does not fit or holds NaN or infinity, or
        outputs change by more than `tolerance`. All variables are as they were then.
      TraceError: as for `tfquant.plan`.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r} of equalization; known: {', '.join(METHODS)}")
    _check_number("alpha", alpha, 0.0, 1.0)
    _check_number("max_factor", max_factor, 1.0, math.inf)
    _check_number("tolerance", tolerance, 0.0, math.inf)
    engine, flat, batches = _prepared(model, batches, inputs, signature)
    if batches is None and method == "smoothquant":
        raise ValueError(
            "smoothquant takes ranges of activations from data: pass batches, or"
            " method='cross_layer'"
        )
    result, skipped = find_pairs(engine.inference, flat)
    result = _chosen(result, skipped, pairs)
    values = rescaling.values_of(engine, result)
    _check_finite(engine, values)
    if batches is not None and method == "smoothquant":
        seen = extremes.of_activations(engine, result, batches, mask, progress)
        chosen = {
            pair.name: _smooth(pair, values, seen[pair.name], alpha, max_factor, powers_of_two)
            for pair in result
        }
    else:
        seen, chosen = {}, _cross_layer(result, values, max_factor, powers_of_two)
    before = {name: sides[0] for name, sides in seen.items()}
    return rescaling.rescaled(
        engine, result, chosen, flat, tolerance, progress, activations=before, skipped=skipped
    )


def rescale(
    model: Any,
    factors: Mapping[str, np.ndarray],
    batches: Iterable[Any] | None = None,
    *,
    tolerance: float = 1e-4,
    inputs: Any = None,
    signature: Any = None,
    progress: bool = True,
) -> EqualizationReport:
    """Rescale pairs by specified factors, such as those of an earlier report, or their reciprocals
    to undo it.

    Args:
      model, batches, tolerance, inputs, signature, progress: as for `equalize`.
      factors: name of a pair -> one number above 0 for each of its channels, by which activations
        are divided.

    Returns:
      As `equalize`.

    Raises:
      ValueError: as `equalize`; or no such pair, or factors that do not fit it.
    """
    _check_number("tolerance", tolerance, 0.0, math.inf)
    engine, flat, _ = _prepared(model, batches, inputs, signature)
    result, skipped = find_pairs(engine.inference, flat)
    by_name, reasons = {pair.name: pair for pair in result}, dict(skipped)
    chosen = {}
    for name, specified in factors.items():
        if name not in by_name:
            why = reasons.get(name, f"there are {', '.join(by_name) or 'none'}")
            raise ValueError(f"factors: {name!r} is no pair that can be rescaled: {why}")
        chosen[name] = np.asarray(specified, np.float64)
        if (
            chosen[name].shape != (by_name[name].size,)
            or not ((chosen[name] > 0) & np.isfinite(chosen[name])).all()
        ):
            raise ValueError(
                f"factors of {name}: {by_name[name].size} finite numbers above 0 are wanted"
            )
    wanted = [by_name[name] for name in chosen]
    return rescaling.rescaled(
        engine, wanted, chosen, flat, tolerance, progress, activations={}, skipped=skipped
    )


def _prepared(
    model: Any, batches: Iterable[Any] | None, inputs: Any, signature: Any
) -> tuple[Engine, list[tf.Tensor], list[Any] | None]:
    """Engine of a model, flat inputs for the check, and all batches."""
    if batches is not None:
        check_batches(batches, "equalization")
        batches = list(batches)
        if not batches:
            raise ValueError("no batch was given: pass at least one")
    if isinstance(model, (QuantizedModel, QuantizedFunction)):
        engine = engine_of(model)
        engine.check_merged("equalization")
        if any(quantizer.calibrated for quantizer in engine.quantizers.values()):
            raise ValueError(
                "the model has ranges, which rescaling invalidates: equalize before calibration"
            )
    else:
        if inputs is None and signature is None and batches:
            inputs = batches[0]
            if is_keras_model(model) and isinstance(inputs, tuple) and len(inputs) in (2, 3):
                inputs = inputs[0]
        engine = Engine(source_of(model, inputs, signature), _FLOAT)
    if batches is None:
        return engine, rescaling.random_inputs(engine), None
    try:
        return engine, engine.inputs.flatten_batch(batches[0]), batches
    except (ValueError, TypeError) as error:
        raise ValueError(f"batch 0: {one_line(error)}") from error


def _chosen(
    found: Sequence[Pair], skipped: Sequence[tuple[str, str]], wanted: str | Sequence[str]
) -> list[Pair]:
    """Pairs that match one of the patterns."""
    specified = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    globs = ["*" if p == "all" else f"{p}:*" if p in KINDS else p for p in specified]
    for pattern, glob in zip(specified, globs, strict=True):
        patterns.check(glob, "pairs")
        if pattern != "all" and not any(patterns.matches(glob, pair.name) for pair in found):
            reasons = [f"{name}: {why}" for name, why in skipped if patterns.matches(glob, name)]
            there = f"there are {some_of(pair.name for pair in found) or 'none'}"
            raise ValueError(
                f"pairs={pattern!r} matches no pair that can be rescaled;"
                f" {reasons[0] if reasons else there}"
            )
    return [pair for pair in found if any(patterns.matches(glob, pair.name) for glob in globs)]


def _smooth(
    pair: Pair, values: dict, seen: tuple, alpha: float, largest: float, powers_of_two: bool
) -> np.ndarray:
    """SmoothQuant factors from activations; the values of the pair are rescaled, as the next pair
    may share one.
    """
    activation, partner = seen
    weight = (
        extremes.of_parameters(pair.multiplied, values, pair.size) if partner is None else partner
    )
    result = factors.bounded(factors.smoothquant(activation, weight, alpha), largest, powers_of_two)
    rescaling.rescale_values(pair, values, result)
    return result


def _cross_layer(
    pairs: Sequence[Pair], values: dict, largest: float, powers_of_two: bool
) -> dict[str, np.ndarray]:
    """Cross-layer factors from weights.

    Pairs in turn until none changes, as what one divides another may multiply.
    """
    chosen = {pair.name: np.ones(pair.size) for pair in pairs}
    for _ in range(_SWEEPS):
        change = 0.0
        for pair in pairs:
            sides = (
                extremes.of_parameters(side, values, pair.size)
                for side in (pair.divided, pair.multiplied)
            )
            total = factors.bounded(chosen[pair.name] * factors.cross_layer(*sides), largest, False)
            step = total / chosen[pair.name]
            rescaling.rescale_values(pair, values, step)
            chosen[pair.name] = total
            change = max(change, float(np.abs(np.log(step)).max()))
        if change < _SETTLED:
            break
    return {
        name: factors.bounded(result, largest, powers_of_two) for name, result in chosen.items()
    }


def _check_number(name: str, value: Any, smallest: float, largest: float) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not smallest <= value <= largest
        or math.isinf(value)
    ):
        wanted = (
            f"a finite number from {smallest:g}"
            if math.isinf(largest)
            else f"a number from {smallest:g} to {largest:g}"
        )
        raise ValueError(f"{name} is {value!r}; it must be {wanted}")


def _check_finite(engine: Engine, values: Mapping[str, np.ndarray]) -> None:
    for handle, value in values.items():
        if not np.isfinite(value).all():
            raise ValueError(
                f"{engine.inference.paths[handle]} holds NaN or infinity; check the checkpoint"
            )
