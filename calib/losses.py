"""What a candidate range costs: the squared error of quantized values, the cross-entropy of quantized logits.

Values are quantized in the type of the candidates. float32 is what the network will do; that matters where many candidates have
their zero point half-way between two integers, as -r..r, and the last bit decides which it is. float64 is for minimizers, which
need a loss without noise.
"""

from collections.abc import Callable

import numpy as np
from scipy import special

from calib.codebook import Codebook

# (lower, upper), float32 or float64 [candidates] each -> float64 [candidates].
Loss = Callable[[np.ndarray, np.ndarray], np.ndarray]

_CHUNK = 1 << 16  # values quantized at once: a few of their copies stay in the cache
# Looking one edge up among sorted values takes about as long as quantizing so many values.
_LOOKUP = 4


def squared_error(values: np.ndarray, counts: np.ndarray | None, codebook: Codebook) -> Loss:
    """Sum of (x - Q(x))^2, up to a constant where there are many more values than codes.

    Args:
        values: [n], any order.
        counts: how often each occurs, [n]; None: once.
        codebook: values that Q rounds to.
    """
    values = np.asarray(values, np.float64).reshape(-1)
    weights = np.ones_like(values) if counts is None else np.asarray(counts, np.float64)
    if values.size > _LOOKUP * codebook.num_codes:
        return _from_sums(values, weights, codebook)

    def error(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        x = values.astype(lower.dtype)
        return np.square(codebook.quantize(x, lower[:, np.newaxis], upper[:, np.newaxis]) - x) @ weights

    return _chunked(error, values.size)


def _from_sums(values: np.ndarray, weights: np.ndarray, codebook: Codebook) -> Loss:
    """Squared error less the sum of x^2, from sums over sorted values: a candidate costs a look-up a code, not a pass over all."""
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    zeros = [0.0]
    counts, sums = (np.concatenate([zeros, np.cumsum(terms)]) for terms in (weights, weights * values))

    def error(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        levels = codebook.values(lower, upper)
        inner = np.searchsorted(values, codebook.boundaries(lower, upper))
        edges = np.pad(inner, ((0, 0), (1, 1)), constant_values=((0, 0), (0, values.size)))
        return (np.square(levels) * np.diff(counts[edges]) - 2 * levels * np.diff(sums[edges])).sum(1)

    return _chunked(error, codebook.num_codes)


def cross_entropy(rows: np.ndarray, codebook: Codebook) -> Loss:
    """Sum over rows of -softmax(x) . log softmax(Q(x)).

    Args:
        rows: logits, [n, classes].
        codebook: values that Q rounds to.
    """
    rows = np.asarray(rows, np.float64)
    shares = special.softmax(rows, -1)

    def loss(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        x = rows.astype(lower.dtype)
        quantized = codebook.quantize(x, lower[:, np.newaxis, np.newaxis], upper[:, np.newaxis, np.newaxis])
        return -np.einsum("crk,rk->c", special.log_softmax(quantized.astype(np.float64), -1), shares)

    return _chunked(loss, rows.size)


def _chunked(loss: Loss, size: int) -> Loss:
    """``loss`` on as many candidates at a time as fit the cache at ``size`` numbers each."""
    count = max(1, _CHUNK // size)

    def whole(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        lower, upper = np.atleast_1d(lower), np.atleast_1d(upper)
        parts = [slice(start, start + count) for start in range(0, lower.size, count)]
        return np.concatenate([loss(lower[part], upper[part]) for part in parts])

    return whole
