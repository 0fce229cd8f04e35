"""Command-line arguments for 8-bit inference and training, and the recipe that they describe.

    parser = argparse.ArgumentParser()
    tfquant.add_training_args(parser)
    args = parser.parse_args()
    model = tfquant.quantize(model, args)

Names are those of the source, of its newer and its older version. Of the older, `--dtype D` with
`--quantize_weight`, `--quantize_fwd OPS` and `--quantize_bwd OPS` stands for `--weight D
--activation D --quantize_forward OPS --error D --quantize_backprop OPS`.

Source: Yu et al. 2024, "8-bit Transformer Inference and Fine-tuning for Edge Accelerators", and
its code.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tfquant.recipes.spec_strings import parse_spec

if TYPE_CHECKING:
    from tfquant.rules import Recipe

_GROUPS = "gemm, act, norm, attn_scaling, residual"
_MIXED = {"fp8": ("e4m3", "e5m2"), "fp8.mixed": ("e4m3", "e5m2")}


@dataclasses.dataclass(frozen=True)
class Argument:
    """Argument of a command line.

    Attributes:
      default: value where it is not given; False for one without a value.
      help: for `--help`.
      bare: value where it is given without one; None where it needs one, or has none.
      kind: of its value.
      aliases: other names.
    """

    default: Any
    help: str
    bare: Any = None
    kind: type = str
    aliases: tuple[str, ...] = ()


ARGUMENTS: dict[str, Argument] = {
    "activation": Argument(
        None, "Spec of activations, such as e4m3 or int8,qs=per_tensor_symmetric."
    ),
    "weight": Argument(None, "Spec of weights."),
    "error": Argument(None, "Spec of gradients of activations in training."),
    "quantize_forward": Argument("gemm", f"Op groups whose inputs are quantized: {_GROUPS}."),
    "quantize_backprop": Argument("gemm", f"Op groups whose gradients are quantized: {_GROUPS}."),
    "op_fusion": Argument(
        None, "Parts of layer paths, comma-separated: no quantizer of activations and gradients."
    ),
    "force_scale_power_of_two": Argument(False, "Round scales up to powers of two."),
    "lora_rank": Argument(
        0,
        "Rank of LoRA updates, which are merged into the kernels before these are quantized; 0:"
        " none.",
        kind=int,
    ),
    "lora_alpha": Argument(
        8.0, "LoRA updates are multiplied by lora_alpha / lora_rank.", kind=float
    ),
    "target_modules": Argument(
        "query,value",
        "Kernels with a LoRA update, comma-separated: parts of an encoder or ends of layer paths.",
    ),
    "posit_exp": Argument(False, "Softmax with the posit exponential that ends at -5."),
    "posit_exp_shifted": Argument(False, "Softmax with the shifted posit exponential."),
    "posit_reciprocal": Argument(False, "Softmax with the posit reciprocal."),
    "record_histogram": Argument(
        False,
        "Record exponents of the inputs of all quantizers; see tfquant.exponent_histograms.",
    ),
    "dtype": Argument(
        "posit8_1",
        "Older form: data type of what quantize_weight, quantize_fwd and quantize_bwd name;"
        " FORWARD,BACKWARD for two, FP8 for e4m3,e5m2.",
    ),
    "quantize_weight": Argument(
        False, "Older form: quantize weights.", aliases=("quantize_weights",)
    ),
    "quantize_fwd": Argument(None, f"Older form: op groups of {_GROUPS}.", "gemm"),
    "quantize_bwd": Argument(None, "Older form: op groups whose gradients are quantized.", "gemm"),
    "scaling_fwd": Argument(False, "Older form: delayed scales of activations."),
    "scaling_bwd": Argument(False, "Older form: delayed scales of gradients."),
    "max_fwd": Argument(64.0, "Older form: what the largest activation is mapped to.", kind=float),
    "max_bwd": Argument(64.0, "Older form: what the largest gradient is mapped to.", kind=float),
    "amax_history_len": Argument(10, "Older form: steps of the history of scales.", kind=int),
}


def add_training_args(
    parser: argparse.ArgumentParser | None = None,
) -> argparse.ArgumentParser:
    """Add the arguments of 8-bit inference and training to a parser, or to a new one; return it."""
    parser = argparse.ArgumentParser() if parser is None else parser
    group = parser.add_argument_group("quantization")
    for name, argument in ARGUMENTS.items():
        names = [f"--{one}" for one in (name, *argument.aliases)]
        names += [one.replace("_", "-") for one in names if "_" in one]
        if argument.default is False:
            group.add_argument(*names, dest=name, action="store_true", help=argument.help)
            continue
        optional = {} if argument.bare is None else {"nargs": "?", "const": argument.bare}
        group.add_argument(
            *names,
            dest=name,
            type=argument.kind,
            default=argument.default,
            help=argument.help,
            **optional,
        )
    return parser


def requested(args: Mapping[str, Any]) -> bool:
    """Return whether arguments ask for anything to be quantized or approximated."""
    names = ("activation", "weight", "error", "quantize_weight", "quantize_fwd", "quantize_bwd")
    names += ("posit_exp", "posit_exp_shifted", "posit_reciprocal")
    return any(args.get(name) not in (None, False) for name in names)


def recipe_of_args(args: argparse.Namespace | Mapping[str, Any]) -> Recipe:
    """Return the recipe that arguments describe.

    Args:
      args: parsed by a parser of `add_training_args`, or its values by name; missing ones have
        their defaults.

    Raises:
      ValueError: they name an unknown data type, key or op group, contradict each other, or ask for
        nothing.
    """
    from tfquant.recipes.op_groups import parse_groups, recipe_of
    from tfquant.rules import Softmax

    values = dict(args) if isinstance(args, Mapping) else vars(args)
    values = {name: values.get(name, one.default) for name, one in ARGUMENTS.items()}
    if not requested(values):
        raise ValueError(
            "nothing to quantize: give --activation, --weight or --error a spec such as e4m3 (in"
            " the older form --quantize_weight, --quantize_fwd, --quantize_bwd), or approximate"
            " softmax"
        )
    values = _newer(values)
    if values["lora_rank"] and values["weight"] is None:
        raise ValueError(
            "--lora_rank: LoRA updates are merged into quantized kernels, and no kernel is"
            " quantized: give --weight a spec as well"
        )
    for name, of in (("quantize_forward", "activation"), ("quantize_backprop", "error")):
        try:
            parse_groups(values[name])
        except ValueError as error:
            raise ValueError(f"--{name}: {error}") from None
        if values[of] is None and values[name] != ARGUMENTS[name].default:
            raise ValueError(f"--{name} has no effect without --{of}: leave it out")
    power_of_two = values["force_scale_power_of_two"]
    specs = {
        name: None if values[name] is None else _spec(name, values[name], power_of_two)
        for name in ("activation", "weight", "error")
    }
    exponential = "exact"
    if values["posit_exp"] or values["posit_exp_shifted"]:
        exponential = "posit_exp" if values["posit_exp"] else "posit_exp_shifted"
    softmax = Softmax(exponential, values["posit_reciprocal"])
    texts = [f"{name} {values[name]}" for name in specs if values[name] is not None]
    texts += [] if softmax.exact else [f"softmax {softmax}"]
    return recipe_of(
        specs["activation"],
        specs["weight"],
        values["quantize_forward"],
        error=specs["error"],
        error_groups=values["quantize_backprop"],
        op_fusion=values["op_fusion"] or (),
        softmax=softmax,
        name=", ".join(texts),
    )


def _spec(name: str, text: str, power_of_two: bool) -> Any:
    try:
        return parse_spec(text, power_of_two=power_of_two)
    except ValueError as error:
        raise ValueError(f"--{name}: {error}") from None


def _newer(values: dict[str, Any]) -> dict[str, Any]:
    """Replace the older form of arguments by the newer one.

    Raises:
      ValueError: both forms are there.
    """
    forward, _, backward = values["dtype"].lower().partition(",")
    forward, backward = _MIXED.get(forward, (forward, backward or forward))
    history = values["amax_history_len"]

    def scaled(dtype: str, direction: str) -> str:
        if not values[f"scaling_{direction}"]:
            return dtype
        return f"{dtype},qs=per_tensor_symmetric,qmax={values[f'max_{direction}']},ahl={history}"

    older = {
        "weight": ("quantize_weight", None, forward),
        "activation": ("quantize_fwd", "quantize_forward", scaled(forward, "fwd")),
        "error": ("quantize_bwd", "quantize_backprop", scaled(backward, "bwd")),
    }
    values = dict(values)
    for name, (flag, groups, spec) in older.items():
        if values[flag] in (None, False):
            continue
        if values[name] is not None:
            raise ValueError(f"--{name} and --{flag} exclude each other: leave one out")
        values[name] = spec
        if groups is not None:
            values[groups] = values[flag]
    if values["scaling_fwd"] or values["scaling_bwd"]:
        values["force_scale_power_of_two"] = True  # as the older version has them
    return values
