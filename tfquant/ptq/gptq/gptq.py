"""GPTQ: round the weights of a model layer by layer, so that errors of one input are compensated by
the weights of the inputs that follow.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv:2210.17323. Unlike the authors' code, weights of inputs that are always 0 are
rounded to nearest, not set to 0: they may meet other inputs later.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from tfquant import dynamic_range, resume
from tfquant.calibration import check_batches
from tfquant.engine import Engine
from tfquant.layout import static_shape
from tfquant.model import QuantizedFunction, QuantizedModel, engine_of
from tfquant.ptq import finished_layers
from tfquant.ptq.buffers import Space
from tfquant.ptq.gptq.columns import round_columns
from tfquant.ptq.gptq.grid import BlockScales, Grid
from tfquant.ptq.gptq.hessian import collect
from tfquant.ptq.gptq.options import Options
from tfquant.ptq.gptq.product import Product, products
from tfquant.ptq.gptq.report import GPTQReport, LayerResult
from tfquant.ptq.layers import Layer, LayerFinder, Unsuitable, choose, grouped
from tfquant.ptq.paired_forward import PairedForward
from tfquant.ptq.weight import Weight, simulation, site_view
from tfquant.validation import build

# Numbers that float32 holds exactly, of blocks.
_MOST_BLOCKS = 2**24
# Largest relative difference between rounded values and what the site's quantizer makes of them:
# the last bits of float32. Neighbouring values of 16 bits differ by ten times as much.
_CLOSE = 2e-6
# In units of the scale: more than a searched scale of a block moves values of the same code, less
# than the steps of integers and of 4-bit floats.
_CHANGED = 0.25


def gptq(
    model: QuantizedModel | QuantizedFunction,
    batches: Iterable[Any],
    *,
    sites: str | Sequence[str] = "kernels",
    mask: str | Sequence[str] | None = "auto",
    folder: str | os.PathLike[str] | None = None,
    memory_limit: int = 1 << 30,
    progress: bool = True,
    **options: Any,
) -> GPTQReport:
    """Round a calibrated model's weights with GPTQ, layer by layer, and overwrite them with values
    of their codebooks.

    The quantizers change such values no more, also where they compute the scales of blocks from
    them, so that saving, loading and export work as before. The variables of the model are assigned
    at the very end: an error leaves them as they were. A layer whose error grew keeps its weights,
    which the quantizer rounds to nearest.

    Args:
      model: from `tfquant.quantize`, calibrated; its weights must be the float ones.
      batches: inputs of the model, or (inputs, targets) pairs, as for `tfquant.calibrate`; about
        200 examples. All are held in memory.
      sites: which weights: `kernels`, `all`, a role, a glob of site addresses or layer paths (`re:`
        a regular expression), or several of these.
      mask: name of the input that marks real tokens, see `tfquant.calibrate`.
      folder: keeps finished layers; a second call with the same model, data and options goes on
        behind the last of them.
      memory_limit: bytes of tensors between layers in memory; what is more goes to files in the
        temporary folder.
      progress: show a bar.
      **options: fields of `tfquant.ptq.GPTQOptions`: `percdamp`, `act_order`, `search_scales`, ...

    Returns:
      Errors before and after of each layer.

    Raises:
      ValueError: an option or `sites` does not fit, a batch does not fit or holds NaN, a Hessian is
        singular, or `folder` holds another run.
      UncalibratedError: a site has no range.
      TypeError: `model` is not quantized.
      OSError: the folder or the disk for tensors between layers is full.
    """
    began, engine = time.monotonic(), engine_of(model)
    chosen = build(Options, options, "GPTQ call")
    engine.check_merged("GPTQ")
    check_batches(batches, "GPTQ")
    engine.quantizers.check_calibrated()
    finder, uses = LayerFinder(engine), {}

    def suits(layer: Layer) -> None:
        uses[layer.address] = products(engine, finder, layer)
        _check_blocks(engine, layer, uses[layer.address])

    layers, skipped = choose(engine, sites, "GPTQ", suits)
    with Space(memory_limit) as space:
        run = _Run(engine, layers, uses, list(batches), space, mask, chosen, progress)
        run.resume(folder, mask)
        run.all_layers()
    for handle, value in run.changed.items():
        variable = engine.inference.variables[handle]
        variable.assign(tf.cast(value, variable.dtype))
    results = tuple(run.results[layer.address] for layer in layers)
    return GPTQReport(results, tuple(skipped), chosen, round(time.monotonic() - began, 3))


_read = functools.partial(finished_layers.read, result=LayerResult)


class _Run:
    """State of one call of `gptq`.

    Attributes:
      results: of finished layers, by address.
      changed: handle -> variable with the weight of a finished layer, which the quantized network
        reads in its place; without layers that keep their weights.
    """

    def __init__(
        self,
        engine: Engine,
        layers: list[Layer],
        uses: dict[str, list[Product]],
        batches: list[Any],
        space: Space,
        mask: str | Sequence[str] | None,
        options: Options,
        progress: bool,
    ):
        self._engine, self._layers, self._options, self._uses = engine, layers, options, uses
        self._groups = grouped(LayerFinder(engine), layers)
        self._walk = PairedForward(
            engine,
            batches,
            [[use for layer in group for use in layer.uses] for group in self._groups],
            space,
            mask=mask,
            paired=options.asymmetric,
            quantize_activations=options.quantize_activations,
            progress=progress,
        )
        self._hidden = not progress
        self._finished_layers = resume.Results(None, "", {}, "")
        self.results: dict[str, LayerResult] = {}
        self.changed: dict[str, tf.Variable] = {}

    def resume(
        self, folder: str | os.PathLike[str] | None, mask: str | Sequence[str] | None
    ) -> None:
        """Load the finished results of the folder."""
        self._finished_layers = finished_layers.opened(
            folder, "GPTQ", self._engine, self._walk.flats, self._layers, mask, self._options
        )
        for layer in self._layers:
            finished = self._finished_layers.get(layer.address, _read)
            if finished is not None:
                self._finish(layer, *finished)

    def all_layers(self) -> None:
        with tqdm(total=len(self._layers), desc="GPTQ", unit="weight", disable=self._hidden) as bar:
            bar.update(len(self.results))
            for number, group in enumerate(self._groups):
                left = [layer for layer in group if layer.address not in self.results]
                if not left:
                    continue
                uses = [(layer, use) for layer in group for use in self._uses[layer.address]]
                wanted = {layer.address: layer for layer in left}
                hessians = collect(self._walk, number, uses, wanted, self.changed)
                for layer in left:
                    bar.set_description(f"GPTQ {layer.site.path}")
                    weight, result = self._round(layer, *hessians.pop(layer.address))
                    self._finished_layers.put(layer.address, finished_layers.stored(weight, result))
                    self._finish(layer, weight, result)
                    bar.update()

    def _finish(self, layer: Layer, weight: np.ndarray, result: LayerResult) -> None:
        if not result.kept_nearest:
            dtype = self._engine.inference.variables[layer.handle].dtype
            self.changed[layer.handle] = tf.Variable(tf.cast(weight, dtype), trainable=False)
        self.results[layer.address] = result

    def _round(
        self, layer: Layer, hessian: np.ndarray, rows: int
    ) -> tuple[np.ndarray, LayerResult]:
        """Round one weight; return it in the layout of its variable."""
        began, product = time.monotonic(), self._uses[layer.address][0]
        value, quantize, grids = _grids(self._engine, layer, product, self._options)
        exact, nearest = product.matrix(value).astype(np.float64), quantize(value)
        rounded, scale = np.empty(product.shape), np.empty(product.shape)
        try:
            for number, grid in enumerate(grids):
                codes = round_columns(exact[number], hessian[number], grid, self._options)
                rounded[number], scale[number] = codes * grid.scale, grid.scale
        except ValueError as error:
            raise ValueError(f"site {layer.address}: {error}") from error
        written = product.variable(rounded)
        simulated = quantize(written)
        reason = _moved(written, simulated, in_blocks=layer.site.block_axis is not None)
        before, after = product.matrix(nearest), product.matrix(simulated)
        mse_nearest, mse_gptq = (_error(result - exact, hessian) for result in (before, after))
        if not reason and mse_gptq > mse_nearest:
            reason = "error grew"
        kept = value if reason else simulated
        moved = np.abs(after - before) > _CHANGED * scale
        changed = 0.0 if reason else float(np.mean(moved))
        return kept, LayerResult(
            layer.address,
            value.shape,
            mse_nearest,
            mse_gptq,
            changed,
            reason,
            rows,
            round(time.monotonic() - began, 3),
        )


def _check_blocks(engine: Engine, layer: Layer, uses: Sequence[Product]) -> None:
    """Raise Unsuitable if rounded values of blocks would not lead to their scales again."""
    site = layer.site
    if site.block_axis is None:
        return
    types = {engine.inference.variables[layer.handle].dtype, layer.edges[0].tensor.dtype}
    if types != {tf.float32} or not all(use.in_float32 for use in uses):
        raise Unsuitable("scales of blocks follow again from rounded values in float32 only")
    if site.spec.codebook.unsigned:
        raise Unsuitable("its blocks have no codes for negative values")
    elements = math.prod(static_shape(layer.edges[0].tensor.shape))
    if elements > _MOST_BLOCKS * (site.spec.layout.block_size or 1):
        raise Unsuitable(f"it has more than {_MOST_BLOCKS:,} blocks")


def _grids(
    engine: Engine, layer: Layer, product: Product, options: Options
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray], list[Grid]]:
    """Value of the variable, what its site makes of such values, and the grid of each matrix."""
    site = layer.site
    codebook, shape = site.spec.codebook, product.shape
    if site.block_axis is None:
        weight = Weight.of(engine, layer)
        scale, zero = (
            product.matrix(np.broadcast_to(part, weight.value.shape)).astype(np.float64)
            for part in (weight.scale, weight.zero)
        )
        grids = [Grid(codebook, *parts) for parts in zip(scale, zero, strict=True)]
        return weight.value, weight.quantize, grids
    view = site_view(engine, layer)
    value = engine.inference.variables[layer.handle].numpy()
    shape_of_site = static_shape(layer.edges[0].tensor.shape)
    numbers = _block_numbers(shape_of_site, site.block_axis, site.spec.layout.block_size or 1)
    numbers = product.matrix(view.to_variable(numbers)).astype(np.int64)
    grids = [
        Grid(
            codebook,
            np.ones(shape[1:]),
            np.zeros(shape[1:]),
            BlockScales(site.spec, part, search=options.search_scales),
        )
        for part in numbers
    ]
    quantize = simulation(view, functools.partial(dynamic_range.quantized, site=site))
    return value, quantize, grids


def _block_numbers(shape: tuple[int, ...], axis: int, size: int) -> np.ndarray:
    """Number of the block of each element of a tensor, float32."""
    axis %= len(shape)
    counts = list(shape)
    counts[axis] = -(-shape[axis] // size)
    numbers = np.arange(np.prod(counts), dtype=np.float32).reshape(counts)
    return np.repeat(numbers, size, axis).take(range(shape[axis]), axis)


def _moved(written: np.ndarray, simulated: np.ndarray, *, in_blocks: bool) -> str:
    """Reason why rounded values cannot be written, empty if their quantizer keeps them."""
    moved = np.abs(simulated - written)
    # Scales of blocks follow from the values: a last bit would move again with each rounding.
    if (moved > (0.0 if in_blocks else _CLOSE) * np.abs(written)).any():
        return "its quantizer changes the rounded values"
    return ""


def _error(difference: np.ndarray, hessian: np.ndarray) -> float:
    """Mean squared error of outputs, from the difference of weights [M, K, N]."""
    squares = np.einsum("mkn,mkn->mn", difference, np.matmul(hessian, difference))
    return float(np.maximum(squares, 0.0).mean())
