"""Sequential calibration: every site observes data quantized by the sites before it, as in the
quantized network.

One pass over the batches, in the order they come. In each, every site in the order of the graph
first counts its tensor in, then quantizes it with the range that its method finds in the statistics
*so far*, the batch at hand included; so the sites behind it count quantized values. Weights are
quantized throughout. This is how Qualcomm's transformer-quantization estimates (Bondarenko et al.,
EMNLP 2021), here for every method: the search runs on the statistics, outside TensorFlow, once a
site and batch.

With one batch each range is that of its site in the network that comes out. With several, early
batches were quantized with ranges of few data; exact stages would take a pass over all batches for
each of some dozen sites one behind the other. Ranges that a recipe fuses are joined when they are
assigned; while data run, each activation has its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

import calib
from tfquant import qdq
from tfquant.distributed.group import Group
from tfquant.graph.edge import Edge
from tfquant.observer_runner import Observation
from tfquant.scale import LARGEST_AMAX
from tfquant.site import Site
from tfquant.site_quantizers import fused_ranges


class SequentialObservation(Observation):
    """Observers of all activation sites in a network that is quantized with the ranges observed so
    far.
    """

    shared = False  # each batch depends on those before
    _weights: dict[str, tuple[np.ndarray, np.ndarray]]
    _failure: calib.CalibrationError | None = None

    def set_weights(self, entries: Mapping[str, calib.SiteCalibration]) -> None:
        """Set the ranges of weights; call it before the first batch."""
        shapes = {site.address: site.range_shape for site in self.engine.plan.sites}
        ranges = {
            a: (e.lower.reshape(shapes[a]), e.upper.reshape(shapes[a])) for a, e in entries.items()
        }
        self._weights = fused_ranges(
            [site for site in self.engine.plan.sites if site.address in ranges], ranges
        )

    def find_targets(self) -> dict[str, tuple[Site, Edge]]:
        """Select, of the edges that share a site, the first one in the graph, where replay meets
        it.

        Raises:
          ValueError: the ranges of a site lie along the embedding axis.
        """
        order = {address: index for index, address in enumerate(self.engine.placements().edges)}
        result: dict[str, tuple[Site, Edge]] = {}
        for address, (site, _) in super().find_targets().items():
            if site.spec.layout.per_embedding:
                raise ValueError(
                    f"site {address}: {site.spec.layout.granularity} ranges are not estimated in"
                    " sequential order: calibrate with order='parallel'"
                )
            first = min(site.members, key=order.__getitem__)
            result[address] = (site, self.engine.placements().edges[first])
        return result

    def join(self, group: Group) -> None:
        """Nothing to merge: every rank has seen all batches, if all have the same ones.

        Raises:
          ValueError: they were not.
        """
        self.compare_batches(group)

    @functools.cached_property
    def function(self):
        """Build the concrete function from the first valid batch, so that an invalid one is
        reported at once.
        """
        trace = self.engine.inference
        places = {
            site.address: (observer, edge)
            for (site, observer), (_, edge) in zip(self.observers, self.targets, strict=True)
        }

        def observe(number, *flat):
            validity = self.padding.values(flat)
            extremes: dict[str, tf.Tensor] = {}
            rows: dict[str, tf.Tensor] = {}
            ranges = {
                address: tuple(map(tf.constant, ends)) for address, ends in self._weights.items()
            }

            dynamic = self.engine.site_quantizer(flat)

            def edit(site: Site, edge: Edge, tensor: tf.Tensor) -> tf.Tensor:
                if not site.spec.scale.calibrated:
                    return dynamic(site, edge, tensor)
                # Edges of one site may carry views of one tensor: it is counted once.
                if site.address not in ranges:
                    observer, edge = places[site.address]  # the first of its edges
                    valid = validity.of(edge.tensor)
                    extremes[site.address] = observer.update(tensor, valid, number)
                    if site.address in self.rows:
                        rows[site.address] = self.rows[site.address].of_batch(
                            tensor, valid, site.address
                        )
                    ranges[site.address] = self._range_so_far(
                        site, observer, rows.get(site.address)
                    )
                return _quantized(site, tensor, *ranges[site.address])

            # What reads an edge has to be emitted for the edge to be met.
            trace.emit(
                list(flat),
                self.engine.placements().edits(edit),
                targets=[self._reader(edge) for _, edge in self.targets],
            )
            result = [extremes[site.address][tf.newaxis] for site, _ in self.targets]
            return tf.concat([tf.zeros([0, 2]), *result], 0), [
                rows[address] for address in self.rows
            ]

        signature = [tf.TensorSpec([], tf.int64), *trace.input_specs]
        function = tf.function(
            observe, autograph=False, jit_compile=False, input_signature=signature
        )
        return function.get_concrete_function()

    def _reader(self, edge: Edge) -> tf.Tensor:
        """Tensor that is computed from the edge."""
        if edge.consumer is None:
            return edge.tensor
        return self.engine.inference.graph.get_operation_by_name(edge.consumer[0]).outputs[0]

    def _range_so_far(
        self, site: Site, observer: calib.Observer, rows: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Range by the site's method from the batches so far; NaN without any."""

        def estimate(*state: np.ndarray) -> np.ndarray:
            try:
                return self._estimated(site, observer, state)
            except calib.CalibrationError as error:  # TensorFlow would wrap it into many lines
                self._failure = self._failure or error
                return np.full([2, *site.range_shape], np.nan, np.float32)

        state = [variable.read_value() for variable in observer.variables]
        ends = tf.numpy_function(estimate, state if rows is None else [*state, rows], tf.float32)
        lower, upper = tf.unstack(tf.ensure_shape(ends, [2, *site.range_shape]))
        return lower, upper

    def _estimated(
        self, site: Site, observer: calib.Observer, state: tuple[np.ndarray, ...]
    ) -> np.ndarray:
        statistics = observer.statistics_of(state[: len(observer.variables)])
        unknown = np.full([2, *site.range_shape], np.nan, np.float32)
        if statistics.empty:
            return unknown
        if site.address in self.rows:
            sample = self.rows[site.address]
            statistics = sample.placed(statistics, sample.with_rows(state[-1]))
        ends = np.stack(
            site.spec.method.estimate(statistics, site.spec.codebook, site=site.address)
        ).astype(np.float32)
        # Such a range is refused when it is assigned, by a message that names the site; until then
        # it shall make no infinities.
        return ends.reshape(unknown.shape) if np.abs(ends).max() <= LARGEST_AMAX else unknown

    def _observe(self, batch: Any) -> tf.Tensor:
        extremes = super()._observe(batch)
        if self._failure is not None:
            raise self._failure
        return extremes


def _quantized(site: Site, tensor: tf.Tensor, lower: tf.Tensor, upper: tf.Tensor) -> tf.Tensor:
    """QDQ of the tensor; unchanged where the site is disabled or has no range yet."""
    if not site.enabled:
        return tensor
    known = tf.reduce_all(tf.math.is_finite(lower) & tf.math.is_finite(upper))
    lower, upper = (
        tf.where(known, lower, 0.0),
        tf.where(known, upper, 0.0),
    )  # the kernel refuses NaN
    rounded = qdq.quantize_dequantize(tensor, lower, upper, site.spec.codebook, site.channel_axes)
    return tf.where(known, rounded, tensor)
