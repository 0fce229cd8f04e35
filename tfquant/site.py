"""Sites and addresses of the graph edges they quantize.

A place in the graph with a range of its own; what kinds of edges there are, and how they are named.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tfquant.spec import QuantSpec

# What an edge of the graph can be. `weight` ... `model_output` are found by structure
# (tfquant.graph.roles).
ROLES = (
    "weight",
    "embedding",
    "bias",
    "linear_input",
    "linear_output",
    "matmul_input",
    "attention_scores",
    "softmax_output",
    "residual",
    "residual_other",
    "residual_sum",
    "matmul_output",
    "layernorm_input",
    "layernorm_output",
    "activation_output",
    "pooler",
    "logits",
    "model_output",
    # Tensors where they are produced (tfquant.graph.producers).
    "layer_output",
    "attention_output",
    "embedding_sum",
    "layernorm_weight",
    "position_embedding",
    # Operands of functions (tfquant.graph.activations, tfquant.graph.attention).
    "activation_input",
    "softmax_input",
    "scaling_input",
)
# Where in an encoder an edge lies (tfquant.graph.parts).
PARTS = (
    "query",
    "key",
    "value",
    "attention_output",
    "ffn_in",
    "ffn_out",
    "embedding",
    "pooler",
    "head",
)
DIRECTIONS = ("forward", "backward")
_BACKWARD = ":backward"
PARAMETER_ROLES = ("weight", "embedding", "bias", "layernorm_weight", "position_embedding")


class Address(NamedTuple):
    """Address of an edge, equal in training and inference traces and in other processes.

    `str` gives the form of files and messages: `path:role:port`, and `path:role:port:backward` for
    the gradient of what lies there.

    Attributes:
      path: layer path.
      role: one of `ROLES`.
      port: which edge of the layer.
      direction: `forward` for values, `backward` for their gradients.
    """

    path: str
    role: str
    port: str
    direction: str = "forward"

    def __str__(self) -> str:
        suffix = _BACKWARD if self.direction == "backward" else ""
        return f"{self.path}:{self.role}:{self.port}{suffix}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address that a string names; the path may contain colons.

        Raises:
          ValueError: the string is not of the form `path:role:port`.
        """
        fields = text.removesuffix(_BACKWARD).rsplit(":", 2)
        if len(fields) != 3:
            raise ValueError(f"{text!r} is not an address: write path:role:port")
        path, role, port = fields
        return cls(path, role, port, "backward" if text.endswith(_BACKWARD) else "forward")


@dataclasses.dataclass(frozen=True)
class Site:
    """Place in the graph with a range of its own.

    Attributes:
      role, path, port: the address; the same in training and inference traces and in another
        process.
      spec: how it is quantized, `unsigned="auto"` resolved.
      rule: name of the rule that decided.
      shape: static shape of the tensor, None for sizes not known.
      channel_axes: axes of the tensor with their own range (empty for `per_tensor`); the last one
        where ranges lie along the embedding.
      members: addresses of all edges it quantizes, its own included: more than one where consumers
        share a range.
      enabled: False where the recipe's `disable` matched: the range exists, but nothing is rounded.
      group: sites of one group get a common range (Fuse); empty for none.
      order: address of the edge by whose ranges the embedding dimensions are sorted into groups;
        empty where they are not sorted.
      direction: `forward` for values, `backward` for their gradients.
      block_axis: axis along which blocks share a scale, counted from the end; None without blocks.
    """

    role: str
    path: str
    port: str
    spec: QuantSpec
    rule: str
    shape: tuple[int | None, ...]
    channel_axes: tuple[int, ...] = ()
    members: tuple[str, ...] = ()
    enabled: bool = True
    group: str = ""
    order: str = ""
    direction: str = "forward"
    block_axis: int | None = None

    @property
    def address(self) -> str:
        return str(Address(self.path, self.role, self.port, self.direction))

    @property
    def is_weight(self) -> bool:
        return self.role in PARAMETER_ROLES or self.port in ("kernel", "table")

    @property
    def range_shape(self) -> tuple[int, ...]:
        """Shape of either end of a stored range.

        `[groups]` where dimensions are grouped, else the sizes of `channel_axes`.
        """
        return self.spec.layout.range_shape(self.shape, self.channel_axes)


def address(role: str, path: str, port: str) -> str:
    """Return the string form of the address of an edge or site."""
    return str(Address(path, role, port))
