"""Rescaling of variables, with a check of the outputs.

Channels of pairs divided and multiplied by given factors, checked by the float outputs, undone on
error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from tfquant.engine import Engine
from tfquant.graph.dataflow import Dataflow
from tfquant.layout import static_shape
from tfquant.ptq.equalization import extremes
from tfquant.ptq.equalization.pairs import Pair, Parameter
from tfquant.ptq.equalization.report import EqualizationReport, PairResult
from tfquant.ptq.operand_view import OperandView


def values_of(engine: Engine, pairs: Iterable[Pair]) -> dict[str, np.ndarray]:
    """Map handle of each variable of the pairs -> its value in the layout of the operation."""
    tensors = {p.handle: p.tensor for pair in pairs for p in (*pair.divided, *pair.multiplied)}
    if not tensors:
        return {}
    emit = tf.function(
        lambda: engine.inference.emit([], targets=list(tensors.values())), autograph=False
    )
    return dict(zip(tensors, [t.numpy() for t in emit.get_concrete_function()()], strict=True))


def rescale_values(pair: Pair, values: dict[str, np.ndarray], factors: np.ndarray) -> None:
    """Apply `rescaled` to values of variables instead of the variables."""
    factors = np.asarray(factors, np.float32)
    for parameter in pair.divided:
        values[parameter.handle] = values[parameter.handle] / factors[parameter.channels]
    for parameter in pair.multiplied:
        values[parameter.handle] = values[parameter.handle] * factors[parameter.channels]


def random_inputs(engine: Engine) -> list[tf.Tensor]:
    """Small random batch for models without data.

    Zeros and ones, which are indices into any table, and normal numbers.
    """
    rng, flat = np.random.default_rng(0), []
    for spec in engine.inference.input_specs:
        shape = [size or (2 if axis == 0 else 5) for axis, size in enumerate(spec.shape)]
        values = rng.normal(size=shape) if spec.dtype.is_floating else rng.integers(0, 2, shape)
        if not spec.dtype.is_floating and len(shape) > 1:
            values[:, 0] = 1  # of a mask: at least one real token
        flat.append(tf.cast(tf.constant(values), spec.dtype))
    return flat


def rescaled(
    engine: Engine,
    pairs: Sequence[Pair],
    factors: Mapping[str, np.ndarray],
    flat: Sequence[tf.Tensor],
    tolerance: float,
    progress: bool,
    *,
    activations: Mapping[str, np.ndarray],
    skipped: Sequence[tuple[str, str]],
) -> EqualizationReport:
    """Rescale the variables of one pair after the other.

    Args:
      engine: of the network.
      pairs: to rescale.
      factors: name of a pair -> [channels].
      flat: inputs that outputs are compared for.
      tolerance: see `equalize`.
      progress: show a bar.
      activations, skipped: for the report.

    Raises:
      ValueError: outputs differ. All variables are as they were then, as after any other error.
    """
    network = engine.function("float")
    first = last = _outputs(network, flat)
    variables = {
        p.handle: engine.inference.variables[p.handle]
        for pair in pairs
        for p in (*pair.divided, *pair.multiplied)
    }
    originals = {handle: variable.numpy() for handle, variable in variables.items()}
    values, results = values_of(engine, pairs), []
    flow = engine.inference.analysis.flow
    try:
        for pair in tqdm(pairs, "rescaling", unit="pair", disable=not progress):
            divided = extremes.of_parameters(pair.divided, values, pair.size)
            multiplied = extremes.of_parameters(pair.multiplied, values, pair.size)
            chosen = np.asarray(factors[pair.name], np.float32)
            for parameter in pair.divided:
                variables[parameter.handle].assign(
                    variables[parameter.handle] / _placed(flow, parameter, chosen)
                )
            for parameter in pair.multiplied:
                variables[parameter.handle].assign(
                    variables[parameter.handle] * _placed(flow, parameter, chosen)
                )
            rescale_values(pair, values, chosen)
            result = _outputs(network, flat)
            difference = max(_difference(last, result), _difference(first, result))
            if not difference <= tolerance:
                raise ValueError(
                    f"{pair.name}: outputs differ by {difference:.2g} of their spread once it is"
                    f" rescaled, more than tolerance={tolerance:g}: nothing was changed; leave it"
                    " out with pairs=, raise tolerance, or set powers_of_two=True"
                )
            results.append(
                PairResult(
                    pair.name, chosen, activations.get(pair.name), divided, multiplied, difference
                )
            )
            last = result
    except BaseException:
        for handle, value in originals.items():
            variables[handle].assign(value)
        raise
    return EqualizationReport(tuple(results), tuple(skipped), _difference(first, last))


def _placed(flow: Dataflow, parameter: Parameter, factors: np.ndarray) -> tf.Tensor:
    """Factor of every element of a variable."""
    read, tensor = flow.root(parameter.tensor), parameter.tensor
    placed = factors[parameter.channels]
    variable = flow.trace.variables[parameter.handle]
    if read.name != tensor.name:
        full = np.broadcast_to(placed, static_shape(tensor.shape))
        placed = OperandView(flow.trace, [read], tensor).to_variable(full)
    return tf.cast(placed, variable.dtype)


def _outputs(network, flat: Sequence[tf.Tensor]) -> dict[str, np.ndarray]:
    """Map index of each float output -> its values."""
    result = network(*flat)
    result = list(result) if isinstance(result, (list, tuple)) else [result]
    outputs = {
        str(i): tf.cast(t, tf.float64).numpy() for i, t in enumerate(result) if t.dtype.is_floating
    }
    if not outputs:
        raise ValueError(
            "the model has no floating output by which rescaling could be checked: give a model"
            " that has its logits"
        )
    return outputs


def _difference(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> float:
    """Largest difference of an output relative to its spread; infinite if other values are finite
    than before.
    """
    worst = 0.0
    for name, old in before.items():
        new, finite = after[name], np.isfinite(old)
        if not np.array_equal(finite, np.isfinite(new)):
            return float("inf")
        if finite.any():
            spread = np.ptp(old[finite]) or np.abs(old[finite]).max() or 1.0
            worst = max(worst, float(np.abs(new[finite] - old[finite]).max() / spread))
    return worst
