"""The tab-separated files of `glue_data`, as they are in circulation.

Nothing is quoted in them, whatever quotation marks they hold; only a line feed ends a line. Columns
are found by the names in the header, so that files with added or reordered columns read as well,
and so do those that use the field names of the public loaders (`premise`, `label`).
"""

from __future__ import annotations

import logging
import os

from tasks.glue.examples import Examples, ExamplesBuilder, GlueFormatError, reading
from tasks.glue.task import TASKS, Task, check_split, plain_name, task_named

logger = logging.getLogger(__name__)

# Beside `train.tsv` and `test.tsv`, what is called validation elsewhere is called dev in
# `glue_data`.
_DEV = ("validation", "dev")


def read(
    task: str | Task, data_dir: str | os.PathLike[str], split: str, *, progress: bool = True
) -> Examples:
    """Read a split of a task from local files.

    Args:
        task: the task or its name.
        data_dir: a folder in the layout of `glue_data` (`CoLA/train.tsv`, `MNLI/dev_matched.tsv`,
          ...; names of folders
            in any case, with or without "-"), or the folder of the task itself.
        split: one of `task.splits`; the labels of test splits are not read, as GLUE keeps them to
          itself.
        progress: show a bar when it takes more than a second.

    Returns:
        The rows in file order. Lines of QQP with too few columns are left out; one warning says how
        many.

    Raises:
        FileNotFoundError: no such file; says where it was looked for and how to get it.
        GlueFormatError: not UTF-8, a column is missing, a line is malformed or has a label that the
          task does not have.
        ValueError: no such task or split.
    """
    task = task_named(task)
    check_split(task, split)
    path = _find(task, os.fspath(data_dir), split)
    labelled = split not in task.test_splits
    lines = _lines(path)
    header, first = _header(task, lines, path)
    columns = _columns(task, header, labelled, path)
    builder = ExamplesBuilder(task)
    short: list[int] = []
    for number, line in enumerate(reading(lines[first:], task, progress), first + 1):
        cells = line.split("\t")
        if task.short_lines and len(cells) < len(header):
            short.append(number)
            continue
        place = f"{path}: line {number}"
        if len(cells) != len(header):
            raise GlueFormatError(
                f"{place}: {len(cells)} columns where {len(header)} are expected"
                f" ({', '.join(header)})"
            )
        *texts, label = (None if column is None else cells[column] for column in columns)
        builder.add(texts, label, place)
    if short:
        logger.warning(
            "%s: skipped %d of %d lines that have too few columns (first: line %d)",
            path,
            len(short),
            len(lines) - first,
            short[0],
        )
    return builder.finish(path)


def _find(task: Task, data_dir: str, split: str) -> str:
    """Return the path of the split's file."""
    names = [f"{split}.tsv"]
    if split.startswith(_DEV[0]):
        names.insert(0, f"{split.replace(*_DEV)}.tsv")
    try:
        result = sorted(os.listdir(data_dir))
    except OSError as error:
        raise FileNotFoundError(
            f"GLUE data folder {data_dir} cannot be read: {error.strerror}"
        ) from error
    folders = [os.path.join(data_dir, name) for name in result if plain_name(name) == task.name]
    # The folder spelled as GLUE spells it comes first. The given one may be that of the task, but
    # not that of another: files of RTE would pass for those of WNLI.
    folders.sort(key=lambda folder: os.path.basename(folder) != task.directory)
    if plain_name(os.path.basename(os.path.abspath(data_dir))) not in TASKS.keys() - {task.name}:
        folders.append(data_dir)
    for folder in folders:
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                return path
    raise FileNotFoundError(
        f"no {' or '.join(names)} of {task.name} in {' or '.join(folders or [data_dir])}; unpack"
        f" {task.directory}.zip of gluebenchmark.com/tasks there, or read it from TensorFlow"
        " Datasets"
    )


def _lines(path: str) -> list[str]:
    """Return the lines of a file without their ends and without empty ones behind the last."""
    with open(path, "rb") as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")  # MRPC's begin with a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise GlueFormatError(f"{path}: line {line}: not UTF-8 text: {error.reason}") from error
    # Not splitlines, which would also cut at characters that occur inside of texts.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise GlueFormatError(f"{path}: the file is empty")
    return lines


def _header(task: Task, lines: list[str], path: str) -> tuple[list[str], int]:
    """Return the names of the columns and the index of the first line of data."""
    cells = [cell.strip() for cell in lines[0].split("\t")]
    if task.headless and not set(task.fields) <= {cell.lower() for cell in cells}:
        return list(task.headless), 0
    return cells, 1


def _columns(task: Task, header: list[str], labelled: bool, path: str) -> list[int | None]:
    """Return the index of each text's column and of the label's (None: not to be read)."""
    known = {name.lower(): index for index, name in enumerate(header)}
    wanted = [*zip(task.columns, task.fields, strict=True)]
    if labelled:
        wanted.append((task.label_column, "label"))
    columns: list[int | None] = []
    for names in wanted:
        index = next((known[name.lower()] for name in names if name.lower() in known), None)
        if index is None:
            asked = " or ".join(map(repr, dict.fromkeys(names)))
            raise GlueFormatError(
                f"{path}: line 1: no column {asked} (found {', '.join(map(repr, header[:16]))})"
            )
        columns.append(index)
    return columns if labelled else [*columns, None]
