"""Observation: run calibration batches through the model with observers at its sites.

The float network is run with observers at every activation site, in one or several processes.
"""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

import calib
from tfquant.distributed.errors import shard_by_cost
from tfquant.distributed.group import Group, Single
from tfquant.engine import Engine
from tfquant.error_messages import one_line
from tfquant.graph.edge import Edge
from tfquant.graph.padding import Padding
from tfquant.inputs import num_examples
from tfquant.layout import static_shape
from tfquant.masked_scores import is_masked
from tfquant.site import Site


class Observation:
    """Observers of all activation sites and the function that feeds them.

    Attributes:
      observers: of the sites with one range.
      dimensions: address -> observer of each embedding dimension: of sites whose ranges lie along
        it, of what dimensions are sorted by and, where asked for, of all other sites that have such
        an axis.
      shared: whether each of several ranks observes some of the batches; else each of them observes
        all.
    """

    shared = True

    def __init__(
        self,
        engine: Engine,
        *,
        mask: str | Sequence[str] | None = "auto",
        bins: int = 2048,
        sample: int = 65536,
        seed: int = 0,
        dimensions: bool = False,
    ):
        self.engine = engine
        result = self.find_targets()
        self.targets = [
            (site, edge) for site, edge in result.values() if not site.spec.layout.per_embedding
        ]
        self._along = self._dimension_edges(result, dimensions)
        self.dimensions = {
            a: calib.DimensionObserver(a, *static_shape(edge.tensor.shape[-1:]))
            for a, edge in self._along.items()
        }
        self.observers = [
            (
                site,
                calib.Observer(
                    site.address,
                    signed=not site.spec.codebook.symmetric,
                    bins=bins,
                    sample=sample,
                    decay=site.spec.method.decay,
                    seed=zlib.crc32(f"{seed}:{site.address}".encode()),
                ),
            )
            for site, _ in self.targets
        ]
        samples = {
            site.address: calib.rows.RowSample.for_method(site.spec.method)
            for site, _ in self.targets
        }
        self.rows = {address: rows for address, rows in samples.items() if rows is not None}
        self._edges = [*(edge for _, edge in self.targets), *self._along.values()]
        edges = {site.address: edge.tensor for site, edge in self.targets} | {
            a: e.tensor for a, e in self._along.items()
        }
        self.padding = Padding(engine.inference, edges.items(), mask)
        self.samples = 0
        self.number = 0  # of the batch at hand; after the last, how many there were
        self._content = 0  # checksum of the batches, likewise
        self._extremes: dict[
            int, np.ndarray
        ] = {}  # by batch, of this rank's; filled only where there are other ranks

    def find_targets(self) -> dict[str, tuple[Site, Edge]]:
        """Map address of every activation site to calibrate -> site and observed edge."""
        result: dict[str, tuple[Site, Edge]] = {}
        for site, edge in self.engine.placements():
            if not edge.parameter and site.spec.scale.calibrated:
                _check_method(site)
                result.setdefault(site.address, (site, edge))
        return result

    def _dimension_edges(
        self, found: dict[str, tuple[Site, Edge]], everywhere: bool
    ) -> dict[str, Edge]:
        """Map address -> edge of all tensors whose dimensions are observed."""
        edges = {
            address: edge
            for address, (site, edge) in found.items()
            if site.spec.layout.per_embedding
        }
        if everywhere:
            edges |= {
                address: edge
                for address, (_, edge) in found.items()
                if not self.engine.inference.analysis.embedding.refusal(edge)
            }
        for site, _ in found.values():
            if site.order:
                edges.setdefault(site.order, self.engine.placements().edges[site.order])
        return edges

    @functools.cached_property
    def function(self):
        """Build the concrete function from the first valid batch, so that an invalid one is
        reported at once.
        """
        trace, count = self.engine.inference, len(self._edges)

        def observe(number, *flat):
            result = trace.emit(
                list(flat), targets=[*(edge.tensor for edge in self._edges), *self.padding.masks]
            )
            tensors, validity = result[:count], self.padding.of_masks(result[count:])
            extremes, rows = [tf.zeros([0, 2])], []
            for observer, edge, tensor in zip(
                self.all_observers(), self._edges, tensors, strict=True
            ):
                valid = unmasked(edge, tensor, validity.of(edge.tensor))
                seen = observer.update(tensor, valid, number)
                if seen is not None:
                    extremes.append(seen[tf.newaxis])
                if observer.name in self.rows and isinstance(observer, calib.Observer):
                    rows.append(self.rows[observer.name].of_batch(tensor, valid, observer.name))
            return tf.concat(extremes, 0), rows

        signature = [tf.TensorSpec([], tf.int64), *trace.input_specs]
        function = tf.function(
            observe, autograph=False, jit_compile=False, input_signature=signature
        )
        return function.get_concrete_function()

    def statistics(self, site: Site, observer: calib.Observer) -> calib.Statistics:
        """Statistics collected at a site; raise NonFiniteError if a batch contained NaN or Inf."""
        result = observer.statistics()
        sample = self.rows.get(site.address)
        return result if sample is None else sample.placed(result, sample.values)

    def all_observers(self) -> list[calib.Observer | calib.DimensionObserver]:
        return [*(observer for _, observer in self.observers), *self.dimensions.values()]

    def run(self, batches: Iterable[Any], progress: bool, group: Group | None = None) -> None:
        """Observe the batches of this rank; with several ranks, `join` must follow."""
        group = group or Single()
        ranks = group.size if self.shared else 1
        total, hidden = batch_length(batches), not progress or group.rank > 0
        # What was made beforehand can be distributed by size: batches of long texts take several
        # times as long as those of short.
        ready = isinstance(batches, (list, tuple)) and ranks > 1
        owners = shard_by_cost([_elements(batch) for batch in batches], ranks) if ready else None
        self.number = 0
        for number, batch in enumerate(
            tqdm(batches, "calibrating", total, unit="batch", disable=hidden)
        ):
            if ranks == 1 or (number % ranks if owners is None else owners[number]) == group.rank:
                extremes = self._observe(batch)
                if ranks > 1:
                    self._extremes[number] = extremes.numpy()
            if group.size > 1:
                self._content = _checksum(batch, self._content)
            self.number = number + 1
        if self.number == 0 and self._edges:
            raise ValueError("no calibration batch was given: pass at least one")

    def _observe(self, batch: Any) -> tf.Tensor:
        """Observe the current batch; return its extremes, float32 [sites, 2]."""
        try:
            flat = self.engine.inputs.flatten_batch(batch)
        except (ValueError, TypeError) as error:
            raise ValueError(f"calibration batch {self.number}: {one_line(error)}") from error
        extremes, rows = self.function(tf.constant(self.number, tf.int64), *flat)
        self.samples += num_examples(flat)
        for observer in self.all_observers():
            observer.check()
        for sample, result in zip(self.rows.values(), rows, strict=True):
            sample.add(self.number, result.numpy())
        return extremes

    def join(self, group: Group) -> None:
        """Merge, on every rank, the statistics that each rank has collected.

        Raises:
          ValueError: the ranks were given different numbers of batches or have different sites.
        """
        ranks = [_unpacked(data) for data in group.gather(self._packed())]
        _check_counts("batches", [int(rank["total"]) for rank in ranks])
        _check_counts("sites", [len(rank["counts"]) for rank in ranks])
        _check_counts("embedding axes", [int(rank["axes"]) for rank in ranks])
        _check_contents([int(rank["content"]) for rank in ranks])
        order = np.argsort(np.concatenate([rank["numbers"] for rank in ranks]))
        extremes = np.concatenate([rank["extremes"] for rank in ranks])[order]
        for index, (_, observer) in enumerate(self.observers):
            observer.join(
                [(rank["counters"][index], rank["counts"][index]) for rank in ranks],
                extremes[:, index],
            )
        for index, sample in enumerate(self.rows.values()):
            sample.join([(rank[f"rows_{index}"], rank[f"row_numbers_{index}"]) for rank in ranks])
        for index, observer in enumerate(self.dimensions.values()):
            observer.join(
                [
                    (rank[f"dimension_counters/{index}"], rank[f"dimension_extremes/{index}"])
                    for rank in ranks
                ]
            )
        self.samples = sum(int(rank["samples"]) for rank in ranks)

    def compare_batches(self, group: Group) -> None:
        """Compare the batches of all ranks.

        Raises:
          ValueError: their number or their content differs.
        """
        result = [
            np.frombuffer(data, np.int64)
            for data in group.gather(np.array([self.number, self._content]).tobytes())
        ]
        _check_counts("batches", [int(number) for number, _ in result])
        _check_contents([int(content) for _, content in result])

    def _packed(self) -> bytes:
        tallies = [observer.tallies() for _, observer in self.observers]
        rows = {f"rows_{index}": sample.values for index, sample in enumerate(self.rows.values())}
        rows |= {
            f"row_numbers_{index}": sample.numbers
            for index, sample in enumerate(self.rows.values())
        }
        dimensions = {}
        for index, observer in enumerate(self.dimensions.values()):
            dimensions[f"dimension_counters/{index}"], dimensions[f"dimension_extremes/{index}"] = (
                observer.tallies()
            )
        file = io.BytesIO()
        np.savez_compressed(
            file,
            counters=np.array([counters for counters, _ in tallies], np.int64),
            counts=np.array([counts for _, counts in tallies], np.int64),
            numbers=np.array(list(self._extremes), np.int64),
            extremes=np.array(list(self._extremes.values()), np.float32).reshape(
                len(self._extremes), len(tallies), 2
            ),
            samples=np.int64(self.samples),
            total=np.int64(self.number),
            content=np.int64(self._content),
            **rows,
            axes=np.int64(len(self.dimensions)),
            **dimensions,
        )
        return file.getvalue()


