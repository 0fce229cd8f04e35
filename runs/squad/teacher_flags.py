"""The check of the flags about a teacher, before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import modeling
from runs import distillation_options

if TYPE_CHECKING:
    from runs.squad.flags import Settings


def contradictions(s: Settings) -> list[str]:
    """What can be seen without reading a file."""
    if not s.distillation:
        return [
            f"--{name} is used with --distillation only: set that, or leave it out"
            for name in distillation_options.given(s)
        ]
    problems = []
    if not s.teacher:
        problems.append("--distillation needs --teacher: the checkpoint that teaches")
    if not s.do_train:
        problems.append("--distillation is a way to train: set --do_train as well")
    return problems + distillation_options.contradictions(s, written)


def written(name: str, value: Any = None) -> str:
    """A flag as it is written on the command line, with its value if that is given."""
    return f"--{name}" if value is None else f"--{name}={value}"


def misfits(s: Settings, student: modeling.BertConfig) -> list[str]:
    """What student and teacher have to agree on.

    Raises:
        ValueError, OSError: the teacher's configuration cannot be read.
    """
    file = s.teacher_config_file or s.bert_config_file
    teacher = modeling.BertConfig.from_json_file(file)
    return distillation_options.misfits(
        student, teacher, s, written, f"--teacher_config_file={file}"
    )
