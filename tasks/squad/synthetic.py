"""A generated data set in SQuAD's format: small enough to learn from scratch in a minute or two on
two cores.

A paragraph states facts about three people. One relation is told of all three and asked as a choice
("Was Anna born in Marlow or in Oakham?"): to answer, a model must find which of the words of the
question the paragraph repeats. The others are told of one person each and asked openly ("Which dish
does Boris like?"): here it must know what kind of words can answer. So every question needs the
paragraph and every paragraph needs the question, and the sentences about the others are
distractors. Names, values and sentences are drawn at random, so there is nothing to memorise.

What needs to relate neighbouring words ("who of the three was born in Marlow?") is left out: a
network with learned absolute positions learns that only from far more data.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Sequence
from typing import Any

from tasks.files import write_json, write_text
from tasks.synthetic_vocab import (
    CONFIG,
    FILLERS,
    PEOPLE,
    RELATIONS,
    Relation,
    all_texts,
    make_vocab,
)

PEOPLE_PER_PARAGRAPH = 3
OPEN_RELATIONS = 3
QUESTIONS_PER_PARAGRAPH = 2
IMPOSSIBLE_SHARE = 1 / 3


def make_dataset(
    questions: int, *, seed: int = 0, version_2: bool = False, prefix: str = "q"
) -> dict[str, Any]:
    """Generate a data set.

    Args:
        questions: how many.
        seed: same seed, same data.
        version_2: make about a third of the questions impossible, in the form of SQuAD 2.0.
        prefix: beginning of the question ids.

    Returns:
        What a SQuAD JSON file holds.
    """
    if questions < 1:
        raise ValueError(f"questions is {questions}; it must be at least 1")
    rng = random.Random(seed)
    paragraphs: list[dict[str, Any]] = []
    made = 0
    while made < questions:
        paragraph = _paragraph(rng, min(QUESTIONS_PER_PARAGRAPH, questions - made), version_2)
        for question in paragraph["qas"]:
            question["id"] = f"{prefix}{made:06d}"
            made += 1
        paragraphs.append(paragraph)
    title = "Facts about people"
    return {
        "version": "v2.0" if version_2 else "1.1",
        "data": [{"title": title, "paragraphs": paragraphs}],
    }


@dataclasses.dataclass(frozen=True)
class _Fact:
    """A statement of a paragraph about a person."""

    person: str
    relation: Relation
    value: str


def _paragraph(rng: random.Random, questions: int, version_2: bool) -> dict[str, Any]:
    """Return a paragraph with that many questions (their ids still missing), a choice and an open
    one in turn.
    """
    people = rng.sample(PEOPLE, PEOPLE_PER_PARAGRAPH)
    shared, unstated, *open_relations = rng.sample(RELATIONS, 2 + OPEN_RELATIONS)
    # What nobody is told to have gives the wrong options; all values differ in all their words, see
    # _unlike_values.
    *told, other, another = _unlike_values(rng, shared, len(people) + 2)
    facts = [_Fact(person, shared, value) for person, value in zip(people, told, strict=True)]
    facts += [
        _Fact(rng.choice(people), relation, rng.choice(relation.values))
        for relation in open_relations
    ]
    order = rng.sample(range(len(facts)), len(facts))
    context, places = _tell(rng, [facts[index] for index in order])
    place_of = dict(zip(order, places, strict=True))
    qas = []
    for number in range(questions):
        is_choice = number % 2 == 0
        index = rng.randrange(len(people)) if is_choice else rng.randrange(len(people), len(facts))
        fact, answer = facts[index], None
        if version_2 and rng.random() < IMPOSSIBLE_SHARE:
            fact = (
                dataclasses.replace(fact, value=another)
                if is_choice
                else dataclasses.replace(fact, relation=unstated)
            )
        else:
            answer = {"answer_start": place_of[index], "text": fact.value}
        question: dict[str, Any] = {
            "question": _ask(rng, fact, other if is_choice else None),
            "id": "",
            "answers": [] if answer is None else [answer],
        }
        qas.append(question | ({"is_impossible": answer is None} if version_2 else {}))
    return {"context": context, "qas": qas}


def _unlike_values(rng: random.Random, relation: Relation, count: int) -> list[str]:
    """Draw values without a word in common, so that each word of an option points to one place at
    most.
    """
    chosen: list[str] = []
    used: set[str] = set()
    for value in rng.sample(relation.values, len(relation.values)):
        if not used.intersection(value.split()):
            chosen.append(value)
            used.update(value.split())
    return chosen[:count]


def _tell(rng: random.Random, facts: Sequence[_Fact]) -> tuple[str, list[int]]:
    """Return a text that states the facts in order, with a filler somewhere, and where each value
    is in it.
    """
    context = ""
    places = []
    filler = rng.randrange(len(facts))
    for index, fact in enumerate(facts):
        if index == filler:
            context += rng.choice(FILLERS) + " "
        before, after = rng.choice(fact.relation.statements).split("{value}")
        context += before.format(name=fact.person)
        places.append(len(context))
        context += fact.value + after + " "
    return context.rstrip(), places


def _ask(rng: random.Random, fact: _Fact, other: str | None) -> str:
    """Return an open question about a fact, or, with another value, the choice between the two."""
    if other is None:
        return rng.choice(fact.relation.questions).format(name=fact.person)
    first, second = rng.sample((fact.value, other), 2)
    return rng.choice(fact.relation.choices).format(name=fact.person, first=first, second=second)


@dataclasses.dataclass(frozen=True)
class SyntheticFiles:
    """Paths of what `write_dataset` wrote."""

    train_file: str
    dev_file: str
    vocab_file: str
    config_file: str


def write_dataset(
    directory: str | os.PathLike[str],
    *,
    train_questions: int = 4000,
    dev_questions: int = 800,
    seed: int = 0,
    version_2: bool = False,
) -> SyntheticFiles:
    """Write `train.json`, `dev.json`, `vocab.txt` (lower-case) and `bert_config.json` of a tiny
    BERT for them.

    Args:
        directory: made when missing; files in it are replaced.
        train_questions, dev_questions: how many; both parts are drawn alike from different seeds.
        seed: same seed, same files.
        version_2: make some questions impossible (SQuAD 2.0).

    Returns:
        The paths.

    Raises:
        ValueError: fewer than one question.
        OSError: the directory cannot be written.
    """
    train = make_dataset(train_questions, seed=2 * seed, version_2=version_2, prefix="train")
    dev = make_dataset(dev_questions, seed=2 * seed + 1, version_2=version_2, prefix="dev")
    vocab = make_vocab(all_texts())
    names = ("train.json", "dev.json", "vocab.txt", "bert_config.json")
    files = SyntheticFiles(*(os.path.join(directory, name) for name in names))
    write_json(files.train_file, train, indent=None)
    write_json(files.dev_file, dev, indent=None)
    write_text(files.vocab_file, "\n".join(vocab) + "\n")
    write_json(files.config_file, {"vocab_size": len(vocab), **CONFIG}, indent=2)
    return files