def unmasked(edge: Edge, tensor: tf.Tensor, valid: tf.Tensor | None) -> tf.Tensor | None:
    """Return which elements count: of scores only entries that are not masked, as those are not
    quantized.

    Args:
      edge: whose tensor it is.
      tensor: of the edge.
      valid: real elements, broadcast to the tensor; None where all are.
    """
    if edge.role != "softmax_input":
        return valid
    scores = tf.logical_not(is_masked(tensor))
    return scores if valid is None else scores & tf.cast(valid, tf.bool)


def _check_counts(what: str, counts: Sequence[int]) -> None:
    """Raise ValueError if the ranks have different numbers of something."""
    if len(set(counts)) > 1:
        sizes = " and ".join(map(str, sorted(set(counts))))
        raise ValueError(
            f"ranks were given {sizes} {what}: calibrate all of them with the same model and"
            " batches"
        )


def _check_contents(checksums: Sequence[int]) -> None:
    """Raise ValueError if the batches of the ranks differ."""
    if len(set(checksums)) > 1:
        raise ValueError(
            "ranks were given batches of other content: calibrate all of them with the same batches"
            " in one order"
        )


def _check_method(site: Site) -> None:
    """Raise ValueError if the method is for the logits of a classifier and the site is another
    tensor.
    """
    if site.spec.method.rows and (site.role, site.port) not in (
        ("logits", "output"),
        ("layer_output", "output"),
    ):
        raise ValueError(
            f"site {site.address}: method {site.spec.method.name!r} is for role logits or"
            " layer_output, port output (the answer of a classifier); give this site another:"
            f" {', '.join(calib.methods.GENERAL)}"
        )


def _unpacked(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def batch_length(batches: Iterable[Any]) -> int | None:
    """Number of batches; None where it is not known beforehand."""
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except TypeError:  # a tf.data.Dataset that does not know
        return None


def _checksum(batch: Any, before: int) -> int:
    """CRC-32 of the values of a batch, continued from that of the batches before."""
    for leaf in tf.nest.flatten(batch):
        array = np.ascontiguousarray(leaf)
        before = zlib.crc32(
            repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes(), before
        )
    return before


def _elements(batch: Any) -> int:
    return sum(int(np.size(leaf)) for leaf in tf.nest.flatten(batch))
