"""Generated data sets in the layout of `glue_data`, one of each task, with a vocabulary and a tiny
BERT to learn them.

Sentences state facts about people, and each task asks of them what it asks of real text: whether
words are in order (CoLA), what somebody thinks (SST-2), whether two statements or questions say the
same (MRPC, QQP), how much two statements have in common (STS-B), what follows from a statement
(MNLI, RTE), whether it answers a question (QNLI) and whom a pronoun means (WNLI). No label can be
told from single words or, in the tasks on pairs, from one of the texts.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from tqdm import tqdm

from tasks.files import write_json, write_text
from tasks.glue.task import TASKS, TRAIN, Task
from tasks.synthetic_vocab import CONFIG, DISHES, PEOPLE, RELATIONS, Relation, all_texts, make_vocab

WOMEN = "Anna Carla Elena Greta Irene Karin Maria Olga Rosa Tanja Vera Zoe".split()
MEN = "Boris David Felix Henry Jonas Louis Nils Peter Simon Ulrich Walter".split()
GOOD = "delicious excellent fresh good lovely perfect pleasant wonderful".split()
BAD = "awful bad bland boring burnt dreadful horrible stale".split()
OPINIONS = (
    "the {dish} was {adjective}",
    "this {dish} is really {adjective} , says {name}",
    "{name} finds the {dish} {adjective}",
)
NEGATED_OPINIONS = (
    "the {dish} was not {adjective}",
    "this {dish} is never {adjective} , says {name}",
    "{name} does not find the {dish} {adjective}",
)
# Of each kind of thing: with few values a tiny network soon finds out that what matters is whether
# they are the same.
VALUES = 6
THANKS = "{} thanked {} because {} had helped."
HELP = "{} had helped."

# Columns of the files, in GLUE's order; what a test split lacks is its label. Parses and counts of
# other annotators are columns as well, as readers have to find theirs among them.
COLUMNS = {
    "cola": ("source", "label", "mark", "sentence"),
    "sst2": ("sentence", "label"),
    "mrpc": ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
    "stsb": (
        "index",
        "genre",
        "filename",
        "year",
        "old_index",
        "source1",
        "source2",
        "sentence1",
        "sentence2",
        "score",
    ),
    "qqp": ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
    "mnli": (
        "index",
        "promptID",
        "pairID",
        "genre",
        "sentence1_binary_parse",
        "sentence2_binary_parse",
        "sentence1_parse",
        "sentence2_parse",
        "sentence1",
        "sentence2",
        "label1",
        "gold_label",
    ),
    "qnli": ("index", "question", "sentence", "label"),
    "rte": ("index", "sentence1", "sentence2", "label"),
    "wnli": ("index", "sentence1", "sentence2", "label"),
}
# These tasks name their classes in the files, the others number them.
NAMED_LABELS = ("mnli", "qnli", "rte")

# Texts of a row and its label: a class number, or the value of STS-B.
Row = tuple[tuple[str, ...], int]

Drawn = TypeVar("Drawn")


def make_rows(task: str, count: int, *, seed: int = 0) -> list[Row]:
    """Generate rows of a task, the same for the same seed, every class about equally often.

    Raises:
        ValueError: fewer than one row.
    """
    if count < 1:
        raise ValueError(f"the number of rows of {task} is {count}; it must be at least 1")
    rng = random.Random(f"{task} {seed}")
    classes = 6 if TASKS[task].regression else TASKS[task].num_labels
    labels = [rng.randrange(classes) for _ in range(count)]
    return [(_MAKERS[task](rng, label), label) for label in labels]


def _cola(rng: random.Random, label: int) -> tuple[str, ...]:
    """A statement, or one with two neighbouring words exchanged."""
    words = _state(rng, rng.choice(PEOPLE), *_fact(rng)).removesuffix(".").split()
    if not label:
        place = rng.randrange(1, len(words) - 1)
        words[place : place + 2] = words[place + 1], words[place]
    return (" ".join(words) + ".",)


def _sst2(rng: random.Random, label: int) -> tuple[str, ...]:
    """An opinion: a good or bad word, which a negation turns around."""
    negated = rng.random() < 0.5
    adjective = rng.choice(GOOD if label != negated else BAD)
    opinion = rng.choice(NEGATED_OPINIONS if negated else OPINIONS)
    return (
        opinion.format(
            name=rng.choice(PEOPLE), dish=rng.choice(DISHES), adjective=adjective
        ).lower(),
    )


def _mrpc(rng: random.Random, label: int) -> tuple[str, ...]:
    """Two statements on one person in different words.

    The same fact, another value or another matter.
    """
    person = rng.choice(PEOPLE)
    relation, value = _fact(rng)
    first, second = rng.sample(relation.statements, 2)
    stated = first.format(name=person, value=value)
    # The clearer half of the different pairs is what a network starts to learn from.
    if not label and rng.random() < 0.5:
        other = _another(rng, RELATIONS, relation)
        return stated, _state(rng, person, other, rng.choice(_few(other.values)))
    return stated, second.format(
        name=person, value=value if label else _another(rng, _few(relation.values), value)
    )


def _stsb(rng: random.Random, label: int) -> tuple[str, ...]:
    """Two statements; the score is 1 for the same person, and 2 each for the same matter and the
    same value of it.
    """
    person = rng.choice(PEOPLE)
    relation, value = _fact(rng)
    first, second = rng.sample(relation.statements, 2)
    stated = first.format(name=person, value=value)
    other = person if label % 2 else _another(rng, PEOPLE, person)
    if label < 2:
        matter = _another(rng, RELATIONS, relation)
        return stated, _state(rng, other, matter, rng.choice(_few(matter.values)))
    return stated, second.format(
        name=other, value=value if label >= 4 else _another(rng, _few(relation.values), value)
    )


def _qqp(rng: random.Random, label: int) -> tuple[str, ...]:
    """Two questions on one person, about the same or about different things."""
    person, relation = rng.choice(PEOPLE), rng.choice(RELATIONS)
    first, second = rng.sample(relation.questions, 2)
    if not label:
        second = rng.choice(_another(rng, RELATIONS, relation).questions)
    return first.format(name=person), second.format(name=person)


def _mnli(rng: random.Random, label: int) -> tuple[str, ...]:
    """Two facts, and one that follows (0), that nobody knows (1), or that cannot be true as well
    (2).
    """
    person = rng.choice(PEOPLE)
    stated = rng.sample(RELATIONS, 3)
    unstated = stated.pop()
    values = [rng.choice(_few(relation.values)) for relation in stated]
    premise = " ".join(_state(rng, person, *fact) for fact in zip(stated, values, strict=True))
    told = rng.randrange(2)
    relation, value = stated[told], values[told]
    if label == 1:
        relation, value = unstated, rng.choice(_few(unstated.values))
    elif label == 2:
        value = _another(rng, _few(relation.values), value)
    return premise, _state(rng, person, relation, value)


def _rte(rng: random.Random, label: int) -> tuple[str, ...]:
    """Return a premise, a hypothesis and whether it follows, as MNLI; unknown and false are one
    label.
    """
    return _mnli(rng, rng.choice((1, 2)) if label else 0)


def _qnli(rng: random.Random, label: int) -> tuple[str, ...]:
    """A question, and a statement on the same person that answers it (0) or another one (1)."""
    person = rng.choice(PEOPLE)
    relation, value = _fact(rng)
    asked = _another(rng, RELATIONS, relation) if label else relation
    return rng.choice(asked.questions).format(name=person), _state(rng, person, relation, value)


def _wnli(rng: random.Random, label: int) -> tuple[str, ...]:
    """A sentence with a pronoun, and the same with one of two names in its place."""
    people = [rng.choice(WOMEN), rng.choice(MEN)]
    pronoun = rng.randrange(2)
    meant = people[pronoun if label else 1 - pronoun]
    first, second = rng.sample(people, 2)
    return THANKS.format(first, second, ("she", "he")[pronoun]), HELP.format(meant)


_MAKERS: dict[str, Callable[[random.Random, int], tuple[str, ...]]] = {
    "cola": _cola,
    "sst2": _sst2,
    "mrpc": _mrpc,
    "stsb": _stsb,
    "qqp": _qqp,
    "mnli": _mnli,
    "qnli": _qnli,
    "rte": _rte,
    "wnli": _wnli,
}


def _fact(rng: random.Random) -> tuple[Relation, str]:
    relation = rng.choice(RELATIONS)
    return relation, rng.choice(_few(relation.values))


def _few(values: Sequence[str]) -> Sequence[str]:
    """Return `VALUES` of these, from all over the list, as neighbours may have words in common."""
    return values[:: len(values) // VALUES][:VALUES]


def _state(rng: random.Random, person: str, relation: Relation, value: str) -> str:
    return rng.choice(relation.statements).format(name=person, value=value)


def _another(rng: random.Random, values: Sequence[Drawn], value: Drawn) -> Drawn:
    """Draw one of the values that is not this one."""
    return rng.choice([other for other in values if other != value])


@dataclasses.dataclass(frozen=True)
class SyntheticFiles:
    """Paths of what `write_dataset` wrote: `data_dir` is what `read` takes."""

    data_dir: str
    vocab_file: str
    config_file: str


def write_dataset(
    directory: str | os.PathLike[str],
    *,
    train_rows: int = 4000,
    dev_rows: int = 400,
    seed: int = 0,
    progress: bool = False,
) -> SyntheticFiles:
    """Write `glue_data` with all splits of all nine tasks, and `vocab.txt` (lower-case) and
    `bert_config.json` for them.

    Args:
        directory: made when missing; files in it are replaced.
        train_rows, dev_rows: of each task; development and test splits are drawn alike, from
          different seeds.
        seed: same seed, same files.
        progress: show a bar.

    Returns:
        The paths.

    Raises:
        ValueError: fewer than one row.
        OSError: the directory cannot be written.
    """
    data_dir = os.path.join(directory, "glue_data")
    for task in tqdm(TASKS.values(), desc="GLUE data", unit=" tasks", disable=not progress):
        for number, split in enumerate(task.splits):
            rows = make_rows(
                task.name, train_rows if split == TRAIN else dev_rows, seed=10 * seed + number
            )
            name = split.replace("validation", "dev") + ".tsv"
            write_text(os.path.join(data_dir, task.directory, name), _to_tsv(task, split, rows))
    vocab = make_vocab(
        [*all_texts(), *GOOD, *BAD, *OPINIONS, *NEGATED_OPINIONS, THANKS, HELP, "she he"]
    )
    files = SyntheticFiles(
        data_dir, os.path.join(directory, "vocab.txt"), os.path.join(directory, "bert_config.json")
    )
    write_text(files.vocab_file, "\n".join(vocab) + "\n")
    write_json(files.config_file, {"vocab_size": len(vocab), **CONFIG}, indent=2)
    return files


def _to_tsv(task: Task, split: str, rows: list[Row]) -> str:
    """Return the content of a file."""
    labelled = split not in task.test_splits
    header = COLUMNS[task.name] if labelled else ("index", *task.columns)
    lines = []
    for number, (texts, label) in enumerate(rows):
        cells = dict.fromkeys(header, str(number)) | dict(zip(task.columns, texts, strict=True))
        if labelled:
            cells[task.label_column] = _label(task, label)
        lines.append("\t".join(cells.values()))
    if not (task.headless and labelled):
        lines.insert(0, "\t".join(header))
    # MRPC's files begin with a byte order mark.
    return ("\ufeff" if task.name == "mrpc" else "") + "\n".join(lines) + "\n"


def _label(task: Task, label: int) -> str:
    if task.regression:
        return f"{label:.3f}"
    return task.labels[label] if task.name in NAMED_LABELS else str(label)
