"""The check of what a run reads, for all its tasks and seeds before the first one starts: models and data."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from glue_run.data import read, reads_files, validation_splits
from glue_run.networks import check_head, folder_of, weights_of
from glue_run.settings import Settings
from glue_run.teachers import check_teacher
from runs.settings import FlagError
from tasks import glue
from tfquant.store import holds_ranges


def check_inputs(runs: Sequence[Settings]) -> None:
    """Refuses a run that would fail at one of its later tasks.

    Args:
        runs: settings of each run, of one task and one seed.

    Raises:
        FlagError: a model or data are not there, or a file of data cannot be read; the message lists all of it.
    """
    problems = [str(error) for look in _looks(runs) if (error := _error_of(look)) is not None]
    if problems:
        raise FlagError("\n".join(f"  {problem}" for problem in dict.fromkeys(problems)))


def _looks(runs: Sequence[Settings]) -> Iterator[Callable[[], Any]]:
    seen = set()
    for settings in runs:
        task = glue.TASKS[settings.tasks[0]]
        yield lambda task=task, settings=settings: _model(task, settings)
        if reads_files(settings) and task.name not in seen:
            for split in _splits(task, settings):
                yield lambda task=task, split=split, settings=settings: read(task, split, settings, progress=False)
        seen.add(task.name)


def _model(task: glue.Task, settings: Settings) -> None:
    folder = folder_of(task, settings)
    if settings.quantizes and settings.qmethod is None and not holds_ranges(weights_of(folder)):
        raise ValueError(f"--qmethod is missing: symmetric_uniform or asymmetric_uniform, as {folder} is not quantized")
    if settings.mode != "train-baseline":  # whose head is new
        check_head(folder, task, f"--model-path={folder}")
    if settings.distillation:
        check_teacher(task, folder, settings)


def _splits(task: glue.Task, settings: Settings) -> list[str]:
    """What the run is certain to read."""
    scored = settings.do_eval or not settings.trains or settings.eval_strategy != "no"
    return (["train"] if settings.trains else []) + (list(validation_splits(task, settings)) if scored else [])


def _error_of(look: Callable[[], Any]) -> Exception | None:
    try:
        look()
    except (ValueError, OSError) as error:
        return error
    return None
