"""A quantized network as an ONNX model, and that on the disk."""

from __future__ import annotations

from typing import Any

from tfquant.error_messages import one_line
from tfquant.export.errors import ExportError
from tfquant.export.onnx import external_data, matmul_nbits
from tfquant.export.onnx.conversion import converted
from tfquant.export.onnx.fusion import find_regions
from tfquant.export.onnx.qdq import INT4_OPSET, check_sites, insert, prune
from tfquant.export.onnx.rewrites import check_random
from tfquant.export.onnx.substitution import GELU_OPSET, RUNTIMES_DOMAIN, substitute
from tfquant.export.parameter_codes import quantized_parameter
from tfquant.export.request import ExportRequest
from tfquant.export.site_markers import marked
from tfquant.quantized_array import FittedArray, QuantizedArray, QuantParams
from tfquant.weights import parameter_values


def write(request: ExportRequest, path: str, **options: bool) -> None:
    """Write an ONNX file, activations with unsigned bytes; what is beyond 2 GB goes to a file
    beside it.

    Args:
      request, path: what to write, and where.
      options: of `build`.
    """
    external_data.save(build(request, **options), path)


def check(request: ExportRequest, *, packed_products: bool = False) -> None:
    """Raise ExportError for what no ONNX file holds, or none with packed products."""
    if packed_products:
        matmul_nbits.check(request)
    request.check_types("ONNX runtimes on processors do not")
    request.check_captures("ONNX")
    check_random(request.engine.inference)


def build(
    request: ExportRequest,
    *,
    signed: bool = False,
    fused_attention: bool = False,
    packed_products: bool = False,
) -> Any:
    """The ONNX model of a network: QDQ at the activations, parameters as integers, open batch and
    length.

    Args:
      request: what to write.
      signed: keep the signed bytes of symmetric sites; unsigned ones suit ONNX Runtime and OpenVINO
        on processors.
      fused_attention: attentions without a site inside as ONNX Runtime's own operation, which other
        runtimes may not know.
      packed_products: products with weights of few bits as ONNX Runtime's own operation, see
        `tfquant.export.onnx.matmul_nbits`.

    Raises:
      ExportError: something of the model has no counterpart in ONNX, or what came out is no valid
        model.
    """
    import onnx

    engine = request.engine
    check(request)
    # The approximate GELU has no form that runtimes recognise before it has an operation.
    exact_only = request.opset < GELU_OPSET
    regions = find_regions(engine, request.mode, attention=fused_attention)
    regions = [
        region
        for region in regions
        if not (exact_only and region.attributes.get("approximate") == "tanh")
    ]
    network = marked(engine, regions, request.mode)
    model = converted(network, request.opset)
    substitute(model, network.regions)
    prune(model)  # what the regions were made of reads parameters too
    values = parameter_values(engine, network.edges)
    sites = dict(network.sites)
    if packed_products:

        def quantized(name: str) -> QuantizedArray | FittedArray | None:
            address = sites[name].address
            return quantized_parameter(engine, values[name], [address], loads_again=False)

        shapes = {name: value.shape for name, value in values.items()}
        for name in matmul_nbits.pack_products(model, network.sites, shapes, quantized):
            del sites[name]
        prune(model)
    params = {
        name: QuantParams.of(site, engine.quantizers[site.address]) for name, site in sites.items()
    }
    tables = {name for name, edge in network.edges.items() if edge.table is not None}
    insert(
        model,
        params,
        parameters={n: value for n, value in values.items() if n in sites and n not in tables},
        tables={name: value for name, value in values.items() if name in tables},
        value=external_data.constants(model, network.parameters),
        signed=signed,
    )
    check_sites(model, sites)
    external_data.fill(model, network.parameters)
    _name_open_sizes(model)
    try:
        onnx.checker.check_model(
            external_data.without_values(model), full_check=True
        )  # it serializes and parses what it is given
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"what came out is no valid ONNX model: {one_line(error, 500)}"
        ) from error
    return model


def widened(request: ExportRequest) -> str:
    """Return a sentence on sites whose codes take a byte in a file that has types of 4 bits; empty
    if there are none.
    """
    tables = {site.address for site, edge in request.engine.placements() if edge.table is not None}
    result = [
        site.address
        for site in request.sites()
        if site.spec.codebook.num_codes <= 16 and (not site.is_weight or site.address in tables)
    ]
    if not result or request.opset < INT4_OPSET:
        return ""
    return (
        f"{len(result)} of the sites, the first {result[0]}, have up to 4 bits and take a byte a"
        " code: ONNX Runtime does not open 4-bit activations and look-ups everywhere"
    )


def options_of(path: str) -> dict[str, bool]:
    """Options of `build` that an ONNX file was built with, as far as it shows them."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    kinds = {node.op_type for node in nodes if node.domain == RUNTIMES_DOMAIN}
    return {
        "fused_attention": "MultiHeadAttention" in kinds,
        "packed_products": matmul_nbits.OPERATION in kinds,
    }


def _name_open_sizes(model: Any) -> None:
    """Open sizes of inputs.

    `batch` for the first axis, then `length`; those of outputs may be anything.
    """
    for value in (*model.graph.input, *model.graph.output):
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if size.HasField("dim_value"):
                continue
            size.dim_param = "batch" if axis == 0 else f"{value.name}_{axis}"
