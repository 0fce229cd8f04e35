"""Figures of exponent histograms: distributions and ranges of sub-layers, and densities over the
ranges of number formats.

The first two are those of the source of `tfquant.exponents`, the third is that of its notebooks.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
from scipy.interpolate import make_interp_spline

from calib import figures
from tfquant.exponents import (
    EXPONENTS,
    ExponentHistogram,
    ExponentHistograms,
    by_sublayer,
    exponent_range,
)

POINTS = 500  # of a smoothed curve
_DENSE = 300  # dots per inch of the figure of ranges
_STYLES = {"activation": "-", "weight": "--", "gradient": ":"}
_COLORS = {"activation": "tab:blue", "weight": "tab:green", "gradient": "tab:red"}
_SHADES = ("tab:orange", "tab:purple", "tab:olive", "tab:cyan")


def write_layer_distributions(
    histograms: ExponentHistograms, folder: str | os.PathLike[str]
) -> list[str]:
    """Write a PNG file for each encoder block, and one for what lies outside of blocks.

    Args:
      histograms: of a network.
      folder: of the files, `block_<number>_distribution.png`; it exists.

    Returns:
      Their paths.
    """
    paths = []
    for block, sublayers in histograms.blocks.items():
        if not sublayers:
            continue
        name = "Outside Blocks" if block is None else f"Block {block}"
        figure = figures.new_figure(10.0, 2.0 + max(3.0, 0.22 * len(sublayers)))
        axes = figure.add_subplot()
        for number, (sublayer, one) in enumerate(sublayers.items()):
            x, y = smoothed(one)
            (line,) = axes.plot(x, y, label=sublayer, marker="" if len(x) > 1 else "o")
            line.set(linestyle=_STYLES[one.kind], color=f"C{number % 10}")
        axes.set_title(f"{name} Tensor Distribution")
        axes.set_xlabel("Exponent Value")
        axes.set_ylabel("Frequency")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        path = os.path.join(folder, f"{name.lower().replace(' ', '_')}_distribution.png")
        figures.write_png(figure, path)
        paths.append(path)
    return paths


def smoothed(one: ExponentHistogram) -> tuple[np.ndarray, np.ndarray]:
    """Return a smooth curve of relative frequencies over the span of a histogram.

    Args:
      one: with values.

    Returns:
      Exponents and frequencies, [`POINTS`] each; of a span of one exponent [1].
    """
    assert one.span is not None
    lower, upper = one.span
    x = np.arange(lower, upper + 1)
    y = one.counts[lower - EXPONENTS[0] : upper - EXPONENTS[0] + 1] / one.counts.sum()
    if len(x) == 1:
        return x, y
    fine = np.linspace(lower, upper, POINTS)
    # A spline swings below zero beside steep flanks.
    return fine, np.maximum(make_interp_spline(x, y, k=min(3, len(x) - 1))(fine), 0.0)


def write_layer_ranges(histograms: ExponentHistograms, path: str | os.PathLike[str]) -> None:
    """Write a PNG file: a bar from the lower to the upper exponent of each sub-layer, over all
    blocks.

    Args:
      histograms: of a network.
      path: of the file.
    """
    sublayers = by_sublayer(one for one in histograms.values() if one.block is not None)
    # A network without encoder blocks has its sub-layers outside of them.
    sublayers = sublayers or by_sublayer(histograms.values())
    figure = figures.new_figure(8.0, 1.0 + 0.25 * len(sublayers))
    figure.set_dpi(_DENSE)
    axes = figure.add_subplot()
    for place, one in enumerate(sublayers.values()):
        assert one.span is not None
        lower, upper = one.span
        width = max(upper - lower, 0.2)  # that of a single exponent is to be seen
        axes.barh(place, width, left=lower, height=0.6, color=_COLORS[one.kind])
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(sublayers)), list(sublayers), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("Exponent Value")
    axes.spines[:].set_visible(False)
    figures.write_png(figure, path)


def write_densities(
    histograms: ExponentHistograms,
    path: str | os.PathLike[str],
    formats: tuple[str, ...],
    loss_scale: float = 1.0,
) -> None:
    """Write a PNG file: a density for each kind of tensor, with the ranges of formats shaded.

    Args:
      histograms: of a network.
      path: of the file.
      formats: spec strings, of which the legend also says what share of values they do not reach.
      loss_scale: power of two that gradients are shown multiplied by.

    Raises:
      ValueError: unknown format, or `loss_scale` is no power of two.
    """
    mantissa, exponent = math.frexp(loss_scale)
    if mantissa != 0.5:
        raise ValueError(f"loss_scale={loss_scale}: must be a power of two, such as 1024")
    kinds = {kind: one for kind, one in histograms.kinds.items() if one.span is not None}
    ranges = {format: exponent_range(format) for format in formats}
    figure = figures.new_figure(9.0, 1.5 + 1.6 * len(kinds))
    every: Any = figure.subplots(max(len(kinds), 1), sharex=True, squeeze=False)[:, 0]
    for axes, (kind, one) in zip(every, kinds.items(), strict=False):
        shift = exponent - 1 if kind == "gradient" else 0
        assert one.span is not None
        axes.fill_between(
            *_shifted(smoothed(one), shift), color=_COLORS[kind], alpha=0.6, linewidth=0
        )
        for number, (format, (lower, upper)) in enumerate(ranges.items()):
            below, above = one.outside(lower - shift, upper - shift)
            label = f"{format}: {lower} ... {upper}, outside {below + above:.2%}"
            shade = _SHADES[number % len(_SHADES)]
            axes.axvspan(lower, upper, color=shade, alpha=0.15, label=label)
        scaled = f", times {loss_scale:g}" if shift else ""
        axes.set_ylabel(f"{kind}{scaled}")
        axes.set_ylim(bottom=0.0)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    every[-1].set_xlabel("Exponent Value")
    figures.write_png(figure, path)


def _shifted(curve: tuple[np.ndarray, np.ndarray], shift: int) -> tuple[np.ndarray, np.ndarray]:
    return curve[0] + shift, curve[1]
