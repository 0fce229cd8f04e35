"""The check of the flags about a teacher, before any work."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import modeling
from runs import teaching
from tfquant.training.distillation import layer_pairs

if TYPE_CHECKING:
    from squad_run.flags import Settings


def contradictions(s: Settings) -> list[str]:
    """What can be seen without reading a file."""
    if not s.distillation:
        return [f"--{name} is used with --distillation only: set that, or leave it out" for name in teaching.given(s)]
    problems = []
    if not s.teacher:
        problems.append("--distillation needs --teacher: the checkpoint that teaches")
    if not s.do_train:
        problems.append("--distillation is a way to train: set --do_train as well")
    problems += teaching.contradictions(s, lambda name, value=None: f"--{name}" if value is None else f"--{name}={value}")
    if s.distillation_layers and not (s.distillation_hidden_scale or s.distillation_attention_scale):
        problems.append(
            "--distillation_layers has no effect without --distillation_hidden_scale or --distillation_attention_scale: "
            "set one of them, or leave it out"
        )
    try:
        parse_layers(s.distillation_layers)
    except ValueError as error:
        problems.append(str(error))
    return problems


def parse_layers(text: str) -> dict[int, int] | None:
    """`0:1,1:3` -> {0: 1, 1: 3}; None if nothing is given.

    Raises:
        ValueError: the text is something else.
    """
    if not text:
        return None
    pairs = [re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", part) for part in text.split(",")]
    layers = {int(pair[1]): int(pair[2]) for pair in pairs if pair}
    if len(layers) != len(pairs):
        raise ValueError(
            f"--distillation_layers={text}: must be pairs student:teacher with each layer of the student once, such as 0:1,1:3"
        )
    return layers


def misfits(s: Settings, student: modeling.BertConfig) -> list[str]:
    """What student and teacher have to agree on.

    Raises:
        ValueError, OSError: the teacher's configuration cannot be read.
    """
    file = s.teacher_config_file or s.bert_config_file
    teacher = modeling.BertConfig.from_json_file(file)
    problems = []
    if teacher.vocab_size != student.vocab_size:
        problems.append(
            f"--teacher_config_file={file}: the teacher has {teacher.vocab_size} word pieces, the student {student.vocab_size} "
            f"({s.bert_config_file}): both read the same text, so take a teacher with the student's vocabulary"
        )
    if s.max_seq_length > teacher.max_position_embeddings:
        problems.append(
            f"--max_seq_length={s.max_seq_length}: the teacher of {file} has only {teacher.max_position_embeddings} positions"
        )
    if s.distillation_hidden_scale or s.distillation_attention_scale:
        flag = f"--distillation_layers={s.distillation_layers or '(not given)'}"
        try:
            layer_pairs(student.num_hidden_layers, teacher.num_hidden_layers, parse_layers(s.distillation_layers))
        except ValueError as error:
            problems.append(f"{flag}: {error}")
    return problems
