"""Ranges of weights: constant tensors that are at hand, so no histogram has to stand in for the values."""

import math

import numpy as np

from calib import losses, range_search
from calib.codebook import Codebook
from calib.errors import CalibrationError, EmptyStatisticsError, NonFiniteError
from calib.methods import GENERAL, Method
from calib.statistics import Histogram, Statistics

# Shares of the extremes the per-channel mse search tries, then the refinement around the best of them.
_SHARES = np.linspace(1 / 16, 1, 61)
_FINE = np.linspace(-1, 1, 9)[1:-1] * (_SHARES[1] - _SHARES[0])
_QUANTILES = {"interpolated": "linear", "right": "inverted_cdf", "left": "lower"}


def weight_statistics(
    array: np.ndarray, axis: int | None = None, signed: bool = False, bins: int = 2048, *, name: str = "weight"
) -> Statistics:
    """Statistics of a constant tensor.

    Args:
        array: any float array.
        axis: the channel axis, or None for one range per tensor.
        signed: whether the histogram keeps the signs.
        bins: histogram bins, a power of two. Per-channel statistics have no histogram.
        name: for messages.

    Raises:
        NonFiniteError: the array holds NaN or Inf.
        ValueError: the array is empty or has no such axis.
    """
    rows = _channels(array, axis, name)
    histogram = Histogram.of(rows, signed=signed, bins=bins) if axis is None else None
    shape = () if axis is None else (rows.shape[0],)
    return Statistics(
        minimum=rows.min(1).reshape(shape),
        maximum=rows.max(1).reshape(shape),
        count=rows.size,
        batches=1,
        histogram=histogram,
        constant=True,
    )


def per_channel_range(
    array: np.ndarray, axis: int | None, method: Method | str, codebook: Codebook, *, name: str = "weight"
) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper), float32 (channels,) or () for axis None, estimated from the values of each channel themselves.

    max, moving_average and current_minmax take the extremes, percentile sorts, mse tries shares of the extremes (both ends
    apart on an asymmetric grid; its start_bin and stride do not apply) or, with `search` grid or golden_section, what that
    says, for each channel within its own extremes; entropy makes a histogram of each channel. The latter take some
    milliseconds a channel, but mse by grid for both ends of 8-bit codes 0.1 s: leave that to weights of one range.

    Raises:
        CalibrationError: the method is for logits.
        NonFiniteError: the array holds NaN or Inf.
        ValueError: the array is empty, has no such axis, or the method is unknown.
    """
    method = Method(method) if isinstance(method, str) else method
    rows = _channels(array, axis, name)
    if method.name not in GENERAL:
        raise CalibrationError(
            f"{name}: method {method.name!r} is for logits and this is a weight; use {', '.join(GENERAL)} for it"
        )
    if method.name in ("max", "moving_average", "current_minmax"):
        lower, upper = method.estimate(weight_statistics(array, axis, name=name), codebook, site=name)
    elif method.name == "percentile":
        lower, upper = _percentile(rows, codebook, **method.options)
    elif method.name == "mse" and method.options["search"] == "bins":
        lower, upper = _mse(rows, codebook)
    elif method.name == "mse":
        lower, upper = _searched(rows, codebook, method)
    else:
        ranges = [method.estimate(weight_statistics(row, signed=not codebook.symmetric), codebook, site=name) for row in rows]
        lower, upper = (np.array(ends, np.float32) for ends in zip(*ranges, strict=True))
    shape = () if axis is None else (rows.shape[0],)
    return np.reshape(lower, shape).astype(np.float32), np.reshape(upper, shape).astype(np.float32)


def _channels(array: np.ndarray, axis: int | None, name: str) -> np.ndarray:
    """float32 [channels, values]; one channel when axis is None."""
    array = np.asarray(array).astype(np.float32)
    if array.size == 0:
        raise EmptyStatisticsError(f"{name}: the weight is empty (shape {list(array.shape)}), so it has no range")
    finite = np.isfinite(array)
    if not finite.all():
        raise NonFiniteError(f"{name}: {array.size - finite.sum()} of {array.size} weights are NaN or Inf; reload them")
    if axis is None:
        return array.reshape(1, -1)
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"{name}: no channel axis {axis} in a weight of shape {list(array.shape)}")
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _percentile(rows: np.ndarray, codebook: Codebook, percentile: float, edge: str) -> tuple[np.ndarray, np.ndarray]:
    if not codebook.symmetric:
        rest = (100 - percentile) / 2
        upper = np.percentile(rows, 100 - rest, axis=1, method=_QUANTILES[edge])
        lower = -np.percentile(-rows, 100 - rest, axis=1, method=_QUANTILES[edge])
        return np.minimum(lower, 0), np.maximum(upper, 0)
    magnitudes = np.maximum(rows, 0) if codebook.unsigned else np.abs(rows)
    return codebook.symmetric_range(np.percentile(magnitudes, percentile, axis=1, method=_QUANTILES[edge]))


def _searched(rows: np.ndarray, codebook: Codebook, method: Method) -> tuple[np.ndarray, np.ndarray]:
    options = {key: method.options[key] for key in ("search", "candidates", "margin")}
    ranges = []
    for row in rows:
        loss = losses.squared_error(row, None, codebook)
        ranges.append(range_search.least_loss(loss, row.min(), row.max(), codebook, **options))
    lower, upper = (np.array(ends, np.float32) for ends in zip(*ranges, strict=True))
    return lower, upper


def _mse(rows: np.ndarray, codebook: Codebook) -> tuple[np.ndarray, np.ndarray]:
    """Best ends by trial, in blocks of channels that fit the cache."""
    block = max(1, (1 << 16) // rows.shape[1])
    parts = [_mse_block(rows[start : start + block], codebook) for start in range(0, rows.shape[0], block)]
    lower, upper = (np.concatenate(ends) for ends in zip(*parts, strict=True))
    return lower, upper


def _mse_block(rows: np.ndarray, codebook: Codebook) -> tuple[np.ndarray, np.ndarray]:
    if codebook.symmetric:
        amax = np.maximum(rows, 0).max(1) if codebook.unsigned else np.abs(rows).max(1)
        share = _best_share(lambda s: codebook.symmetric_range(s * amax), rows, codebook)
        return codebook.symmetric_range(share * amax)
    least, most = np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)
    low = high = _best_share(lambda s: (s * least, s * most), rows, codebook)
    for _ in range(2):
        low = _best_share(lambda s, high=high: (s * least, high * most), rows, codebook)
        high = _best_share(lambda s, low=low: (low * least, s * most), rows, codebook)
    return low * least, high * most


def _best_share(ends, rows: np.ndarray, codebook: Codebook) -> np.ndarray:
    """float32 [channels]: the share whose range ``ends(share)`` gives the least squared error in each channel."""
    best, least = np.ones(rows.shape[0], np.float32), np.full(rows.shape[0], math.inf)

    def consider(share: np.ndarray) -> None:
        lower, upper = ends(share)
        quantized = codebook.quantize(rows, lower[:, np.newaxis], upper[:, np.newaxis])
        error = np.square(quantized - rows).sum(1)
        better = error < least
        best[better], least[better] = share[better], error[better]

    for value in _SHARES:
        consider(np.full_like(best, value))
    coarse = best.copy()
    for offset in _FINE:
        consider(np.clip(coarse + np.float32(offset), 0, 1))
    return best
