"""Histograms of binary exponents of activations, weights and gradients.

Counted is floor(log2|x|) of the inputs of quantizers, in 254 bins for -126 ... 127. They show which
values a number format can hold, before anything is quantized with it.

Source: Yu et al. 2024, "8-bit Transformer Inference and Fine-tuning for Edge Accelerators", and its
code.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import numpy as np

from calib import tables
from fileio.arrays import read_arrays
from fileio.atomic import write_bytes
from fileio.errors import ContentError
from fileio.messages import printable
from tfquant.site import Address

Kind = Literal["activation", "weight", "gradient"]
KINDS: tuple[Kind, ...] = ("activation", "weight", "gradient")
EXPONENTS = np.arange(-126, 128)
# Counters of a tensor, by the exponent field of float32: zeros, the exponents, NaN with Inf. The
# last one is of subnormal numbers, whose field is that of zero.
NUM_COUNTERS = 257
ZERO, NONFINITE, SUBNORMAL = 0, 255, 256
LOWER_QUANTILE = 0.005  # of the values below the range that figures show

_KIND, _VERSION = "tfquant exponent histograms", 1


def count_exponents(values: np.ndarray) -> np.ndarray:
    """Count the exponents of an array.

    Args:
      values: floating point, of any shape; counted as float32.

    Returns:
      int64 [`NUM_COUNTERS`].
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.int32).ravel() & 0x7FFFFFFF
    codes = np.where((bits > 0) & (bits < 1 << 23), SUBNORMAL, bits >> 23)
    return np.bincount(codes, minlength=NUM_COUNTERS).astype(np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class ExponentHistogram:
    """Exponents of the values at one site, or of several sites together.

    Attributes:
      address: of the site; a name where there are several.
      kind: `activation`, `weight` or `gradient`.
      role: of the site.
      part: where in an encoder it lies, one of `tfquant.site.PARTS`; None elsewhere.
      block: number of the encoder block, from 0; None outside of blocks.
      counters: int64 [`NUM_COUNTERS`], see there.
    """

    address: str
    kind: Kind
    role: str
    part: str | None
    block: int | None
    counters: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Number of values of each of `EXPONENTS`, int64 [254]."""
        return self.counters[1:NONFINITE]

    @property
    def zeros(self) -> int:
        return int(self.counters[ZERO])

    @property
    def subnormals(self) -> int:
        """Number of nonzero values below 2^-126, which have no bin."""
        return int(self.counters[SUBNORMAL])

    @property
    def nonfinite(self) -> int:
        """Number of NaN and infinite values."""
        return int(self.counters[NONFINITE])

    @property
    def sublayer(self) -> str:
        """Name of the sub-layer: part and role, equal in all blocks; of the products of an
        attention, which are no part, role and port.
        """
        port = Address.parse(self.address).port
        name = self.role if self.part is None else f"{self.part} {self.role}"
        if self.part is None and port not in ("input", "output", "kernel"):
            name += f" {port}"
        if self.kind == "weight" and self.role in ("pooler", "logits"):
            name += " weight"  # their inputs have the same role
        return f"{name}, gradient" if self.kind == "gradient" else name

    @property
    def span(self) -> tuple[int, int] | None:
        """Smallest and largest exponent but for the smallest 0.5 % of the values; None without
        values.
        """
        filled = np.flatnonzero(self.counts)
        if not len(filled):
            return None
        cumulative = np.cumsum(self.counts) / self.counts.sum()
        lower = max(filled[0], int(np.searchsorted(cumulative, LOWER_QUANTILE)))
        return int(EXPONENTS[lower]), int(EXPONENTS[filled[-1]])

    def outside(self, lower: int, upper: int) -> tuple[float, float]:
        """Return the shares of the nonzero finite values below and above a range of exponents.

        Args:
          lower, upper: exponents, both inside the range.
        """
        below = int(self.counts[lower > EXPONENTS].sum()) + self.subnormals
        above = int(self.counts[upper < EXPONENTS].sum())
        total = max(int(self.counts.sum()) + self.subnormals, 1)
        return below / total, above / total


class ExponentHistograms(Mapping[str, ExponentHistogram]):
    """Histograms of all sites of a network by address; result of `tfquant.exponent_histograms`."""

    def __init__(self, histograms: Iterable[ExponentHistogram]):
        self._by_address = {one.address: one for one in histograms}

    def __getitem__(self, address: str) -> ExponentHistogram:
        return self._by_address[address]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_address)

    def __len__(self) -> int:
        return len(self._by_address)

    @property
    def kinds(self) -> dict[Kind, ExponentHistogram]:
        """Sum over all sites of each kind that there is."""
        return {
            kind: merged(kind, sites)
            for kind in KINDS
            if (sites := [one for one in self.values() if one.kind == kind])
        }

    @property
    def blocks(self) -> dict[int | None, dict[str, ExponentHistogram]]:
        """Encoder block -> sub-layer -> histogram; None stands for what lies outside of blocks."""
        numbers = {one.block for one in self.values()}
        order = sorted(numbers, key=lambda block: (block is None, block or 0))
        return {
            block: by_sublayer(one for one in self.values() if one.block == block)
            for block in order
        }

    def outside(self, format: str) -> dict[Kind, tuple[float, float]]:
        """Return the shares of nonzero values below and above the exponents of a number format.

        Args:
          format: spec string, such as `e4m3`; without a scale, or in units of it.
        """
        return {kind: one.outside(*exponent_range(format)) for kind, one in self.kinds.items()}

    def table(self) -> str:
        """All sites, one a line."""
        columns = ("site", "kind", "block", "values", "zero", "exponents", "subnormal", "NaN, Inf")
        rows = []
        for one in self.values():
            total = int(one.counters.sum())
            rows.append(
                (
                    one.address,
                    one.kind,
                    "" if one.block is None else str(one.block),
                    f"{total:,}",
                    f"{one.zeros / max(total, 1):.2%}",
                    "-" if one.span is None else "{} ... {}".format(*one.span),
                    str(one.subnormals),
                    str(one.nonfinite),
                )
            )
        title = f"exponents of the inputs of {len(self)} quantizers, without the smallest 0.5 %"
        return tables.render(tables.build(title, columns, rows, left=("site", "kind")))

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return tables.as_html(self.table())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all counts as an .npz file, atomically.

        Raises:
          WriteError: it cannot be written.
        """
        fields = ("address", "kind", "role", "part", "block")
        sites = [{name: getattr(one, name) for name in fields} for one in self.values()]
        header = json.dumps({"kind": _KIND, "version": _VERSION, "sites": sites})
        counters = [one.counters for one in self.values()]
        stream = io.BytesIO()
        np.savez_compressed(
            stream,
            header=np.array(header),
            counters=np.array(counters, np.int64).reshape(len(sites), NUM_COUNTERS),
        )
        write_bytes(path, stream.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExponentHistograms:
        """Read what `save` has written.

        Raises:
          FileNotFoundError: there is no such file.
          ContentError: it is another file, or damaged.
        """
        arrays = read_arrays(path)
        try:
            header = json.loads(str(arrays["header"]))
            counters = arrays["counters"]
            sites = header["sites"]
            if (
                (header["kind"], header["version"]) != (_KIND, _VERSION)
                or counters.shape != (len(sites), NUM_COUNTERS)
                or counters.dtype != np.int64
                or any(site["kind"] not in KINDS for site in sites)
            ):
                raise ValueError("another kind or version of file")
            return cls(
                ExponentHistogram(**site, counters=own)
                for site, own in zip(sites, counters, strict=True)
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ContentError(
                f"{printable(os.fspath(path))}: not a file of exponent histograms of version"
                f" {_VERSION} ({printable(str(error))}); record them again"
            ) from error

    def plot_layer_distribution(self, folder: str | os.PathLike[str]) -> list[str]:
        """Write a PNG file for each encoder block: a curve of relative frequencies for each
        sub-layer. Return the paths.
        """
        from tfquant import exponent_figures

        return exponent_figures.write_layer_distributions(self, folder)

    def plot_layer_range(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG file: the range of exponents of each sub-layer over all blocks."""
        from tfquant import exponent_figures

        exponent_figures.write_layer_ranges(self, path)

    def plot_densities(
        self,
        path: str | os.PathLike[str],
        formats: Iterable[str] = ("posit8_1", "e4m3"),
        *,
        loss_scale: float = 1.0,
    ) -> None:
        """Write a PNG file: densities of all activations, weights and gradients, over the ranges of
        number formats.

        Args:
          path: of the file.
          formats: spec strings.
          loss_scale: power of two that gradients are shown multiplied by.
        """
        from tfquant import exponent_figures

        exponent_figures.write_densities(self, path, tuple(formats), loss_scale)


def merged(name: str, histograms: Iterable[ExponentHistogram]) -> ExponentHistogram:
    """Return the sum of several histograms, of which there is at least one; their first says role
    and part.

    Args:
      name: address of the result.
      histograms: of one kind.
    """
    listed = list(histograms)
    counters = np.sum([one.counters for one in listed], axis=0)
    return dataclasses.replace(listed[0], address=name, block=None, counters=counters)


def by_sublayer(histograms: Iterable[ExponentHistogram]) -> dict[str, ExponentHistogram]:
    """Sum the histograms of each sub-layer; those without nonzero values are left out."""
    groups: dict[str, list[ExponentHistogram]] = {}
    for one in histograms:
        if one.counts.any():
            groups.setdefault(one.sublayer, []).append(one)
    return {name: merged(name, group) for name, group in groups.items()}


def exponent_range(format: str) -> tuple[int, int]:
    """Return the exponents of the smallest and the largest positive value of a number format.

    Args:
      format: spec string, such as `e4m3` (-9, 8) or `posit8_1` (-12, 12); of a format with a scale
        in units of it.

    Raises:
      ValueError: unknown format.
    """
    from tfquant.recipes.spec_strings import parse_spec

    codebook = parse_spec(format).codebook
    # The width of a range is `quant_max` times its scale, which is 1 here.
    values = codebook.values(*codebook.symmetric_range(codebook.quant_max))
    positive = values[values > 0]
    _, exponents = np.frexp([positive.min(), positive.max()])
    return int(exponents[0]) - 1, int(exponents[1]) - 1
