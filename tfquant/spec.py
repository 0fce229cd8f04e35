"""QuantSpec: how one tensor is quantized, as plain frozen data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

import calib
from calib.grid import Grid
from tfquant import fields, formats
from tfquant.messages import shown
from tfquant.scale import Scale

GRANULARITIES = ("per_tensor", "per_channel", "per_embedding", "per_embedding_group", "per_token")
PER_EMBEDDING = ("per_embedding", "per_embedding_group")
PERMUTES = ("none", "own", "shared")
STES = ("inclusive", "strict")
UPDATES = ("frozen", "lsq", "tqt", "pact", "moving_average")


@dataclasses.dataclass(frozen=True)
class QuantSpec:
    """How one tensor is quantized.

    Attributes:
      format: name of a number format, see `tfquant.formats`.
      granularity: `per_tensor`; `per_channel` (one range for each output channel; weights only); of activations `per_embedding`
        (one range for each index of the last axis) or `per_embedding_group` (one for each of `groups` groups of such indices).
        Bondarenko et al. 2021, arXiv:2109.12948, section 4. `per_token`, of activations with `dynamic` alone: one range for each
        position of each sample, over the last axis.
      groups: K of `per_embedding_group`, at least 1, a divisor of the embedding size; None elsewhere.
      permute: how its indices are dealt out to groups of equal size. `none`: in their order. `own`: sorted by the width of their
        ranges, so that outliers share a group. `shared`: sorted likewise, by the output of the feed-forward part of the encoder
        layer the tensor belongs to, so that all operands of a layer have the same groups; planning turns it to `own` for tensors
        outside of all layers.
      symmetric: range -amax..amax with zero point 0; otherwise min..max with a zero point.
      narrow_range: symmetric signed grids leave the lowest code out (-127..127).
      unsigned: True spends all codes on values >= 0; `"auto"` does so exactly where the graph shows that the tensor cannot be
        negative (after Softmax, Relu, Sigmoid); False never.
      method: how the range is estimated from statistics, see `calib.methods`.
      update: what training does to the range: nothing (`frozen`), learn it (`lsq`, `tqt`, `pact`; see `tfquant.learned`), or follow
        the extremes of each batch (`moving_average`).
      ste: whether the straight-through gradient reaches values exactly on an end of the range: `inclusive` or `strict`.
      decay: of the moving average, in each training step.
      dynamic: the range is computed in the graph, from the extremes of the tensor at hand, in every call: nothing is calibrated or
        stored. Of activations alone. See `tfquant.dynamic`.
    """

    format: str = "int8"
    granularity: Literal["per_tensor", "per_channel", "per_embedding", "per_embedding_group", "per_token"] = "per_tensor"
    groups: int | None = None
    permute: Literal["none", "own", "shared"] = "none"
    symmetric: bool = True
    narrow_range: bool = True
    unsigned: bool | Literal["auto"] = False
    method: calib.Method = dataclasses.field(default_factory=lambda: calib.Method.parse("max"))
    update: Literal["frozen", "lsq", "tqt", "pact", "moving_average"] = "frozen"
    ste: Literal["inclusive", "strict"] = "inclusive"
    decay: float = 0.9999
    dynamic: bool = False

    def __post_init__(self):
        formats.get(self.format)
        if self.update not in UPDATES:
            raise ValueError(f"unknown update {shown(self.update)}; known: {', '.join(UPDATES)}")
        if self.ste not in STES:
            raise ValueError(f"ste must be {' or '.join(map(repr, STES))}, got {shown(self.ste)}")
        if isinstance(self.decay, bool) or not isinstance(self.decay, (int, float)) or not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be a number from 0 to below 1, got {shown(self.decay)}")
        if self.granularity not in GRANULARITIES:
            raise ValueError(f"unknown granularity {shown(self.granularity)}; known: {', '.join(GRANULARITIES)}")
        for field in ("symmetric", "narrow_range", "dynamic"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"{field} must be true or false, got {shown(getattr(self, field))}")
        if not isinstance(self.unsigned, bool) and self.unsigned != "auto":
            raise ValueError(f"unsigned must be true, false or 'auto', got {shown(self.unsigned)}")
        if not isinstance(self.method, calib.Method):
            object.__setattr__(self, "method", _method(self.method))
        self._check_embedding()
        self._check_dynamic()

    def _check_embedding(self) -> None:
        """Raises ValueError where granularity, groups, permute and method do not go together."""
        grouped = self.granularity == "per_embedding_group"
        if self.permute not in PERMUTES:
            raise ValueError(f"unknown permute {shown(self.permute)}; known: {', '.join(PERMUTES)}")
        if grouped and (isinstance(self.groups, bool) or not isinstance(self.groups, int) or self.groups < 1):
            raise ValueError(f"per_embedding_group needs groups, an integer of at least 1, got {shown(self.groups)}")
        if not grouped and (self.groups is not None or self.permute != "none"):
            raise ValueError(
                f"groups and permute belong to granularity per_embedding_group, got {self.granularity} with groups "
                f"{self.groups!r}, permute {self.permute!r}"
            )
        if self.granularity in PER_EMBEDDING and self.method.name != "max":
            raise ValueError(
                f"{self.granularity} keeps the extremes of each dimension, no histogram: its method must be max, got {self.method}"
            )

    def _check_dynamic(self) -> None:
        """Raises ValueError where a range of the tensor at hand is wanted in a way that there is none."""
        if not self.dynamic:
            if self.granularity == "per_token":
                raise ValueError("per_token ranges exist only while a batch is there: set dynamic: true")
            return
        if self.granularity in ("per_channel", "per_embedding_group"):
            raise ValueError(
                f"a dynamic range is per_tensor, per_token or per_embedding, got {self.granularity}: those of weights stay, "
                "and groups are found in calibration"
            )
        if self.method.name != "max":
            raise ValueError(f"a dynamic range spans the extremes of the tensor at hand: its method must be max, got {self.method}")
        if self.update != "frozen":
            raise ValueError(f"a dynamic range is not stored, so that training cannot move it: leave out update {self.update!r}")

    @property
    def along_last_axis(self) -> bool:
        """Whether ranges are tied to the last axis of the tensor, so that it has to be one over the embedding."""
        return self.per_embedding or self.granularity == "per_token"

    @property
    def per_embedding(self) -> bool:
        """Whether ranges lie along the embedding axis, one for each index or group of indices."""
        return self.granularity in PER_EMBEDDING

    @property
    def grid(self) -> Grid:
        """The integer codes of this spec. `unsigned="auto"` counts as signed until planning has resolved it."""
        return formats.get(self.format).codebook(Scale(self.symmetric, self.narrow_range, self.unsigned))

    def describe(self) -> str:
        """A few words for tables: `int8 per_channel symmetric max`, `int8 per_embedding_group 6 (shared order) asymmetric max`."""
        kind = "symmetric" if self.symmetric else "asymmetric"
        if self.symmetric and self.unsigned is True:
            kind = "unsigned"
        elif self.symmetric and not self.narrow_range:
            kind = "symmetric full"
        groups = "" if self.groups is None else f" {self.groups}"
        order = "" if self.permute == "none" else f" ({self.permute} order)"
        return f"{self.format} {self.granularity}{groups}{order} {kind} {'dynamic' if self.dynamic else self.method}"

    def to_dict(self) -> dict[str, Any]:
        options = {k: v.item() if isinstance(v, np.generic) else v for k, v in self.method.to_dict().items()}
        data = {**fields.public_fields(self), "method": options}
        if self.groups is None:  # nor has it an order then
            del data["groups"], data["permute"]
        if not self.dynamic:
            del data["dynamic"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QuantSpec:
        return fields.build(cls, data, "quantization spec")


def _method(value: Any) -> calib.Method:
    if isinstance(value, str):
        return calib.Method.parse(value)
    if isinstance(value, Mapping):
        return calib.Method.from_dict(value)
    raise ValueError(f"a range method is a name or a mapping with 'name', got {shown(value)}")
