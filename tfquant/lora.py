"""LoRA with a quantized base: low-rank updates merged into the kernel before it is quantized.

    W = Q(W0 + alpha / rank * Q(A) Q(B))

The frozen kernel and its update are one kernel, which is quantized like any other, so that the
forward pass is one low-precision product and has no side path. A [inputs, rank] starts with random
numbers and B [rank, outputs] with zeros, so that training starts from the quantized network. A and
B get straight-through gradients through both quantizers, the kernel none. The source declares
dropout of the side path, which has no effect here.

Sources: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685; Yu
et al. 2024, "8-bit Transformer Inference and Fine-tuning for Edge Accelerators".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant import dynamic_range
from tfquant.delayed import DelayedRange
from tfquant.engine import Engine
from tfquant.error_messages import some_of
from tfquant.gradients import identity
from tfquant.graph.edge import Edge
from tfquant.layout import shared_axes, static_shape
from tfquant.learned import parameter_path
from tfquant.model import QuantizedFunction, QuantizedModel, engine_of
from tfquant.ptq.layers import Layer, LayerFinder, Unsuitable, variable_read
from tfquant.quantizer import Quantizer
from tfquant.site import PARTS, Site
from tfquant.variables import resource, state_variable

TARGETS = "query,value"
TRAINED = ("pooler", "head")
_COPIES = ("ReadVariableOp", "Identity", "Cast", "Reshape")


class Factor:
    """Trainable matrix of a low-rank update, with its quantizer.

    A format without a scale or with a delayed one is that of the kernel; a scale that calibration
    would find is computed from the matrix at hand.

    Args:
      site: spec and layout of the matrix.
      value: float32 [rows, columns], what training starts with.
      path: of the variable.
    """

    def __init__(self, site: Site, value: np.ndarray, path: str):
        self.site, self.path = site, path
        self.variable = state_variable(value.astype(np.float32), path, trainable=True)
        stateful = site.spec.scale.source in ("delayed", "none") and not site.spec.fitted
        self.quantizer = Quantizer(site) if stateful else None

    def __call__(self, training: bool) -> tf.Tensor:
        """Return the quantized matrix."""
        x = tf.convert_to_tensor(self.variable)
        if not self.site.enabled:
            return x
        if self.quantizer is not None:
            return self.quantizer(x, training)
        return identity(lambda x: dynamic_range.quantized(x, self.site), x)

    @property
    def scale(self) -> dict[str, tf.Variable]:
        """State of the scale by the last part of its name."""
        return {} if self.quantizer is None else self.quantizer.variables


class LowRankUpdate:
    """Low-rank update of one kernel.

    Kernels of more than two axes are matrices of what the product sums over and of what it keeps.

    Args:
      layer: the kernel's site and places.
      kernel: its variable.
      rank: number of columns of A and rows of B.
      scaling: factor of their product.
      random: what A starts with.

    Raises:
      Unsuitable: the kernel is transposed on its way to the product, or smaller than `rank`.
    """

    def __init__(
        self,
        layer: Layer,
        kernel: tf.Variable,
        rank: int,
        scaling: float,
        random: np.random.Generator,
    ):
        edge, self.site, self.kernel, self._scaling = layer.edges[0], layer.site, kernel, scaling
        _check_copied(edge)
        shape, outputs = static_shape(edge.tensor.shape), edge.channel_axes
        if not outputs or len(outputs) == len(shape):
            raise Unsuitable("its axes are not known as inputs and outputs of a product")
        summed = tuple(shared_axes(len(shape), outputs))
        self._order = (*summed, *outputs)
        self._sizes = [shape[axis] for axis in self._order]
        inputs, columns = (math.prod(shape[axis] for axis in axes) for axes in (summed, outputs))
        if rank > min(inputs, columns):
            raise Unsuitable(
                f"rank {rank} is larger than the kernel, {inputs} inputs and {columns} outputs: at"
                f" most {min(inputs, columns)}"
            )
        limit = 1.0 / math.sqrt(inputs)
        start = random.uniform(-limit, limit, (inputs, rank))
        self.a = self._factor("lora_a", start, summed)
        self.b = self._factor("lora_b", np.zeros((rank, columns)), summed)

    def _factor(self, port: str, value: np.ndarray, summed: tuple[int, ...]) -> Factor:
        site, axis = self.site, self.site.block_axis
        if axis is not None:  # blocks lie along what the product of the factors sums over as well
            axis = -2 if axis % len(self._sizes) in summed else -1
        of_factor = dataclasses.replace(
            site,
            port=port,
            shape=value.shape,
            channel_axes=(1,) if site.channel_axes else (),
            members=(),
            group="",
            order="",
            block_axis=axis,
        )
        return Factor(of_factor, value, f"{site.path}/{port}")

    @property
    def factors(self) -> tuple[Factor, Factor]:
        return self.a, self.b

    def updated(self, training: bool) -> tf.Tensor:
        """Return the kernel with its update, of the shape and type of its variable."""
        wide = tf.float64 if self.kernel.dtype == tf.float64 else tf.float32
        product = self._scaling * tf.matmul(self.a(training), self.b(training))
        product = tf.reshape(product, self._sizes)
        if self._order != tuple(sorted(self._order)):
            product = tf.transpose(product, np.argsort(self._order))
        kernel = tf.stop_gradient(tf.cast(tf.convert_to_tensor(self.kernel), wide))
        update = tf.cast(tf.reshape(product, self.kernel.shape), wide)
        return tf.cast(kernel + update, self.kernel.dtype)

    def merge(self) -> None:
        """Add the update to the kernel, and make it zero."""
        self.kernel.assign(self.updated(training=False))
        self.b.variable.assign(tf.zeros_like(self.b.variable))


class Lora:
    """Low-rank adaptation of a quantized model.

    From now on `model.trainable_variables` are A and B of every target and the variables of the
    last layers (pooler and head; of those that are targets the biases), whatever the original
    trains. `fit` after a `compile`, the `Trainer` and a loop of one's own train them;
    `tfquant.save` and `load` keep them. The float mode has the kernels without their updates.

        lora = tfquant.training.Lora(quantized, rank=8)
        quantized.compile("adam", loss)
        quantized.fit(x, y)
        lora.merge()

    Attributes:
      rank, alpha: see the module.
      trained: layers that are trained as a whole.
      updates: address of the site of a kernel -> its update.

    Args:
      model: from `tfquant.quantize` or `tfquant.load`.
      rank: of the updates, from 1 to the smaller side of the kernels.
      alpha: the product of A and B is multiplied by alpha / rank.
      targets: kernels, each entry a part of an encoder (`tfquant.site.PARTS`), the end of a layer's
        path, or the address of a site; comma-separated or a sequence.
      seed: of the random numbers in A.
      trained: layers that are trained as a whole, in the same form.

    Raises:
      ValueError: a target matches no quantized kernel, a kernel has no such update, or the model
        has updates already.
      TypeError: it is no quantized model.
    """

    def __init__(
        self,
        model: QuantizedModel | QuantizedFunction,
        rank: int,
        alpha: float = 8.0,
        targets: str | Iterable[str] = TARGETS,
        *,
        seed: int = 0,
        trained: str | Iterable[str] = TRAINED,
    ):
        engine = engine_of(model)
        if not isinstance(model, QuantizedModel):
            raise TypeError("LoRA trains a model, got a quantized function: quantize a model")
        if engine.lora is not None:
            raise ValueError("the model has LoRA updates already: merge them first")
        check(rank, alpha)
        self._model, self.rank, self.alpha = model, rank, float(alpha)
        self.trained = _split(trained)
        self.updates = self._updates(engine, _split(targets), np.random.default_rng(seed))
        frozen = {id(update.kernel) for update in self.updates.values()}
        self._trained = {id(factor.variable) for factor in self._factors}
        self._trained |= _variables_of(engine, self.trained) - frozen
        engine.set_lora(self)
        model.follow_lora()

    def _updates(
        self, engine: Engine, targets: list[str], random: np.random.Generator
    ) -> dict[str, LowRankUpdate]:
        result, finder = {}, LayerFinder(engine)
        for site in _selected(engine, targets):
            try:
                layer = finder.layer(site)
                kernel = engine.inference.variables[layer.handle]
                update = LowRankUpdate(layer, kernel, self.rank, self.alpha / self.rank, random)
            except Unsuitable as error:
                raise ValueError(f"LoRA of {site.address}: {error}") from error
            result[site.address] = update
        return result

    @property
    def _factors(self) -> list[Factor]:
        return [factor for update in self.updates.values() for factor in update.factors]

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """A and B of all kernels by path."""
        return {factor.path: factor.variable for factor in self._factors}

    @property
    def state(self) -> dict[str, tf.Variable]:
        """All variables by path: A, B and the state of their scales."""
        return self.variables | {
            parameter_path(factor.site.address, name): variable
            for factor in self._factors
            for name, variable in factor.scale.items()
        }

    @property
    def delayed(self) -> list[DelayedRange]:
        """Delayed scales of A and B."""
        states = [f.quantizer.state for f in self._factors if f.quantizer is not None]
        return [state for state in states if isinstance(state, DelayedRange)]

    def trains(self, variable: Any) -> bool:
        """Return whether a variable is trained: A, B, or one of the last layers."""
        return id(resource(variable)) in self._trained

    def __call__(self, site: Site, tensor: tf.Tensor, training: bool) -> tf.Tensor:
        """Return the tensor of a site before it is quantized: of a target the updated kernel."""
        update = self.updates.get(site.address)
        if update is None:
            return tensor
        return tf.cast(tf.reshape(update.updated(training), tensor.shape), tensor.dtype)

    def merge(self) -> None:
        """Add the updates to the kernels and remove them from the model, whose trainable variables
        are those of the original again; to be compiled again before further training.

        A kernel then is what its quantizer saw of kernel and update, so that inference computes the
        same bits. B becomes zero, so that a `tf.function` that was traced before does as well.

        Raises:
          ValueError: they are merged already.
        """
        engine = engine_of(self._model)
        if engine.lora is not self:
            raise ValueError("the LoRA updates are merged already")
        for update in self.updates.values():
            update.merge()
        engine.set_lora(None)
        self._model.follow_lora(removed=self.state.values())


def lora_of_args(
    model: QuantizedModel | QuantizedFunction, args: Mapping[str, Any], seed: int = 0
) -> Lora | None:
    """Add the updates that command-line arguments ask for, unless the model has them already.

    Args:
      model: quantized.
      args: values of `tfquant.training_args.ARGUMENTS` by name; missing ones have their defaults.
      seed: of the random numbers in A.

    Returns:
      The updates, None where the arguments ask for none.
    """
    rank = args.get("lora_rank", 0)
    if not rank or model.lora is not None:
        return model.lora
    alpha, targets = args.get("lora_alpha", 8.0), args.get("target_modules", TARGETS)
    return Lora(model, rank, alpha, targets, seed=seed)


def check(rank: Any, alpha: Any) -> None:
    """Raise ValueError if rank or alpha are no such numbers."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"LoRA: rank must be an integer of at least 1, got {rank!r}")
    number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
    if not number or not 0.0 < alpha < math.inf:
        raise ValueError(f"LoRA: alpha must be a number above 0, got {alpha!r}")


