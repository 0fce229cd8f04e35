"""Ways from one float model to a file that a runtime answers with.

Ours and those of others, for `benchmarks.int8_peers`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

import tfquant
from tfquant.runtimes import Session, onnxruntime, open_file, openvino

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A float model and what pipelines need of it.

    Attributes:
      model: Keras' own.
      calibration: batches of its inputs; every pipeline that calibrates sees them all.
      folder: where files go.
      heads, width: of its attention, for ONNX Runtime's optimizer.
    """

    model: Any
    calibration: Sequence[Batch]
    folder: pathlib.Path
    heads: int
    width: int

    @functools.cached_property
    def float_onnx(self) -> pathlib.Path:
        """Our float export, what all peers start from."""
        path = self.folder / "float.onnx"
        if not path.exists():
            tfquant.export(tfquant.quantize(self.model), path, mode="float")
        return path

    @functools.cached_property
    def optimized_onnx(self) -> pathlib.Path:
        """The same after ONNX Runtime's optimizer of transformers."""
        from onnxruntime.transformers import optimizer

        path = self.folder / "optimized.onnx"
        if not path.exists():
            logging.getLogger("onnxruntime.transformers").setLevel(logging.ERROR)
            optimizer.optimize_model(
                str(self.float_onnx),
                model_type="bert",
                num_heads=self.heads,
                hidden_size=self.width,
                opt_level=0,
            ).save_model_to_file(str(path))
        return path


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """One way.

    Attributes:
      write: source -> the file.
      open: file, threads -> session.
      packages: that it needs beside ours.
    """

    write: Callable[[Source], pathlib.Path]
    open: Callable[[str, int], Session] = lambda path, threads: open_file(path, threads=threads)
    packages: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


def ours(recipe: str | tfquant.Recipe, file: str, target: str) -> Callable[[Source], pathlib.Path]:
    """Post-training quantization with a recipe, exported."""

    def write(source: Source) -> pathlib.Path:
        path = source.folder / file
        if not path.exists():
            model = tfquant.quantize(source.model, recipe, calibration=source.calibration)
            tfquant.export(model, path, target=target)
        return path

    return write


def ort_dynamic(optimized: bool) -> Callable[[Source], pathlib.Path]:
    """`onnxruntime.quantization.quantize_dynamic`, one scale for each output channel."""

    def write(source: Source) -> pathlib.Path:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        start = source.optimized_onnx if optimized else source.float_onnx
        path = start.with_name(f"dynamic_{start.name}")
        if not path.exists():
            options = {
                "DefaultTensorType": onnx.TensorProto.FLOAT
            }  # of what the optimizer's own operations make
            quantize_dynamic(
                str(start),
                str(path),
                weight_type=QuantType.QInt8,
                per_channel=True,
                extra_options=options,
            )
        return path

    return write


