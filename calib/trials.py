"""Search for the range of least loss among given ends, of all channels at once."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from calib.codebook import Codebook, Range
from calib.losses import Loss


@dataclass(frozen=True, eq=False)
class Trials:
    """Candidate ends of ranges for `least_of_trials`, of one tensor or for all channels alike.

    Attributes:
        lowest, highest: unit of positions below and above zero; scalars or [channels].
        lower, upper: ascending positions that are tried, from zero outwards; only `upper` of a
            symmetric codebook.
        joint: shares of the last of both that are tried first, for both ends together.
        fine: offsets of positions, from 0 to 1, that are tried around the best position.
        rounds: how often each of two ends is searched in turn, at most: the search ends when
            neither moves.
        keep: whether the position found last is tried again with the others.
    """

    lowest: np.ndarray
    highest: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    joint: np.ndarray = field(default_factory=lambda: np.ones(1))
    fine: np.ndarray = field(default_factory=lambda: np.zeros(0))
    rounds: int = 0
    keep: bool = False


def least_of_trials(loss: Loss, trials: Trials, codebook: Codebook) -> Range:
    """Range of least loss among the candidates, for each channel by itself; the first one on ties.

    With a symmetric codebook there is one end to find. Otherwise both are shrunk together first,
    then in turn.

    Args:
        loss: of candidate ranges, [candidates] or [candidates, channels].
        trials: what to try.
        codebook: values of the number format.
    """
    if codebook.symmetric:

        def symmetric_loss(position: np.ndarray) -> np.ndarray:
            ends = codebook.symmetric_range(position * trials.highest)
            return loss(*(end.astype(trials.upper.dtype, copy=False) for end in ends))

        position, _ = _best(symmetric_loss, trials.upper, trials)
        return codebook.symmetric_range(position * trials.highest)
    far = trials.lower[-1], trials.upper[-1]
    share, _ = _best(
        lambda share: loss(share * far[0] * trials.lowest, share * far[1] * trials.highest),
        trials.joint,
        trials,
    )
    low, high = share * far[0], share * far[1]
    least = np.inf
    for _ in range(trials.rounds):
        low, _ = _best(
            _loss_below(loss, trials, high), trials.lower, trials, low if trials.keep else None
        )
        high, scores = _best(
            _loss_above(loss, trials, low), trials.upper, trials, high if trials.keep else None
        )
        if not (scores < least).any():
            break
        least = scores
    return low * trials.lowest, high * trials.highest


def _loss_below(loss: Loss, trials: Trials, high: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Loss of candidates for the lower end."""
    return lambda low: loss(low * trials.lowest, np.broadcast_to(high * trials.highest, low.shape))


def _loss_above(loss: Loss, trials: Trials, low: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Loss of candidates for the upper end."""
    return lambda high: loss(
        np.broadcast_to(low * trials.lowest, high.shape), high * trials.highest
    )


def _best(
    loss: Callable[[np.ndarray], np.ndarray],
    positions: np.ndarray,
    trials: Trials,
    kept: np.ndarray | None = None,
) -> Range:
    """Position of the least loss and that loss, for each channel.

    Args:
        loss: of positions, [candidates] or [candidates, channels].
        positions: what to try, [candidates].
        trials: of which `fine` offsets are tried around the best.
        kept: one more position to try, of each channel.
    """
    channels = trials.highest.shape
    tried = np.broadcast_to(
        positions.reshape(-1, *(1 for _ in channels)), (positions.size, *channels)
    )
    if kept is not None:
        tried = np.concatenate([tried, kept[np.newaxis]])
    best, least = _first_least(tried, loss(tried))
    if not trials.fine.size:
        return best, least
    around = np.clip(best + trials.fine.reshape(-1, *(1 for _ in channels)), 0, 1)
    return _first_least(
        np.concatenate([best[np.newaxis], around]),
        np.concatenate([least[np.newaxis], loss(around)]),
    )


def _first_least(tried: np.ndarray, scores: np.ndarray) -> Range:
    """First candidate with the least score and that score; the last one where all overflow."""
    index = np.where(np.isinf(scores).all(0), len(scores) - 1, scores.argmin(0))[np.newaxis]
    return np.take_along_axis(tried, index, 0)[0], np.take_along_axis(scores, index, 0)[0]
