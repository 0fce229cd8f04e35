"""F1 of every question in every row of a benchmark.

Rows are compared question by question, also when they ran weeks apart.
"""

from __future__ import annotations

import json
import math
import pathlib
import threading
from collections.abc import Mapping

import numpy as np

from benchmarks.results import FOLDER
from fileio.atomic import replacing
from squad_evaluate import score_questions

_writing = threading.Lock()  # rows are computed in several threads


class QuestionScores:
    """`results/<name>_f1.npz`.

    For each row float32 [questions], 0 to 100, in the order of the data set.
    """

    def __init__(self, name: str):
        self.path = FOLDER / f"{name}_f1.npz"

    def read(self) -> dict[str, np.ndarray]:
        """The scores of all rows."""
        if not self.path.exists():
            return {}
        with np.load(self.path) as arrays:
            return dict(arrays)

    def keep(self, row: str, dataset: pathlib.Path, predictions: pathlib.Path) -> None:
        """Scores a row's answers and adds them to the file."""
        scored = score_questions(
            json.loads(dataset.read_text()), json.loads(predictions.read_text())
        )
        with _writing:
            with replacing(self.path) as temporary:
                np.savez_compressed(
                    temporary,
                    **self.read()
                    | {row: np.array([100.0 * f1 for _, _, f1 in scored], np.float32)},
                )

    def beside(self, bases: Mapping[str, str]) -> dict[str, dict[str, float]]:
        """F1 of rows minus that of others, and its standard error over the questions, which both
        answered.

        Args:
          bases: row -> the row that it is compared with; such as are not there, or are the same,
            are left out.
        """
        scores = self.read()
        figures = {}
        for name, base in bases.items():
            if name == base or name not in scores or base not in scores:
                continue
            difference = scores[name].astype(float) - scores[base]
            error = difference.std(ddof=1) / math.sqrt(len(difference))
            figures[name] = {"to_float": float(difference.mean()), "to_float_error": float(error)}
        return figures
