"""Options that the example programs share; TensorFlow is not imported here."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from runs.command_line import CommandLine
from runs.settings import AT_LEAST_1, flag
from tfquant import recipes
from tfquant.training_args import ARGUMENTS, recipe_of_args, requested

TFDS = "tfds:"  # begins a name of data of TensorFlow Datasets: tfds:DATASET:SPLIT
DTYPES = ("float32", "bfloat16", "float16")
S = TypeVar("S")


def option(name: str, value: Any = None) -> str:
    """Return an option as it is written on the command line, with its value if that is given."""
    return f"--{name}" if value is None else f"--{name}={value}"


# Arguments of 8-bit inference; the others are about gradients, or of the older spelling, of which
# the commands of the source have two.
FORMATS = (
    "activation",
    "weight",
    "quantize_forward",
    "op_fusion",
    "force_scale_power_of_two",
    "posit_exp",
    "posit_exp_shifted",
    "posit_reciprocal",
    "quantize_weight",
    "quantize_fwd",
)


def _format_flag(name: str) -> Any:
    argument = ARGUMENTS[name]
    return flag(argument.default, argument.help, bare=argument.bare)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Options of every example: the network, its quantization, and where results go."""

    written = staticmethod(option)

    preset: str | None = flag(
        None,
        "KerasHub preset: its name, an address (hf://..., kaggle://...) or a folder on disk."
        " --model_id is the same.",
    )
    recipe: str | None = flag(
        None,
        "Also evaluate the network quantized by this recipe: its name, or a YAML or JSON file.",
        metavar="NAME|FILE",
    )
    activation: str | None = _format_flag("activation")
    weight: str | None = _format_flag("weight")
    quantize_forward: str = _format_flag("quantize_forward")
    op_fusion: str | None = _format_flag("op_fusion")
    force_scale_power_of_two: bool = _format_flag("force_scale_power_of_two")
    posit_exp: bool = _format_flag("posit_exp")
    posit_exp_shifted: bool = _format_flag("posit_exp_shifted")
    posit_reciprocal: bool = _format_flag("posit_reciprocal")
    quantize_weight: bool = _format_flag("quantize_weight")
    quantize_fwd: str | None = _format_flag("quantize_fwd")
    calibration_steps: int = flag(
        8, "Batches of calibration data that set the ranges.", bound=AT_LEAST_1
    )
    dtype: str = flag("float32", "Type that the network computes in.", choices=DTYPES)
    tfds_dir: str | None = flag(
        None, "Where TensorFlow Datasets keeps its data; its own default if not set."
    )
    output_dir: str | None = flag(None, "Where results are written.")

    @property
    def formats(self) -> dict[str, Any]:
        """Values of the options that name number formats."""
        return {name: getattr(self, name) for name in FORMATS}

    @property
    def quantizes(self) -> bool:
        """Whether a quantized network is evaluated too."""
        return self.recipe is not None or requested(self.formats)

    def quantization(self) -> Any:
        """Return the recipe that the options describe.

        Raises:
            ValueError: there is none of that name, or the options contradict each other.
            OSError: its file cannot be read.
        """
        if self.recipe is not None:
            return recipes.recipe(self.recipe)
        return recipe_of_args(self.formats)


def parse(
    program: str,
    kind: type[S],
    words: Sequence[str],
    description: str | None,
) -> S:
    """Return the settings that a command line asks for.

    Args:
        program: name of the script in messages.
        kind: dataclass of the settings.
        words: the command line, without the name of the program.
        description: what `--help` shows above the options.

    Raises:
        SystemExit: 0 after help and version; 2, after a line on stderr, where an option is wrong.
    """
    line = CommandLine(
        program,
        dataclasses.fields(kind),  # type: ignore[arg-type]
        mark="_",
        usage=f"{program} [--OPTION=VALUE ...]",
        description=description or "",
        aliases={"model_id": "preset", "quantize_weights": "quantize_weight"},
    )
    return kind(**line.parse(words))


def split_name(value: str) -> tuple[str, str]:
    """Return data set and split of `tfds:DATASET:SPLIT`; a part is empty where it is missing."""
    name, _, split = value.removeprefix(TFDS).rpartition(":")
    return name, split
