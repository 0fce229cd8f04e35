"""Save and load quantized models.

Weights, ranges and recipe of a quantized model in one name-based TensorFlow checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from fileio.messages import printable
from fileio.reading import parse_json
from tfquant import checkpoint
from tfquant.calibration import set_ranges_of_weights
from tfquant.engine import Engine
from tfquant.graph.model_adapter import ModelAdapter, source_of
from tfquant.layer_renaming import AmbiguousNamesError, given_names, pair_sites, pair_weights
from tfquant.lora import Lora
from tfquant.model import QuantizedFunction, QuantizedModel, engine_of, wrap
from tfquant.older_files import lacking, recipe_of_file, with_partners
from tfquant.quantizer import GROUP_OF, Quantizer
from tfquant.rules import Recipe
from tfquant.site import Address, Site
from tfquant.variables import is_finite
from tfquant.weights import named_weights

# Everything that is not a weight of the model lies below this prefix.
PREFIX = "tfquant/"
RECIPE = PREFIX + "recipe"
SITES = PREFIX + "sites"
WEIGHTS = PREFIX + "weights"  # names in the order of the model
LORA = PREFIX + "lora"  # rank, alpha and kernels of low-rank updates


def holds_ranges(prefix: str | os.PathLike) -> bool:
    """Return whether a checkpoint of that name exists that `save` wrote."""
    return os.path.isfile(os.fspath(prefix) + checkpoint.INDEX) and RECIPE in checkpoint.read(
        prefix
    )


def save(
    model: QuantizedModel | QuantizedFunction,
    prefix: str | os.PathLike,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a TensorFlow checkpoint that `tf.train.load_checkpoint` reads.

    Weights keep their own names (`bert/encoder/layer_0/.../kernel`); ranges are
    `tfquant/ranges/<site address>/lower` and `.../upper` (and `.../group_of`, the group of each
    dimension, where such share a range), the recipe is `tfquant/recipe`. A kill or full disk while
    writing leaves the previous checkpoint loadable.

    Args:
      prefix: path without suffix, for example `out/model.ckpt-calibrated`.
      extra: more tensors by name, such as an optimizer's.

    Raises:
      checkpoint.CheckpointError: the file could not be written.
      ValueError: a variable is NaN or infinite; nothing is written.
    """
    if broken := non_finite(engine_of(model)):
        raise ValueError(
            f"{printable(os.fspath(prefix))} was not written: variable {broken} holds NaN or Inf;"
            " load or train the weights again"
        )
    checkpoint.write(prefix, {**named_tensors(model), **(extra or {})})


def non_finite(engine: Engine) -> str | None:
    """Return the name of a weight, or of a range that was known once, that holds NaN or Inf.

    A file with such a variable could be written, but not be loaded.
    """
    for name, variable in named_weights(engine).items():
        if not is_finite(variable.numpy()):
            return name
    for address, quantizer in engine.quantizers.items():
        for name, variable in quantizer.variables.items():
            value = variable.numpy()
            # All NaN: a site that was never calibrated, which `load` takes for unknown.
            if not is_finite(value) and (quantizer.calibrated or not np.isnan(value).all()):
                return range_name(address, name)
    return None


def named_tensors(model: QuantizedModel | QuantizedFunction) -> dict[str, Any]:
    """All tensors that `save` writes, by name."""
    engine = engine_of(model)
    weights = named_weights(engine)
    tensors: dict[str, Any] = {**weights, WEIGHTS: json.dumps(list(weights))}
    for address, quantizer in engine.quantizers.items():
        tensors[range_name(address, "lower")] = quantizer.lower
        tensors[range_name(address, "upper")] = quantizer.upper
        # What is learned as well: the ends do not give it back to the last bit.
        tensors |= {
            range_name(address, name): variable for name, variable in quantizer.variables.items()
        }
    tensors |= _histories(engine) | _schedules(engine)
    if engine.lora is not None:
        lora = engine.lora
        about = {"rank": lora.rank, "alpha": lora.alpha, "kernels": list(lora.updates)}
        about["trained"] = lora.trained
        tensors |= {**_low_rank(lora), LORA: json.dumps(about)}
    tensors[RECIPE] = engine.plan.recipe.to_json()
    tensors[SITES] = json.dumps([fingerprint(site) for site in engine.plan.sites])
    return tensors


