"""A generated data set in SQuAD's format: small enough to learn from scratch in a minute or two on two cores.

A paragraph states facts about a few people; a question asks for one fact of one of them. Every paragraph states the
asked relation for somebody else too, so a model must match the name in the question with the name in the paragraph,
not only learn which words can answer which question. Names, values and sentences are drawn at random and
independently, so there is nothing to memorise. All text is our own.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
import string
from collections.abc import Iterable, Sequence
from typing import Any

from tasks.files import write_json, write_text

PEOPLE = (
    "Anna Boris Carla David Elena Felix Greta Henry Irene Jonas Karin Louis Maria Nils Olga Peter "
    "Quinn Rosa Simon Tanja Ulrich Vera Walter Yvonne Zoe Adrian Bianca Conrad Diana Emil Flora Gustav"
).split()
TOWNS = (
    "Aldford Brackwell Castleton Dunmere Eastholm Fernley Glenrock Harwick Inverness Kingsbury Lakeside Marlow "
    "Northgate Oakham Pinewood Riverton Stonefield Thornbury Westbrook Yarmouth"
).split()
JOBS = (
    "baker carpenter dentist driver farmer gardener judge librarian mechanic nurse painter pilot plumber "
    "sailor singer teacher translator waiter weaver writer"
).split()
COLOURS = "black white brown grey golden spotted striped young".split()
ANIMALS = "cat dog horse parrot rabbit tortoise goat donkey hamster pony".split()
DISHES = (
    "apple pie|fish soup|fried rice|lentil stew|mushroom risotto|onion soup|potato salad|roast chicken|tomato soup|"
    "vegetable curry|apple cake|rice pudding"
).split("|")
INSTRUMENTS = "accordion banjo cello clarinet drums flute guitar harp oboe piano trumpet violin".split()
YEARS = tuple(str(year) for year in range(1950, 2020))
PETS = tuple(f"{colour} {animal}" for colour in COLOURS for animal in ANIMALS)


@dataclasses.dataclass(frozen=True)
class Relation:
    """What can be said and asked of a person: sentences with {name} and {value}, questions with {name}."""

    values: Sequence[str]
    statements: Sequence[str]
    questions: Sequence[str]


RELATIONS = (
    Relation(
        TOWNS,
        ("{name} was born in {value}.", "{name} comes from the town of {value}."),
        ("Where was {name} born?", "Which town does {name} come from?"),
    ),
    Relation(
        JOBS,
        ("{name} works as a {value}.", "{name} earns a living as a {value}."),
        ("What is the job of {name}?", "What does {name} work as?"),
    ),
    Relation(
        PETS,
        ("{name} owns a {value}.", "{name} lives with a {value}."),
        ("Which animal does {name} own?", "What kind of pet does {name} have?"),
    ),
    Relation(
        DISHES,
        ("{name} likes {value} best.", "{name} often cooks {value} at home."),
        ("Which dish does {name} like?", "What does {name} like to eat?"),
    ),
    Relation(
        INSTRUMENTS,
        ("{name} plays the {value}.", "{name} has learned to play the {value}."),
        ("Which instrument does {name} play?", "What does {name} play?"),
    ),
    Relation(
        YEARS,
        ("{name} left school in {value}.", "{name} finished school in {value}."),
        ("When did {name} leave school?", "In which year did {name} finish school?"),
    ),
)
FILLERS = (
    "It rained all week.",
    "They meet every Sunday.",
    "The house near the river is old.",
    "Nobody knows more about that.",
)

PEOPLE_PER_PARAGRAPH = 3
RELATIONS_PER_PARAGRAPH = 2
QUESTIONS_PER_PARAGRAPH = 4
# Longer words, and all numbers, are spelled with two pieces, so that answers of several pieces occur too.
LONGEST_WHOLE_WORD = 7

CONFIG = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
}


def make_dataset(questions: int, *, seed: int = 0, version_2: bool = False, prefix: str = "q") -> dict[str, Any]:
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
    return {"version": "v2.0" if version_2 else "1.1", "data": [{"title": title, "paragraphs": paragraphs}]}


@dataclasses.dataclass(frozen=True)
class _Fact:
    """What a paragraph says, or, for an impossible question, does not say."""

    person: str
    relation: Relation
    value: str


def _paragraph(rng: random.Random, questions: int, version_2: bool) -> dict[str, Any]:
    """Return a paragraph with up to that many questions (their ids still missing)."""
    people = rng.sample(PEOPLE, PEOPLE_PER_PARAGRAPH)
    facts = []
    for relation in rng.sample(RELATIONS, RELATIONS_PER_PARAGRAPH):
        # Different values for all, so that one place alone answers a question.
        values = rng.sample(relation.values, len(people))
        facts += [_Fact(person, relation, value) for person, value in zip(people, values, strict=True)]
    rng.shuffle(facts)
    unstated = facts.pop() if version_2 else None
    context, positions = _tell(rng, facts)
    asked = rng.sample(range(len(facts)), questions)
    qas = [_question(rng, facts[index], positions[index]) for index in asked]
    if version_2:
        qas = [question | {"is_impossible": False} for question in qas]
        # One of three or four questions in most paragraphs: about a third of all.
        for _ in range(rng.choice((1, 1, 2))):
            impossible = _question(rng, unstated, None) | {"is_impossible": True}
            qas[rng.randrange(len(qas))] = impossible
    return {"context": context, "qas": qas}


def _tell(rng: random.Random, facts: Sequence[_Fact]) -> tuple[str, list[int]]:
    """Return a text that states the facts in order, with a filler somewhere, and where each value is in it."""
    context = ""
    positions = []
    filler = rng.randrange(len(facts) + 1)
    for index, fact in enumerate(facts):
        if index == filler:
            context += rng.choice(FILLERS) + " "
        before, after = rng.choice(fact.relation.statements).split("{value}")
        context += before.format(name=fact.person)
        positions.append(len(context))
        context += fact.value + after.format(name=fact.person) + " "
    return context.rstrip(), positions


def _question(rng: random.Random, fact: _Fact, position: int | None) -> dict[str, Any]:
    text = rng.choice(fact.relation.questions).format(name=fact.person)
    answers = [] if position is None else [{"answer_start": position, "text": fact.value}]
    return {"question": text, "id": "", "answers": answers}


def make_vocab(texts: Iterable[str]) -> list[str]:
    """Return a lower-case WordPiece vocabulary that spells these texts without [UNK].

    It holds the special tokens, every character by itself and as a continuation (so that other plain text can be
    spelled too), words as they are, and long words and numbers as two pieces.
    """
    words: set[str] = set()
    letters = set(string.ascii_lowercase + string.digits + string.punctuation)
    for text in texts:
        words.update(re.findall(r"\w+", text.lower()))
        letters.update(character for character in text.lower() if not character.isspace())
    pieces: set[str] = set()
    for word in words:
        if word.isdigit() or len(word) > LONGEST_WHOLE_WORD:
            middle = len(word) // 2
            pieces.update((word[:middle], "##" + word[middle:]))
        else:
            pieces.add(word)
    pieces -= letters
    alphabet = sorted(letters)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return [*special, *alphabet, *("##" + letter for letter in alphabet if letter.isalnum()), *sorted(pieces)]


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
    """Write `train.json`, `dev.json`, `vocab.txt` (lower-case) and `bert_config.json` of a tiny BERT for them.

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
    vocab = make_vocab(_all_texts())
    names = ("train.json", "dev.json", "vocab.txt", "bert_config.json")
    files = SyntheticFiles(*(os.path.join(directory, name) for name in names))
    write_json(files.train_file, train, indent=None)
    write_json(files.dev_file, dev, indent=None)
    write_text(files.vocab_file, "\n".join(vocab) + "\n")
    write_json(files.config_file, {"vocab_size": len(vocab), **CONFIG}, indent=2)
    return files


def _all_texts() -> list[str]:
    """Return all that a generated data set can say: the vocabulary must not depend on what was drawn."""
    texts = [*PEOPLE, *FILLERS]
    for relation in RELATIONS:
        texts += [*relation.values, *relation.statements, *relation.questions]
    return [text.replace("{name}", "").replace("{value}", "") for text in texts]
