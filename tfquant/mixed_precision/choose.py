"""The call that chooses formats of single sites.

Bondarenko et al. 2021, arXiv:2109.12948, section 4, give the most sensitive activations 16 bits and
all others 8, by hand; here the order comes from a sensitivity analysis, and bisection says how far
to go in it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import calib
from tfquant import formats as number_formats
from tfquant import resume
from tfquant.calibration import check_batches
from tfquant.dynamic_range import refuse as refuse_dynamic
from tfquant.engine import Engine
from tfquant.mixed_precision.alternatives import Alternatives
from tfquant.mixed_precision.report import SearchReport, TargetError, Try
from tfquant.mixed_precision.search import Search, Unit, Unreachable
from tfquant.model import QuantizedFunction, QuantizedModel, engine_of
from tfquant.ptq.buffers import Space
from tfquant.ptq.paired_forward import flattened
from tfquant.rules import Recipe
from tfquant.sensitivity.groups import chosen_sites
from tfquant.sensitivity.measures import Metric
from tfquant.sensitivity.trials import Trials
from tfquant.site import Site

TARGETS = {
    "fewest": "all",
    "smallest": "weights",
}  # and whose formats may change if nothing is said
# Of a loss: what networks that compute the same in other graphs may differ in.
_TOLERANCE = 1e-4


def mixed_precision(
    model: QuantizedModel | QuantizedFunction,
    batches: Iterable[Any],
    *,
    formats: str | Sequence[str],
    target: str,
    max_loss: float,
    sites: str | Sequence[str] | None = None,
    measure: str | Metric = "kl",
    better: str = "higher",
    method: str | calib.Method | None = None,
    calibration: calib.Calibration | None = None,
    mask: str | Sequence[str] | None = "auto",
    folder: str | os.PathLike[str] | None = None,
    memory_limit: int = 1 << 30,
    progress: bool = True,
) -> tuple[Recipe, SearchReport]:
    """Finds a recipe in which some sites have another format than in that of the model, so that a
    loss stays within a limit.

    Sites are ordered by the loss that each has alone, bisection finds how many change in this
    order, and then single ones are tried. Only ranges of what changes are estimated again, from the
    statistics of the calibration. The recipe that is found is measured once more on the network
    that it makes. The model stays as it is.

    Args:
      model: from `tfquant.quantize`, calibrated; where everything starts.
      batches: inputs of the model, or (inputs, targets) pairs. All are held in memory.
      formats: the other format, such as `int16` or `int4`; for `smallest` also several, of fewer
        and fewer bits.
      target: `fewest`: the fewest sites with more bits. `smallest`: weights with fewer bits, as
        many as possible, which makes packed files smaller but none faster: runtimes have integer
        kernels for 8 bits, see `SearchReport.note`.
      max_loss: the most that may be lost against the float network: for `kl` the divergence in
        nats, for `sqnr` minus the ratio in dB (-30 demands at least 30 dB), for a callable how much
        worse its number may be.
      sites: whose formats may change, see `tfquant.sensitivity`; for `smallest` weights alone. By
        default all.
      measure, better, mask, memory_limit: see `tfquant.sensitivity`.
      method: how ranges in the other formats are estimated; by default as in the recipe of the
        model. A percentile cuts as much at 16 bits as at 8: `max` cuts nothing.
      calibration: with the statistics of the model's sites; by default the last one of the model.
      folder: keeps what is measured; a second call goes on behind it, also with another `max_loss`.
      progress: show bars.

    Returns:
      The recipe, which names these sites by exact role, layer path and port, for `tfquant.quantize`
      or a file; and the way to it.

    Raises:
      TargetError: no choice meets the target; its message and `report` say what came nearest.
      ValueError: an option or the data do not fit, there is no calibration, or `folder` holds
        another run.
      UncalibratedError: a site has no range.
      TypeError: `model` is not quantized.
      OSError: the folder, or the disk for tensors, is full.
    """
    engine = engine_of(model)
    engine.check_merged("the search for mixed precision")
    check_batches(batches, "the search for mixed precision")
    refuse_dynamic(engine.plan.sites, "the search for mixed precision")
    engine.quantizers.check_calibrated()
    chosen_formats = _checked_formats(formats, target)
    if (
        isinstance(max_loss, bool)
        or not isinstance(max_loss, (int, float))
        or not math.isfinite(max_loss)
    ):
        raise ValueError(f"max_loss must be a finite number, got {max_loss!r}")
    if measure == "sqnr" and max_loss > 0:
        raise ValueError(
            f"max_loss={max_loss!r}: for sqnr minus the ratio that is wanted, in dB, such as"
            f" -{max_loss:g}"
        )
    statistics = engine.quantizers.calibration if calibration is None else calibration
    if statistics is None:
        raise ValueError(
            "the model's ranges were loaded and its statistics are not there: pass calibration=, or"
            " calibrate again"
        )
    units = _units(engine, TARGETS[target] if sites is None else sites, chosen_formats, target)
    method = calib.Method.parse(method) if isinstance(method, str) else method
    changeable = [site for unit in units for site in unit.sites]
    alternatives = Alternatives(engine, statistics, changeable, chosen_formats, method)
    options = {
        "target": target,
        "formats": list(chosen_formats),
        "method": None if method is None else str(method),
        "sites": [site.address for site in changeable],
        "statistics": resume.digest([statistics.to_bytes()]) if folder is not None else "",
    }
    with Space(memory_limit) as space:
        trials = Trials(
            engine,
            flattened(engine, batches),
            space,
            alternatives.quantizers,
            measure=measure,
            better=better,
            mask=mask,
            folder=folder,
            options=options,
            what="search for mixed precision",
            progress=progress,
        )
        parameters = [site for site in engine.plan.sites if site.is_weight]
        search = Search(trials, units, chosen_formats, parameters, float(max_loss), progress)

        def report(best: Try) -> SearchReport:
            ends = float(max_loss), trials.float_value
            return SearchReport(
                target,
                trials.measure.name,
                *ends,
                tuple(search.orders),
                tuple(search.tries.values()),
                best,
            )

        try:
            result = search.formats_of(search.fewest() if target == "fewest" else search.smallest())
        except Unreachable as error:
            raise _out_of_reach(
                report(min(search.tries.values(), key=lambda t: t.loss)), str(error)
            ) from None
        recipe = alternatives.recipe(
            result, f"{engine.plan.recipe.name} + {target} {' '.join(chosen_formats)}"
        )
        best = _verified(engine, recipe, alternatives.calibration(result), result, trials, search)
    if best.loss > max_loss + _TOLERANCE * abs(max_loss):
        raise _out_of_reach(
            report(best), "in the network of the recipe that was found, whose trial was within it"
        )
    return recipe, report(best)


def _verified(
    engine: Engine,
    recipe: Recipe,
    calibration: calib.Calibration,
    formats: dict[str, str],
    trials: Trials,
    search: Search,
) -> Try:
    """The recipe measured on the network that it makes."""
    made = Engine(engine.source, recipe)
    made.quantizers.apply(calibration)
    return search.entry(
        formats, trials.of_network("recipe", f"recipe: {sorted(formats.items())}", made)
    )


def _out_of_reach(report: SearchReport, where: str) -> TargetError:
    best = report.best
    return TargetError(
        f"max_loss={report.max_loss:.6g} cannot be met: the loss is {best.loss:.6g}"
        f" ({report.measure} {best.value:.6g}) at best, {where}; allow more, quantize fewer sites"
        " in the recipe, or give these sites a finer format or another method",
        report,
    )


def _checked_formats(formats: str | Sequence[str], target: str) -> tuple[str, ...]:
    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")
    result = (formats,) if isinstance(formats, str) else tuple(formats)
    bits = [number_formats.get(name).bits for name in result]
    if target == "fewest" and len(result) != 1:
        raise ValueError(f"target 'fewest' takes one format, got {', '.join(result) or 'none'}")
    if not result or any(after >= before for before, after in zip(bits, bits[1:], strict=False)):
        raise ValueError(
            f"formats must be of fewer and fewer bits, got {', '.join(result) or 'none'}"
        )
    return result


def _units(
    engine: Engine, sites: str | Sequence[str], formats: Sequence[str], target: str
) -> list[Unit]:
    """Units of the search in graph order: single sites, and sites with a common range together."""

    def changes(site: Site) -> bool:
        own, other = (number_formats.get(name).bits for name in (site.spec.format, formats[0]))
        return own < other if target == "fewest" else site.is_weight and own > other

    there = [site for site in engine.plan.sites if site.enabled]
    chosen = [site for site in chosen_sites(there, sites) if changes(site)]
    groups = {site.group for site in chosen if site.group}
    by_name: dict[str, list[Site]] = {}
    for site in engine.plan.sites:
        if site in chosen or site.group in groups:
            by_name.setdefault(site.group or site.address, []).append(site)
    if not by_name:
        what = (
            f"site of fewer bits than {formats[0]}"
            if target == "fewest"
            else f"weight of more bits than {formats[0]}"
        )
        raise ValueError(f"target {target!r}: sites={sites!r} holds no {what}")
    return [Unit(members[0].address, tuple(members)) for members in by_name.values()]
