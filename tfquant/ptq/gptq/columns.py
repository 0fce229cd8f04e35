"""Rounding of one matrix, input by input, with the error compensated in the inputs that follow.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv:2210.17323, algorithm 1. Rows of our matrices are inputs, columns outputs: what
the paper calls columns are rows here.
"""

from __future__ import annotations

import numpy as np

from tfquant.ptq.gptq.grid import Grid
from tfquant.ptq.gptq.options import Options


def inverse_factor(hessian: np.ndarray, percdamp: float) -> np.ndarray:
    """Upper Cholesky factor U of the inverse of a damped Hessian, H^-1 = U^T U.

    Args:
      hessian: float64 [K, K]; an input that is always 0 has a diagonal of 0.
      percdamp: added to the diagonal, as a share of its mean.

    Returns:
      float64 [K, K].

    Raises:
      ValueError: the damping is too small for float64.
    """
    damped = hessian.copy()
    diagonal = np.diagonal(damped).copy()
    damping = percdamp * float(diagonal.mean())
    # An input that is always 0 meets no other: its weights are rounded to nearest.
    np.fill_diagonal(damped, np.where(diagonal == 0.0, 1.0, diagonal + damping))
    try:
        lower = np.linalg.inv(np.linalg.cholesky(damped))
        return np.linalg.cholesky(lower.T @ lower).T
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"the Hessian of its inputs is singular with percdamp {percdamp:g}: raise percdamp"
        ) from error


def round_columns(
    weight: np.ndarray, hessian: np.ndarray, grid: Grid, options: Options
) -> np.ndarray:
    """Round a matrix.

    Args:
      weight: float64 [K, N].
      hessian: float64 [K, K], sum or mean over samples of the products of inputs.
      grid: of the matrix; scales of blocks are chosen on the way.
      options: of GPTQ.

    Returns:
      float64 [K, N], values in units of the scale.

    Raises:
      ValueError: the Hessian is singular.
    """
    count, at_once = len(weight), options.act_order
    importance = np.diagonal(hessian)
    # Rows of one diagonal keep their order on every machine.
    order = np.argsort(-importance, kind="stable") if at_once else np.arange(count)
    if options.compensate:
        factor = inverse_factor(hessian[np.ix_(order, order)], options.percdamp)
    else:
        factor = np.eye(count)
    left, codes = weight[order], np.zeros(weight.shape)
    grid.start(weight, np.where(importance == 0.0, 1.0, importance), at_once=at_once)
    for start, stop in _spans(count, options.block_columns, grid, at_once):
        errors = np.empty((stop - start, weight.shape[1]))
        for i in range(start, stop):
            row = int(order[i])
            grid.begin(row, left, at_once=at_once)
            codes[row] = grid.rounded(row, left[i])
            error = errors[i - start] = (left[i] - codes[row] * grid.scale[row]) / factor[i, i]
            left[i:stop] -= np.outer(factor[i, i:stop], error)
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return codes


def _spans(count: int, size: int, grid: Grid, at_once: bool) -> list[tuple[int, int]]:
    """Cut rows into spans of at least `size`, at the borders of blocks, so that a block whose scale
    is chosen holds the errors of all rows before it.
    """
    starts = [] if grid.blocks is None or at_once else sorted(grid.blocks.starts)
    if not starts:
        starts = list(range(0, count, size))
    borders = [0]
    for start in [*starts[1:], count]:
        if start - borders[-1] >= size or start == count:
            borders.append(start)
    return list(zip(borders, borders[1:], strict=False))