def _split(targets: str | Iterable[str]) -> list[str]:
    entries = targets.split(",") if isinstance(targets, str) else targets
    return [entry for text in entries if (entry := text.strip())]


def _selected(engine: Engine, targets: list[str]) -> list[Site]:
    """Return the sites of kernels that targets name, in the order of the plan.

    Raises:
      ValueError: one of them names none.
    """
    parts: dict[str, str | None] = {}
    kernels: dict[str, Site] = {}
    for site, edge in engine.placements():
        if site.port == "kernel" and site.address not in kernels:
            kernels[site.address], parts[site.address] = site, edge.part
    if not kernels:
        raise ValueError(
            "LoRA: no kernel is quantized, so that there is nothing to merge updates into: quantize"
            " with a rule for role weight, or --weight"
        )
    if not targets:
        raise ValueError(f"LoRA: there are no targets; give some, such as {TARGETS!r}")
    chosen: set[str] = set()
    for target in targets:
        hits = {a for a, site in kernels.items() if _matches(target, site, parts[a])}
        if not hits:
            names = [part for part in parts.values() if part]
            names += [site.path.rpartition("/")[2] for site in kernels.values()]
            raise ValueError(
                f"LoRA: target {target!r} matches no quantized kernel; there are"
                f" {some_of(dict.fromkeys(names), 12)}"
            )
        chosen |= hits
    return [site for address, site in kernels.items() if address in chosen]


