"""ONNX files in ONNX Runtime, on the processor."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from fileio.staging import staging
from tfquant.runtimes.session import Contractions, Input, Outputs, fed, missing_package, read

_INTEGER = {
    "QLinearMatMul",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "QGemm",
    "MatMulNBits",
    "QLinearConv",
    "ConvInteger",
    "QAttention",
}
_FLOATING = {
    "MatMul",
    "FusedMatMul",
    "Gemm",
    "FusedGemm",
    "Conv",
    "FusedConv",
    "Einsum",
    "Attention",
}
_PRODUCTS_OF_ATTENTION = ("scores", "context")
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
}


class OnnxSession:
    """See `tfquant.runtimes.Session`."""

    def __init__(self, session: Any, path: str):
        self._session, self._path = session, path
        self.inputs = tuple(
            Input(
                entry.name,
                np.dtype(_TYPES.get(entry.type, np.float32)),
                tuple(size if isinstance(size, int) else None for size in entry.shape),
            )
            for entry in session.get_inputs()
        )
        self._outputs = [entry.name for entry in session.get_outputs()]

    def __call__(self, feed: Mapping[str, np.ndarray]) -> Outputs:
        return dict(
            zip(
                self._outputs, self._session.run(self._outputs, fed(self.inputs, feed)), strict=True
            )
        )

    def contractions(self) -> Contractions:
        import onnx

        with staging(tempfile.gettempdir()) as folder:
            path = str(folder / "optimized.onnx")
            opened(self._path, None, written=path)
            nodes = list(onnx.load(path, load_external_data=False).graph.node)
        attentions = [node.name for node in nodes if node.op_type == "MultiHeadAttention"]
        return Contractions(
            tuple(node.name for node in nodes if _in_integers(node)),
            (
                *(n.name for n in nodes if n.op_type in _FLOATING or _with_float_inputs(n)),
                *(f"{name}/{product}" for name in attentions for product in _PRODUCTS_OF_ATTENTION),
            ),
        )


def _in_integers(node: Any) -> bool:
    return node.op_type in _INTEGER and not _with_float_inputs(node)


def _with_float_inputs(node: Any) -> bool:
    """Whether a product with packed weights leaves its activation in float."""
    if node.op_type != "MatMulNBits":
        return False
    levels = {entry.name: entry.i for entry in node.attribute}
    return levels.get("accuracy_level", 0) != 4


def open_file(path: str, *, threads: int | None = None, as_written: bool = False) -> OnnxSession:
    """Opens an ONNX file.

    Args:
      path: of the file.
      threads: for one call; all cores if not given.
      as_written: node by node, nothing fused into integer kernels.
    """
    return OnnxSession(opened(path, threads, as_written=as_written), path)


def opened(
    path: str, threads: int | None, *, as_written: bool = False, written: str | None = None
) -> Any:
    """A session of ONNX Runtime; what it makes of the graph goes to the file `written`."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise missing_package(error, "running an ONNX file") from None

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Without it sums of unsigned times signed products overflow 16 bits on processors without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if written is not None:
        options.optimized_model_filepath = written
        # Parameters apart, as one file holds less than 2 GB.
        entry = "session.optimized_model_external_initializers_file_name"
        options.add_session_config_entry(entry, os.path.basename(written) + ".data")
    load = lambda: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])  # noqa: E731
    return read(path, "ONNX Runtime", load)
