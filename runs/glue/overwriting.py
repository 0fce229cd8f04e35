"""--overwrite-output: removal of the files that an earlier run left in its folder."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from typing import Any

from fileio.messages import printable
from runs import folders, resume
from runs.eight_bit import DENSITIES, HISTOGRAMS, RANGES
from runs.glue import networks
from runs.glue.networks import COMPANIONS, CONFIG, NAME, OUT
from runs.glue.settings import Settings
from runs.logging import log
from tasks.files import read_text
from tfquant.export.targets import TARGETS

RECORD, FINISHED = "config.out", "results.json"  # which a run writes first and last
_EXPONENTS = "|".join(map(re.escape, (HISTOGRAMS, RANGES, DENSITIES)))
_OWN = re.compile(
    rf"{_EXPONENTS}|(block_\d+|outside_blocks)_distribution\.png"
    rf"|config\.out|results\.json|final_score\.txt|eval_results_[a-z0-9-]+\.txt|checkpoint|model\.ckpt-\d+\.{folders.CHECKPOINT}"
)
_EXPORTED = {target.file for target in TARGETS.values() if target.suffix} | {
    "model.bin"
}  # OpenVINO's weights
_OF_OUT = re.compile(
    rf"{'|'.join(map(re.escape, (CONFIG, *COMPANIONS)))}|checkpoint"
    rf"|{re.escape(NAME)}\.{folders.CHECKPOINT}"
    rf"|({'|'.join(map(re.escape, sorted(_EXPORTED)))})(\.data)?"
)
# Folders that are exported, below OUT, the inner ones first, with the files that they hold.
_EXPORTED_FOLDERS = {
    ("saved_model", "variables"): re.compile(rf"variables\.{folders.CHECKPOINT}"),
    ("saved_model", "assets"): re.compile("(?!)"),
    ("saved_model",): re.compile(r"saved_model\.pb|fingerprint\.pb"),
    ("fastertransformer",): re.compile(rf"checkpoint|model\.ckpt\.{folders.CHECKPOINT}"),
}


def check(directory: str, sources: dict[str, str]) -> None:
    """Refuse to overwrite what the run reads, and checkpoints that no run left.

    Args:
        directory: output folder of one task and seed.
        sources: option -> folder of a model that the run reads.

    Raises:
        ValueError: says what and why.
    """
    files = list(_files(directory))
    for named, folder in sources.items():
        for path in folders.same_files(files, networks.files_of(folder)):
            raise ValueError(
                f"--overwrite-output: would remove {printable(path)}, which {named} reads: name"
                " another --output-dir, or leave --overwrite-output out to go on with the run"
                " in it"
            )
    if _record(directory) is None and resume.last_checkpoint(directory):
        raise ValueError(
            f"--overwrite-output: {printable(directory)} holds checkpoints and no {RECORD} of a run"
            " that left them: remove them yourself, or name another --output-dir"
        )


def start_over(directory: str, settings: Settings, ranks: int) -> None:
    """Remove an earlier run, unless it is this one, interrupted before its end, which resumes."""
    saved = resume.last_checkpoint(directory)
    finished = os.path.exists(os.path.join(directory, FINISHED))
    if saved and not finished and resume.is_same_run(saved, settings, ranks):
        log(
            f"--overwrite-output: {directory} holds a run of the same options that was cut off;"
            " training resumes"
        )
        return
    exported = [os.path.join(directory, OUT, *parts) for parts in _EXPORTED_FOLDERS]
    folders.remove(
        list(_files(directory)), [*exported, os.path.join(directory, OUT), *_logs(directory)]
    )


def _files(directory: str) -> Iterator[str]:
    """Yield the paths of files that an earlier run left; links are not followed."""
    record = _record(directory)
    if record is None:
        return
    yield from folders.matching(directory, _OWN)
    if record.get("save_model") or record.get("export"):
        out = os.path.join(directory, OUT)
        yield from folders.matching(out, _OF_OUT)
        for parts, pattern in _EXPORTED_FOLDERS.items():
            above = [os.path.join(out, *parts[:depth]) for depth in range(len(parts))]
            if not any(os.path.islink(folder) for folder in above):
                yield from folders.matching(os.path.join(out, *parts), pattern)
    for folder in _logs(directory):
        yield from folders.matching(folder, folders.EVENTS)


def _logs(directory: str) -> list[str]:
    """Return TensorBoard folders that the earlier run made below its own, the inner one first."""
    name = (_record(directory) or {}).get("run_name")
    outer = os.path.join(directory, "tb_logs")
    inner = (
        [os.path.join(outer, name)]
        if isinstance(name, str) and os.path.basename(name) == name and name
        else []
    )
    return [*inner, outer]


def _record(directory: str) -> dict[str, Any] | None:
    """Return the settings of the run that left its files in a folder; None where there is none."""
    try:
        result = ast.literal_eval(read_text(os.path.join(directory, RECORD), limit=1 << 20))
    except (OSError, ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return (
        result
        if isinstance(result, dict)
        and {"mode", "task", "output_dir", "overwrite_output"} <= set(result)
        else None
    )
