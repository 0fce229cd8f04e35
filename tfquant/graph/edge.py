"""Edge of a graph: a place where a quantizer can stand."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tfquant.site import Address


@dataclasses.dataclass(frozen=True, eq=False)
class Edge:
    """Edge of the graph whose value can be quantized.

    Attributes:
      role, path, port: its address; equal in training and inference traces.
      tensor: the tensor whose values are quantized.
      consumer: (operation name, input index) that alone sees the quantized value; None where all
        consumers do.
      shape: static shape of the values whose range counts: of `tensor`, or of the table behind
        gathered rows.
      table: handle placeholder of that table; None for all but embeddings.
      channel_axes: axes of `tensor` that may have their own range; empty where only one range makes
        sense.
      parameter: the value comes from variables and constants alone.
      nonnegative: the structure guarantees values >= 0.
      repeated: its address has a number because another edge came first, such as the first call of
        a layer norm.
      fusable: `<attention path>:<role>` where the edge is one of query, key and value; empty
        elsewhere.
      part: where in an encoder the edge lies, one of `tfquant.site.PARTS`; None elsewhere.
      block: number of the encoder block that the edge lies in, from 0; None outside of blocks.
      direction: `forward` for the values of the tensor, `backward` for their gradients.
    """

    role: str
    path: str
    port: str
    tensor: tf.Tensor
    consumer: tuple[str, int] | None
    shape: tuple[int | None, ...]
    table: str | None = None
    channel_axes: tuple[int, ...] = ()
    parameter: bool = False
    nonnegative: bool = False
    fusable: str = ""
    repeated: bool = False
    part: str | None = None
    block: int | None = None
    direction: str = "forward"

    @property
    def address(self) -> str:
        return str(self.location)

    @property
    def location(self) -> Address:
        """Address as a named tuple."""
        return Address(self.path, self.role, self.port, self.direction)

    @property
    def twin(self) -> Edge:
        """Edge of the gradients of the same tensor."""
        return dataclasses.replace(self, direction="backward", nonnegative=False, fusable="")

    @property
    def place(self) -> tuple[str, str, str, tuple[str, int] | None]:
        """Role, port and position in the graph: equal for an edge that is found twice."""
        return self.role, self.port, self.tensor.name, self.consumer
