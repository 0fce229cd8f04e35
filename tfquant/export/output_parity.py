"""One output of an exported file against the same output of the simulation.

The simulation rounds in float arithmetic, a runtime in integers: on the border between two codes
a value may fall to either side, and each such step moves values in the layers behind. The right
file is therefore at worst another realization of the rounding errors of quantization, and their
size is known: the difference between the simulation and the float network. A row is the same
answer if it differs by no more than a few times that. The spread of the output over the batches
bounds this from both sides: a small share of it is always allowed, and a larger one never is, so
that coarse quantization does not let another network pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

# All rows together may differ by so many times the root mean square of the rounding errors (two
# realizations of them that have nothing in common differ by 1.4 times that), a row by so many times
# more, and the best of several classes may be missed by so many times more.
ROUNDINGS, ROW, TIE = 2.0, 2.0, 3.0
# Shares of the spread: what all rows together may always differ by, and what they never may.
ALWAYS, NEVER = 0.02, 0.3
# Shares of the magnitude in their place, for an output that hardly varies or of few values.
CONSTANT, STEADY = 0.005, 0.03
FLOAT = 1e-5  # of the magnitude: rounding of float32
_FEW = 8  # values, below which rounding errors and spread are not known
_MANY = 32  # rows, from which on every column is judged by itself as well
_COSINE = 0.9
# Elements as large as this, and so many times as large as the others, are no answers but marks,
# such as -10000 or -1e9 on padding; they have to be marks in the file as well.
_MARK, _MARK_RATIO, _MARK_TOLERANCE = 5000.0, 100.0, 0.1
_CONSTANT_NOTE, _FEW_NOTE = (
    "constant over the batches: check on rows that differ",
    "few rows: check on more",
)
_CHUNK = 1 << 20  # elements that are compared at once


@dataclasses.dataclass(frozen=True)
class OutputAgreement:
    """How far the answers of two networks agree in one output.

    Attributes:
      name: of the output.
      kind: of `tfquant.export.KINDS`.
      rows: how many were compared: all axes but the last; values where `kind` is `exact`.
      same: share of rows with the same answer. Of several columns of `number`, that of the worst.
      largest, mean: absolute difference.
      spread: mean absolute value of the simulation's answers about their mean.
      error: root mean square of the differences as a share of the standard deviation (of the
        magnitude where that is 0); of columns of `number` the worst.
      limit: largest error that is taken for rounding, likewise.
      columns: how many columns (of vectors, maps and scores) differ as a whole, however small they
        are beside the others.
      note: what makes the judgement less sharp: an output that is constant, or too few rows.
    """

    name: str
    kind: str
    rows: int
    same: float
    largest: float
    mean: float
    spread: float
    error: float
    limit: float
    columns: int = 0
    note: str = ""

    def agrees(self, tolerance: float) -> bool:
        """Whether no more than the share `tolerance` of rows differs, and all together by rounding.

        A tolerance of 1 takes everything.
        """
        rounding = self.error <= self.limit and self.columns == 0
        return tolerance == 1.0 or (1.0 - self.same <= tolerance and rounding)

    def __str__(self) -> str:
        parts = [f"same answer in {100 * self.same:.2f} % of {self.rows} rows"]
        if self.kind != "exact":
            limit = _percent(self.limit)
            parts.append(f"error {_percent(self.error)} of the standard deviation (limit {limit})")
        parts += [f"{self.columns} columns differ"] if self.columns else []
        note = f" ({self.note})" if self.note else ""
        return f"output {self.name!r}, {self.kind}: {', '.join(parts)}{note}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if math.isfinite(share) else "above 100 %"


class OutputParity:
    """Collects one output over batches and judges it at the end.

    Args:
      name: of the output.
      kind: of it, not `exact`.
      columns: size of the last axis if it is the same in all batches, else None.
    """

    def __init__(self, name: str, kind: str, columns: int | None):
        self.name, self.kind = name, kind
        self._by_column = columns is not None
        self._mark: float | None = None
        self._shift: np.ndarray | None = None
        # Of every column: count, x - shift and its square, squares of x, differences, roundings.
        self._sums = np.zeros((6, columns or 1))
        self._rows: list[np.ndarray] = []  # root mean square of differences; of `number` all
        self._flaws: list[np.ndarray] = []  # rows that differ whatever the limit is
        self._margins: list[np.ndarray] = []  # classes: how far the file's answer is below the best
        self._norms: list[np.ndarray] = []  # vectors with another direction: their length
        self._largest = self._absolute = self._deviation = 0.0

    def add(self, simulated: np.ndarray, found: np.ndarray, unrounded: np.ndarray) -> None:
        """Takes the answers of simulation, file and float network to one batch, of one shape."""
        simulated, found, unrounded = map(self._matrix, (simulated, found, unrounded))
        if self._mark is None:
            self._mark = _mark_from(simulated)
        center = (
            float(np.mean(simulated, where=np.abs(simulated) < self._mark, dtype=np.float64))
            if simulated.size
            else 0.0
        )
        for rows in _chunks(*simulated.shape):
            self._add(
                simulated[rows].astype(np.float64),
                found[rows].astype(np.float64),
                unrounded[rows],
                center,
            )

    def _matrix(self, values: np.ndarray) -> np.ndarray:
        """[rows, last axis]; complex numbers as two, numbers without columns one a row."""
        if np.iscomplexobj(values):
            parts = np.stack([np.real(values), np.imag(values)], -1)
            values = parts.reshape(*values.shape[:-1], -1)
        single = values.ndim < 2 or (self.kind == "number" and not self._by_column)
        return values.reshape(-1, 1 if single else values.shape[-1])

    def _add(self, x: np.ndarray, found: np.ndarray, unrounded: np.ndarray, center: float) -> None:
        answers = np.abs(x) < self._mark
        with np.errstate(invalid="ignore"):
            flaws = np.where(
                answers,
                ~np.isfinite(found),
                (found != x) & ~(np.abs(found - x) <= _MARK_TOLERANCE * np.abs(x)),
            )
            difference = np.where(answers & np.isfinite(found), found - x, 0.0)
            rounding = np.where(answers & np.isfinite(unrounded), unrounded - x, 0.0)
        value = np.where(answers, x, 0.0)
        if self._shift is None:
            self._shift = np.array([value.mean()] if not self._by_column else value.mean(0))
        centered = np.where(answers, x - self._shift, 0.0)
        axis = 0 if self._by_column else None
        size = value - value.mean(-1, keepdims=True) if self.kind == "classes" else value
        parts = (answers, centered, centered**2, size**2, difference**2, rounding**2)
        self._sums += np.stack([np.reshape(part.sum(axis), -1) for part in parts])
        self._largest = max(self._largest, float(np.abs(difference).max(initial=0.0)))
        self._absolute += float(np.abs(difference).sum())
        self._deviation += float(np.where(answers, np.abs(x - center), 0.0).sum())
        if self.kind == "number":
            self._rows.append(difference.astype(np.float32))
            self._flaws.append(flaws)
            return
        count = np.maximum(answers.sum(-1), 1)
        self._rows.append(np.sqrt((difference**2).sum(-1) / count))
        self._flaws.append(np.asarray(flaws.any(-1)))
        if self.kind == "classes":
            first, other = x.argmax(-1)[:, None], found.argmax(-1)[:, None]
            self._margins.append(
                (np.take_along_axis(x, first, -1) - np.take_along_axis(x, other, -1))[:, 0]
            )
        elif self.kind == "vector":
            self._norms.append(_turned(value, value + difference) / np.sqrt(count))

    def result(self) -> OutputAgreement:
        """The verdict on all batches."""
        pooled = self.kind != "number"
        units, limits, note = self._limits(pooled)
        rows = np.concatenate(self._rows)
        same = ~np.concatenate(self._flaws) & (np.abs(rows) <= ROW * limits)
        if self._margins:
            same &= np.concatenate(self._margins) <= TIE * limits[0]
        if self._norms:
            same &= ~(np.concatenate(self._norms) > 2.0 * limits[0])
        count, elements = len(rows), self._sums[0].sum()
        shares = same.mean(0) if count else np.ones(1)
        together = np.sqrt(self._total(4, pooled) / np.maximum(self._total(0, pooled), 1))
        errors, relative = _ratio(together, units), _ratio(limits, units)
        worst = int(np.argmax(_ratio(errors, relative)))
        return OutputAgreement(
            self.name,
            self.kind,
            count,
            float(np.min(shares)),
            self._largest,
            self._absolute / max(float(elements), 1.0),
            self._deviation / max(float(elements), 1.0),
            float(errors[worst]),
            float(relative[worst]),
            self._wrong_columns() if pooled else 0,
            note,
        )

    def _total(self, part: int, pooled: bool) -> np.ndarray:
        return self._sums[part].sum(keepdims=True) if pooled else self._sums[part]

    def _limits(self, pooled: bool) -> tuple[np.ndarray, np.ndarray, str]:
        """Standard deviation, largest error that is rounding, and what weakens the judgement.

        The numbers are those of each column, or one for all where they are in the same units. An
        output that does not vary has its magnitude in place of a standard deviation.
        """
        count = np.maximum(self._total(0, pooled), 1)
        spread = self._spread(pooled)
        magnitude = np.sqrt(self._total(3, pooled) / count)
        rounding = np.sqrt(self._total(5, pooled) / count)
        few, constant = count < _FEW, spread <= FLOAT * magnitude
        least = np.where(few | constant, CONSTANT, FLOAT) * magnitude
        most = NEVER * np.maximum(spread, STEADY * magnitude)
        limits = np.maximum(
            np.minimum(ROUNDINGS * rounding, most), np.maximum(ALWAYS * spread, least)
        )
        note = _CONSTANT_NOTE if constant.any() else _FEW_NOTE if few.any() else ""
        return np.where(constant, magnitude, spread), limits, note

    def _variances(self) -> np.ndarray:
        """Of every column."""
        count = np.maximum(self._sums[0], 1)
        return np.maximum(self._sums[2] / count - (self._sums[1] / count) ** 2, 0.0)

    def _spread(self, pooled: bool) -> np.ndarray:
        """Standard deviation; of columns in the same units their root mean square."""
        variances, weights = self._variances(), np.maximum(self._sums[0], 1)
        if not pooled:
            return np.sqrt(variances)
        if sum(map(len, self._rows)) == 1:  # which varies along its columns at best
            return np.array([self._deviation / max(self._sums[0].sum(), 1)])
        return np.sqrt(np.average(variances, weights=weights, keepdims=True))

    def _wrong_columns(self) -> int:
        """Columns that differ by more than rounding and a share of their own spread.

        0 where there are too few rows to know.
        """
        count, _, _, squares, errors, roundings = self._sums
        if not self._by_column or not count.size or count.min() < _MANY:
            return 0
        allowed = np.maximum(ROUNDINGS**2 * roundings / count, NEVER**2 * self._variances())
        return int(
            (errors / count > np.maximum(allowed, FLOAT**2 * squares.sum() / count.sum())).sum()
        )


class ExactParity:
    """Collects an output whose answers are equal or not: integers, booleans, texts."""

    def __init__(self, name: str):
        self.name = name
        self._counts: dict[Any, int] = {}
        self._same = self._rows = 0

    def add(self, simulated: np.ndarray, found: np.ndarray, unrounded: np.ndarray) -> None:
        """Takes the answers to one batch; those of the float network say nothing here."""
        self._same += int((simulated == found).sum())
        self._rows += simulated.size
        for value, count in zip(*np.unique(simulated, return_counts=True), strict=True):
            self._counts[value] = self._counts.get(value, 0) + int(count)

    def result(self) -> OutputAgreement:
        """The verdict; an answer that is always the usual one has to be better than that."""
        other, rare = self._rows - self._same, self._rows - max(self._counts.values(), default=0)
        same = 0.0 if other and 2 * other > rare else self._same / max(self._rows, 1)
        note = "" if rare else _CONSTANT_NOTE
        return OutputAgreement(
            self.name, "exact", self._rows, same, 0.0, 0.0, 0.0, 0.0, 0.0, note=note
        )


def collector(name: str, kind: str, tensor: tf.Tensor) -> OutputParity | ExactParity:
    """What collects an output of a kind; `tensor` is it in the graph."""
    if kind == "exact":
        return ExactParity(name)
    rank = tensor.shape.rank
    columns = (
        None if rank is None or tensor.dtype.is_complex else tensor.shape[-1] if rank > 1 else 1
    )
    return OutputParity(name, kind, columns)


def _ratio(value: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """`value / spread`; 0 where both are, infinite where the spread alone is."""
    return np.divide(value, spread, out=np.where(value > 0, math.inf, 0.0), where=spread > 0)


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(_CHUNK // max(columns, 1), 1)
    return (slice(start, start + step) for start in range(0, rows, step))


def _mark_from(values: np.ndarray) -> float:
    """The magnitude from which on elements are marks; infinite where all are as large."""
    size = np.abs(values[np.isfinite(values)].astype(np.float64))
    answers = size[size < _MARK]
    if not answers.size:
        return math.inf
    return max(_MARK, _MARK_RATIO * float(np.sqrt((answers**2).mean())))


def _turned(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Length of every row of `one` to which that of `other` points in another direction, else 0."""
    norm = np.linalg.norm(one, axis=-1)
    cosine = (one * other).sum(-1) / np.maximum(
        norm * np.linalg.norm(other, axis=-1), np.finfo(np.float64).tiny
    )
    return np.where(cosine < _COSINE, norm, 0.0)
