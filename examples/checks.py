"""Checks of options that the example programs share."""

from __future__ import annotations

import importlib.util
import os

from examples.settings import FORMATS, TFDS, ModelSettings, split_name
from fileio.messages import printable
from runs.checks import folder_problems
from tfquant.training_args import ARGUMENTS

_PACKAGES = {"keras_hub": "keras-hub"}  # module -> name of its package


def model_problems(settings: ModelSettings) -> list[str]:
    """Return a problem for a preset, recipe or output folder that cannot be used."""
    problems = preset_problems(settings.preset) + _recipe_problems(settings)
    if settings.output_dir:
        problems += folder_problems(settings.output_dir, f"--output_dir={settings.output_dir}")
    return problems


def preset_problems(preset: str | None) -> list[str]:
    """Return a problem for a KerasHub preset that cannot be read, or if KerasHub is missing."""
    problems = []
    missing = [name for module, name in _PACKAGES.items() if not importlib.util.find_spec(module)]
    if missing:
        problems.append(f"{', '.join(missing)} is not installed: pip install -e '.[examples]'")
    if not preset:
        problems.append("--preset is missing: give the name of a KerasHub preset or its folder")
    elif os.path.isdir(preset):
        if not os.path.isfile(os.path.join(preset, "config.json")):
            problems.append(f"--preset={preset}: the folder holds no config.json of a preset")
    elif preset.startswith((".", "/", "~")) or os.path.exists(preset):
        problems.append(f"--preset={preset}: there is no such folder")
    return problems


def _recipe_problems(settings: ModelSettings) -> list[str]:
    changed = [name for name in FORMATS if settings.formats[name] != ARGUMENTS[name].default]
    if settings.recipe is not None and changed:
        return [
            f"--{changed[0]} describes another quantization than --recipe={settings.recipe}: leave"
            " one out"
        ]
    if not settings.quantizes:
        return [f"--{name} has no effect without --activation or --weight" for name in changed]
    try:
        settings.quantization()
    except (ValueError, OSError) as error:
        where = f"--recipe={settings.recipe}: " if settings.recipe is not None else ""
        return [f"{where}{error}"]
    return []


def data_problems(name: str, value: str | None, kind: str, *, needed: bool = True) -> list[str]:
    """Return a problem if data are not there.

    Args:
        name: of the option.
        value: of the option: a path, or `tfds:DATASET:SPLIT`.
        kind: "file" or "folder", what a path must be.
        needed: whether the option must be set.
    """
    if not value:
        return [f"--{name} is missing: give a {kind} or tfds:DATASET:SPLIT"] if needed else []
    if value.startswith(TFDS):
        if not all(split_name(value)):
            return [f"--{name}={value}: must be written tfds:DATASET:SPLIT"]
        return []
    exists = os.path.isfile if kind == "file" else os.path.isdir
    return [] if exists(value) else [f"--{name}={printable(value)}: there is no such {kind}"]
