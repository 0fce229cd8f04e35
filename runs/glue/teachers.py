"""Teachers: their folder, their checks, and the network."""

import os
import pathlib
from typing import Any

import keras

import modeling
from runs.distillation_options import teacher_problems
from runs.glue import networks
from runs.glue.settings import Settings
from runs.networks import loaded_teacher
from tasks import glue
from tfquant.store import holds_ranges

VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt")


def teacher_of(task: glue.Task, source: str, settings: Settings) -> str:
    """Return the folder of the teacher: in --teacher, or where the model that is quantized comes
    from.

    Raises:
        FileNotFoundError, ValueError: there is no model, or more than one for the task, in
          --teacher.
    """
    return (
        networks.place_of(settings.teacher, "--teacher", task, settings)
        if settings.teacher
        else source
    )


def check_teacher(task: glue.Task, source: str, settings: Settings) -> None:
    """Refuse a teacher that does not fit the model of `source`, from the files, before anything is
    built.

    Raises:
        FileNotFoundError, ValueError: there is none, it has no weights, is of another task or
          vocabulary, or its layers do not
            pair up with the student's.
    """
    folder = teacher_of(task, source, settings)
    if folder == source:
        if holds_ranges(networks.weights_of(source)) and not settings.teacher_quantized:
            raise ValueError(
                f"--distillation: {source} is quantized, a teacher answers in float: name a float"
                " model in --teacher, or give --teacher-quantized"
            )
        return
    named = f"--teacher={folder}"
    if (trained := networks.trained_on(folder)) in glue.TASKS and trained != task.name:
        raise ValueError(f"{named}: was trained on {trained}, not on {task.name}")
    networks.check_head(folder, task, named)
    problems = [
        f"{named}: its {name} is not that of {source}"
        for name in VOCABULARIES
        if _differ(folder, source, name)
    ]
    if problems:
        raise ValueError(
            f"{problems[0]}: both read the same word pieces, so take a teacher with the student's"
            " vocabulary"
        )
    student, teacher = (
        modeling.config_from_file(os.path.join(place, networks.CONFIG))
        for place in (source, folder)
    )
    problems = teacher_problems(student, teacher, settings, named)
    if problems:
        raise ValueError("\n  ".join(problems))


def _differ(one: str, other: str, name: str) -> bool:
    """Whether both folders have a file of that name, and not the same lines in it."""
    files = [pathlib.Path(folder, name) for folder in (one, other)]
    if not all(file.is_file() for file in files):
        return False
    first, second = (file.read_text(encoding="utf-8").splitlines() for file in files)
    return first != second


def load_teacher(task: glue.Task, folder: str, settings: Settings, seed: int) -> Any:
    """Load the teacher, not trainable, in float or with --teacher-quantized as it is stored."""

    def load(teacher: keras.Model) -> None:
        networks.load_float(teacher, folder, new_head=False, who="teacher: ")

    return loaded_teacher(
        networks.build(folder, task, settings, seed),
        load,
        networks.weights_of(folder),
        quantized="--teacher-quantized" if settings.teacher_quantized else None,
    )
