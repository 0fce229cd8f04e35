"""Targets: what can be written for which runtime."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fileio.atomic import put_in_place
from fileio.messages import printable
from fileio.transaction import replace_folder, replacing_together
from tfquant.runtimes import PACKAGES, Contractions, Session, open_file

if TYPE_CHECKING:
    from tfquant.export.request import ExportRequest


@dataclasses.dataclass(frozen=True)
class Target:
    """A form in which a network can be written.

    Attributes:
      write: writes a request to a path.
      file: what the run scripts call it; its suffix is demanded of every path. A folder has none.
      readers: which of `tfquant.runtimes.RUNTIMES` answer it here; the first one checks it. A file
        without a reader is for tfquant itself.
      as_written: checked node by node: what ONNX Runtime makes of signed bytes it cannot always
        run.
      proven: what is known of every file that `write` did not refuse.
      may_replace: whether a folder that is there may be replaced.
      name: what such a folder is called.
      contractions: file -> which products are computed in integers; the reader is asked if not
        given.
      packages: what has to be installed to write it, beside what tfquant requires.
      check: raises ExportError for what the target cannot hold, before anything is computed.
      recipes: made for what reads it, the recommended one first; none where any suits.
      formats: number formats beside integers that it takes, and the first ONNX opset that has them
        (0 where that does not matter); None where it takes all.
      blocks: whether it takes blocks whose scale is that of the numbers in them.
      float_convolutions: whether the first reader computes most convolutions in float, although
        their operands are quantized.
      softmax: whether it takes approximated softmax, see `tfquant.Softmax`.
    """

    write: Callable[[ExportRequest, str], None]
    file: str
    readers: tuple[str, ...] = ()
    as_written: bool = False
    proven: str = ""
    may_replace: Callable[[pathlib.Path], bool] | None = None
    name: str = ""
    contractions: Callable[[str], Contractions] | None = None
    packages: tuple[str, ...] = ()
    check: Callable[[ExportRequest], None] = lambda request: None
    recipes: tuple[str, ...] = ()
    formats: Mapping[str, int] | None = dataclasses.field(default_factory=dict)
    blocks: bool = False
    float_convolutions: bool = False
    softmax: bool = False

    @property
    def suffix(self) -> str:
        """Suffix of the file; empty for a folder."""
        return pathlib.PurePath(self.file).suffix

    def missing_packages(self, checked: bool) -> list[str]:
        """Packages that are not installed and that writing wants, and checking where the file is
        checked.
        """
        wanted = [
            *self.packages,
            *([PACKAGES[self.readers[0]]] if checked and self.readers else []),
        ]
        return [name for name in dict.fromkeys(wanted) if importlib.util.find_spec(name) is None]

    def open(self, path: pathlib.Path) -> Session:
        """The written file in its first reader."""
        if self.as_written:
            from tfquant.runtimes import onnxruntime

            return onnxruntime.open_file(str(path), as_written=True)
        return open_file(path, self.readers[0])

    def contractions_of(self, path: pathlib.Path, session: Session) -> Contractions:
        """Return the arithmetic of the products of a written file."""
        return session.contractions() if self.contractions is None else self.contractions(str(path))

    def advice(self, request: ExportRequest, found: Contractions) -> str:
        """Return a hint which recipe to take where the runtime computes quantized products in
        float; else empty.
        """
        from tfquant.export.onnx.qdq import INT4_OPSET
        from tfquant.graph.contractions import CONVOLUTION_OPS

        kernels = [
            site for site in request.sites() if site.role == "weight" and site.spec.codebook.uniform
        ]
        if (
            not self.recipes
            or not kernels
            or not found.floating
            or 2 * len(found.integer) >= len(kernels)
        ):
            return ""
        runtime, count, own = self.readers[0], len(found.integer), request.engine.plan.recipe.name
        said = (
            f"{runtime} computes {count or 'none'} of {len(kernels)} quantized products in integers"
        )
        if (
            request.opset >= INT4_OPSET
            and any(site.spec.codebook.num_codes <= 16 for site in kernels)
            and self.packages
        ):
            return (
                f"{said}: weights of 4 bits or fewer are half bytes from opset {INT4_OPSET} on:"
                " export with opset=17"
            )
        if self.float_convolutions:
            types = {op.name: op.type for op in request.engine.inference.operations}
            convolutions = sum(
                edge.role == "weight" and types[edge.consumer[0]] in CONVOLUTION_OPS
                for _, edge in request.engine.placements()
                if edge.consumer
            )
            if 2 * len(found.integer) >= len(kernels) - convolutions:
                return f"{said}: it leaves most convolutions in float with every recipe"
        if own in self.recipes:  # which leaves in float what the runtime computes faster so
            return ""
        return (
            f"{said}: recipe {own!r} is made for another runtime, quantize with recipe"
            f" {self.recipes[0]!r}"
        )

    def widened(self, request: ExportRequest) -> str:
        """Return a note of the sites that an ONNX-based file stores with more bits; else empty."""
        return _late("onnx.writer.widened")(request) if self.packages else ""

    def check_formats(self, request: ExportRequest) -> None:
        """Raise ExportError, naming the first site, for a number format that the target lacks."""
        from tfquant import formats
        from tfquant.export.errors import ExportError

        for site in request.sites():
            if site.spec.layout.per_block and not self.blocks:
                takers = " or ".join(_takers_of_blocks(site.spec.format))
                raise ExportError(
                    f"site {site.address}: {site.spec.layout.describe()} share scales that are"
                    f" computed in every call, which this target has no operation for: export to"
                    f" {takers}, or set granularity: per_tensor"
                )
            name = site.spec.format
            if formats.get(name).kind == "uniform" or self.formats is None:
                continue
            if name not in self.formats:
                takers = [
                    key
                    for key, target in TARGETS.items()
                    if target.formats is None or name in target.formats
                ]
                raise ExportError(
                    f"site {site.address}: number format {name!r} does not exist in this target:"
                    f" export to {' or '.join(takers)}, or set format: int8"
                )
            if request.opset < self.formats[name]:
                raise ExportError(
                    f"site {site.address}: number format {name!r} exists from ONNX opset"
                    f" {self.formats[name]} on, got {request.opset}: export with"
                    f" opset={self.formats[name]}"
                )

    def check_softmax(self, request: ExportRequest) -> None:
        """Raise ExportError for an approximated softmax that the target lacks."""
        from tfquant.export.errors import ExportError

        softmax = request.engine.plan.recipe.softmax
        if request.mode == "float" or softmax.exact or self.softmax:
            return
        takers = " or ".join(key for key, target in TARGETS.items() if target.softmax)
        attention = request.engine.inference.analysis.structure.attention[0]
        raise ExportError(
            f"attention {attention.path}: approximated softmax ({softmax}) does not exist in this"
            f" target: export to {takers}, or set softmax: exact in the recipe"
        )

    def check_path(self, path: pathlib.Path) -> None:
        """Raise ValueError if the target cannot be written to `path`."""
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")
        if self.suffix and path.suffix != self.suffix:
            others = [
                f"target={name!r}"
                for name, target in TARGETS.items()
                if target.suffix == path.suffix and path.suffix
            ]
            hint = f", or give {' or '.join(others)}" if others else ""
            raise ValueError(f"{path}: must end in {self.suffix}{hint}")
        if self.suffix and path.is_dir():
            raise ValueError(f"{printable(path)}: is a folder")
        if self.suffix and path.exists() and not path.is_file():
            raise ValueError(f"{printable(path)}: is a device or a pipe, name a file")
        if self.may_replace is not None and path.exists() and not self.may_replace(path):
            raise ValueError(f"{path}: is there and is no {self.name}: name another folder")


def _late(name: str, **options: Any) -> Callable[..., Any]:
    """Return a function of this package whose module is imported at the first call, not when
    targets are listed.

    Args:
      name: module and function, such as `onnx.writer.write`.
      options: keyword arguments of every call.
    """
    module, _, function = name.rpartition(".")

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"{__package__}.{module}"), function)(
            *arguments, **options
        )

    return call


_FLOAT8 = {"e4m3": 19, "e5m2": 19}  # and the first opset of ONNX that has it
_ONNX, _CHECK_ONNX = ("onnx", "tf2onnx"), _late("onnx.writer.check")
TARGETS = {
    "onnx": Target(
        _late("onnx.writer.write"),
        "model.onnx",
        ("onnxruntime", "openvino"),
        packages=_ONNX,
        check=_CHECK_ONNX,
        recipes=("cpu_onnxruntime",),
        float_convolutions=True,
        formats=_FLOAT8,
    ),
    "onnxruntime": Target(
        _late("onnx.writer.write", fused_attention=True),
        "onnxruntime.onnx",
        ("onnxruntime",),
        packages=_ONNX,
        check=_CHECK_ONNX,
        recipes=("cpu_onnxruntime",),
        float_convolutions=True,
        formats=_FLOAT8,
    ),
    "matmul_nbits": Target(
        _late("onnx.writer.write", fused_attention=True, packed_products=True),
        "matmul_nbits.onnx",
        ("onnxruntime",),
        packages=_ONNX,
        check=_late("onnx.writer.check", packed_products=True),
        formats={"binary": 0, "ternary": 0},
        blocks=True,
    ),
    "tensorrt": Target(
        _late("onnx.tensorrt.write"),
        "tensorrt.onnx",
        ("onnxruntime", "openvino"),
        as_written=True,
        contractions=_late("onnx.tensorrt.contractions"),
        packages=_ONNX,
        check=_CHECK_ONNX,
        recipes=("int8_residual",),
    ),
    "openvino": Target(
        _late("openvino.write"),
        "model.xml",
        ("openvino",),
        packages=(*_ONNX, "openvino"),
        check=_late("openvino.check"),
        recipes=("cpu_openvino",),
    ),
    "litert": Target(
        _late("litert.writer.write"),
        "model.tflite",
        ("litert",),
        check=_late("litert.writer.check"),
        recipes=("litert",),
        float_convolutions=True,
    ),
    "packed": Target(
        _late("packed.write"),
        "model.safetensors",
        proven="bit for bit the simulation, tried out for every parameter",
        check=_late("packed.check"),
        formats=None,
        blocks=True,
    ),
    "saved_model": Target(
        _late("saved_model.write"),
        "saved_model",
        ("tensorflow",),
        may_replace=_late("saved_model.may_be_replaced"),
        name="SavedModel",
        formats=None,
        blocks=True,
        softmax=True,
    ),
    "fastertransformer": Target(
        _late("fastertransformer.write"),
        "fastertransformer",
        proven="codes are the simulation's; nothing here runs them, so nothing was compared",
        may_replace=_late("fastertransformer.may_be_replaced"),
        name="FasterTransformer checkpoint",
        check=_late("fastertransformer.check"),
        recipes=("ft1", "ft2", "ft3"),
    ),
}


def _takers_of_blocks(format: str) -> list[str]:
    """Names of the targets that take blocks of a number format."""
    from tfquant import formats

    uniform = formats.get(format).kind == "uniform"
    return [
        key
        for key, target in TARGETS.items()
        if target.blocks and (uniform or target.formats is None or format in target.formats)
    ]


def targets_for(runtime: str) -> tuple[str, ...]:
    """Names of the targets whose files a runtime reads, those that are checked in it first."""
    result = [name for name, target in TARGETS.items() if runtime in target.readers]
    return tuple(sorted(result, key=lambda name: TARGETS[name].readers[0] != runtime))


def publish(written: pathlib.Path, path: pathlib.Path) -> None:
    """Move what was written, and the files that belong to it, to its place; what was there before
    is replaced.

    Killed at any moment, the old or the new is there as a whole, at the latest when it is opened or
    written again.

    Args:
      written: in a staging folder beside `path` that holds nothing else.

    Raises:
      OSError: it cannot be replaced; the old one is as it was.
    """
    parts = sorted(written.parent.iterdir())
    if written.is_dir():
        replace_folder(written, path)
    elif len(parts) == 1:
        put_in_place(written, path)
    else:
        with replacing_together(path.parent) as together:
            for part in parts:
                os.rename(part, together / part.name)


def size_of(path: pathlib.Path) -> int:
    """Bytes of everything at `path`."""
    files = [entry for entry in path.rglob("*") if entry.is_file()] if path.is_dir() else [path]
    return sum(entry.stat().st_size for entry in files)
