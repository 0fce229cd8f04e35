"""Ranges of weights, from their exact values instead of a histogram."""

import numpy as np

from calib.codebook import Codebook
from calib.distribution import ExactStatistics
from calib.errors import CalibrationError, EmptyStatisticsError, NonFiniteError
from calib.methods import GENERAL, Method
from calib.statistics import Histogram, Statistics


def weight_statistics(
    array: np.ndarray,
    axis: int | None = None,
    signed: bool = False,
    bins: int = 2048,
    *,
    name: str = "weight",
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
    array: np.ndarray,
    axis: int | None,
    method: Method | str,
    codebook: Codebook,
    *,
    name: str = "weight",
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the range of each channel from its exact values.

    max, moving_average and current_minmax take the extremes, percentile sorts, mse tries shares of
    the extremes (both ends apart on an asymmetric grid; its start_bin and stride do not apply) or,
    with `search` grid or golden_section, that search for each channel within its own extremes;
    entropy makes a histogram of each channel. The latter take some milliseconds per channel, but
    mse by grid for both ends of 8-bit codes 0.1 s: use that for per-tensor weights only.

    Args:
        array: any float array.
        axis: the channel axis, or None for one range per tensor.
        method: range method.
        codebook: values of the number format.
        name: for messages.

    Returns:
        (lower, upper), float32 (channels,), or () for axis None.

    Raises:
        CalibrationError: the method is for logits.
        NonFiniteError: the array holds NaN or Inf.
        ValueError: the array is empty, has no such axis, or the method is unknown.
    """
    method = Method(method) if isinstance(method, str) else method
    rows = _channels(array, axis, name)
    if method.name not in GENERAL:
        raise CalibrationError(
            f"{name}: method {method.name!r} is for logits and this is a weight; use"
            f" {', '.join(GENERAL)} for it"
        )
    lower, upper = method.estimate(ExactStatistics.of(rows), codebook, site=name)
    shape = () if axis is None else (rows.shape[0],)
    return np.reshape(lower, shape).astype(np.float32), np.reshape(upper, shape).astype(np.float32)


def _channels(array: np.ndarray, axis: int | None, name: str) -> np.ndarray:
    """Array as float32 [channels, values]; one channel when axis is None."""
    array = np.asarray(array).astype(np.float32)
    if array.size == 0:
        raise EmptyStatisticsError(
            f"{name}: the weight is empty (shape {list(array.shape)}), so it has no range"
        )
    finite = np.isfinite(array)
    if not finite.all():
        raise NonFiniteError(
            f"{name}: {array.size - finite.sum()} of {array.size} weights are NaN or Inf; reload"
            " them"
        )
    if axis is None:
        return array.reshape(1, -1)
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"{name}: no channel axis {axis} in a weight of shape {list(array.shape)}")
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
