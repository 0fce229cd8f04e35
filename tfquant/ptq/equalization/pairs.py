"""Parameter pairs whose channels can be rescaled without changing the outputs.

layernorm   scale and shift of a layer norm | the linears that take its output
value       value projection                | the linear behind the attention
query_key   query projection                | key projection, by the reciprocal
linear      linear                          | the linears that take its output, with at most ReLU
                                              and views between
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfquant.graph.attention import Attention
from tfquant.graph.contractions import Contraction, product_equation
from tfquant.graph.dataflow import VIEW_OPS, Dataflow
from tfquant.graph.layernorm import LayerNorm
from tfquant.graph.structure import Structure
from tfquant.graph.trace import Trace
from tfquant.layout import static_shape
from tfquant.ptq.equalization.channels import Channels, Place
from tfquant.ptq.equalization.paths import ScalePath, ScalePathFinder
from tfquant.ptq.layers import Unsuitable, variable_read

KINDS = ("layernorm", "value", "query_key", "linear")


@dataclasses.dataclass(frozen=True, eq=False)
class Parameter:
    """One variable of a pair.

    Attributes:
      handle: name of the placeholder of the variable's handle.
      tensor: its value as the operation takes it.
      channels: number of the channel of every element, int64, broadcasts to `tensor`.
      weight: it is multiplied with something; False for what is added.
    """

    handle: str
    tensor: tf.Tensor
    channels: np.ndarray
    weight: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Activation:
    """Activation between the parameters of a pair; `channels` are along the axes of `place`."""

    place: Place
    channels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Parameters that are divided and multiplied by the same factors.

    Attributes:
      name: `<kind>:<layer path>`, of what is divided; of query and key the path of the attention.
      size: number of channels.
      divided, multiplied: variables.
      activations: become smaller as `divided` do.
      partners: the keys, which grow as the queries shrink; else none.
    """

    name: str
    size: int
    divided: tuple[Parameter, ...]
    multiplied: tuple[Parameter, ...]
    activations: tuple[Activation, ...]
    partners: tuple[Activation, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class _Draft:
    """Pair whose channels are not resolved yet; `key` is the second path of query and key."""

    name: str
    producer: LayerNorm | Contraction
    way: ScalePath
    key: tuple[Contraction, ScalePath] | None = None

    @property
    def producers(self) -> list[tuple[LayerNorm | Contraction, ScalePath]]:
        return (
            [(self.producer, self.way)]
            if self.key is None
            else [(self.producer, self.way), self.key]
        )


def find_pairs(trace: Trace, flat: Sequence[tf.Tensor]) -> tuple[list[Pair], list[tuple[str, str]]]:
    """Find all pairs of a graph, and (name, reason) of rejected candidates; both in graph order,
    attention first.

    Args:
      trace: of the float network.
      flat: one batch of inputs.
    """
    structure = trace.analysis.structure
    drafts, skipped = [], []
    for result in _drafts(structure, ScalePathFinder(structure)):
        (drafts if isinstance(result, _Draft) else skipped).append(result)
    resolver = _Resolver(structure.flow, drafts, flat)
    pairs = []
    for draft in drafts:
        try:
            pairs.append(resolver.pair(draft))
        except Unsuitable as error:
            skipped.append((draft.name, str(error)))
    return pairs, skipped


def _drafts(structure: Structure, finder: ScalePathFinder) -> Iterator[_Draft | tuple[str, str]]:
    linears = {c.path: c for c in structure.contractions if c.kind == "linear"}
    projections: set[str] = set()
    for attention in structure.attention:
        projections |= set(attention.projections.values())
        ways = {
            port: (linears[p], finder.way(linears[p].op.outputs[0]))
            for port, p in attention.projections.items()
        }
        yield _query_key(attention, ways)
        if "v" not in ways:
            yield f"value:{attention.path}", "no linear makes its value"
        else:
            yield _checked(_Draft(f"value:{attention.projections['v']}", *ways["v"]))
    for norm in structure.layernorms:
        yield _checked(_Draft(f"layernorm:{norm.path}", norm, finder.way(norm.output)))
    for path, contraction in linears.items():
        way = finder.way(contraction.op.outputs[0])
        if path not in projections and way.linears:
            yield _checked(_Draft(f"linear:{path}", contraction, way))


def _checked(draft: _Draft) -> _Draft | tuple[str, str]:
    reasons = [*draft.way.obstacles, *(f"it is {port} of {a.path}" for a, port in draft.way.scores)]
    if draft.name.startswith("value:") and not draft.way.contexts and not reasons:
        reasons = ["it does not reach the attention unchanged"]
    if not draft.way.linears and not reasons:
        reasons = ["no linear takes it"]
    return (draft.name, "; ".join(reasons)) if reasons else draft


def _query_key(
    attention: Attention, ways: dict[str, tuple[Contraction, ScalePath]]
) -> _Draft | tuple[str, str]:
    reasons = []
    for port, word in (("q", "query"), ("k", "key")):
        if port not in ways:
            reasons.append(f"no linear makes its {word}")
            continue
        way = ways[port][1]
        reasons += [f"{word}: {obstacle}" for obstacle in way.obstacles]
        alone = (
            [(a.path, p) for a, p in way.scores] == [(attention.path, port)]
            and not way.linears
            and not way.contexts
        )
        if not way.obstacles and not alone:
            reasons.append(f"{word}: not only the scores of this attention take it")
    name = f"query_key:{attention.path}"
    return (name, "; ".join(reasons)) if reasons else _Draft(name, *ways["q"], key=ways["k"])


class _Resolver:
    """Resolver of the variables and channels of drafts."""

    def __init__(self, flow: Dataflow, drafts: Iterable[_Draft], flat: Sequence[tf.Tensor]):
        self._flow = flow
        self._refused: dict[str, Unsuitable] = {}
        sources, shifts, probabilities, places = {}, [], [], []
        for draft in drafts:
            try:
                result = {
                    way.source.name: _numbers(producer, way.source)[0]
                    for producer, way in draft.producers
                }
                wanted = [place for _, way in draft.producers for place in _places(way)]
            except Unsuitable as error:
                self._refused[draft.name] = error
                continue
            sources |= result
            places += wanted
            shifts += [shift for _, way in draft.producers for shift in way.shifts]
            probabilities += [attention.softmax.name for attention in draft.way.contexts]
        self._channels = Channels(flow.trace, sources, shifts, probabilities, places, flat)

    def pair(self, draft: _Draft) -> Pair:
        """Pair of a draft.

        Raises:
          Unsuitable: it is none.
        """
        if draft.name in self._refused:
            raise self._refused[draft.name]
        size = int(_numbers(draft.producer, draft.way.source)[0].max()) + 1
        divided = self._made_by(draft.producer, draft.way)
        if draft.key is not None:
            return self._query_key(draft, draft.key, size, divided)
        ends = [(contraction, _linear_place(contraction)) for contraction in draft.way.linears]
        activations = [Activation(place, self._channels.at(place)) for _, place in ends]
        for (contraction, _), activation in zip(ends, activations, strict=True):
            if not np.array_equal(np.sort(activation.channels, None), np.arange(size)):
                raise Unsuitable(
                    f"not every one of its {size} channels meets weights of its own in"
                    f" {contraction.path}"
                )
        multiplied = [
            self._taken_by(c, activation)
            for (c, _), activation in zip(ends, activations, strict=True)
        ]
        return Pair(draft.name, size, tuple(divided), tuple(multiplied), tuple(activations))

    def _query_key(
        self,
        draft: _Draft,
        key: tuple[Contraction, ScalePath],
        size: int,
        divided: list[Parameter],
    ) -> Pair:
        contraction, way = key
        places = [_scores_place(*way.scores[0]) for way in (draft.way, way)]
        activations = [Activation(place, self._channels.at(place)) for place in places]
        met = np.stack([side.ravel() for side in _side_by_side(draft.way.scores[0], activations)])
        met = np.unique(met, axis=1)
        if not all(np.array_equal(np.sort(side), np.arange(size)) for side in met):
            raise Unsuitable(
                f"its {size} channels of query and those of key do not meet one by one"
            )
        of_key = met[0][np.argsort(met[1])]  # the channel of the query that each of the key meets
        multiplied = [
            dataclasses.replace(p, channels=of_key[p.channels])
            for p in self._made_by(contraction, way)
        ]
        partner = dataclasses.replace(activations[1], channels=of_key[activations[1].channels])
        sides = (_without_batch(activations[0]),), (_without_batch(partner),)
        return Pair(draft.name, size, tuple(divided), tuple(multiplied), *sides)

    def _made_by(self, producer: LayerNorm | Contraction, way: ScalePath) -> list[Parameter]:
        """Weights and biases of a producer."""
        if isinstance(producer, LayerNorm):
            result = self._of_norm(producer)
        else:
            tensor = producer.op.inputs[producer.operands[1]]
            channels = _numbers(producer, way.source)[1]
            result = [Parameter(self._own(tensor, {producer.op.name}), tensor, channels, True)]
        for op, index in way.shifts:
            tensor = op.inputs[index]
            numbers = self._channels.at(_shift_place(op, index)).reshape(static_shape(tensor.shape))
            result.append(Parameter(self._own(tensor, {op.name}), tensor, numbers, False))
        return result

    def _of_norm(self, norm: LayerNorm) -> list[Parameter]:
        start = norm.input.op.name
        between = list(
            self._flow.walk_back(
                norm.output, lambda op: op.name != start, not_before=self._flow.index[start]
            )
        )
        inside = {op.name for op in between} - {start}
        result: dict[str, Parameter] = {}
        for op in between:
            for tensor in op.inputs:
                if (
                    op.name not in inside
                    or not self._flow.is_fixed(tensor)
                    or self._flow.variable_behind(tensor) is None
                ):
                    continue
                size = norm.output.shape[-1]
                if (
                    tensor.shape.rank == 0
                    or tensor.shape[-1] != size
                    or tensor.shape.num_elements() != size
                ):
                    raise Unsuitable(f"{tensor.op.name} has no number for each of its channels")
                handle, shape = self._own(tensor, inside), static_shape(tensor.shape)
                numbers = np.arange(math.prod(shape)).reshape(shape)
                result[handle] = Parameter(handle, tensor, numbers, op.type == "Mul")
        if not any(parameter.weight for parameter in result.values()):
            raise Unsuitable("it has no learned scale")
        return list(result.values())

    def _taken_by(self, contraction: Contraction, activation: Activation) -> Parameter:
        """Weight that consumes the channels."""
        source, weight = contraction.operands
        tensor, (terms, _) = contraction.op.inputs[weight], _equation(contraction)
        own, other = terms[weight], terms[source]
        letters = [other[axis] for axis in activation.place.axes]
        shared = [letter for letter in own if letter in letters]
        channels = np.transpose(activation.channels, [letters.index(letter) for letter in shared])
        sizes = dict(zip(shared, channels.shape, strict=True))
        if any(tensor.shape[own.index(letter)] != size for letter, size in sizes.items()):
            raise Unsuitable(f"the input of {contraction.path} and its weight differ in size")
        channels = channels.reshape([sizes.get(letter, 1) for letter in own])
        return Parameter(self._own(tensor, {contraction.op.name}), tensor, channels, True)

    def _own(self, tensor: tf.Tensor, users: set[str]) -> str:
        """Handle of the variable behind a tensor if only the operations called `users` use it."""
        handle = variable_read(self._flow, tensor)
        pending = [
            (op, op.type == "ReadVariableOp")
            for op, _ in self._flow.consumers[handle]
            if op.name in self._flow.used
        ]
        while pending:
            op, moved = pending.pop()
            if op.name in users:
                continue
            if not moved:
                raise Unsuitable(
                    f"{self._flow.trace.paths[handle]} is shared: {op.type} ({op.name}) uses it as"
                    " well"
                )
            following = [
                o for o, _ in self._flow.value_consumers(op.outputs[0]) if o.name in self._flow.used
            ]
            pending += [(o, o.type in VIEW_OPS) for o in following]
        return handle


def _numbers(producer: LayerNorm | Contraction, source: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Channel indices of a producer, broadcast to its output; and, of a linear, to its weight."""
    if isinstance(producer, LayerNorm):
        size = None if source.shape.rank is None else source.shape[-1]
        if size is None:
            raise Unsuitable("the size of its last axis is not known")
        numbers = np.arange(size).reshape([1] * (source.shape.rank - 1) + [-1])
        return numbers, numbers
    terms, result = _equation(producer)
    _, index = producer.operands
    own, weight = terms[index], producer.op.inputs[index]
    letters = [letter for letter in own if letter in result and letter != "?"]
    sizes = {
        letter: size
        for letter, size in zip(own, weight.shape, strict=True)
        if letter in letters and size is not None
    }
    if len(sizes) < len(letters):
        raise Unsuitable("the size of its weight is not known")
    numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    in_weight = numbers.reshape([sizes.get(letter, 1) for letter in own])
    order = [letters.index(letter) for letter in result if letter in letters]
    in_output = np.transpose(numbers, order).reshape([sizes.get(letter, 1) for letter in result])
    return in_output, in_weight


def _equation(contraction: Contraction) -> tuple[list[str], str]:
    result = product_equation(contraction.op)
    if result is None:
        raise Unsuitable(
            f"{contraction.op.type} ({contraction.op.name}) has channels that do not follow from"
            " its axes"
        )
    return result


def _places(way: ScalePath) -> list[Place]:
    shifts = [_shift_place(*shift) for shift in way.shifts]
    return [*shifts, *(_scores_place(*end) for end in way.scores), *map(_linear_place, way.linears)]


def _linear_place(contraction: Contraction) -> Place:
    """Input of a linear, with the axes contracted with the weight."""
    terms, _ = _equation(contraction)
    source, weight = contraction.operands
    own, other = terms[source], terms[weight]
    axes = tuple(axis for axis, letter in enumerate(own) if letter in other and letter != "?")
    return Place(contraction.op.inputs[source], axes)


def _scores_place(attention: Attention, port: str) -> Place:
    """Query or key, with the contracted axes."""
    op = attention.scores.op
    terms, _ = _equation(attention.scores)
    index = attention.query_index if port == "q" else 1 - attention.query_index
    axes = tuple(
        axis
        for axis, letter in enumerate(terms[index])
        if letter in terms[1 - index] and letter != "?"
    )
    return Place(op.inputs[index], axes)


def _shift_place(op: tf.Operation, index: int) -> Place:
    """Tensor that a parameter is added to, with the axes of the parameter."""
    tensor, parameter = op.inputs[1 - index], op.inputs[index]
    before = tensor.shape.rank - parameter.shape.rank
    if before < 0:
        raise Unsuitable(f"{op.name} adds more axes than its input has")
    return Place(
        tensor, tuple(before + axis for axis, size in enumerate(parameter.shape) if size != 1)
    )


def _without_batch(activation: Activation) -> Activation:
    """Place restricted to the axes along which channels change.

    Queries and keys also meet along the batch.
    """
    channels, axes = activation.channels, []
    for axis in activation.place.axes:
        first = channels.take([0], len(axes))
        if (channels == first).all():
            channels = first.squeeze(len(axes))
        else:
            axes.append(axis)
    return Activation(Place(activation.place.tensor, tuple(axes)), channels)


def _side_by_side(
    end: tuple[Attention, str], activations: Sequence[Activation]
) -> list[np.ndarray]:
    """Channels of query and key along their contracted axes, in a common order."""
    attention, _ = end
    terms, _ = _equation(attention.scores)
    indices = (attention.query_index, 1 - attention.query_index)
    letters = [
        [terms[i][axis] for axis in a.place.axes] for i, a in zip(indices, activations, strict=True)
    ]
    order = [[own.index(letter) for letter in letters[0]] for own in letters]
    result = [np.transpose(a.channels, axes) for a, axes in zip(activations, order, strict=True)]
    if result[0].shape != result[1].shape:
        raise Unsuitable("query and key differ in size")
    return result
