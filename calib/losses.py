"""Losses of candidate ranges: squared error of quantized values, cross-entropy of quantized logits.

Values are quantized in the type of the candidates. float32 is what the network uses; that matters
where many candidates have their zero point half-way between two integers, as -r..r, and the last
bit decides how it is rounded. float64 is for minimizers, which need a loss without noise.
"""

from collections.abc import Callable

import numpy as np
from scipy import special

from calib.codebook import Codebook

# (lower, upper), float32 or float64 [candidates] or [candidates, channels] each -> loss of each.
Loss = Callable[[np.ndarray, np.ndarray], np.ndarray]

_CHUNK = 1 << 16  # values quantized at once: a few of their copies stay in the cache
# Looking one edge up among sorted values takes about as long as quantizing so many values.
_LOOKUP = 4


def squared_error(
    values: np.ndarray,
    counts: np.ndarray | None,
    codebook: Codebook,
    *,
    up_to_constant: bool = False,
) -> Loss:
    """Loss: sum of (x - Q(x))^2.

    Args:
        values: [n], any order; or [channels, n], whose candidate ranges are [candidates, channels].
        counts: how often each occurs, [n]; None: once, summed in the type of the candidates.
        codebook: values that Q rounds to.
        up_to_constant: leave out the sum of x^2 where that is faster, with many more values than
            codes. The rest is so much larger than the error that it suits candidates which are far
            apart, not the bins of one histogram.
    """
    if up_to_constant and counts is not None and values.size > _LOOKUP * codebook.num_codes:
        return _from_sums(values, counts, codebook)
    if values.ndim == 1:
        return _each_value(values, counts, codebook)
    size = max(1, _CHUNK // values.shape[1])
    blocks = [slice(start, start + size) for start in range(0, values.shape[0], size)]
    parts = [(block, _each_value(values[block], counts, codebook)) for block in blocks]
    return lambda lower, upper: np.concatenate(
        [loss(lower[:, block], upper[:, block]) for block, loss in parts], 1
    )


def _each_value(values: np.ndarray, counts: np.ndarray | None, codebook: Codebook) -> Loss:
    """Squared error summed value by value, of all channels at once."""

    def error(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        x = values.astype(lower.dtype, copy=False)
        quantized = codebook.quantize(x, lower[..., np.newaxis], upper[..., np.newaxis])
        with np.errstate(over="ignore"):  # an infinite loss is not the least
            squares = np.square(quantized - x)
        return squares.sum(-1) if counts is None else squares @ np.asarray(counts, np.float64)

    return _chunked(error, values.size)


def _from_sums(values: np.ndarray, weights: np.ndarray, codebook: Codebook) -> Loss:
    """Squared error minus the sum of x^2, from cumulative sums over sorted values.

    A candidate costs a look-up for each code, not a pass over all values.
    """
    order = np.argsort(values)
    values, weights = np.asarray(values, np.float64)[order], np.asarray(weights, np.float64)[order]
    zeros = [0.0]
    counts, sums = (
        np.concatenate([zeros, np.cumsum(terms)]) for terms in (weights, weights * values)
    )

    def error(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        levels = codebook.values(lower, upper)
        inner = np.searchsorted(values, codebook.boundaries(lower, upper))
        edges = np.pad(inner, ((0, 0), (1, 1)), constant_values=((0, 0), (0, values.size)))
        return (np.square(levels) * np.diff(counts[edges]) - 2 * levels * np.diff(sums[edges])).sum(
            1
        )

    return _chunked(error, codebook.num_codes)


def cross_entropy(rows: np.ndarray, codebook: Codebook) -> Loss:
    """Loss: sum over rows of -softmax(x) . log softmax(Q(x)).

    Args:
        rows: logits, [n, classes].
        codebook: values that Q rounds to.
    """
    rows = np.asarray(rows, np.float64)
    shares = special.softmax(rows, -1)

    def loss(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        x = rows.astype(lower.dtype)
        quantized = codebook.quantize(
            x, lower[:, np.newaxis, np.newaxis], upper[:, np.newaxis, np.newaxis]
        )
        return -np.einsum(
            "crk,rk->c", special.log_softmax(quantized.astype(np.float64), -1), shares
        )

    return _chunked(loss, rows.size)


def _chunked(loss: Loss, size: int) -> Loss:
    """Evaluate ``loss`` in chunks of candidates that fit the cache at ``size`` numbers each."""
    count = max(1, _CHUNK // size)

    def whole(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        lower, upper = np.atleast_1d(lower), np.atleast_1d(upper)
        parts = [slice(start, start + count) for start in range(0, len(lower), count)]
        return np.concatenate([loss(lower[part], upper[part]) for part in parts])

    return whole