def _matches(target: str, place: Site | Edge, part: str | None) -> bool:
    return target in (part, place.path, place.address) or place.path.endswith(f"/{target}")


def _variables_of(engine: Engine, layers: list[str]) -> set[int]:
    """`id` of the variables of layers.

    Raises:
      ValueError: one of them names none, and is no part that a model may lack.
    """
    flow, variables = engine.inference.analysis.flow, engine.inference.variables
    result: dict[str, set[int]] = {layer: set() for layer in layers}
    for edge in engine.inference.analysis.roles.edges:
        hits = [layer for layer in layers if _matches(layer, edge, edge.part)]
        if not hits or not edge.parameter or edge.table is not None:
            continue
        try:
            variable = variables[variable_read(flow, edge.tensor)]
        except Unsuitable:  # a constant, or computed from variables
            continue
        for layer in hits:
            result[layer].add(id(variable))
    missing = [layer for layer, found in result.items() if not found and layer not in PARTS]
    if missing:
        raise ValueError(f"LoRA: trained={missing[0]!r} names no layer with a kernel or bias")
    return set().union(*result.values())


def _check_copied(edge: Edge) -> None:
    """Raise Unsuitable if the tensor of an edge is not its variable, cast or reshaped."""
    op = edge.tensor.op
    while op.type != "ReadVariableOp":
        if op.type not in _COPIES:
            raise Unsuitable(f"its kernel passes {op.type} ({op.name}) before it is quantized")
        op = op.inputs[0].op
