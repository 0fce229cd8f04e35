"""The nine GLUE tasks as data (Wang et al., "GLUE", 2018; label order of the public loaders)."""

from __future__ import annotations

import dataclasses

TRAIN = "train"
# Similarity scores of STS-B run from 0 (nothing in common) to 5 (the same meaning).
SIMILARITY_RANGE = (0.0, 5.0)


@dataclasses.dataclass(frozen=True)
class Task:
    """A GLUE task.

    Attributes:
        name: as in `TASKS`, in Hugging Face's `glue` and in TensorFlow Datasets' `glue`.
        directory: its folder in `glue_data`.
        fields: names of the one or two texts of a row.
        labels: names of the classes, in order of their numbers; empty for a regression.
        metrics: what `score` computes.
        columns: the column of each text in the files of `glue_data`, in the order of `fields`.
        label_column: the column of the label there.
        eval_splits, test_splits: splits beside "train".
        headless: names of the columns where the files have no header.
        short_lines: the files in circulation have some lines broken in two: skip lines with too few
          columns.
    """

    name: str
    directory: str
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    columns: tuple[str, ...]
    label_column: str = "label"
    eval_splits: tuple[str, ...] = ("validation",)
    test_splits: tuple[str, ...] = ("test",)
    headless: tuple[str, ...] = ()
    short_lines: bool = False

    @property
    def regression(self) -> bool:
        """The label is a number, not a class."""
        return not self.labels

    @property
    def num_labels(self) -> int:
        """Outputs a model needs: one per class, or the one value of a regression."""
        return len(self.labels) or 1

    @property
    def final_metric(self) -> str:
        """The key of `score` that stands for the task: its only metric, or the mean of several."""
        return self.metrics[0] if len(self.metrics) == 1 else "combined_score"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of all splits, training first."""
        return (TRAIN, *self.eval_splits, *self.test_splits)


_SENTENCE = ("sentence",)
_SENTENCES = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_ENTAILMENT = ("entailment", "not_entailment")
_ACCURACY = ("accuracy",)
_ACCURACY_F1 = ("accuracy", "f1")

# In the order in which runs over all tasks go.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "cola",
            "CoLA",
            _SENTENCE,
            ("unacceptable", "acceptable"),
            ("matthews_correlation",),
            _SENTENCE,
            headless=("source", "label", "mark", "sentence"),
        ),
        Task("sst2", "SST-2", _SENTENCE, ("negative", "positive"), _ACCURACY, _SENTENCE),
        Task(
            "mrpc",
            "MRPC",
            _SENTENCES,
            ("not_equivalent", "equivalent"),
            _ACCURACY_F1,
            ("#1 String", "#2 String"),
            label_column="Quality",
        ),
        Task(
            "stsb",
            "STS-B",
            _SENTENCES,
            (),
            ("pearson", "spearmanr"),
            _SENTENCES,
            label_column="score",
        ),
        Task(
            "qqp",
            "QQP",
            _QUESTIONS,
            ("not_duplicate", "duplicate"),
            _ACCURACY_F1,
            _QUESTIONS,
            label_column="is_duplicate",
            short_lines=True,
        ),
        Task(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            _ACCURACY,
            _SENTENCES,
            label_column="gold_label",
            eval_splits=("validation_matched", "validation_mismatched"),
            test_splits=("test_matched", "test_mismatched"),
        ),
        Task(
            "qnli",
            "QNLI",
            ("question", "sentence"),
            _ENTAILMENT,
            _ACCURACY,
            ("question", "sentence"),
        ),
        Task("rte", "RTE", _SENTENCES, _ENTAILMENT, _ACCURACY, _SENTENCES),
        Task("wnli", "WNLI", _SENTENCES, ("not_entailment", "entailment"), _ACCURACY, _SENTENCES),
    )
}


def task_named(name: str | Task) -> Task:
    """Return the task of this name (in any case, "SST-2" as well as "sst2"), or the task itself.

    Raises:
        ValueError: there is no such task.
    """
    if isinstance(name, Task):
        return name
    key = plain_name(name)
    if key not in TASKS:
        raise ValueError(f"no GLUE task {name!r}; there are {', '.join(TASKS)}")
    return TASKS[key]


def plain_name(name: str) -> str:
    """Return a name without case and punctuation: "STS-B" and "sts_b" are "stsb"."""
    return "".join(character for character in name.lower() if character.isalnum())


def check_split(task: Task, split: str) -> None:
    """Raise ValueError where the task has no such split."""
    if split not in task.splits:
        raise ValueError(f"{task.name} has no split {split!r}; it has {', '.join(task.splits)}")
