"""Checks of the options of run_wikitext.py."""

from examples.checks import data_problems, model_problems
from examples.wikitext.settings import Settings
from runs.checks import refuse, size_problems, value_problems
from tfquant.training_args import recipe_of_args


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
    if settings.calibration_file and not (settings.quantizes or settings.sweep):
        problems.append(
            "--calibration_file only applies with --recipe, --activation, --weight or --sweep: set"
            " one of them"
        )
    if settings.sweep:
        problems += _sweep_problems(settings)
    refuse(problems + size_problems(problems, settings), settings)


def _sweep_problems(settings: Settings) -> list[str]:
    problems = []
    if settings.quantizes:
        problems.append("--sweep describes several quantizations: leave other ones out")
    if not settings.output_dir:
        problems.append("--sweep: set --output_dir, where the table is written")
    for spec in settings.sweep_formats:
        try:
            recipe_of_args({"activation": spec, "weight": spec})
        except ValueError as error:
            problems.append(f"--sweep_formats={spec}: {error}")
    return problems
