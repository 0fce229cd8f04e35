"""Checks of models and data for all tasks and seeds of a run before the first one starts."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import modeling
from runs.checks import refuse
from runs.glue import overwriting
from runs.glue.data import read, reads_files, validation_splits
from runs.glue.networks import CONFIG, check_head, folder_of, weights_of
from runs.glue.settings import Settings
from runs.glue.teachers import check_teacher, teacher_of
from runs.settings import checked
from tasks import glue
from tasks.tokenizer import Tokenizer
from tfquant.store import holds_ranges


def check_inputs(runs: Sequence[Settings]) -> None:
    """Refuse a run that would fail at one of its later tasks.

    Args:
        runs: settings of each run, of one task and one seed.

    Raises:
        FlagError: a model or data are not there, or a file of data cannot be read; the message
          lists all of it.
    """
    problems = [str(error) for look in _looks(runs) if (error := _error_of(look)) is not None]
    refuse(problems, runs[0])


def _looks(runs: Sequence[Settings]) -> Iterator[Callable[[], Any]]:
    seen = set()
    for settings in runs:
        task = glue.TASKS[settings.tasks[0]]
        yield lambda task=task, settings=settings: _model(task, settings)
        for split in _splits(task, settings) if task.name not in seen else ():
            yield lambda task=task, split=split, settings=settings: _data(task, split, settings)
        seen.add(task.name)


def _data(task: glue.Task, split: str, settings: Settings) -> None:
    if reads_files(settings):
        read(task, split, settings, progress=False)
    else:
        glue.check_tfds(task, split, settings.data_dir.partition(":")[2] or None)


def _model(task: glue.Task, settings: Settings) -> None:
    folder = folder_of(task, settings)
    described = (
        settings.eight_bit
        or settings.incremental
        or settings.quant_recipe
        or settings.qmethod is not None
    )
    if settings.quantizes and not described and not holds_ranges(weights_of(folder)):
        raise ValueError(
            f"--qmethod is missing: symmetric_uniform or asymmetric_uniform, or --activation and"
            f" --weight with number formats, as {folder} is not"
            " quantized"
        )
    _check_sizes(folder, task, settings)
    if not settings.trains_new_head:
        check_head(folder, task, f"--model-path={folder}")
    if settings.distillation:
        check_teacher(task, folder, settings)
    if settings.trains and settings.overwrite_output:
        sources = {f"--model-path={folder}": folder}
        if settings.teacher:
            sources[f"--teacher={settings.teacher}"] = teacher_of(task, folder, settings)
        overwriting.check(checked(settings.output_dir), sources)


def _check_sizes(folder: str, task: glue.Task, settings: Settings) -> None:
    """Check that the model has embeddings for all ids, positions and segments.

    Raises:
        FileNotFoundError, ValueError: they do not fit, or a file of the model cannot be read.
    """
    config = modeling.config_from_file(os.path.join(folder, CONFIG))
    modeling.check_memory(config)
    if settings.max_seq_length > config.max_sequence_length:
        raise ValueError(
            f"--max-seq-length {settings.max_seq_length}: the model of {folder} has positions for"
            f" {config.length_limit}: lower it"
        )
    tokenizer = glue.load_tokenizer(folder)
    if tokenizer.num_ids > config.vocab_size:
        raise ValueError(
            f"--model-path={folder}: its vocabulary has ids up to {tokenizer.num_ids - 1},"
            f" vocab_size of its {CONFIG} is {config.vocab_size}: give files that belong together"
        )
    tokenizer.encode_sequences(
        ["a"], ["b"] if len(task.fields) == 2 else None, settings.max_seq_length
    )  # there is room
    wordpiece = isinstance(
        tokenizer, Tokenizer
    )  # which alone puts a second text into a segment of its own
    if (
        wordpiece
        and len(task.fields) == 2
        and config.model_type in ("bert", "mobilebert")
        and config.num_segments < 2
    ):
        raise ValueError(
            f"--model-path={folder}: type_vocab_size {config.num_segments} has no segment for the"
            f" second text of {task.name}"
        )


def _splits(task: glue.Task, settings: Settings) -> list[str]:
    """Return the splits that the run is certain to read."""
    scored = settings.do_eval or not settings.trains or settings.eval_strategy != "no"
    return (["train"] if settings.trains else []) + (
        list(validation_splits(task, settings)) if scored else []
    )


def _error_of(look: Callable[[], Any]) -> Exception | None:
    try:
        look()
    except (ValueError, OSError) as error:
        return error
    return None
