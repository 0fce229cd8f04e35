"""AdaRound: round the weights of a calibrated model up or down so that each layer's output is
preserved.

Rounding to nearest is the best for a single weight, not for a sum of products with inputs that hang
together. Here each weight gets a variable that says how far it is rounded up; layer after layer
these are learned from unlabelled data and then made hard.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv:2004.10568;
for BERT: Bondarenko et al. 2021, arXiv:2109.12948. The reconstruction loss is the paper's: squared
errors summed over output features, averaged over rows. Qualcomm's code for BERT sums over tokens
and averages over features instead, which makes its regulariser weigh more where features outnumber
tokens. Padding counts in neither our loss nor our errors.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from tfquant import resume
from tfquant.calibration import check_batches
from tfquant.engine import Engine
from tfquant.model import QuantizedFunction, QuantizedModel, engine_of
from tfquant.ptq import finished_layers
from tfquant.ptq.adaround.layer_function import Form
from tfquant.ptq.adaround.options import Options
from tfquant.ptq.adaround.reconstruction import Reconstruction
from tfquant.ptq.adaround.report import AdaRoundReport, LayerResult
from tfquant.ptq.adaround.rounding import hard_rounding
from tfquant.ptq.buffers import Space
from tfquant.ptq.layer_samples import Outputs, Samples, collect
from tfquant.ptq.layers import Layer, LayerFinder, Unsuitable, choose, grouped
from tfquant.ptq.paired_forward import PairedForward
from tfquant.ptq.weight import Weight
from tfquant.validation import build


def adaround(
    model: QuantizedModel | QuantizedFunction,
    batches: Iterable[Any],
    *,
    sites: str | Sequence[str] = "kernels",
    mask: str | Sequence[str] | None = "auto",
    folder: str | os.PathLike[str] | None = None,
    memory_limit: int = 1 << 30,
    progress: bool = True,
    **options: Any,
) -> AdaRoundReport:
    """Learn the rounding of a calibrated model's weights, layer by layer, and overwrite them with
    values of their codebooks.

    The quantizers change such values no more, so that saving, loading and export work as before.
    Targets come from the float network, dropout is off. The variables of the model are assigned at
    the very end: an error leaves them as they were. A layer whose error grew keeps rounding to
    nearest.

    Rows of a table that are looked up are their own output, for which nearest is the best rounding:
    such a table only gets its grid's values.

    Args:
      model: from `tfquant.quantize`, calibrated; its weights must be the float ones.
      batches: inputs of the model, or (inputs, targets) pairs, as for `tfquant.calibrate`; about
        1,000 examples. All are held in memory.
      sites: which weights: `kernels`, `embeddings`, `all`, a role, a glob of site addresses or
        layer paths (`re:` a regular expression), or several of these.
      mask: name of the input that marks real tokens, see `tfquant.calibrate`.
      folder: keeps finished layers; a second call with the same model, data and options goes on
        behind the last of them.
      memory_limit: bytes of layer inputs and targets in memory; what is more goes to files in the
        temporary folder.
      progress: show a bar.
      **options: fields of `tfquant.ptq.Options`: `iterations`, `batch_rows`, `learning_rate`,
        `include_activation`, ...

    Returns:
      Errors before and after of each layer.

    Raises:
      ValueError: an option or `sites` does not fit, a batch does not fit or holds NaN, or `folder`
        holds another run.
      UncalibratedError: a site has no range.
      TypeError: `model` is not quantized.
      OSError: the folder or the disk for layer inputs is full.
    """
    began, engine = time.monotonic(), engine_of(model)
    chosen = build(Options, options, "AdaRound call")
    engine.check_merged("AdaRound")
    check_batches(batches, "AdaRound")
    engine.quantizers.check_calibrated()
    layers, skipped = choose(engine, sites, suits=_check_range)
    with Space(memory_limit) as space:
        run = _Run(engine, layers, list(batches), space, mask, chosen, progress)
        run.resume(folder, mask)
        run.all_layers()
    for handle, value in run.finished.items():
        variable = engine.inference.variables[handle]
        variable.assign(tf.cast(value, variable.dtype))
    results = tuple(run.results[layer.address] for layer in layers)
    return AdaRoundReport(results, tuple(skipped), chosen, round(time.monotonic() - began, 3))


_read = functools.partial(finished_layers.read, result=LayerResult)


class _Run:
    """State of one call of `adaround`.

    Attributes:
      results: of finished layers, by address.
      finished: handle -> variable with the weight of a finished layer, which the quantized network
        reads in its place.
    """

    def __init__(
        self,
        engine: Engine,
        layers: list[Layer],
        batches: list[Any],
        space: Space,
        mask: str | Sequence[str] | None,
        options: Options,
        progress: bool,
    ):
        self._engine, self._layers, self._space, self._options = engine, layers, space, options
        finder = LayerFinder(engine)
        self._groups = grouped(finder, layers)
        self._forms = {
            layer.address: _forms(finder, layer, options.include_activation) for layer in layers
        }
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
        self._outputs = Outputs(engine)
        self._hidden = not progress
        self._compiled: dict[tuple, Reconstruction] = {}
        self._finished_layers = resume.Results(None, "", {}, "")
        self.results: dict[str, LayerResult] = {}
        self.finished: dict[str, tf.Variable] = {}

    def resume(
        self, folder: str | os.PathLike[str] | None, mask: str | Sequence[str] | None
    ) -> None:
        """Load the finished results of the folder."""
        self._finished_layers = finished_layers.opened(
            folder, "AdaRound", self._engine, self._walk.flats, self._layers, mask, self._options
        )
        for layer in self._layers:
            finished = self._finished_layers.get(layer.address, _read)
            if finished is not None:
                self._finish(layer, *finished)

    def all_layers(self) -> None:
        steps = self._options.iterations
        with tqdm(
            total=steps * len(self._layers), desc="AdaRound", unit="it", disable=self._hidden
        ) as bar:
            bar.update(steps * len(self.results))
            for number, group in enumerate(self._groups):
                left = [layer for layer in group if layer.address not in self.results]
                if not left:
                    continue
                uses = [(layer, form) for layer in group for form in self._forms[layer.address]]
                wanted = {layer.address: layer for layer in left}
                samples = collect(
                    self._walk, number, uses, wanted, self._outputs, self._space, self.finished
                )
                for layer in left:
                    bar.set_description(f"AdaRound {layer.site.path}")
                    weight, result = self._round(layer, samples.pop(layer.address), bar)
                    self._finished_layers.put(layer.address, finished_layers.stored(weight, result))
                    self._finish(layer, weight, result)
                    bar.update(steps * len(self.results) - bar.n)

    def _finish(self, layer: Layer, weight: np.ndarray, result: LayerResult) -> None:
        dtype = self._engine.inference.variables[layer.handle].dtype
        self.finished[layer.handle] = tf.Variable(tf.cast(weight, dtype), trainable=False)
        self.results[layer.address] = result

    def _round(
        self, layer: Layer, samples: list[Samples], bar: tqdm
    ) -> tuple[np.ndarray, LayerResult]:
        weight = Weight.of(self._engine, layer)
        forms, began = self._forms[layer.address], time.monotonic()
        key = Reconstruction.key(forms, weight)
        if key not in self._compiled:
            self._compiled[key] = Reconstruction(forms, weight, self._options)
        learning = self._compiled[key]
        nearest = learning.error(weight.nearest, samples)
        if all(use.lookup for use in layer.uses):
            return weight.nearest, self._result(
                layer,
                weight,
                samples,
                began,
                (nearest, nearest, nearest),
                weight.nearest,
                "best for rows",
            )

        def report(steps: int, loss: float) -> None:
            bar.update(steps)
            bar.set_postfix(loss=f"{loss:.4g}", refresh=False)

        alpha = learning.fit(weight, samples, layer.address, report)
        try:
            value = weight.rounded(hard_rounding(tf.constant(alpha)).numpy())
        except ValueError as error:
            raise ValueError(f"site {layer.address}: {error}") from error
        errors = (
            nearest,
            learning.error(learning.soft(weight, alpha), samples),
            learning.error(value, samples),
        )
        reason = "" if errors[2] <= nearest else "error grew"
        kept = weight.nearest if reason else value
        return kept, self._result(layer, weight, samples, began, errors, kept, reason)

    def _result(
        self,
        layer: Layer,
        weight: Weight,
        samples: list[Samples],
        began: float,
        errors: tuple[float, float, float],
        kept: np.ndarray,
        reason: str,
    ) -> LayerResult:
        forms = self._forms[layer.address]
        compared = (
            "rows"
            if forms[0].lookup
            else "activation"
            if any(form.activated for form in forms)
            else "product"
        )
        return LayerResult(
            layer.address,
            weight.value.shape,
            compared,
            *errors,
            weight.changed(kept),
            reason,
            sum(s.inputs.count for s in samples),
            round(time.monotonic() - began, 3),
        )


def _check_range(layer: Layer) -> None:
    """Raise Unsuitable for a weight whose scales are not stored."""
    if layer.site.spec.stateless:
        raise Unsuitable(
            "the scales of its blocks follow from its values, which would change with them: round"
            " it with tfquant.ptq.gptq"
        )


def _forms(finder: LayerFinder, layer: Layer, include_activation: bool) -> list[Form]:
    try:
        return [Form(finder.flow, layer, use, include_activation) for use in layer.uses]
    except Unsuitable as error:
        raise ValueError(
            f"site {layer.address} cannot be rounded with AdaRound: {error}; leave it out of sites"
        ) from error
