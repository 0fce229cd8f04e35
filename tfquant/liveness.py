"""Memory of activations: what is alive at once in one forward pass, by liveness over the graph.

Operations run in the order of the graph. A tensor is alive from the operation that computes it to
the last one that reads its values; views (Reshape, Identity ...) share the memory of what they
show. While an operation runs, its inputs and outputs are both alive. A tensor counts with the bits
of its site where every reader sees it quantized, as an integer runtime stores it, and with its own
type elsewhere. Parameters, constants and scratch space of kernels do not count.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from calib import tables
from tfquant import formats
from tfquant.engine import Engine
from tfquant.graph.dataflow import VIEW_OPS
from tfquant.intermediate_outputs import any_engine_of

# The result is the memory of the first input under another shape or name.
_VIEWS = VIEW_OPS - {"Cast", "Transpose"}
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Alive:
    """Tensor that is alive at the peak.

    Attributes:
      name: of the operation that computes it.
      elements: number of values.
      bits: of one value.
    """

    name: str
    elements: int
    bits: int

    @property
    def num_bytes(self) -> int:
        return -(-self.elements * self.bits // 8)


@dataclasses.dataclass(frozen=True)
class ActivationMemory:
    """Memory of activations of one forward pass; `print` it.

    Attributes:
      peak_bytes: largest sum of bytes that are alive at once.
      total_bytes: of all tensors together, as if none was ever freed.
      operation: the one that runs at the peak.
      alive: tensors at the peak, largest first.
    """

    peak_bytes: int
    total_bytes: int
    operation: str
    alive: tuple[Alive, ...]

    def __str__(self) -> str:
        rows = [(a.name, f"{a.elements:,}", str(a.bits), f"{a.num_bytes:,}") for a in self.alive]
        columns = ("tensor", "values", "bits", "bytes")
        table = tables.render(tables.build(None, columns, rows[:_SHOWN], left=("tensor",)))
        rest = len(rows) - _SHOWN
        more = f"\n... and {rest} smaller ones" if rest > 0 else ""
        return (
            f"{table}{more}\npeak {self.peak_bytes:,} bytes at {self.operation}, of"
            f" {self.total_bytes:,} in all"
        )


def activation_memory(model: Any, inputs: Any, *, signature: Any = None) -> ActivationMemory:
    """Return the memory that activations take in inference.

    Args:
      model: a Keras model or function, or what `tfquant.quantize` returned, whose sites count in
        mode `quantized`.
      inputs: one batch, whose shapes count and whose values do not.
      signature: as for `tfquant.quantize`.

    Raises:
      TraceError: the model could not be traced.
      ValueError: the inputs do not fit the model.
    """
    engine = any_engine_of(model, inputs, signature)
    flow = engine.inference.analysis.flow
    tensors = [
        tensor
        for op in flow.operations
        if op.name in flow.used
        for tensor in op.outputs
        if flow.is_dynamic(tensor) and tensor.dtype.size
    ]
    elements = _elements(engine, tensors, inputs)
    bits = {t.name: 8 * t.dtype.size for t in tensors} | _stored_bits(engine)
    return _liveness(engine, tensors, elements, bits)


def _elements(engine: Engine, tensors: list[tf.Tensor], inputs: Any) -> dict[str, int]:
    """Number of values of each tensor for these inputs."""
    trace = engine.inference

    def sizes(*flat: tf.Tensor) -> tf.Tensor:
        made = trace.emit(list(flat), targets=tensors)
        return tf.stack([tf.size(tensor, tf.int64) for tensor in made])

    function = tf.function(
        sizes, autograph=False, jit_compile=False, input_signature=trace.input_specs
    )
    counted = function(*engine.inputs.flatten(inputs)).numpy()
    return {t.name: int(size) for t, size in zip(tensors, counted, strict=True)}


def _stored_bits(engine: Engine) -> dict[str, int]:
    """Bits of the tensors that all readers see quantized, by name."""
    if engine.mode != "quantized":
        return {}
    flow, result = engine.inference.analysis.flow, {}
    readers: dict[str, set[tuple[str, int]]] = {}
    for site, edge in engine.placements(False):
        if not site.enabled or edge.parameter:
            continue
        name, bits = edge.tensor.name, formats.get(site.spec.format).bits
        result[name] = max(bits, result.get(name, 0))
        own = {edge.consumer} if edge.consumer else _readers(flow, edge.tensor)
        readers.setdefault(name, set()).update(own)
    tensors = {edge.tensor.name: edge.tensor for _, edge in engine.placements(False)}
    return {n: b for n, b in result.items() if readers[n] >= _readers(flow, tensors[n])}


def _readers(flow: Any, tensor: tf.Tensor) -> set[tuple[str, int]]:
    return {(op.name, i) for op, i in flow.value_consumers(tensor) if op.name in flow.used}


def _liveness(
    engine: Engine, tensors: list[tf.Tensor], elements: dict[str, int], bits: dict[str, int]
) -> ActivationMemory:
    flow = engine.inference.analysis.flow
    owner: dict[str, str] = {}  # tensor -> the one whose memory it shows
    last: dict[str, int] = {}  # memory -> number of the last operation that reads it
    end = len(flow.operations)
    for tensor in tensors:
        shown = tensor.op.type in _VIEWS and tensor.op.inputs[0].name in owner
        memory = owner[tensor.op.inputs[0].name] if shown else tensor.name
        owner[tensor.name] = memory
        reads = [flow.index[op.name] for op, _ in flow.value_consumers(tensor)]
        own = end if tensor.name in flow.output_names else flow.index[tensor.op.name]
        last[memory] = max([last.get(memory, -1), own, *reads])
    sizes = {name: Alive(name, elements[name], bits[name]) for name in last}
    if not sizes:
        return ActivationMemory(0, 0, "", ())
    # Memory counts from the operation that computes it to the last that reads it, both included.
    change = np.zeros(end + 2, np.int64)
    for name, alive in sizes.items():
        change[_first(flow, name)] += alive.num_bytes
        change[last[name] + 1] -= alive.num_bytes
    course = np.cumsum(change)[:end]
    peak = int(np.argmax(course))
    at_peak = [a for n, a in sizes.items() if _first(flow, n) <= peak <= last[n]]
    return ActivationMemory(
        int(course[peak]),
        sum(alive.num_bytes for alive in sizes.values()),
        flow.operations[peak].name,
        tuple(sorted(at_peak, key=lambda alive: -alive.num_bytes)),
    )


def _first(flow: Any, name: str) -> int:
    return flow.index[name.rpartition(":")[0]]
