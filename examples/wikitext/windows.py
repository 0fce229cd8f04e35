"""Overlapping windows over one long text, and perplexity from the losses in them.

The windows are those of Hugging Face's guide on perplexity of models of fixed length: a window
gives its first tokens as context alone, and scores those that no earlier window has covered.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Windows(NamedTuple):
    """Windows of equal length over a text.

    Attributes:
        token_ids: int32, [windows, length].
        scored: number of tokens that each window scores: its last ones. [windows]
    """

    token_ids: np.ndarray
    scored: np.ndarray

    def mask(self) -> np.ndarray:
        """Return whether the prediction of a token counts, [windows, length - 1].

        Position `i` is the prediction of token `i + 1`: the first token is never predicted.
        """
        length = self.token_ids.shape[1]
        return np.arange(1, length)[None, :] >= length - self.scored[:, None]


def make_windows(token_ids: np.ndarray, max_length: int, stride: int) -> Windows:
    """Cut windows that begin at 0, `stride`, 2 `stride`, ... while begin < n - `max_length`.

    Args:
        token_ids: of the text, [n].
        max_length: tokens in a window.
        stride: tokens from one window to the next, at most `max_length`.

    Returns:
        The windows. The first scores all its tokens but the first, which nothing predicts; each
        other one scores `stride` tokens, or one less where windows do not overlap.

    Raises:
        ValueError: the text has too few tokens for one window.
    """
    if len(token_ids) <= max_length:
        raise ValueError(
            f"the text has {len(token_ids)} tokens, windows of --max_length={max_length} need at"
            " least one more: lower --max_length or give a longer text"
        )
    begins = np.arange(0, len(token_ids) - max_length, stride)
    scored = np.minimum(np.full(len(begins), stride), max_length - 1)
    scored[0] = max_length - 1
    windows = np.stack([token_ids[begin : begin + max_length] for begin in begins])
    return Windows(windows.astype(np.int32), scored)


class Perplexity(NamedTuple):
    """Perplexity of a text.

    Attributes:
        perplexity: exp of the mean over windows of each window's mean loss, as published figures
            are computed.
        token_perplexity: exp of the mean loss of all scored tokens: every token counts alike.
        scored_tokens: number of these.
    """

    perplexity: float
    token_perplexity: float
    scored_tokens: int

    def figures(self) -> dict[str, Any]:
        """Return the two figures for reports."""
        return {"perplexity": self.perplexity, "token_perplexity": self.token_perplexity}


def perplexity(losses: np.ndarray, windows: Windows) -> Perplexity:
    """Return the perplexity of a text from the losses of all predictions.

    Args:
        losses: negative log likelihood of the tokens from the second on, nats, [windows,
            length - 1].
        windows: that they were computed in.

    Raises:
        ValueError: a scored loss is NaN or infinite.
    """
    mask = windows.mask()
    losses = np.where(mask, losses, 0.0).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(losses.sum(axis=1)))
    if len(bad):
        raise ValueError(
            f"window {bad[0]} has a loss that is NaN or infinite ({len(bad)} of {len(losses)}"
            " windows do): the network overflows"
        )
    counts = mask.sum(axis=1)
    means = losses.sum(axis=1) / counts
    with np.errstate(over="ignore"):  # infinite from a mean loss of 709 on
        by_window, by_token = np.exp([means.mean(), losses.sum() / counts.sum()])
    return Perplexity(float(by_window), float(by_token), int(counts.sum()))