def _histories(engine: Engine) -> dict[str, tf.Variable]:
    """State variables of the scales of gradients by their names in a file."""
    return {
        range_name(address, name): variable
        for address, quantizer in engine.gradients.items()
        for name, variable in quantizer.variables.items()
    }


def _schedules(engine: Engine) -> dict[str, tf.Variable]:
    """Variables of schedules by their names in a file."""
    return {PREFIX + name: variable for name, variable in engine.schedules.items()}


def _low_rank(lora: Lora, renamed: Mapping[str, str] | None = None) -> dict[str, tf.Variable]:
    """Variables of low-rank updates by their names in a file.

    Args:
      lora: the updates.
      renamed: address of a site in the model -> address in the file, where they differ.
    """
    result = {}
    for address, update in lora.updates.items():
        stored = Address.parse((renamed or {}).get(address, address))
        for factor in update.factors:
            port = factor.site.port
            result[f"{stored.path}/{port}"] = factor.variable
            for name, variable in factor.scale.items():
                result[range_name(str(stored._replace(port=port)), name)] = variable
    return result


def load(
    prefix: str | os.PathLike,
    model: Any,
    *,
    inputs: Any = None,
    signature: Any = None,
    change: Callable[[Recipe], Recipe] = lambda recipe: recipe,
) -> QuantizedModel | QuantizedFunction:
    """Read a checkpoint of `save` into a fresh model.

    Args:
      prefix: as given to `save`.
      model: built like the saved one; its weights are overwritten.
      inputs, signature: as for `tfquant.quantize`.
      change: saved recipe -> the recipe to use, with the same sites; to train ranges that were
        calibrated: `lambda recipe: recipe.with_spec(roles=["weight"], update="lsq")`.

    Returns:
      The quantized model with the saved recipe, weights and ranges.

    Raises:
      FileNotFoundError: no such checkpoint.
      checkpoint.CheckpointError: it is damaged.
      ValueError: weights or sites differ from those of `model`, all differences are listed; or one
        is NaN or infinite. The model is as before then.
    """
    saved, prefix = checkpoint.read(prefix), printable(os.fspath(prefix))
    if any(name not in saved for name in (RECIPE, SITES, WEIGHTS)):
        raise ValueError(
            f"{prefix}: holds weights but no recipe: it was not written by tfquant.save"
        )
    recipe = change(Recipe.from_dict(record(saved, RECIPE, prefix, dict)))
    sites = _fingerprints(saved, prefix)
    quantized = wrap(model, engine_as_saved(source_of(model, inputs, signature), recipe, sites))
    paths, renamed = stored_names(quantized, saved, sites, prefix)
    weights = named_weights(engine_of(quantized))
    values = matching_weights(weights, paths, saved, prefix)
    broken = [name for name, value in values.items() if not is_finite(value)]
    if broken:
        raise ValueError(
            f"{prefix}: variable {printable(broken[0])} holds NaN or Inf; load another checkpoint"
        )
    for (
        address,
        quantizer,
    ) in quantized.quantizers.items():  # new ones: the model is as before if one fails
        if address in renamed:
            _restore_range(quantizer, saved, renamed[address], prefix)
    later = _histories(engine_of(quantized)) | _schedules(engine_of(quantized))
    _restore_variables(later, saved, prefix, required=False)
    if LORA in saved:
        _restore_lora(quantized, saved, renamed, prefix)
    for name, variable in weights.items():
        variable.assign(values[name])
    estimate_parted(engine_of(quantized), renamed)
    return quantized


