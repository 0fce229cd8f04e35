"""SQuAD 1.1 and 2.0: reading, windows, batches, decoding, and a generated data set of the same
form.
"""

from tasks.sequences import LibraryTokenizer
from tasks.squad.batching import Batches, batches
from tasks.squad.decode import Predictions, RawScores, decode
from tasks.squad.examples import (
    Answer,
    SquadExample,
    SquadFormatError,
    check_tfds,
    from_tfds,
    read_squad,
    to_dataset,
)
from tasks.squad.features import Features, convert
from tasks.tokenizer import load_tokenizer
from tasks.wordpiece import Tokenizer

__all__ = [
    "Answer",
    "Batches",
    "Features",
    "LibraryTokenizer",
    "Predictions",
    "RawScores",
    "SquadExample",
    "SquadFormatError",
    "Tokenizer",
    "batches",
    "check_tfds",
    "convert",
    "decode",
    "from_tfds",
    "load_tokenizer",
    "read_squad",
    "to_dataset",
]
