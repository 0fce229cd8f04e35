"""Unique sizes for the axes of a graph's inputs; axes that the graph requires to be equal are
merged.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable

import tensorflow as tf

BATCH = 0
# Small first, so that position tables are long enough; for the batch smaller still, as Keras'
# TimeDistributed with a mask fails on batches larger than the length.
_SIZES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89)
_BATCH_SIZES = (5, 3, 2)
# Convolutions and pools without padding shrink the axes of images.
_IMAGE_SIZES = range(211, 100_000, 2)
_LARGE_SIZES = range(101, 100_000, 2)
_UNEQUAL = re.compile(r"are (\d+) and (\d+)")


@dataclasses.dataclass(eq=False)
class _Label:
    """Axis of an input, or several that have proven to be equal.

    Attributes:
      size: in the emission.
      fixed: size in the trace, None where that is open.
      image: whether it is an axis of a tensor of rank 4 or more.
      root: the label that it was merged with.
    """

    fixed: int | None
    image: bool = False
    size: int = 0
    root: _Label | None = None

    @property
    def pinned(self) -> bool:
        return self.size == self.fixed


class AxisSizes:
    """Sizes of the labels of input axes. Label `BATCH` is the first axis of the inputs.

    Args:
      inputs: placeholders.
      taken: sizes that other axes of the graph have.

    Attributes:
      labels: of each input, for each axis; None where an axis keeps the size that it has.
    """

    def __init__(self, inputs: Iterable[tf.Tensor], taken: Iterable[int]):
        self._inputs, self._taken = list(inputs), set(taken)
        firsts = [t.shape[0] for t in self._inputs if t.shape.rank]
        self._all = [_Label(None if None in firsts else next(iter(firsts), None))]
        self.labels = [self._of_input(tensor) for tensor in self._inputs]
        for label in self._all:
            label.size = self._unused(label)
        self._merged_all = False

    def root(self, label: int) -> int:
        """Representative label of all that were merged with one."""
        result = self._all[label]
        while result.root is not None:
            result = result.root
        return self._all.index(result)

    def pinned(self, label: int) -> bool:
        """Whether a label is fixed to the size of the trace, which features may share."""
        return self._all[self.root(label)].pinned

    def any_pinned(self) -> bool:
        """Whether some label is fixed to the size of the trace."""
        return any(label.pinned for label in self._roots())

    def several_lengths(self) -> bool:
        """Whether there are labels besides the batch that could be confused with each other."""
        return sum(not label.pinned for label in self._roots() if label is not self._all[BATCH]) > 1

    def shapes(self) -> list[tf.TensorShape]:
        """Shape of each input."""
        return [
            (
                tensor.shape
                if tensor.shape.rank is None
                else tf.TensorShape(
                    [
                        size if label is None else self._all[self.root(label)].size
                        for label, size in zip(labels, tensor.shape, strict=True)
                    ]
                )
            )
            for tensor, labels in zip(self._inputs, self.labels, strict=True)
        ]

    def products(self) -> dict[int, tuple[int, ...]]:
        """Map size -> labels whose product it is, one to three of them."""
        roots = sorted({self.root(index) for index in range(len(self._all))})
        result: dict[int, tuple[int, ...]] = {}
        for count in (1, 2, 3):
            for labels in itertools.combinations(roots, count):
                size = 1
                for label in labels:
                    size *= self._all[label].size
                result.setdefault(size, labels)
        return result

    def renew(self) -> None:
        """Assign new sizes to all labels that are not pinned."""
        for label in self._roots():
            if not label.pinned:
                self._taken.add(label.size)
        for label in self._roots():
            if not label.pinned:
                label.size = self._unused(label)

    def settle(self, message: str) -> bool:
        """Change sizes after the graph has rejected them with `message`; return False if nothing is
        left to change.
        """
        unequal = _UNEQUAL.search(message)
        if unequal and self._settle_two(*map(int, unequal.groups())):
            return True
        return self.pin() or self._merge_lengths()

    def pin(self) -> bool:
        """Fix labels to the sizes of the trace; return False if no label changes."""
        changed = False
        for label in self._roots():
            if label.fixed is not None and not label.pinned:
                label.size, changed = label.fixed, True
        return changed

    def _settle_two(self, first: int, second: int) -> bool:
        """Resolve a conflict of two sizes: merge their labels, pin one to its fixed size, or lower
        one.
        """
        roots = self._roots()
        for one, other in itertools.permutations(roots, 2):
            if (
                first * other.size == second * one.size
                and first % one.size == 0
                and (one.fixed or other.fixed)
                in (
                    other.fixed,
                    one.fixed,
                )
            ):
                _merge(one, other)
                return True
        for size, wanted in ((first, second), (second, first)):
            for label in roots:
                if (
                    label.fixed is not None
                    and not label.pinned
                    and size * label.fixed == wanted * label.size
                ):
                    label.size = label.fixed
                    return True
        return self._lower(first, second)

    def lower(self, message: str) -> bool:
        """Lower a label that the graph has rejected with `message`; return False if the message has
        another cause.
        """
        unequal = _UNEQUAL.search(message)
        return bool(unequal) and self._lower(*map(int, unequal.groups()))

    def _lower(self, first: int, second: int) -> bool:
        """Lower a label below the smaller size, that of a table."""
        size, limit = max(first, second), min(first, second)
        for label in self._roots():
            if label.fixed is None and size == label.size:
                smaller = next((n for n in range(limit - 1, 2, -1) if self._fits(n)), None)
                if smaller is not None:
                    label.size = smaller
                    return True
        return False

    def _merge_lengths(self) -> bool:
        """Merge all second axes, as a last resort."""
        result = {
            self.root(labels[1])
            for labels in self.labels
            if len(labels) > 1 and labels[1] is not None
        } - {BATCH}
        if self._merged_all or len(result) < 2:
            return False
        self._merged_all = True
        first, *others = (self._all[index] for index in sorted(result))
        for other in others:
            _merge(first, other)
        return True

    def _roots(self) -> list[_Label]:
        return [label for label in self._all if label.root is None]

    def _of_input(self, tensor: tf.Tensor) -> tuple[int | None, ...]:
        if tensor.shape.rank is None:
            return ()
        result: list[int | None] = []
        # The last axis of numbers are features, and so are fixed sizes of images; all axes of ids
        # and masks may run over tokens.
        features = tensor.shape.rank - 1 if tensor.dtype.is_floating else tensor.shape.rank
        for axis, size in enumerate(tensor.shape):
            if axis == 0:
                result.append(BATCH if size == self._all[BATCH].fixed else None)
            elif size is None or (axis < features and tensor.shape.rank < 4):
                self._all.append(_Label(size, image=tensor.shape.rank > 3))
                result.append(len(self._all) - 1)
            else:
                result.append(None)
        return tuple(result)

    def _unused(self, label: _Label) -> int:
        small = (
            () if label.image else (*(_BATCH_SIZES if label is self._all[BATCH] else ()), *_SIZES)
        )
        large = _IMAGE_SIZES if label.image else _LARGE_SIZES
        return next(size for size in itertools.chain(small, large) if self._fits(size))

    def _fits(self, size: int) -> bool:
        """Return whether a size is free, also as a product with another, the size of a flattened
        axis.
        """
        others = [label.size for label in self._roots() if label.size]
        return (
            size not in self._taken
            and size not in others
            and not any(size * n in self._taken for n in others)
        )


def _merge(one: _Label, other: _Label) -> None:
    other.root = one
    one.size = (
        min(one.size, other.size)
        if not (one.pinned or other.pinned)
        else (one.size if one.pinned else other.size)
    )
    one.fixed, one.image = one.fixed or other.fixed, one.image or other.image
