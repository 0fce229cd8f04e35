"""Padding masks and their placement in tensors.

The only place that decides which elements of a tensor are real tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence

import tensorflow as tf

from tfquant.error_messages import one_line
from tfquant.graph.attention_masks import find_token_masks
from tfquant.graph.axes import Axes, Labels
from tfquant.graph.axis_flow import PART
from tfquant.graph.axis_sizes import BATCH
from tfquant.graph.trace import Trace

# Last parts of the names of inputs that mark real tokens. Of several for the same tokens the first
# counts.
MASK_NAMES = (
    "input_mask",
    "attention_mask",
    "padding_mask",
    "mask",
    "token_mask",
    "pad_mask",
    "tokens_mask",
    "sequence_mask",
)
_SIDES = (
    r"(?:encoder|decoder|source|target|src|tgt|query|value|key|text|context|question|answer"
    r"|left|right|first|second)"
)
_MASK_NAME = re.compile(
    rf"(?:.*_)?(?:{'|'.join(MASK_NAMES[:3] + MASK_NAMES[4:])})|(?:{_SIDES}_)?mask(?:_\d+)?"
)
# Names whose convention is the opposite one (True is padding), or that mark something else.
_OTHER_NAME = re.compile(
    r".*(?:key_padding|vision|image|segment|causal|head|special_tokens|global_attention|prompt)_mask"
)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Alignment of a mask with the axes of a tensor.

    Attributes:
      mask: which of the masks.
      groups: for each axis of the tensor the axes of the mask that it runs over, the outermost
        first; -4 stands for four features, such as heads, in the same axis.
    """

    mask: int
    groups: tuple[tuple[int, ...], ...]

    def broadcast(self, mask: tf.Tensor) -> tf.Tensor:
        """Mask, float32 with ones for real tokens, shaped to broadcast to the tensor."""
        factors = [factor for group in self.groups for factor in group]
        order = [axis for axis in factors if axis >= 0]
        if order != sorted(order):
            mask = tf.transpose(mask, order)
        if len(factors) > len(order):
            sizes = iter(tf.unstack(tf.shape(mask)))
            sizes = [
                (-factor, 1) if factor < 0 else (size := next(sizes), size) for factor in factors
            ]
            mask = tf.broadcast_to(
                tf.reshape(mask, [size for _, size in sizes]), [size for size, _ in sizes]
            )
        if sum(map(bool, self.groups)) == 1:
            return tf.reshape(mask, [-1 if group else 1 for group in self.groups])
        sizes, position, shape = tf.shape(mask), 0, []
        for group in self.groups:
            shape.append(tf.reduce_prod(sizes[position : position + len(group)]) if group else 1)
            position += len(group)
        placed = tf.reshape(mask, shape)
        placed.set_shape([None if group else 1 for group in self.groups])
        return placed


