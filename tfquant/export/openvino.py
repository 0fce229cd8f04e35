"""OpenVINO's own files: its reader takes QDQ of ONNX over into quantized operations."""

from __future__ import annotations

import os

from fileio.staging import staging
from tfquant.export.onnx import writer
from tfquant.export.request import ExportRequest
from tfquant.runtimes import openvino as runtime
from tfquant.runtimes.session import missing_package, read


def check(request: ExportRequest) -> None:
    """Raise ExportError for what OpenVINO, or ONNX, from which it reads, does not take."""
    writer.check(request)
    request.check_ranges("OpenVINO")


def write(request: ExportRequest, path: str) -> None:
    """Write `path` and, beside it, a file of the same name that ends in `.bin`.

    Raises:
      ModuleNotFoundError: OpenVINO is not installed.
      ExportError: an activation has several ranges, or something of the model has no counterpart in
        ONNX, from which OpenVINO reads it.
    """
    try:
        import openvino

        core = runtime.core()
    except ModuleNotFoundError as error:
        raise missing_package(error, "export to OpenVINO") from None

    check(request)
    with staging(os.path.dirname(path) or ".") as folder:
        source = str(folder / "model.onnx")
        writer.write(request, source)
        model = read(source, "OpenVINO", lambda: core.read_model(source))
        openvino.save_model(model, path, compress_to_fp16=False)
