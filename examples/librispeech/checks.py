"""Checks of the options of run_librispeech.py."""

import dataclasses
import importlib.util
import os

from examples.checks import data_problems, model_problems
from examples.librispeech.settings import Settings
from runs.checks import folder_problems, refuse, size_problems, value_problems

_PACKAGES = {
    "jiwer": "jiwer",
    "soundfile": "soundfile",
    "whisper_normalizer": "whisper-normalizer",
}


def check(settings: Settings) -> None:
    """Refuse invalid options before anything is computed.

    Raises:
        FlagError: lists every problem with its option and what to do.
    """
    problems = value_problems(settings)
    missing = [name for module, name in _PACKAGES.items() if not importlib.util.find_spec(module)]
    if missing:
        problems.append(f"{', '.join(missing)} is not installed: pip install -e '.[examples]'")
    if settings.compare:
        problems += _comparison(settings)
    else:
        problems += model_problems(settings)
        problems += data_problems("data_dir", settings.data_dir, "folder")
        problems += data_problems(
            "calibration_dir", settings.calibration_dir, "folder", needed=False
        )
        if settings.calibration_dir and not settings.quantizes:
            problems.append(
                "--calibration_dir only applies with --recipe, --activation or --weight: set"
                " one of them"
            )
    refuse(problems + size_problems(problems, settings), settings)


def _comparison(settings: Settings) -> list[str]:
    """Return problems of a run that only compares two others."""
    problems = []
    if len(settings.compare) != 2:
        problems.append(f"--compare: takes two folders, got {len(settings.compare)}")
    problems += [
        f"--compare={folder}: there is no such folder"
        for folder in settings.compare
        if not os.path.isdir(folder)
    ]
    if settings.output_dir is None:
        problems.append("--compare: set --output_dir, where the comparison is written")
    else:
        problems += folder_problems(settings.output_dir, f"--output_dir={settings.output_dir}")
    used = {"compare", "output_dir"}
    problems += [
        f"--{field.name} has no effect with --compare: leave it out"
        for field in dataclasses.fields(Settings)
        if field.name not in used and getattr(settings, field.name) != field.default
    ]
    return problems