class Padding:
    """Masks of a model and their placement in some of its tensors.

    Args:
      trace: the graph.
      tensors: each with a name for messages, which several may share.
      mask: see `tfquant.calibrate`.
      what: the tensors are, in messages.

    Attributes:
      masks: tensors of the graph, inputs or computed from them, nonzero for real tokens.
      uncertain: those of the tensors that may hold padding which cannot be told from the rest, as
        (name, reason).

    Raises:
      ValueError: `mask` is no input that could be a mask.
    """

    def __init__(
        self,
        trace: Trace,
        tensors: Iterable[tuple[str, tf.Tensor]],
        mask: str | Sequence[str] | None = "auto",
        what: str = "sites",
    ):
        self._trace, self.masks, tensors = trace, find_masks(trace, mask), list(tensors)
        self.uncertain: list[tuple[str, str]] = []
        self._places: dict[str, tuple[Placement, ...]] = {}
        self._marking_padding: frozenset[str] = (
            frozenset()
        )  # names of masks that are nonzero for padding
        unexplained: dict[str, list[str]] = {}
        if mask == "auto" and tensors:
            result, unexplained = find_token_masks(trace, self.masks)
            self.masks += tuple(own.tensor for own in result)
            self._marking_padding = frozenset(
                own.tensor.name for own in result if own.marks_padding
            )
        if self.masks and tensors:
            try:
                axes = Axes(trace, [*(tensor for _, tensor in tensors), *self.masks])
            except Exception as error:
                reason = (
                    f"where it lies cannot be told ({type(error).__name__}: {one_line(error, 200)})"
                )
                self.uncertain = [(name, reason) for name, _ in tensors]
            else:
                self._place(axes, tensors)
        self._keep_used()
        if unexplained:
            self._doubt(tensors, *next(iter(unexplained.items())))
        self._warn(len(tensors), what)

    def of_masks(self, masks: Sequence[tf.Tensor]) -> Validity:
        """Validity from the values of `masks`."""
        return Validity(
            self._places,
            [self._real(mask, old) for mask, old in zip(masks, self.masks, strict=True)],
        )

    def values(self, flat: Sequence[tf.Tensor]) -> Validity:
        """Values of the masks for one batch.

        Args:
          flat: inputs of the model, in the graph of a `tf.function` where a mask is computed from
            them.
        """
        if all(mask.op.type == "Placeholder" for mask in self.masks):
            names = [tensor.name for tensor in self._trace.inputs]
            return self.of_masks([flat[names.index(mask.name)] for mask in self.masks])
        return self.of_masks(self._masks_of(flat))

    def _real(self, mask: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
        """Return a mask that is nonzero for real tokens."""
        return (
            tf.equal(tf.cast(mask, tf.float32), 0.0) if old.name in self._marking_padding else mask
        )

    def _masks_of(self, flat: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        return (
            self._function(*flat)
            if tf.executing_eagerly()
            else self._trace.emit(list(flat), targets=list(self.masks))
        )

    @functools.cached_property
    def _function(self):
        function = tf.function(
            lambda *flat: self._trace.emit(list(flat), targets=list(self.masks)),
            autograph=False,
            jit_compile=False,
            input_signature=self._trace.input_specs,
        )
        return function.get_concrete_function()

    def _place(self, axes: Axes, tensors: Sequence[tuple[str, tf.Tensor]]) -> None:
        masks = self._mask_labels(axes, tensors)
        lengths: dict[int, list[int]] = {}  # label -> the masks that mark along it
        for number, (_, *rest) in masks.items():
            lengths.setdefault(rest[-1][0], []).append(number)
        order = _Order(self._trace)
        doubtful = []
        for name, tensor in tensors:
            places = self._placed(tensor, axes.labels[tensor.name], lengths, masks, order)
            if places:
                self._places[tensor.name] = places
            elif tensor.shape.rank != 0:
                doubtful.append((name, tensor))
        masked = {
            t.name
            for t, labels in zip(self._trace.inputs, axes.inputs, strict=True)
            if set(labels) & set(lengths)
        }
        doubtful = [(name, tensor) for name, tensor in doubtful if order.follows(tensor, masked)]
        axes.follow({tensor.name for _, tensor in doubtful})
        unexplained = axes.unexplained({tensor.name for _, tensor in doubtful})
        for name, tensor in doubtful:
            places = self._placed(tensor, axes.labels[tensor.name], lengths, masks, order)
            if places:
                self._places[tensor.name] = places
            elif tensor.name in unexplained or any(
                {*group} & {*lengths, PART} for group in axes.labels[tensor.name]
            ):
                self.uncertain.append((name, "its tokens are joined with something else"))

    def _placed(
        self,
        tensor: tf.Tensor,
        labels: Labels,
        lengths: Mapping[int, Sequence[int]],
        masks: Mapping[int, Labels],
        order: _Order,
    ) -> tuple[Placement, ...]:
        """Placements of masks in a tensor, one per input with tokens."""
        places = []
        for label in {label: None for group in labels for label in group if label in lengths}:
            chosen = order.nearest(tensor, lengths[label], self.masks)
            places += _placements(chosen, masks[chosen], labels)
        return tuple(places)

    def _mask_labels(
        self, axes: Axes, tensors: Sequence[tuple[str, tf.Tensor]]
    ) -> dict[int, Labels]:
        """Axis labels of each mask; those of its tokens for a mask that the network does not use,
        whose length is undetermined.
        """
        used = {
            label for _, tensor in tensors for group in axes.labels[tensor.name] for label in group
        }
        inputs = {
            name: labels[1]
            for name, tensor, labels in zip(
                self._trace.input_names, self._trace.inputs, axes.inputs, strict=True
            )
            if len(labels) in (2, 3) and labels[1] in used
        }
        names = {
            tensor.name: name
            for name, tensor in zip(self._trace.input_names, self._trace.inputs, strict=True)
        }
        result = {
            i: axes.labels[m.name]
            for i, m in enumerate(self.masks)
            if _is_mask(axes.labels[m.name])
        }
        for number, labels in result.items():
            name = names.get(self.masks[number].name)
            if name is not None and len(labels) == 2 and labels[1][0] not in used:
                alike = {
                    label
                    for other, label in inputs.items()
                    if other.split("_")[0] == name.split("_")[0]
                }
                lengths = alike if len(alike) == 1 else set(inputs.values())
                if len(lengths) == 1:
                    result[number] = (labels[0], tuple(lengths))
        return result

    def _doubt(
        self, tensors: Sequence[tuple[str, tf.Tensor]], operation: str, inputs: Sequence[str]
    ) -> None:
        """Record tensors that may hold padding, excluded by an attention mask in an unknown way."""
        if self.uncertain:
            return
        named = ", ".join(inputs)
        reason = (
            f"the attention mask at {operation} follows from {named}, and which tokens it leaves"
            " out cannot be told; pass mask= the input of [batch, tokens] that marks real ones, or"
            " mask=None if all count"
        )
        order, sources = _Order(self._trace), {tensor.name for tensor in self._trace.inputs}
        self.uncertain = [
            (name, reason)
            for name, tensor in tensors
            if tensor.name not in self._places
            and tensor.shape.rank != 0
            and order.follows(tensor, sources)
        ]

    def _keep_used(self) -> None:
        used = sorted({place.mask for places in self._places.values() for place in places})
        self.masks = tuple(self.masks[number] for number in used)
        for name, places in self._places.items():
            self._places[name] = tuple(
                dataclasses.replace(place, mask=used.index(place.mask)) for place in places
            )

    def _warn(self, count: int, what: str) -> None:
        if self.uncertain:
            first, reason = self.uncertain[0]
            warnings.warn(
                f"padding is counted at {len(self.uncertain)} of {count} {what}, first {first}:"
                f" {reason}",
                stacklevel=3,
            )


class Validity:
    """Real (not padded) elements of tensors in one batch."""

    def __init__(self, places: Mapping[str, tuple[Placement, ...]], masks: Sequence[tf.Tensor]):
        self._places = places
        self._masks = [
            tf.cast(tf.not_equal(tf.cast(mask, tf.float32), 0.0), tf.float32) for mask in masks
        ]
        self._known: dict[tuple[Placement, ...], tf.Tensor | None] = {}

    def of(self, tensor: tf.Tensor) -> tf.Tensor | None:
        """Mask of real elements of a tensor of the trace.

        Returns:
          float32 with ones for real elements and zeros elsewhere, size 1 along axes without tokens;
          a pair of tokens counts if both are real. None where all elements count.
        """
        places = self._places.get(tensor.name)
        if places is None:
            return None
        if places not in self._known:
            valid = None
            for place in places:
                placed = place.broadcast(self._masks[place.mask])
                valid = placed if valid is None else valid * placed
            self._known[places] = valid
        return self._known[places]


class _Order:
    """Dependencies of tensors, and the tensors after which Keras has attached masks."""

    def __init__(self, trace: Trace):
        self._trace = trace

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        return {op.name: index for index, op in enumerate(self._trace.operations)}

    def follows(self, tensor: tf.Tensor, names: Iterable[str]) -> bool:
        """Return whether a tensor is computed from one of those with the names."""
        names = frozenset(names)
        return any(t.name in names for op in self._trace.ancestors([tensor]) for t in op.outputs)

    def nearest(self, tensor: tf.Tensor, among: Sequence[int], masks: Sequence[tf.Tensor]) -> int:
        """Select, of several masks for the same tokens, the one that Keras attached last before a
        tensor; masks of the inputs take precedence.
        """
        if len(among) < 2 or masks[among[0]].op.type == "Placeholder":
            return among[0]
        names = {masks[number].name: number for number in among}
        result, latest = among[0], -1
        for op in self._trace.ancestors([tensor]):
            for output in op.outputs:
                mask = self._trace.tensor_masks.get(output.name)
                if mask is not None and mask.name in names and self._index[op.name] > latest:
                    result, latest = names[mask.name], self._index[op.name]
        return result


def find_masks(trace: Trace, mask: str | Sequence[str] | None) -> tuple[tf.Tensor, ...]:
    """Find tensors of a graph that mark real tokens, earlier ones first; see `tfquant.calibrate`.

    Raises:
      ValueError: `mask` names no such input.
    """
    names = list(trace.input_names)
    if mask is None:
        return ()
    if mask != "auto":
        return tuple(
            _named_mask(trace, name) for name in ([mask] if isinstance(mask, str) else mask)
        )
    result = []
    for name, tensor in zip(names, trace.inputs, strict=True):
        last = name.rpartition("/")[2]
        if (
            _MASK_NAME.fullmatch(last)
            and not _OTHER_NAME.fullmatch(last)
            and tensor.shape.rank == 2
        ):
            result.append(
                (MASK_NAMES.index(last) if last in MASK_NAMES else len(MASK_NAMES), tensor)
            )
    inputs = [tensor for _, tensor in sorted(result, key=lambda pair: pair[0])]
    computed = {
        mask.name: mask
        for mask in trace.tensor_masks.values()
        if mask.shape.rank is not None and mask.shape.rank > 1
    }
    return tuple({tensor.name: tensor for tensor in [*inputs, *computed.values()]}.values())


def _named_mask(trace: Trace, name: str) -> tf.Tensor:
    names = list(trace.input_names)
    if name not in names:
        raise ValueError(f"mask={name!r} is no input of the model; it has {', '.join(names)}")
    tensor = trace.inputs[names.index(name)]
    if tensor.shape.rank != 2:
        raise ValueError(
            f"mask={name!r} must be [batch, tokens], its shape is {list(tensor.shape)}"
        )
    return tensor


def _is_mask(labels: Labels) -> bool:
    """Return whether a tensor has a batch axis and otherwise distinct token axes."""
    flat = [label for group in labels for label in group]
    return (
        len(labels) > 1
        and labels[0] == (BATCH,)
        and all(len(group) == 1 for group in labels)
        and len({*flat}) == len(flat)
    )


def _placements(number: int, mask: Labels, labels: Labels) -> list[Placement]:
    """Placements of a mask in a tensor: one for each axis that runs over its tokens."""
    wanted = [group[0] for group in mask]
    result = []
    for last in (axis for axis, group in enumerate(labels) if wanted[-1] in group):
        places: dict[int, list[int]] = {}
        for position, label in enumerate(wanted):
            axis = (
                last
                if position == len(wanted) - 1 or label in labels[last]
                else next((axis for axis, group in enumerate(labels) if label in group), None)
            )
            if axis is None:
                return []
            places.setdefault(axis, []).append(position)
        if all(
            {wanted[p] for p in whole} == {label for label in labels[axis] if label >= 0}
            for axis, whole in places.items()
        ):
            groups = [
                (
                    tuple(label if label < 0 else wanted.index(label) for label in group)
                    if axis in places
                    else ()
                )
                for axis, group in enumerate(labels)
            ]
            result.append(Placement(number, tuple(groups)))
    return result
