"""Checks of the options of run_wikitext.py."""

from examples.checks import data_problems, model_problems
from examples.wikitext.settings import Settings
from runs.checks import refuse, size_problems, value_problems


def check(settings: Settings) -> None:
    """Refuse invalid options before anything is computed.

    Raises:
        FlagError: lists every problem with its option and what to do.
    """
    problems = value_problems(settings) + model_problems(settings)
    problems += data_problems("text_file", settings.text_file, "file")
    problems += data_problems("calibration_file", settings.calibration_file, "file", needed=False)
    if settings.stride > settings.max_length:
        problems.append(
            f"--stride={settings.stride}: must be at most --max_length ({settings.max_length}), or"
            " tokens between two windows are never scored"
        )
    if settings.calibration_file and not settings.recipe:
        problems.append("--calibration_file only applies with --recipe: set that as well")
    refuse(problems + size_problems(problems, settings), settings)
