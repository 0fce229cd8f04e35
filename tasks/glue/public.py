"""The public names, from where they are defined; `tasks.glue` loads this module when one is
used.
"""

from tasks.batching import Batches
from tasks.glue.batching import batches
from tasks.glue.examples import Examples, GlueFormatError, from_rows
from tasks.glue.features import Features, convert
from tasks.glue.metrics import averages, clamp_similarity, final_score, predictions, score
from tasks.glue.prepared import check_tfds, from_tfds
from tasks.glue.task import TASKS, Task, task_named
from tasks.glue.tsv import read
from tasks.tokenizer import load_tokenizer

__all__ = [
    "TASKS",
    "Batches",
    "Examples",
    "Features",
    "GlueFormatError",
    "Task",
    "averages",
    "batches",
    "check_tfds",
    "clamp_similarity",
    "convert",
    "final_score",
    "from_rows",
    "from_tfds",
    "load_tokenizer",
    "predictions",
    "read",
    "score",
    "task_named",
]
