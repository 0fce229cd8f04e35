"""OpenVINO's own files, and ONNX files, in OpenVINO, on the processor."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfquant.runtimes.session import Contractions, Input, Outputs, fed, missing_package, read

# Operations of a compiled network, as the plugin calls them.
_PRODUCTS = {
    "FullyConnected",
    "MatMul",
    "Convolution",
    "ScaledDotProductAttention",
    "MHA",
    "Subgraph_MHA",
}
_INTEGER_TYPES = {"u8", "i8", "u4", "i4"}


class OpenVinoSession:
    """See `tfquant.runtimes.Session`."""

    def __init__(self, compiled: Any):
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self.inputs = tuple(
            Input(_name(port), np.dtype(port.get_element_type().to_dtype()), _sizes(port))
            for port in compiled.inputs
        )
        self._outputs = [_name(port) for port in compiled.outputs]

    def __call__(self, feed: Mapping[str, np.ndarray]) -> Outputs:
        answers = self._request.infer(
            fed(self.inputs, feed)
        )  # copies: what is shared must outlive the call
        return {
            name: np.array(answers[index]) for index, name in enumerate(self._outputs)
        }  # the request keeps its own buffers

    def contractions(self) -> Contractions:
        result: tuple[list[str], list[str]] = ([], [])
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            entries = node.get_rt_info()
            if str(entries["layerType"].astype(str)) in _PRODUCTS:
                kind = str(entries["runtimePrecision"].astype(str))
                result[kind not in _INTEGER_TYPES].append(node.get_friendly_name())
        return Contractions(tuple(result[0]), tuple(result[1]))


def open_file(
    path: str, *, threads: int | None = None, bfloat16: bool = False, integers: bool = True
) -> OpenVinoSession:
    """Opens an `.xml` or ONNX file.

    Args:
      path: of the file.
      threads: for one call; OpenVINO's choice if not given.
      bfloat16: whether what is left in floating point may be computed in bfloat16. OpenVINO does so
        by itself on processors that have it, and answers change.
      integers: whether products are computed in integers where the file says so.
    """
    try:
        plugin = core()
    except ModuleNotFoundError as error:
        raise missing_package(error, "running a file in OpenVINO") from None
    options: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    if not integers:
        options["LP_TRANSFORMS_MODE"] = "NO"
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    return OpenVinoSession(
        read(
            path, "OpenVINO", lambda: plugin.compile_model(plugin.read_model(path), "CPU", options)
        )
    )


@functools.cache
def core() -> Any:
    """OpenVINO's one `Core` in this process.

    Its plugin for processors gives the main thread another stack for signals and takes that away
    when it goes (SigAltStackSetup of intel_cpu). Of two that do not go in reverse order the second
    puts back the stack of the first, which is no memory any more: the next signal ends the process.

    Raises:
      ModuleNotFoundError: OpenVINO is not installed.
    """
    import openvino

    return openvino.Core()


def _name(port: Any) -> str:
    """The name that the file's writer gave an input or output.

    A tensor may have several names, as where a reshape without effect was dropped: then the node of
    the input or output has the right one.
    """
    names, node = port.get_names(), port.get_node().get_friendly_name().removesuffix("/sink_port_0")
    return node if node in names else port.get_any_name()


def _sizes(port: Any) -> tuple[int | None, ...]:
    return tuple(
        None if size.is_dynamic else size.get_length() for size in port.get_partial_shape()
    )
