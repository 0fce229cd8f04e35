"""Checks of the files of a model against each other and against the flags: configuration,
vocabulary, checkpoint and teacher.
"""

import os

import modeling
from runs.distillation_options import teacher_problems
from runs.squad.flags import Settings
from tasks import squad
from tasks.byte_level import ByteLevelTokenizer
from tasks.tokenizer import VOCABULARIES
from tfquant.training.sparsity import parse_pattern

WITH_SEGMENTS = ("bert", "mobilebert")  # architectures that read segment ids
WORDPIECE = "WordPiece (vocab.txt or tokenizer.json)"
BYTE_LEVEL = "byte-level BPE (vocab.json with merges.txt, or tokenizer.json)"


def model_problems(s: Settings) -> list[str]:
    """Return contradictions between configuration, vocabulary, checkpoint and teacher."""
    problems = []
    try:
        config = modeling.config_from_file(s.bert_config_file)
        if s.max_seq_length > config.max_sequence_length:
            problems.append(
                f"--max_seq_length={s.max_seq_length}: the model of {s.bert_config_file} has only "
                f"{config.max_sequence_length} positions"
            )
        if config.model_type in WITH_SEGMENTS and config.num_segments < 2:
            problems.append(
                f"--bert_config_file={s.bert_config_file}: type_vocab_size {config.num_segments}"
                " has no segment for the paragraph: SQuAD wants a model with at least 2"
            )
        if s.do_export and s.target == "fastertransformer" and config.model_type != "bert":
            problems.append(
                f"--export_target=fastertransformer is for BERT, the model of {s.bert_config_file}"
                f" is a {config.title}: name another target"
            )
        modeling.check_memory(config)
        block = parse_pattern(s.sparsity)[1] if s.sparsity else 1
        for name in dict.fromkeys(("hidden_size", "intermediate_size", *config.split_by_heads)):
            if getattr(config, name) % block:
                problems.append(
                    f"--sparsity={s.sparsity}: {config.file_keys.get(name, name)}"
                    f" {getattr(config, name)} is no multiple of {block}"
                )
        tokenizer = squad.load_tokenizer(s.vocab_file, lower_case=s.do_lower_case)
        tokenizer.encode(["a"])
        problems += _tokenizer(config, tokenizer, s)
        if s.distillation:
            problems += _teacher(config, tokenizer, s)
        if not isinstance(tokenizer, ByteLevelTokenizer):
            problems += _lower_case(s)
    except (ValueError, OSError) as error:
        problems.append(str(error))
    return problems


def _tokenizer(
    config: modeling.Config, tokenizer: squad.LibraryTokenizer, s: Settings
) -> list[str]:
    """Return contradictions between vocabulary and configuration."""
    flag = f"--vocab_file={s.vocab_file}"
    if kind_of(tokenizer) != kind_read_by(config):
        return [
            f"{flag} is {kind_of(tokenizer)}, the {config.title} of {s.bert_config_file} reads"
            f" {kind_read_by(config)}: give the vocabulary that came with it"
        ]
    problems = no_room(s, tokenizer.separators)
    if tokenizer.num_ids > config.vocab_size:
        problems.append(
            f"{flag} has {tokenizer.num_ids} pieces, the model of"
            f" {s.bert_config_file} only {config.vocab_size}: give those that belong together"
        )
    pad_id = getattr(config, "pad_token_id", tokenizer.pad_id)
    if pad_id != tokenizer.pad_id:
        problems.append(
            f"{flag}: id of <pad> is {tokenizer.pad_id}, pad_token_id of {s.bert_config_file}, from"
            f" which positions are counted, is {pad_id}: give those that belong together"
        )
    return problems


def kind_of(tokenizer: squad.LibraryTokenizer) -> str:
    return BYTE_LEVEL if isinstance(tokenizer, ByteLevelTokenizer) else WORDPIECE


def kind_read_by(config: modeling.Config) -> str:
    """Return the kind of vocabulary that the models of an architecture are published with."""
    return BYTE_LEVEL if config.model_type == "roberta" else WORDPIECE


def _teacher(config: modeling.Config, tokenizer: squad.LibraryTokenizer, s: Settings) -> list[str]:
    """Return problems of the teacher, which reads the windows of the student."""
    file = s.teacher_config_file or s.bert_config_file
    teacher = modeling.config_from_file(file)
    flag = f"--teacher_config_file={file}"
    if kind_read_by(teacher) != kind_read_by(config):
        return [
            f"{flag}: a {teacher.title} reads {kind_read_by(teacher)}, the student"
            f" {kind_read_by(config)}: both read the same pieces, so take a teacher with the"
            " student's vocabulary"
        ]
    problems = teacher_problems(config, teacher, s, flag)
    pads = [getattr(one, "pad_token_id", None) for one in (teacher, config)]
    if pads[0] != pads[1]:
        problems.append(
            f"{flag}: pad_token_id is {pads[0]}, that of the student {pads[1]}: take a teacher with"
            " the student's vocabulary"
        )
    folder = s.teacher if os.path.isdir(s.teacher) else os.path.dirname(s.teacher) or "."
    own = any(os.path.isfile(os.path.join(folder, name)) for name in VOCABULARIES)
    if own and squad.load_tokenizer(folder).vocab != tokenizer.vocab:
        problems.append(
            f"--teacher={s.teacher}: the vocabulary beside it is not that of --vocab_file: both"
            " read the same pieces, so take a teacher with the student's vocabulary"
        )
    return problems


def _lower_case(s: Settings) -> list[str]:
    """Return a problem for each file of a model whose case is not that of --do_lower_case."""
    problems = []
    for name in ("vocab_file", "init_checkpoint", "teacher"):
        path = getattr(s, name)
        result = modeling.detect_lower_case(path) if path else None
        if result not in (None, s.do_lower_case):
            problems.append(
                f"--do_lower_case={s.do_lower_case}, but --{name}={path} is"
                f" {'uncased' if result else 'cased'}: set --do_lower_case={result}"
            )
    return problems


def no_room(s: Settings, separators: int) -> list[str]:
    """Return a problem if a question leaves no room for the paragraph.

    Args:
        s: settings of the run.
        separators: number of separators between question and paragraph.
    """
    special = 2 + separators
    if s.max_seq_length > s.max_query_length + special:
        return []
    return [
        f"--max_seq_length={s.max_seq_length}: must be above --max_query_length"
        f" ({s.max_query_length}) + {special}, or there is no room for the paragraph"
    ]
