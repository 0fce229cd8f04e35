"""Conversion of a marked network to ONNX by tf2onnx; markers arrive as nodes `Site` of our own
domain.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from tfquant.error_messages import one_line
from tfquant.export.errors import ExportError
from tfquant.export.onnx.graph import nodes_inside
from tfquant.export.site_markers import ATTRIBUTE, MARKER, PREFIX, MarkedNetwork
from tfquant.graph.dataflow import parent

DOMAIN, SITE, ADDRESS, TYPE = "tfquant", "Site", "address", "type"
_CONVERTERS_LAST = 18  # the last opset that tf2onnx writes


def is_site(node: Any) -> bool:
    """Whether an ONNX node is a marker."""
    return node.domain == DOMAIN and node.op_type == SITE


def address_of(marker: Any) -> str:
    """Its text: of a site the address."""
    return next(attribute.s.decode() for attribute in marker.attribute if attribute.name == ADDRESS)


def type_of(marker: Any) -> int:
    """Return the ONNX type of the tensor that it marks."""
    return next(attribute.i for attribute in marker.attribute if attribute.name == TYPE)


def converted(network: MarkedNetwork, opset: int) -> Any:
    """An ONNX model with one node `Site` for each marker, its attribute `address` naming the site;
    large parameters are inputs.

    Raises:
      ExportError: an operation has no counterpart in ONNX.
    """
    import onnx
    import tf2onnx

    if opset > onnx.defs.onnx_opset_version():
        raise ExportError(
            f"opset={opset}: onnx {onnx.__version__} knows opsets up to"
            f" {onnx.defs.onnx_opset_version()}"
        )

    def carry(context: Any, node: Any, name: str, _: Any) -> None:
        text, source, output = (
            node.get_attr_value(ATTRIBUTE).decode(),
            node.input[0],
            node.output[0],
        )
        shapes, dtypes = [context.get_shape(output)], [context.get_dtype(output)]
        context.remove_node(name)
        options = {"outputs": [output], "name": name, "shapes": shapes, "dtypes": dtypes}
        if text.startswith(PREFIX):
            options |= {
                "attr": {ADDRESS: text.removeprefix(PREFIX), TYPE: dtypes[0]},
                "domain": DOMAIN,
            }
        context.make_node(SITE if "domain" in options else "Identity", [source], **options)

    logging.getLogger("tf2onnx").setLevel(
        logging.CRITICAL
    )  # what it cannot convert is said below, in one line
    try:
        model = _from_function(
            network.function,
            opset=min(opset, _CONVERTERS_LAST),
            custom_op_handlers={MARKER: (carry, []), "Erfc": (_written_with_erf, [])},
            extra_opset=[tf2onnx.utils.make_opsetid(DOMAIN, 1)],
        )
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise ExportError(f"tf2onnx cannot convert the model: {one_line(error, 500)}") from error
    kept = [value for value in model.graph.input if value.name != network.anchor]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    _round_scales_up(model)
    if opset > _CONVERTERS_LAST:
        model = _raised(model, opset)
    left = {
        inner.op_type: parent(node.name)
        for node in model.graph.node
        for inner in (node, *nodes_inside(node))
        if not is_site(inner) and not _is_known(inner, opset)
    }
    if left:
        named = ", ".join(f"{kind} in layer {layer}" for kind, layer in sorted(left.items()))
        raise ExportError(f"operations without a counterpart in ONNX: {named}")
    return model


def _from_function(function: Any, **options: Any) -> Any:
    """Convert as `tf2onnx.convert.from_function`, without a copy of the graph for each pass.

    The copies, for going back where a pass fails, take up to a third of an export. Here a failure
    converts once more, with them.

    Args:
      function: the network.
      options: of `tf2onnx.tfonnx.process_tf_graph`: `opset`, converters, further domains.

    Returns:
      An ONNX model.
    """
    import tensorflow as tf
    from tf2onnx import convert, optimizer, tf_loader, tfonnx

    concrete = function.get_concrete_function(*function.input_signature)
    inputs, outputs = (
        [tensor.name for tensor in tensors if tensor.dtype != tf.resource]
        for tensors in (concrete.inputs, concrete.outputs)
    )
    options |= {
        "input_names": inputs,
        "output_names": outputs,
        "tensors_to_rename": convert.tensor_names_from_structed(concrete, inputs, outputs),
        "continue_on_error": True,
    }
    with tf.device("/cpu:0"):
        frozen = tf_loader.from_function(concrete, inputs, outputs)

        def optimized(catch_errors: bool) -> Any:
            with tf.Graph().as_default() as graph:
                tf.import_graph_def(frozen, name="")
                converted_graph = tfonnx.process_tf_graph(graph, **options)
                return optimizer.optimize_graph(converted_graph, catch_errors)

        try:
            result = optimized(catch_errors=False)
        except Exception:  # of any pass; what is wrong with the network itself is raised again
            result = optimized(catch_errors=True)
        return result.make_model(f"converted from {concrete.name}")


def _round_scales_up(model: Any) -> None:
    """Let sizes that Resize computes come out whole.

    It cuts off, and 5 * float32(9 / 5) is below 9.
    """
    import onnx

    scales = {
        node.input[2]
        for node in model.graph.node
        if node.op_type == "Resize" and len(node.input) > 2 and node.input[2]
    }
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            values = onnx.numpy_helper.to_array(tensor)
            raised = np.where(values % 1.0 == 0.0, values, np.nextafter(values, np.float32(np.inf)))
            tensor.CopyFrom(onnx.numpy_helper.from_array(raised.astype(values.dtype), tensor.name))


def _raised(model: Any, opset: int) -> Any:
    """The model in a later opset."""
    import onnx

    try:
        return onnx.version_converter.convert_version(model, opset)
    except RuntimeError as error:
        raise ExportError(
            f"the model cannot be brought to opset {opset}: {one_line(error, 500)}"
        ) from error


def _is_known(node: Any, opset: int) -> bool:
    from onnx import defs

    try:
        defs.get_schema(node.op_type, opset, node.domain)
    except defs.SchemaError:
        return False
    return True


def _written_with_erf(context: Any, node: Any, name: str, _: Any) -> None:
    """Erfc, which ONNX lacks: Keras' exact GELU has it."""
    from tf2onnx.utils import map_onnx_to_numpy_type

    source, output = node.input[0], node.output[0]
    shape, dtype = context.get_shape(output), context.get_dtype(output)
    one = context.make_const(f"{name}/one", np.ones([], map_onnx_to_numpy_type(dtype)))
    context.remove_node(name)
    erf = context.make_node("Erf", [source], shapes=[shape], dtypes=[dtype])
    context.make_node(
        "Sub",
        [one.output[0], erf.output[0]],
        outputs=[output],
        name=name,
        shapes=[shape],
        dtypes=[dtype],
    )
