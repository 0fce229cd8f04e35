"""`tfquant.export` and `tfquant.compare`.

Write a quantized model as a file, and compare a file with it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from fileio.staging import staging
from tfquant.calibration import check_batches
from tfquant.choices import MODES
from tfquant.dynamic_range import refuse as refuse_dynamic
from tfquant.engine import Engine
from tfquant.export import divergence, x86_saturation
from tfquant.export.errors import ExportError, MismatchError
from tfquant.export.fastertransformer import SMALLEST_SM
from tfquant.export.output_kinds import KINDS
from tfquant.export.output_parity import OutputAgreement
from tfquant.export.parity import ParityReport, Score, agreement, check_tolerance, check_weights
from tfquant.export.request import ExportRequest
from tfquant.export.targets import TARGETS, publish, size_of
from tfquant.layout import static_shape
from tfquant.model import QuantizedFunction, QuantizedModel, engine_of
from tfquant.quantizer import UncalibratedError
from tfquant.runtimes import Contractions, open_file, openvino, runtime_of
from tfquant.site import Site

__all__ = [
    "KINDS",
    "TARGETS",
    "ParityReport",
    "ExportError",
    "Exported",
    "MismatchError",
    "OutputAgreement",
    "compare",
    "export",
]


@dataclasses.dataclass(frozen=True)
class Exported:
    """Report of an exported file.

    Attributes:
      path: of the file.
      size: its bytes.
      parameters: bytes of all parameters in float32.
      sites: how many activations and how many parameters are quantized.
      agreement: with the simulation; None where there was nothing to compare on.
      contractions: which products the runtime computes in integers on this machine; None like
        `agreement`.
      proven: what is known of the file without a check; empty for most targets.
      note: what to mind where the file is run on a processor like this one, and which recipe suits
        the target where that of the model does not; empty for most.
    """

    path: str
    size: int
    parameters: int
    sites: tuple[int, int]
    agreement: ParityReport | None
    contractions: Contractions | None
    proven: str = ""
    note: str = ""

    def __str__(self) -> str:
        checked = (
            f"{self.contractions}; {self.agreement}"
            if self.agreement
            else self.proven or "not checked: no check_data"
        )
        return (
            f"{self.path}: {self.size / 2**20:.2f} MiB (parameters in float32"
            f" {self.parameters / 2**20:.2f} MiB), {self.sites[0]} activations and {self.sites[1]}"
            f" parameters quantized; {checked}{'; ' if self.note else ''}{self.note}"
        )


def export(
    model: QuantizedModel | QuantizedFunction,
    path: str | os.PathLike,
    *,
    target: str = "onnx",
    mode: str = "quantized",
    check_data: Iterable[Any] | None = None,
    score: Score | None = None,
    opset: int = 17,
    sm: int = 80,
    tolerance: float = 0.01,
    check: Mapping[str, str] | None = None,
) -> Exported:
    """Write a quantized model as a file and compares what the file answers with the simulation.

    Args:
      model: from `tfquant.quantize` or `tfquant.load`, calibrated.
      path: of the file; it is there only if everything went well.
      target: `onnx`: QuantizeLinear and DequantizeLinear at every site, parameters stored as
        integers. `onnxruntime`: the same with every attention that has no site inside as ONNX
        Runtime's own operation, which other runtimes may not know. `tensorrt`: as `onnx`, by
        TensorRT's rules, which are proven. `openvino`: its own pair of files, of which `path` names
        the one that ends in `.xml`. `litert`: a `.tflite` file. `saved_model`: a folder for
        TensorFlow, quantizers simulated. `packed`: weights as packed bits, for
        `tfquant.load_packed`. `fastertransformer`: a folder with a checkpoint for NVIDIA's INT8
        encoder.
      mode: `float` writes the network without any quantizer, as what the other is measured against.
      check_data: batches like those of calibration; both networks answer them. Without it nothing
        is checked. `packed` needs none, and nothing here runs a `fastertransformer` checkpoint.
      score: outputs by name of every batch of `check_data`, in order -> how good they are, for
        example F1; reported for both.
      opset: of ONNX, from 17; from 21 on 4-bit parameters take half a byte and 16-bit sites are
        possible.
      sm: of `fastertransformer`: compute capability of the GPU times ten, 75 (Turing) or from 80
        on; tiles differ.
      tolerance: largest share of rows with another answer, of every output by itself.
      check: output name -> its kind, one of `KINDS`, which says what counts as the same answer;
        found out where not given.

    Returns:
      Sizes and the agreement; `print` it.

    Raises:
      UncalibratedError: a site has no range.
      MismatchError: of an output more rows differ than `tolerance` allows, or the file answers NaN.
        Nothing is written then.
      ExportError: something of the model has no counterpart in the target; the message names it.
      RuntimeFileError: the runtime cannot read what was written.
      ValueError: unknown target, opset or kind, a path that does not suit the target, a batch that
        does not fit or holds NaN, or LoRA updates that are not merged.
      TypeError: `model` is not quantized.
      ModuleNotFoundError: a package that export needs is missing; the message says how to install
        it.
    """
    engine = engine_of(model)
    if target not in TARGETS:
        raise ValueError(f"target={target!r}: must be one of {', '.join(TARGETS)}")
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
    if opset < 17:
        raise ValueError(f"opset={opset}: must be at least 17")
    if not isinstance(sm, int) or sm < SMALLEST_SM:
        raise ValueError(
            f"sm={sm!r}: must be an integer, for FasterTransformer's INT8 kernels at least"
            f" {SMALLEST_SM}"
        )
    check_tolerance(tolerance)
    engine.check_merged("a file")
    path, form, request = (
        pathlib.Path(path),
        TARGETS[target],
        ExportRequest(engine, mode, opset, sm),
    )
    form.check_path(path)
    if missing := form.missing_packages(check_data is not None):
        raise ModuleNotFoundError(
            f"target={target!r} needs {', '.join(missing)}: pip install -e '.[export]'",
            name=missing[0],
        )
    if check_data is not None:
        check_data = checked_batches(engine, check_data)
    if mode == "quantized":
        check_calibrated(engine)
    form.check_formats(request)
    form.check_softmax(request)
    form.check(request)
    check_weights(request)
    result = contractions = None
    with staging(path.parent) as folder:
        written = folder / path.name
        form.write(request, str(written))
        size = sum(map(size_of, folder.iterdir()))
        if check_data is not None and form.readers:
            session = form.open(written)
            result = agreement(request, session, check_data, score, check)
            contractions = form.contractions_of(written, session)
            subject = f"{path} was not written, as it"
            check_agreement(
                request, result, tolerance, form.readers[0], check_data[0], written, subject
            )
        publish(written, path)
    sites = request.sites()
    stored = sum(1 for site in sites if site.is_weight)
    floats = 4 * sum(math.prod(static_shape(v.shape)) for v in engine.inference.variables.values())
    notes = (
        [x86_saturation.note(request, form.readers[0])]
        if form.readers and not form.as_written
        else []
    )
    notes.append(form.widened(request))
    if advice := form.advice(request, contractions) if contractions else "":
        warnings.warn(advice, stacklevel=2)
        notes.append(advice)
    note = "; ".join(filter(None, notes))
    return Exported(
        str(path),
        size,
        floats,
        (len(sites) - stored, stored),
        result,
        contractions,
        form.proven,
        note,
    )


def checked_batches(engine: Engine, batches: Iterable[Any]) -> list[Any]:
    """Check and return all batches, before anything slow is done.

    Raises:
      ValueError: there is none, or one does not fit; the message says which.
    """
    check_batches(batches, "check_data")
    batches = list(batches)
    if not batches:
        raise ValueError("check_data: no batch was given to compare on, pass at least one")
    for number, batch in enumerate(batches):
        try:
            flat = engine.inputs.flatten_batch(batch)
        except (ValueError, TypeError) as error:
            raise ValueError(f"check_data, batch {number}: {error}") from error
        if any(tensor.shape.rank and tensor.shape[0] == 0 for tensor in flat):
            raise ValueError(f"check_data, batch {number}: has no rows")
        for name, tensor in zip(engine.inference.input_names, flat, strict=True):
            if tensor.dtype.is_floating and bool(tf.reduce_any(tf.math.is_nan(tensor))):
                raise ValueError(f"check_data, batch {number}: input {name!r} holds NaN")
    return batches


def _follows_in_file(site: Site) -> bool:
    """Whether the target decides if it takes a site without stored ranges: blocks, parameters with
    fitted values, and values without a scale.
    """
    fitted = site.spec.fitted and (site.is_weight or site.spec.scale.source == "none")
    return site.spec.layout.per_block or fitted


def check_calibrated(engine: Engine) -> None:
    """Raise UncalibratedError if a site has no range, ExportError if it has one of each batch."""
    try:
        refuse_dynamic((site for site in engine.plan.sites if not _follows_in_file(site)), "a file")
    except ValueError as error:
        raise ExportError(str(error)) from None
    try:
        engine.quantizers.check_calibrated()
    except UncalibratedError as error:
        hint = "export the float network with mode='float'"
        raise UncalibratedError(str(error).replace("model.set_mode('float')", hint)) from None


def compare(
    model: QuantizedModel | QuantizedFunction,
    path: str | os.PathLike,
    check_data: Iterable[Any],
    *,
    mode: str = "quantized",
    runtime: str | None = None,
    score: Score | None = None,
    tolerance: float = 0.01,
    check: Mapping[str, str] | None = None,
) -> ParityReport:
    """Compares an exported file with the model that it was made from, as `export` does before it
    writes.

    Args:
      model: from `tfquant.quantize` or `tfquant.load`, calibrated.
      path: of the file.
      check_data: batches like those of calibration.
      mode: in which the file was written.
      runtime: one of `tfquant.runtimes.RUNTIMES`; if not given, the one that such files are made
        for.
      score, check: as for `export`.
      tolerance: largest share of rows with another answer, of every output by itself.

    Raises:
      MismatchError: more rows differ; the message names the outputs, and the first site that is
        reached by other values.
      UncalibratedError: a site has no range.
      FileNotFoundError: there is no such file.
      RuntimeFileError: the runtime cannot read it, or none is known for its suffix.
      ValueError: unknown mode or kind, or a batch that does not fit or holds NaN.
    """
    check_tolerance(tolerance)
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
    engine = engine_of(model)
    if mode == "quantized":
        check_calibrated(engine)
    batches = checked_batches(engine, check_data)
    request, runtime = ExportRequest(engine, mode), runtime or runtime_of(path)
    check_weights(request)
    result = agreement(request, open_file(path, runtime), batches, score, check)
    check_agreement(request, result, tolerance, runtime, batches[0], path, f"{path}", existing=True)
    return result


def check_agreement(
    request: ExportRequest,
    found: ParityReport,
    tolerance: float,
    runtime: str,
    batch: Any,
    path: str | os.PathLike,
    subject: str,
    *,
    existing: bool = False,
) -> None:
    """Raise MismatchError if of some output more rows differ than are allowed to."""
    if differing := found.disagreeing(tolerance):
        where = divergence.where(request, runtime, batch, path, existing=existing)
        note = x86_saturation.note(request, runtime) or _fault_of_openvino(
            request, runtime, batch, path, tolerance
        )
        parts = [str(found), *map(str, differing)]
        reason = "; ".join(parts) + where + (f"; {note}" if note else "")
        raise MismatchError(f"{subject} answers otherwise than the simulation: {reason}")


def _fault_of_openvino(
    request: ExportRequest, runtime: str, batch: Any, path: str | os.PathLike, tolerance: float
) -> str:
    """Return a hint if OpenVINO agrees once it computes in float; else empty.

    OpenVINO 2026.4 loses a scale where an integer convolution is multiplied with a function of
    itself and then with constants, such as swish before a batch normalization: all answers behind
    are nearly 0.
    """
    if runtime != "openvino" or not request.sites():
        return ""
    session = openvino.open_file(os.fspath(path), integers=False)
    if agreement(request, session, [batch]).disagreeing(tolerance):
        return ""
    return (
        "the file is right, but OpenVINO's integer kernels are not (they are with the option "
        "LP_TRANSFORMS_MODE=NO): leave the product before the first wrong output in float, or take "
        "another target"
    )