class SavedTensors(Protocol):
    """Tensors of a file by name, with their shapes."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def __getitem__(self, name: str) -> np.ndarray | str: ...


def record(saved: SavedTensors, name: str, source: str, kind: type) -> Any:
    """Parse a JSON entry of a checkpoint.

    Args:
      saved: name -> value.
      name: of the value.
      source: what the checkpoint is called in messages.
      kind: what it must be, a list or a dict.

    Raises:
      ValueError: it is something else.
    """
    text = saved[name]
    value = parse_json(text, f"{source}, {name}") if isinstance(text, str) else None
    if not isinstance(value, kind):
        raise ValueError(f"{source}: {name} is damaged; restore the file or write it again")
    return value


def _fingerprints(saved: SavedTensors, source: str) -> list[list]:
    """Fingerprints of the sites in a checkpoint.

    Raises:
      ValueError: it holds something else in their place.
    """
    result = record(saved, SITES, source, list)
    if not all(
        isinstance(e, list) and len(e) == 2 and isinstance(e[0], str) and e[0].count(":") >= 2
        for e in result
    ):
        raise ValueError(f"{source}: {SITES} is damaged; restore the file or write it again")
    return result


def _restore_range(
    quantizer: Quantizer, saved: Mapping[str, Any], address: str, source: str
) -> None:
    """Set the range of a site from a checkpoint; leave it unset where none was known.

    Raises:
      ValueError: it does not fit, or is NaN or infinite.
    """
    names = {
        name: range_name(address, name)
        for name in ("lower", "upper", GROUP_OF, *quantizer.variables)
    }
    for end in ("lower", "upper"):
        if names[end] not in saved:
            raise ValueError(
                f"{source}: holds no {names[end]}; it is damaged, or was written by another program"
            )
    lower, upper = saved[names["lower"]], saved[names["upper"]]
    if np.isnan(lower).all() or np.isnan(upper).all():  # not calibrated when it was saved
        return
    learned = all(names[name] in saved for name in quantizer.variables)
    for name in ("lower", "upper", *(quantizer.variables if learned else ())):
        if not is_finite(saved[names[name]]):
            raise ValueError(
                f"{source}: {names[name]} is NaN or infinite; load another checkpoint, or calibrate"
                " again"
            )
    quantizer.set_range(lower, upper, saved[names[GROUP_OF]] if names[GROUP_OF] in saved else None)
    if learned:
        for name, variable in quantizer.variables.items():
            variable.assign(saved[names[name]])


def _restore_lora(
    quantized: QuantizedModel | QuantizedFunction,
    saved: SavedTensors,
    renamed: Mapping[str, str],
    source: str,
) -> None:
    """Add the low-rank updates of a checkpoint to a model.

    Raises:
      ValueError: they do not fit.
    """
    about = record(saved, LORA, source, dict)
    in_model = {stored: address for address, stored in renamed.items()}
    try:
        kernels = [in_model[stored] for stored in about["kernels"]]
        lora = Lora(quantized, about["rank"], about["alpha"], kernels, trained=about["trained"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: {LORA} does not fit the model: {error}") from error
    _restore_variables(_low_rank(lora, renamed), saved, source, required=True)


def _restore_variables(
    named: Mapping[str, tf.Variable], saved: SavedTensors, source: str, *, required: bool
) -> None:
    """Set variables from a checkpoint.

    Args:
      named: by name in the file.
      saved: the file.
      source: what it is called in messages.
      required: whether all must be there; else those that the file lacks start anew.

    Raises:
      ValueError: one is missing, does not fit, or is NaN or infinite.
    """
    for name, variable in named.items():
        if name not in saved.shapes:
            if required:
                raise ValueError(f"{source}: is damaged, it holds no {name}")
            continue
        value = saved[name]
        if tuple(saved.shapes[name]) != tuple(variable.shape) or not is_finite(value):
            raise ValueError(
                f"{source}: {name} is NaN or infinite, or of another shape than"
                f" {list(variable.shape)}; load another checkpoint"
            )
        variable.assign(value)


def estimate_parted(engine: Engine, renamed: Mapping[str, str]) -> None:
    """Set the ranges of parameters that a calibrated file of an earlier version lacks, from the
    weights.

    Args:
      engine: with the weights and ranges of the file.
      renamed: from `stored_names`.
    """
    if all(
        quantizer.calibrated
        for address, quantizer in engine.quantizers.items()
        if address in renamed
    ):
        parted = [address for address in engine.quantizers if address not in renamed]
        set_ranges_of_weights(engine, with_partners(engine.plan.sites, parted))


def engine_as_saved(source: ModelAdapter, recipe: Recipe, saved: list[list]) -> Engine:
    """Return the engine for a file, in which an earlier version may have left further calls of a
    layer in float.

    Args:
      source: of the model.
      recipe: of the file.
      saved: fingerprints of the sites in the file.
    """
    engine = Engine(source, recipe)
    as_saved = recipe_of_file(recipe, lacking(engine.plan.sites, [address for address, _ in saved]))
    return engine if as_saved == recipe else Engine(source, as_saved)


def range_name(address: str, end: str) -> str:
    return f"{PREFIX}ranges/{address}/{end}"


def fingerprint(site: Site) -> list:
    return [site.address, list(site.range_shape)]


def stored_names(
    model: QuantizedModel | QuantizedFunction,
    saved: SavedTensors,
    sites: list[list],
    prefix: str,
) -> tuple[dict[str, str], dict[str, str]]:
    """Map variables and sites of a model to their names in a file.

    Args:
      model: built like the saved one.
      saved: the file, which lists variables in the order of the saved model.
      sites: `fingerprint` of each site in the file, in graph order.
      prefix: of the file, for messages.

    Returns:
      Path in the model -> path in the file, address in the model -> address in the file; without
      parameters that an earlier version did not tell apart.

    Raises:
      ValueError: they differ, or it cannot be told which is which; all differences are listed.
    """
    engine, specified = engine_of(model), given_names(model.original)
    weights = [str(name) for name in record(saved, WEIGHTS, prefix, list)]
    try:
        paths = pair_weights(list(named_weights(engine)), weights, specified)
    except AmbiguousNamesError as error:
        raise ValueError(f"{prefix}: {error}") from error
    stored = [address for address, _ in sites]
    parted = {site.address for site in lacking(engine.plan.sites, stored)}
    addresses = pair_sites(
        [site for site in engine.plan.sites if site.address not in parted],
        stored,
        paths or {},
        specified,
    )
    if addresses is None:
        own = {site.address for site in engine.plan.sites}
        missing, left = sorted(own - set(stored)), sorted(set(stored) - own)
        raise ValueError(
            f"{prefix}: sites differ from the model's. Missing in the file: {missing or 'none'}."
            f" Left over: {left or 'none'}"
        )
    if paths is None:
        own = set(named_weights(engine))
        missing, left = sorted(own - set(weights)), sorted(set(weights) - own)
        raise ValueError(
            f"{prefix}: variables differ from the model's. Missing: {missing or 'none'}. Left over:"
            f" {left or 'none'}"
        )
    return paths, addresses


def matching_weights(
    weights: dict[str, tf.Variable],
    paths: dict[str, str],
    saved: SavedTensors,
    prefix: str,
) -> dict[str, np.ndarray | str]:
    """Value of every variable by its name in the model; `paths` maps to names in the file."""
    absent = [name for name in paths.values() if name not in saved.shapes]
    if absent:
        names = printable(", ".join(absent[:5]))
        raise ValueError(f"{prefix}: is damaged, it lists variables that it does not hold: {names}")
    wrong = [
        f"{name}: {list(saved.shapes[other])} in the file, {list(weights[name].shape)} in the model"
        for name, other in paths.items()
        if list(saved.shapes[other]) != list(weights[name].shape)
    ]
    if wrong:
        raise ValueError(f"{prefix}: shapes differ from the model's: {'; '.join(wrong)}")
    values = {name: saved[other] for name, other in paths.items()}
    for name, other in paths.items():
        specified = tf.as_dtype(np.asarray(values[name]).dtype)
        if specified != weights[name].dtype and not (
            specified.is_floating and weights[name].dtype.is_floating
        ):
            raise ValueError(
                f"{prefix}: {other} is of type {specified.name}, the model has"
                f" {weights[name].dtype.name}"
            )
    return values
