"""Resuming: checks against the run that wrote a checkpoint, and its steps on another number of
ranks.

Every checkpoint of training holds the flags that decide what is computed, and the number of
processes. A run that resumes with other flags is refused. One that resumes in another number of
processes makes the same steps: the examples of a step, the learning rate and the order of the data
are those the run was started with, and each process takes more or less of them.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from typing import Any

from fileio.messages import printable
from runs.logging import log
from runs.settings import CONTENT, FREE, SAME, FlagError, StepNames
from tasks.files import parse_json
from tfquant import checkpoint
from tfquant.training.state import STATE

RUN = STATE + "run"  # name in a checkpoint


@dataclasses.dataclass(frozen=True)
class TrainingSchedule:
    """Partition of training into steps, batches and parts, independent of the number of ranks.

    Attributes:
        batch: examples that are planned together, and so have like lengths.
        batches: how many of them make a step.
        ranks: processes the run was started in.
        learning_rate: its highest value, that of the flag for each of them.
        parts: what a planned batch is cut into; the parts of a run are distributed to its processes
          in turn.
        own: parts of a step that each process computes.
        record: JSON for the checkpoints of the run.
    """

    batch: int
    batches: int
    ranks: int
    learning_rate: float
    parts: int
    own: int
    record: str

    @property
    def examples(self) -> int:
        """Examples of a step."""
        return self.batch * self.batches

    def relative_rate(self, rate: float | None) -> float:
        """Return a learning rate of one process, relative to that of the weights; 1 for None."""
        return 1.0 if rate is None else rate * self.ranks / self.learning_rate


def last_checkpoint(directory: str) -> str | None:
    """Return the prefix of the training checkpoint with the highest step, None without one."""
    saved = checkpoint.steps(directory)
    return saved[-1][1] if saved else None


def training_schedule(prefix: str | None, settings: Any, ranks: int) -> TrainingSchedule:
    """Return the schedule of a new run, or of the run that wrote a checkpoint.

    Args:
        prefix: last checkpoint of the run that is resumed, None for a new run.
        settings: those of this run; `STEPS` names the fields that make a step.
        ranks: number of processes.

    Raises:
        FlagError: lists all flags that contradict those the run was started with.
    """
    now = record_of(settings, ranks)
    if prefix is None:
        return _schedule(now, settings, ranks)
    result = checkpoint.read(prefix)
    if RUN not in result:
        log(
            f"{prefix} records no flags (an earlier version wrote it):"
            " resuming with the present ones"
        )
        return _schedule(now, settings, ranks)
    before = _read_record(result, settings, prefix)
    problems = _differences(before, now, settings, prefix)
    if problems:
        raise FlagError(
            "\n".join(f"  {problem}" for problem in problems)
            + f"\n{prefix} is of a run that was started with other flags: give the same to resume"
            " it, or another --output_dir"
        )
    schedule = _schedule(before, settings, ranks)
    if ranks != schedule.ranks or schedule.parts != schedule.ranks:
        log(
            f"started in {_processes(schedule.ranks)}, resumed in {_processes(ranks)}: a step"
            f" keeps its {schedule.examples} {settings.STEPS.unit} ({schedule.own} x"
            f" {-(-schedule.batch // schedule.parts)} in each process), the learning rate its"
            f" highest value of {schedule.learning_rate:g}, and the data its order; dropout draws"
            " other numbers"
            + (
                ", and moving ranges follow other batches"
                if getattr(settings, "range_update", None) == "moving_average"
                else ""
            )
        )
    return schedule


def is_same_run(prefix: str, settings: Any, ranks: int) -> bool:
    """Whether a checkpoint is of a run with these flags, so that the run can resume from it."""
    try:
        result = checkpoint.read(prefix)
        if RUN not in result:
            return False
        before = _read_record(result, settings, prefix)
    except (OSError, ValueError):  # damaged
        return False
    return not _differences(before, record_of(settings, ranks), settings, prefix)


def _read_record(found: checkpoint.Checkpoint, settings: Any, prefix: str) -> dict[str, Any]:
    """Return the record that a checkpoint holds of its run.

    Raises:
        ValueError: it is damaged.
    """
    shown = f"checkpoint {printable(prefix)}: the record of its run is damaged"
    hint = "train from another checkpoint, or start over in another output folder"
    try:
        text = found[RUN]
        record = parse_json(text if isinstance(text, str) else "", "record")
    except ValueError as error:
        raise ValueError(f"{shown} ({error}): {hint}") from error
    flags, names = record.get("flags"), settings.STEPS
    if not isinstance(flags, dict) or not _is_count(record.get("ranks")):
        raise ValueError(f"{shown} (no flags, or no number of processes): {hint}")
    rate = flags.get(names.rate)
    if not (
        _is_count(flags.get(names.batch))
        and _is_count(flags.get(names.batches))
        and isinstance(rate, int | float)
        and not isinstance(rate, bool)
        and rate > 0
    ):
        raise ValueError(f"{shown} ({names.batch}, {names.batches} or {names.rate}): {hint}")
    for field in dataclasses.fields(settings):
        was = flags.get(field.name)
        whole = was is None or (isinstance(was, dict) and {"path", "holds"} <= set(was))
        if field.metadata["resume"] == CONTENT and not whole:
            raise ValueError(f"{shown} ({field.name}): {hint}")
    return record


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def record_of(settings: Any, ranks: int) -> dict[str, Any]:
    """Return the record of a run for its checkpoints."""
    flags = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.metadata["resume"] == SAME:
            flags[field.name] = (
                list(value) if isinstance(value, tuple) else value
            )  # as JSON gives it back
        elif field.metadata["resume"] == CONTENT:
            flags[field.name] = {"path": value, "holds": content(value)} if value else None
    return {"ranks": ranks, "flags": flags}


def content(path: str) -> str:
    """Return a hash of the file, checkpoint or Hugging Face folder of that name; for a name that is
    none of these, the name.

    That of a vocab.json includes the merges.txt beside it, which is read with it.
    """
    place = pathlib.Path(path)
    if os.path.isfile(path + checkpoint.INDEX):  # holds a checksum of every tensor
        files = [pathlib.Path(path + checkpoint.INDEX)]
    else:
        result = [*place.glob("*.safetensors"), *place.glob(f"*.ckpt{checkpoint.INDEX}")]
        files = sorted(result) if place.is_dir() else [place] if place.is_file() else []
        merges = place.with_name("merges.txt")
        if files and place.name.endswith("vocab.json") and merges.is_file():
            files.append(merges)
    total = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest() if files else path


def _schedule(record: dict[str, Any], settings: Any, ranks: int) -> TrainingSchedule:
    """Return the schedule of a recorded run on another number of ranks."""
    flags, before, names = record["flags"], record["ranks"], settings.STEPS
    batch, batches, largest = (
        flags[names.batch] * before,
        flags[names.batches],
        getattr(settings, names.batch),
    )
    # Every process computes equally many parts of a step, and of a planned batch no part is larger
    # than the flag says.
    common = math.gcd(ranks, batches)
    fewest, unit = (batch + largest - 1) // largest, ranks // common
    multiple = (fewest + unit - 1) // unit
    own, parts = multiple * (batches // common), multiple * (ranks // common)
    if parts > batch:
        raise ValueError(
            f"{ranks} processes are too many to resume with: the run was started with batches of"
            f" {batch} {names.unit}; start at most {batch}, or start over in another --output_dir"
        )
    return TrainingSchedule(
        batch, batches, before, flags[names.rate] * before, parts, own, json.dumps(record)
    )


def _differences(
    before: dict[str, Any], now: dict[str, Any], settings: Any, prefix: str
) -> list[str]:
    old, new, names = before["flags"], now["flags"], settings.STEPS
    # One process with twice the batch and the rate of two is the same run.
    same_step = _examples(before, names) == _examples(now, names)
    same_rate = old[names.rate] * before["ranks"] == new[names.rate] * now["ranks"]
    problems = []
    for field in dataclasses.fields(settings):
        name, kind = field.name, field.metadata["resume"]
        if (
            kind == FREE
            or (name in (names.batch, names.batches) and same_step)
            or (name == names.rate and same_rate)
        ):
            continue
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        was = old.get(name, default)  # a flag younger than the checkpoint had no effect then
        if kind == SAME and new[name] != was:
            then = "not given" if was in ("", None) else was
            problems.append(f"--{name}={new[name]}: was {then} when the run was started")
            if name == names.epochs:
                problems[-1] += (
                    ", and the learning rate falls over all epochs. To train for longer start from "
                    f"--init_checkpoint={prefix} in another --output_dir"
                )
        # A file that is not named is not read: what must be there is checked before.
        if kind == CONTENT and new[name] and new[name]["holds"] != (was or {}).get("holds"):
            then = f"holds something else than {was['path']} did" if was else "was not given"
            problems.append(f"--{name}={new[name]['path']}: {then} when the run was started")
    return problems


def _examples(record: dict[str, Any], names: StepNames) -> int:
    return record["flags"][names.batch] * record["flags"][names.batches] * record["ranks"]


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"
