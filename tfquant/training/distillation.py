"""Knowledge distillation: a loss for `Trainer` that compares a student with a teacher.

options = DistillationOptions(hidden_scale=1.0)
loss = Distillation(
    student, teacher, hard_loss, inputs=lambda batch: batch["x"], options=options
)
Trainer(student, loss, optimizer, train_options, loss_variables=loss.variables)
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfquant.choices import DIRECTIONS, DISTILLATION_SCALE, TEMPERATURE
from tfquant.intermediate_outputs import Tapped, tap
from tfquant.training.distillation_losses import (
    attention_loss,
    divergence,
    hidden_loss,
    layer_pairs,
)

Batch = Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class DistillationOptions:
    """Weights and layers of the distillation losses.

    Attributes:
        temperature, direction: of the divergence between the logits, see `divergence`.
        logits_scale: weight of that divergence, added up over the logits; NVIDIA's by default.
        hidden_scale: weight of the mean squared error between hidden states that leave blocks, see
          `hidden_loss`.
        attention_scale: weight of the mean squared error between attention probabilities, see
          `attention_loss`.
        layers: layer of the student -> layer of the teacher it learns from, counted from 0, for the
          last two; None spreads
            the teacher's layers evenly.
        seed: of the projections between hidden states of different widths.
    """

    temperature: float = TEMPERATURE
    direction: str = DIRECTIONS[0]
    logits_scale: float = DISTILLATION_SCALE
    hidden_scale: float = 0.0
    attention_scale: float = 0.0
    layers: Mapping[int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0 and finite")
        if self.direction not in DIRECTIONS:
            raise ValueError(
                f"direction is {self.direction!r}; it must be one of {', '.join(DIRECTIONS)}"
            )
        scales = {
            name: getattr(self, name)
            for name in ("logits_scale", "hidden_scale", "attention_scale")
        }
        for name, scale in scales.items():
            if not 0.0 <= scale < math.inf:
                raise ValueError(f"{name} is {scale}; it must be at least 0 and finite")
        if not any(scales.values()):
            raise ValueError(
                f"all distillation weights ({', '.join(scales)}) are 0: set at least one"
            )
        if self.layers is not None and not self.taps:
            raise ValueError(
                "layers have no effect: hidden_scale and attention_scale are 0; set one"
            )

    @property
    def taps(self) -> bool:
        """Whether intermediate outputs of the teacher are compared."""
        return self.hidden_scale > 0 or self.attention_scale > 0


class Distillation:
    """Loss for `Trainer`: `hard` plus the distillation terms of the options; student and teacher
    run forward once each.

    Both may be float or quantized, and of different size: where hidden states have different
    widths, the student's goes through a trained projection (Jiao et al. 2020, arXiv:1909.10351), a
    kernel like any other to the optimizer. The teacher runs as in inference, without dropout, and
    no gradient reaches it.

    Args:
        student, teacher: Keras models or what `tfquant.quantize` returned.
        hard: (outputs of the student, batch) -> scalar; what the labels say.
        inputs: batch -> inputs of both models.
        options: see `DistillationOptions`.
        logits: (outputs, batch) -> what the divergence compares, each [..., classes]; all outputs
          when not given.
        regression: what `logits` gives are values, not logits of classes: their mean squared error
          is taken in place of the
            divergence.
        mask: batch -> [B, S], not zero where a token is real, or None; only these count in hidden
          states and attention. Not a
            function: as for `tfquant.calibrate`, of the student's inputs; None counts all.

    Attributes:
        variables: the projections; `Trainer` needs them as `loss_variables`. They are no part of
          the student.
        pairs: (layer of the student, layer of the teacher), counted from 0; empty if only logits
          are compared.

    Raises:
        ValueError: the models do not fit each other or the options; the message names the layer.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        hard: Callable[[Any, Batch], tf.Tensor],
        *,
        inputs: Callable[[Batch], Any],
        options: DistillationOptions | None = None,
        logits: Callable[[Any, Batch], Sequence[tf.Tensor]] = lambda outputs, batch: (
            tf.nest.flatten(outputs)
        ),
        mask: Callable[[Batch], tf.Tensor | None] | str | Sequence[str] | None = "auto",
        regression: bool = False,
    ):
        self.options = options or DistillationOptions()
        self._model, self._hard, self._inputs, self._logits = student, hard, inputs, logits
        self._regression = regression
        self._student = _Side("student", tap(student), self.options)
        self._teacher = _Side("teacher", tap(teacher, differentiable=False), self.options)
        self.pairs: list[tuple[int, int]] = []
        self._projections: list[keras.Variable | None] = []
        if self.options.taps:
            self.pairs = layer_pairs(self._student.depth, self._teacher.depth, self.options.layers)
            self._student.choose([layer for layer, _ in self.pairs])
            self._teacher.choose([layer for _, layer in self.pairs])
        self._mask = mask if callable(mask) else self._found_mask(mask)
        if self.options.hidden_scale:
            widths = zip(self._student.widths(), self._teacher.widths(), strict=True)
            self._projections = [
                self._projection(layer, *w)
                for (layer, _), w in zip(self.pairs, widths, strict=True)
            ]
        self.variables = [projection for projection in self._projections if projection is not None]

    def __call__(self, model: Any, batch: Batch) -> tf.Tensor:
        """Total loss, a float32 scalar."""
        if model is not self._model:
            raise ValueError("this loss was made for another student: make one for each")
        options, parts = self.options, self.parts(batch)
        scales = {
            "hard": 1.0,
            "logits": options.logits_scale,
            "hidden": options.hidden_scale,
            "attention": options.attention_scale,
        }
        return tf.add_n([scales[name] * value for name, value in parts.items()])

    def parts(self, batch: Batch, training: bool = True) -> dict[str, tf.Tensor]:
        """Terms of the loss before they are scaled.

        `hard`, and `logits`, `hidden` and `attention` as far as they count.
        """
        options, inputs, mask = self.options, self._inputs(batch), self._mask(batch)
        outputs, *ours = self._student.run(inputs, training)
        answers, *theirs = self._teacher.run(inputs, training=False)
        parts = {"hard": tf.cast(self._hard(outputs, batch), tf.float32)}
        if options.logits_scale:
            compared = zip(self._logits(outputs, batch), self._logits(answers, batch), strict=True)
            parts["logits"] = tf.add_n([self._difference(s, t) for s, t in compared])
        if options.hidden_scale:
            parts["hidden"] = hidden_loss(ours[0], theirs[0], self._projections, mask=mask)
        if options.attention_scale:
            parts["attention"] = attention_loss(ours[1], theirs[1], mask=mask)
        return parts

    def _found_mask(self, mask: str | Sequence[str] | None) -> Callable[[Batch], tf.Tensor | None]:
        real_tokens = self._student.real_tokens(mask)
        return lambda batch: real_tokens(self._inputs(batch))

    def _difference(self, student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
        """KL divergence or squared difference between student and teacher logits."""
        if not self._regression:
            return divergence(student, teacher, self.options.temperature, self.options.direction)
        return tf.reduce_mean(
            tf.square(tf.cast(student, tf.float32) - tf.cast(tf.stop_gradient(teacher), tf.float32))
        )

    def _projection(self, layer: int, student: int, teacher: int) -> keras.Variable | None:
        """Projection from the student's to the teacher's width where they differ; initialized close
        to an isometry.
        """
        if student == teacher:
            return None
        with keras.name_scope("distillation"):
            initializer = keras.initializers.Orthogonal(seed=self.options.seed + layer)
            return keras.Variable(
                initializer, (student, teacher), dtype="float32", name=f"projection_{layer}"
            )


class _Side:
    """Student or teacher with its compared tensors, in the order of the layer pairs."""

    def __init__(self, name: str, tapped: Tapped, options: DistillationOptions):
        self._name, self._tapped = name, tapped
        self._hidden_counts, self._attention_counts = (
            options.hidden_scale > 0,
            options.attention_scale > 0,
        )
        self._hidden: list[str] = []
        self._attention: list[str] = []

    @property
    def depth(self) -> int:
        """Number of layers."""
        if not self._tapped.blocks:
            raise ValueError(
                f"the {self._name} has no attention whose result is added to what went into it, so"
                " no layers to compare: set hidden_scale and attention_scale to 0"
            )
        return len(self._tapped.blocks)

    def choose(self, layers: Sequence[int]) -> None:
        """Select the tensors to compare; a layer of the teacher may serve several.

        Raises:
            ValueError: it is not there, or lacks the axes that the losses need.
        """
        blocks = [self._tapped.blocks[layer] for layer in layers]
        if self._hidden_counts:
            for layer, block in zip(layers, blocks, strict=True):
                if block.output is None:
                    raise ValueError(
                        f"no hidden state was found that leaves the {self._name}'s layer {layer}"
                        f" ({block.path}): leave it out of the layers, or set hidden_scale to 0"
                    )
                self._hidden.append(self._with_axes(block.output, 3, "[batch, tokens, width]"))
        if self._attention_counts:
            self._attention = [
                self._with_axes(b.probabilities, 4, "[batch, heads, tokens, tokens]")
                for b in blocks
            ]

    def _with_axes(self, address: str, rank: int, axes: str) -> str:
        shape = self._tapped.shape(address)
        if len(shape) != rank:
            raise ValueError(
                f"the {self._name}'s {address} has shape {list(shape)}; distillation needs {axes}"
            )
        return address

    def widths(self) -> list[int]:
        """Widths of the hidden states."""
        result: list[Any] = [self._tapped.shape(address)[-1] for address in self._hidden]
        if None in result:
            raise ValueError(
                f"the {self._name}'s {self._hidden[result.index(None)]} has no known width: give"
                " the model one"
            )
        return result

    def real_tokens(self, mask: str | Sequence[str] | None) -> Callable[[Any], tf.Tensor | None]:
        """Function from inputs to the mask [B, S], 1 for real tokens; None if the model has none,
        or nothing is compared.
        """
        addresses = [*self._hidden[:1], *self._attention[:1]][:1]
        if not addresses:
            return lambda inputs: None
        validity = self._tapped.validity(addresses[0], mask)

        def found(inputs: Any) -> tf.Tensor | None:
            valid: Any = validity(inputs)
            if valid is None:
                return None
            return (
                valid[..., 0] if self._hidden else tf.linalg.diag_part(valid[:, 0])
            )  # of pairs those of a token with itself

        return found

    def run(self, inputs: Any, training: bool) -> tuple[Any, list[tf.Tensor], list[tf.Tensor]]:
        """Outputs, hidden states, attention probabilities."""
        addresses = list(dict.fromkeys(self._hidden + self._attention))
        outputs, result = self._tapped(inputs, addresses, training=training)
        return outputs, [result[a] for a in self._hidden], [result[a] for a in self._attention]
