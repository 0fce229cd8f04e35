"""QuantSpec: quantization of one tensor, as format x layout x scale x gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

import calib
from calib.codebook import Codebook
from tfquant import formats, validation
from tfquant.choices import PARAMETRIZED, TRANSFORMS, UPDATES
from tfquant.error_messages import shown
from tfquant.gradients import Gradient
from tfquant.layout import Layout
from tfquant.recipes import combinations
from tfquant.scale import Scale

# Field of a part -> name of the part.
_PART_OF = {
    field.name: part
    for part, kind in (("layout", Layout), ("scale", Scale), ("gradient", Gradient))
    for field in dataclasses.fields(kind)
}
# Keys of a spec in files, in the order in which they are written.
KEYS = (
    *("format", "granularity", "groups", "permute", "symmetric", "narrow_range", "unsigned"),
    *("method", "update", "ste", "decay", "dynamic"),
    *("source", "history", "quant_max", "scale_format", "block_size", "block_axis", "transform"),
)
# Keys that files hold only where they are not the default, which older versions do not know.
_LATER_KEYS = ("source", "history", "quant_max", "scale_format", "block_size", "block_axis")
_NO_TRANSFORM = "none"
_LEAST_ERROR = {
    "name": "mse",
    "start_bin": 1,
}  # finds the mean magnitude, for a start of two values
_LAYOUT, _SCALE, _GRADIENT = Layout(), Scale(), Gradient()
_DEFAULT = {"layout": _LAYOUT, "scale": _SCALE, "gradient": _GRADIENT}


@dataclasses.dataclass(frozen=True, init=False)
class QuantSpec:
    """Quantization of one tensor.

    Made from parts, from fields of parts by their names (`QuantSpec("int4",
    granularity="per_channel")`), or from both, where the fields change the given parts. Files hold
    the fields, and a spec reads them like its own: `spec.granularity` is `spec.layout.granularity`.

    Attributes:
      format: name of a number format, see `tfquant.formats`; a name of
        `tfquant.recipes.combinations`, such as `mxfp4`, stands for a format with a layout and a
        scale.
      layout: which elements share a scale (granularity, groups, permute, block_size, block_axis).
      scale: where the scale comes from (symmetric, narrow_range, unsigned, source, history,
        quant_max, scale_format); `dynamic=True` stands for `source="dynamic"`.
      gradient: what the backward pass does (ste).
      method: how the range is estimated from statistics, see `calib.methods`.
      update: what training does to the range: nothing (`frozen`), learn it (`lsq`, `tqt`, `pact`,
        `elastic`; see `tfquant.learned`), or follow the extremes of each batch (`moving_average`).
      decay: of the moving average, in each training step.
      transform: of a parameter before it is rounded to fitted values: `center`, `standardize`, see
        `tfquant.transforms`.
    """

    format: str
    layout: Layout
    scale: Scale
    gradient: Gradient
    method: calib.Method
    update: Literal["frozen", "lsq", "tqt", "pact", "elastic", "moving_average"]
    decay: float
    transform: Literal["none", "center", "standardize"]

    def __init__(
        self,
        format: str = "int8",
        granularity: str | None = None,
        *,
        layout: Layout = _LAYOUT,
        scale: Scale = _SCALE,
        gradient: Gradient = _GRADIENT,
        method: calib.Method | Mapping[str, Any] | str = "max",
        update: str = "frozen",
        decay: float = 0.9999,
        transform: str = _NO_TRANSFORM,
        **part_fields: Any,
    ):
        if granularity is not None:
            part_fields["granularity"] = granularity
        if isinstance(format, str) and format in combinations.NAMES:
            format, fields = combinations.NAMES[format]
            part_fields = fields | part_fields
            method = "max"  # of what the scale of a block is computed from
        parts = with_fields({"layout": layout, "scale": scale, "gradient": gradient}, part_fields)
        if formats.fitted_format(format) is not None:
            if update == "elastic":
                method = _LEAST_ERROR if _method(method).name == "max" else method
            else:
                method = "max"  # nothing is estimated from statistics
                if parts["scale"].source == "stored":
                    parts["scale"] = dataclasses.replace(parts["scale"], source="dynamic")
        plain = {"format": format, "method": _method(method), "update": update, "decay": decay}
        plain |= {"transform": transform}
        for name, value in {**plain, **parts}.items():
            object.__setattr__(self, name, value)
        self._check()

    def __getattr__(self, name: str) -> Any:
        """Fields of the parts, by their names in files."""
        if name == "dynamic":
            return object.__getattribute__(self, "scale").dynamic
        if name not in _PART_OF:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(object.__getattribute__(self, _PART_OF[name]), name)

    def _check(self) -> None:
        """Raise ValueError for invalid values or combinations."""
        if self.update == "elastic":
            self._check_elastic()
        # Refused here rather than in calibration, which may run for hours first.
        self.method.check_codebook(self.codebook)
        self._check_options_of_fitted()
        if self.update not in UPDATES:
            raise ValueError(f"unknown update {shown(self.update)}; known: {', '.join(UPDATES)}")
        number = isinstance(self.decay, (int, float)) and not isinstance(self.decay, bool)
        if not number or not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be a number from 0 to below 1, got {shown(self.decay)}")
        if self.layout.per_embedding and self.method.name != "max":
            raise ValueError(
                f"{self.layout.granularity} keeps the extremes of each dimension, no histogram: "
                f"its method must be max, got {self.method}"
            )
        if self.scale.source in ("delayed", "none"):
            self._check_not_calibrated()
        if self.gradient.identity and self.update in PARAMETRIZED:
            raise ValueError(
                f"update {self.update!r} learns a range from what it clips: set ste to inclusive or"
                " strict"
            )
        if self.scale.rounds_scale and self.update != "frozen":
            raise ValueError(
                f"a scale of format {self.scale.scale_format} does not follow training: leave out"
                f" update {self.update!r}"
            )
        if self.stateless:
            self._check_dynamic()
        elif self.layout.per_token:
            raise ValueError(
                "per_token ranges exist only while a batch is there: set dynamic: true"
            )
        elif self.layout.per_block:
            raise ValueError(
                "blocks have the scale of the numbers in them: set dynamic: true, got source"
                f" {self.scale.source!r}"
            )

    def _check_options_of_fitted(self) -> None:
        """Raise ValueError for options that formats fitted to the tensor alone have."""
        decay = self.gradient.error_decay
        if self.transform not in TRANSFORMS:
            raise ValueError(
                f"unknown transform {shown(self.transform)}; known: {', '.join(TRANSFORMS)}"
            )
        if not self.fitted and (self.transform != _NO_TRANSFORM or decay):
            raise ValueError(
                f"{'ste: error_decay' if decay else 'transform'} is for formats that are fitted to"
                f" the tensor, such as binary; got {self.format}"
            )
        if self.transform != _NO_TRANSFORM and self.layout.per_block:
            raise ValueError(f"transform: {self.transform} is not for blocks: set per_channel")
        if decay and self.codebook.num_codes != 2:
            raise ValueError(
                f"ste: error_decay is the gradient of a sign: set format: binary, got {self.format}"
            )
        if decay and self.scale.unsigned:
            raise ValueError("ste: error_decay is the gradient of a sign: set unsigned: false")

    def _check_elastic(self) -> None:
        """Raise ValueError for what elastic binarization cannot have."""
        if self.format != "binary":
            raise ValueError(
                f"update: elastic learns two values: set format: binary, got {shown(self.format)}"
            )
        if self.scale.source != "stored" or self.layout.granularity != "per_tensor":
            raise ValueError(
                "update: elastic learns one scale and one shift, which are calibrated: set source:"
                f" stored and granularity: per_tensor, got {self.scale.source} and"
                f" {self.layout.granularity}"
            )
        if self.gradient.ste != "inclusive" or self.transform != _NO_TRANSFORM:
            raise ValueError(
                "update: elastic has a gradient of its own: leave out ste and transform"
            )

    def _check_not_calibrated(self) -> None:
        """Raise ValueError for what a delayed scale, or none, cannot have."""
        source = self.scale.source
        several = ("per_channel", "per_embedding") if source == "delayed" else ()
        layouts = ("per_tensor", *several)
        if self.layout.granularity not in layouts and not self.fitted:
            raise ValueError(
                f"source: {source} is {' or '.join(layouts)}, got {self.layout.granularity}"
            )
        if self.method.name != "max":
            raise ValueError(
                f"source: {source} looks at the largest magnitude alone: its method must be max,"
                f" got {self.method}"
            )
        if self.update != "frozen":
            raise ValueError(f"source: {source} has no range to train: leave out {self.update!r}")

    def _check_dynamic(self) -> None:
        """Raise ValueError for a dynamic range that cannot be computed, or learned."""
        refused = (
            ("per_embedding_group",) if self.fitted else ("per_channel", "per_embedding_group")
        )
        if self.layout.granularity in refused:
            raise ValueError(
                "a dynamic range is per_tensor, per_token, per_embedding or per_block, got "
                f"{self.layout.granularity}: those of weights stay, and groups are found in "
                "calibration"
            )
        if self.method.name != "max":
            raise ValueError(
                "a dynamic range spans the extremes of the tensor at hand: its method must be max, "
                f"got {self.method}"
            )
        if self.update != "frozen":
            raise ValueError(
                "a dynamic range is not stored, so that training cannot move it: leave out update "
                f"{self.update!r}"
            )

    @property
    def fitted(self) -> bool:
        """Whether the values of the format are fitted to the tensor at hand."""
        return self.scale.source != "stored" and formats.fitted_format(self.format) is not None

    @property
    def stateless(self) -> bool:
        """Whether all follows from the tensor at hand, so that nothing is calibrated or stored."""
        return self.scale.dynamic or self.fitted

    @property
    def codebook(self) -> Codebook:
        """Values of the format; `unsigned="auto"` counts as signed until planning decides."""
        codebook = formats.get(self.format).codebook(self.scale)
        return codebook if self.fitted else self.scale.fitted(codebook, self.format)

    @property
    def grid(self) -> Codebook:
        """Former name of `codebook`."""
        return self.codebook

    def describe(self) -> str:
        """Short text for tables, such as `int8 per_channel symmetric max`."""
        source = self.scale.source
        method = {"stored": self.method, "none": "unscaled"}.get(source, source)
        if source == "delayed":
            method = f"delayed {self.scale.history}"
        return f"{self.format} {self.layout.describe()} {self.scale.describe()} {method}"

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as it is written to files."""
        data = {key: getattr(self, key) for key in KEYS}
        options = self.method.to_dict().items()
        data["method"] = {k: v.item() if isinstance(v, np.generic) else v for k, v in options}
        if self.layout.groups is None:  # nor has it an order then
            del data["groups"], data["permute"]
        if self.scale.dynamic:
            del data["source"]
        else:
            del data["dynamic"]
        default = {key: getattr(_DEFAULT[_PART_OF[key]], key) for key in _LATER_KEYS}
        default["transform"] = _NO_TRANSFORM
        return {k: v for k, v in data.items() if k not in default or v != default[k]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QuantSpec:
        """Build a spec from a file's mapping, of this version or an earlier one.

        Raises:
          ValueError: unknown key or value.
        """
        return validation.build(cls, data, "quantization spec", known=KEYS)


def with_fields(parts: Mapping[str, Any], part_fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return parts of a spec with changed fields.

    Args:
      parts: name of a part -> the part.
      part_fields: name of a field of any part -> its new value.

    Raises:
      TypeError: no part has such a field.
      ValueError: a value does not exist.
    """
    changes: dict[str, dict[str, Any]] = {part: {} for part in parts}
    part_fields = dict(part_fields)
    if "dynamic" in part_fields:  # the name in files of `source: dynamic`
        dynamic = part_fields.pop("dynamic")
        if not isinstance(dynamic, bool):
            raise ValueError(f"dynamic must be true or false, got {shown(dynamic)}")
        if dynamic and part_fields.setdefault("source", "dynamic") != "dynamic":
            raise ValueError(
                f"dynamic: true and source: {shown(part_fields['source'])} exclude each other"
            )
        if not dynamic and parts["scale"].dynamic:
            part_fields.setdefault("source", "stored")
    for name, value in part_fields.items():
        if name not in _PART_OF:
            raise TypeError(f"a quantization spec has no field {name!r}; known: {', '.join(KEYS)}")
        changes[_PART_OF[name]][name] = value
    return {name: dataclasses.replace(part, **changes[name]) for name, part in parts.items()}


def _method(value: Any) -> calib.Method:
    if isinstance(value, calib.Method):
        return value
    if isinstance(value, str):
        return calib.Method.parse(value)
    if isinstance(value, Mapping):
        return calib.Method.from_dict(value)
    raise ValueError(f"a range method is a name or a mapping with 'name', got {shown(value)}")
