"""Vocabulary, facts and questions of the synthetic data sets, and the tiny BERT that learns them.

All text is our own.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import string
from collections.abc import Iterable, Sequence

PEOPLE = (
    "Anna Boris Carla David Elena Felix Greta Henry Irene Jonas Karin Louis Maria Nils Olga Peter"
    " Quinn Rosa Simon Tanja Ulrich Vera Walter Zoe"
).split()
TOWNS = (
    "Aldford Castleton Dunmere Fernley Glenrock Harwick Lakeside Marlow Oakham Riverton Stonefield"
    " Thornbury".split()
)
JOBS = (
    "baker carpenter dentist farmer gardener judge librarian mechanic nurse pilot singer translator"
).split()
PETS = tuple(
    " ".join(pair)
    for pair in itertools.product(
        "black brown golden grey spotted striped white young".split(),
        "cat dog donkey goat hamster horse parrot tortoise".split(),
    )
)
DISHES = (
    "apple pie|fish soup|fried rice|lentil stew|mushroom risotto|onion tart|potato salad|roast"
    " chicken|vegetable curry|cheese noodles"
).split("|")
INSTRUMENTS = "accordion banjo cello clarinet drums flute guitar harp piano trumpet violin".split()
YEARS = tuple(str(year) for year in range(1978, 1990))


@dataclasses.dataclass(frozen=True)
class Relation:
    """A property of a person, as statement and question.

    Attributes:
        values: what it can be.
        statements: sentences with {name} and {value}.
        questions: open questions with {name}.
        choices: questions with {name} and the options {first} and {second}.
    """

    values: Sequence[str]
    statements: Sequence[str]
    questions: Sequence[str]
    choices: Sequence[str]


RELATIONS = (
    Relation(
        TOWNS,
        ("{name} was born in {value}.", "{name} comes from the town of {value}."),
        ("Where was {name} born?", "Which town does {name} come from?"),
        (
            "Was {name} born in {first} or in {second}?",
            "Does {name} come from {first} or {second}?",
        ),
    ),
    Relation(
        JOBS,
        ("{name} works as a {value}.", "{name} earns a living as a {value}."),
        ("What is the job of {name}?", "What does {name} work as?"),
        ("Is {name} a {first} or a {second}?", "Does {name} work as a {first} or a {second}?"),
    ),
    Relation(
        PETS,
        ("{name} owns a {value}.", "{name} lives with a {value}."),
        ("Which animal does {name} own?", "What kind of pet does {name} have?"),
        (
            "Does {name} own a {first} or a {second}?",
            "Is the pet of {name} a {first} or a {second}?",
        ),
    ),
    Relation(
        DISHES,
        ("{name} likes {value} best.", "{name} often cooks {value} at home."),
        ("Which dish does {name} like?", "What does {name} like to eat?"),
        ("Does {name} like {first} or {second}?", "Does {name} rather cook {first} or {second}?"),
    ),
    Relation(
        INSTRUMENTS,
        ("{name} plays the {value}.", "{name} has learned to play the {value}."),
        ("Which instrument does {name} play?", "What has {name} learned to play?"),
        (
            "Does {name} play the {first} or the {second}?",
            "Has {name} learned the {first} or the {second}?",
        ),
    ),
    Relation(
        YEARS,
        ("{name} left school in {value}.", "{name} finished school in {value}."),
        ("When did {name} leave school?", "In which year did {name} finish school?"),
        (
            "Did {name} leave school in {first} or {second}?",
            "Was it in {first} or {second} that {name} left school?",
        ),
    ),
)
FILLERS = (
    "It rained all week.",
    "They meet every Sunday.",
    "The house near the river is old.",
    "Nobody knows more about that.",
)

# Longer words are spelled with two pieces, so that answers of several pieces occur too.
LONGEST_WHOLE_WORD = 7

# Wide initial weights and no dropout: that is what makes so small a network find the matching words
# soon.
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
    "initializer_range": 0.1,
}


def make_vocab(texts: Iterable[str]) -> list[str]:
    """Return a lower-case WordPiece vocabulary that spells these texts without [UNK].

    It holds the special tokens, every character by itself and as a continuation (so that other
    plain text can be spelled too), short words as they are, and long words as two pieces.
    """
    words: set[str] = set()
    letters = set(string.ascii_lowercase + string.digits + string.punctuation)
    for text in texts:
        words.update(re.findall(r"\w+", text.lower()))
        letters.update(character for character in text.lower() if not character.isspace())
    pieces: set[str] = set()
    for word in words:
        if len(word) > LONGEST_WHOLE_WORD:
            middle = len(word) // 2
            pieces.update((word[:middle], "##" + word[middle:]))
        else:
            pieces.add(word)
    pieces -= letters
    alphabet = sorted(letters)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return [
        *special,
        *alphabet,
        *("##" + letter for letter in alphabet if letter.isalnum()),
        *sorted(pieces),
    ]


def all_texts() -> list[str]:
    """Return all of the above: a vocabulary must not depend on what was drawn."""
    texts = [*PEOPLE, *FILLERS]
    for relation in RELATIONS:
        texts += [*relation.values, *relation.statements, *relation.questions, *relation.choices]
    return [re.sub(r"{\w+}", "", text) for text in texts]
