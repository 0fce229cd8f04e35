"""Hessians of the layers of one group, from the inputs of all real tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfquant.ptq.gptq.product import Product
from tfquant.ptq.layers import Layer
from tfquant.ptq.paired_forward import PairedForward, Seen


@dataclasses.dataclass(eq=False)
class Hessian:
    """Mean over samples of the products of inputs, half the Hessian of the squared error.

    Attributes:
      total: float64 [M, K, K], sum over samples.
      count: number of samples.
    """

    total: np.ndarray
    count: int = 0

    def add(self, rows: np.ndarray) -> None:
        """Add samples, float32 [M, rows, K]."""
        # Products of one batch in float32, as inputs are; their sum over batches in float64.
        self.total += np.matmul(np.swapaxes(rows, 1, 2), rows)
        self.count += rows.shape[1]


def collect(
    walk: PairedForward,
    number: int,
    uses: Sequence[tuple[Layer, Product]],
    wanted: Mapping[str, object],
    substitutes: Mapping[str, tf.Variable],
) -> dict[str, tuple[np.ndarray, int]]:
    """Compute the Hessians of the layers of one group; layers that share an input share the work.

    Args:
      walk: over both networks.
      number: of the stop.
      uses: (layer, product) of each use there.
      wanted: addresses of the layers whose Hessians are needed.
      substitutes: see `PairedForward.visit`.

    Returns:
      Address -> mean of the products of inputs over samples, float64 [M, K, K], and how many
      samples there were, over all uses.

    Raises:
      ValueError: no real token goes into a layer.
    """
    hessians: dict[tuple, Hessian] = {}
    keys: list[tuple] = [()] * len(uses)
    for seen in walk.visit(number, substitutes):
        added = set()
        for index, ((layer, product), what) in enumerate(zip(uses, seen, strict=True)):
            if layer.address not in wanted:
                continue
            keys[index] = key = (what.source, product.layout)
            if key in added:
                continue
            added.add(key)
            m, k, _ = product.shape
            hessian = hessians.setdefault(key, Hessian(np.zeros((m, k, k))))
            hessian.add(_rows(product, what))
    result: dict[str, tuple[np.ndarray, int]] = {}
    for (layer, _), key in zip(uses, keys, strict=True):
        if layer.address not in wanted:
            continue
        if hessians[key].count == 0:
            raise ValueError(
                f"no real token goes into {layer.address} in any batch: check the mask input"
            )
        total, count = result.get(layer.address, (0.0, 0))
        result[layer.address] = (total + hessians[key].total, count + hessians[key].count)
    return {address: (total / count, count) for address, (total, count) in result.items()}


def _rows(product: Product, what: Seen) -> np.ndarray:
    return np.ascontiguousarray(product.rows(what.quantized, what.valid))
