"""`.tflite` files in LiteRT, on the processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfquant.runtimes.session import (
    Contractions,
    Input,
    Outputs,
    RuntimeFileError,
    fed,
    missing_package,
    read,
)

_PRODUCTS = {
    "FULLY_CONNECTED",
    "BATCH_MATMUL",
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "TRANSPOSE_CONV",
    "CONV_3D",
}


class LiteRtSession:
    """See `tfquant.runtimes.Session`."""

    def __init__(self, interpreter: Any, signature: Any):
        self._interpreter, self._signature = interpreter, signature
        self.inputs = tuple(
            Input(
                name,
                np.dtype(entry["dtype"]),
                tuple(None if size < 0 else int(size) for size in entry["shape_signature"]),
            )
            for name, entry in signature.get_input_details().items()
        )

    def __call__(self, feed: Mapping[str, np.ndarray]) -> Outputs:
        return self._signature(**fed(self.inputs, feed))  # which gives the inputs their sizes first

    def contractions(self) -> Contractions:
        """Products whose operands and results are integers; one with integer weights alone computes
        with ranges of its own.
        """
        names = {entry["index"]: entry["name"] for entry in self._interpreter.get_tensor_details()}
        result: tuple[list[str], list[str]] = ([], [])
        for (
            op
        ) in self._interpreter._get_ops_details():  # the only way to learn it from an opened file
            if op["op_name"] in _PRODUCTS:
                floating = any(
                    np.issubdtype(kind, np.floating)
                    for kind in (*op["operand_types"], *op["result_types"])
                )
                result[floating].append(names.get(int(op["outputs"][0]), op["op_name"]))
        return Contractions(tuple(result[0]), tuple(result[1]))


def open_file(path: str, *, threads: int | None = None) -> LiteRtSession:
    """Opens a `.tflite` file.

    Args:
      path: of the file.
      threads: for one call; one if not given, as LiteRT has it.
    """
    try:
        from ai_edge_litert import interpreter
    except ModuleNotFoundError as error:
        raise missing_package(error, "running a file in LiteRT") from None

    opened = read(
        path, "LiteRT", lambda: interpreter.Interpreter(model_path=path, num_threads=threads)
    )
    signatures = opened.get_signature_list()
    if len(signatures) != 1:
        raise RuntimeFileError(f"{path}: has {len(signatures)} signatures, where one is expected")
    return LiteRtSession(opened, opened.get_signature_runner())