def ort_static(optimized: bool) -> Callable[[Source], pathlib.Path]:
    """`onnxruntime.quantization.quantize_static`.

    QDQ, extremes of the calibration, one scale for each output channel.
    """

    def write(source: Source) -> pathlib.Path:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

        class Reader(CalibrationDataReader):
            def __init__(self, batches: Sequence[Batch]):
                self.batches: Iterator[Batch] = iter(batches)

            def get_next(self) -> dict[str, np.ndarray] | None:
                batch = next(self.batches, None)
                return (
                    None
                    if batch is None
                    else {name: np.asarray(rows, np.int32) for name, rows in batch.items()}
                )

        start = source.optimized_onnx if optimized else source.float_onnx
        path = start.with_name(f"static_{start.name}")
        if not path.exists():
            quantize_static(
                str(start),
                str(path),
                Reader(source.calibration),
                per_channel=True,
                op_types_to_quantize=[
                    "MatMul"
                ],  # with all its defaults it fails on Softmax (ONNX Runtime 1.32)
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
        return path

    return write


def nncf(source: Source) -> pathlib.Path:
    """NNCF's post-training quantization of the OpenVINO model, its preset for transformers."""
    import nncf
    import openvino

    path = source.folder / "nncf.xml"
    if not path.exists():
        model = openvino.Core().read_model(source.float_onnx)
        data = nncf.Dataset(
            [
                {name: np.asarray(rows, np.int32) for name, rows in b.items()}
                for b in source.calibration
            ]
        )
        quantized = nncf.quantize(
            model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(source.calibration)
        )
        openvino.save_model(quantized, path, compress_to_fp16=False)
    return path


def litert_dynamic(source: Source) -> pathlib.Path:
    """TensorFlow's converter with its default optimizations.

    Weights in int8, activations rounded batch by batch.
    """
    path = source.folder / "dynamic.tflite"
    if not path.exists():
        signature = [
            {
                name: tf.TensorSpec([None, None], tf.int32, name=name)
                for name in source.calibration[0]
            }
        ]
        network = tf.function(
            lambda inputs: source.model(inputs, training=False),
            autograph=False,
            input_signature=signature,
        )
        owner = tf.Module()
        owner.weights = [
            variable.value for variable in source.model.variables
        ]  # the converter does not know Keras' own
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [network.get_concrete_function()], owner
        )
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        path.write_bytes(converter.convert())
    return path


def with_7_bit_weights(recipe: str) -> tfquant.Recipe:
    """For OpenVINO on processors without VNNI, where sums of two products of 8 bits overflow."""
    return tfquant.recipe(recipe).with_spec(roles=["weight"], format="int7")


def float_file(source: Source) -> pathlib.Path:
    return source.float_onnx


def in_openvino(bfloat16: bool = False) -> Callable[[str, int], Session]:
    return lambda path, threads: openvino.open_file(path, threads=threads, bfloat16=bfloat16)


# The first one is what all others are compared with.
PIPELINES = {
    "ONNX Runtime float": Pipeline(
        float_file, lambda path, threads: onnxruntime.open_file(path, threads=threads)
    ),
    "OpenVINO float": Pipeline(float_file, in_openvino()),
    "OpenVINO bfloat16": Pipeline(float_file, in_openvino(bfloat16=True)),
    "ONNX Runtime quantize_dynamic": Pipeline(ort_dynamic(optimized=False)),
    "ONNX Runtime optimizer + quantize_dynamic": Pipeline(
        ort_dynamic(optimized=True), packages=("sympy",)
    ),
    "ONNX Runtime quantize_static": Pipeline(ort_static(optimized=False)),
    "ONNX Runtime optimizer + quantize_static": Pipeline(
        ort_static(optimized=True), packages=("sympy",)
    ),
    "NNCF, OpenVINO": Pipeline(nncf, in_openvino(), packages=("nncf",)),
    "LiteRT dynamic range": Pipeline(litert_dynamic),
    "tfquant litert, LiteRT": Pipeline(ours("litert", "ours.tflite", "litert")),
    "tfquant cpu_onnxruntime": Pipeline(ours("cpu_onnxruntime", "ours.onnx", "onnx")),
    "tfquant cpu_onnxruntime_embeddings": Pipeline(
        ours("cpu_onnxruntime_embeddings", "ours_embeddings.onnx", "onnx")
    ),
    "tfquant cpu_openvino with 7-bit weights, OpenVINO": Pipeline(
        ours(with_7_bit_weights("cpu_openvino"), "ours_int7.xml", "openvino"), in_openvino()
    ),
    "tfquant cpu_openvino, OpenVINO": Pipeline(
        ours("cpu_openvino", "ours.xml", "openvino"), in_openvino()
    ),
    "tfquant cpu_openvino, OpenVINO bfloat16": Pipeline(
        ours("cpu_openvino", "ours.xml", "openvino"), in_openvino(bfloat16=True)
    ),
}
