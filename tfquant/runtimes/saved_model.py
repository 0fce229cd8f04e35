"""SavedModel folders in TensorFlow: their signature `serving_default`, quantizers simulated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfquant.runtimes.session import Contractions, Input, Outputs, RuntimeFileError, fed, read

SIGNATURE = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY
_PRODUCTS = {"MatMul", "BatchMatMulV2", "Einsum", "Conv2D", "DepthwiseConv2dNative"}


class SavedModelSession:
    """See `tfquant.runtimes.Session`."""

    def __init__(self, loaded: Any, signature: Any):
        self._loaded, self._signature = loaded, signature  # what is loaded owns the variables
        specs = signature.structured_input_signature[1]
        self.inputs = tuple(
            Input(name, np.dtype(spec.dtype.as_numpy_dtype), tuple(spec.shape.as_list()))
            for name, spec in sorted(specs.items())
        )

    def __call__(self, feed: Mapping[str, np.ndarray]) -> Outputs:
        answers = self._signature(
            **{name: tf.constant(value) for name, value in fed(self.inputs, feed).items()}
        )
        return {name: value.numpy() for name, value in answers.items()}

    def contractions(self) -> Contractions:
        """All of them are computed in floating point."""
        graphs = [
            self._signature.graph,
            *(f.graph for f in self._signature.graph._functions.values() if hasattr(f, "graph")),
        ]
        return Contractions(
            (),
            tuple(
                op.name for graph in graphs for op in graph.get_operations() if op.type in _PRODUCTS
            ),
        )


def open_file(path: str, *, threads: int | None = None) -> SavedModelSession:
    """Opens a SavedModel folder; `threads` must be set before TensorFlow starts, see
    `tf.config.threading`.

    Raises:
      RuntimeFileError: it is no SavedModel, or has no signature `serving_default`.
      ValueError: `threads` is given.
    """
    if threads is not None:
        raise ValueError(
            f"{path}: threads of TensorFlow are set before it starts (TF_NUM_INTRAOP_THREADS), not"
            " for a file"
        )
    loaded = read(path, "TensorFlow", lambda: tf.saved_model.load(path))
    if SIGNATURE not in loaded.signatures:
        raise RuntimeFileError(
            f"{path}: has no signature {SIGNATURE!r}, only {', '.join(loaded.signatures) or 'none'}"
        )
    return SavedModelSession(loaded, loaded.signatures[SIGNATURE])
