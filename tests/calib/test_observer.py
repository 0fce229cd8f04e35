"""The in-graph observer against NumPy on the same batches."""

import numpy as np
import pytest
import tensorflow as tf

from calib import Histogram, NonFiniteError, Observer, merge


def run(batches, masks=None, **options):
    """An observer that has seen ``batches`` inside a tf.function of unknown sizes."""
    observer = Observer("layer_0/output", **{"signed": False, "seed": 7} | options)
    spec = tf.TensorSpec([None] * (batches[0].ndim - 1) + [batches[0].shape[-1]], batches[0].dtype)
    if masks is None:
        step = tf.function(observer.update, input_signature=[spec])
        for batch in batches:
            step(batch)
    else:
        shape = [1 if size == 1 else None for size in masks[0].shape]
        step = tf.function(
            observer.update, input_signature=[spec, tf.TensorSpec(shape, masks[0].dtype)]
        )
        for batch, mask in zip(batches, masks, strict=True):
            step(batch, mask)
    return observer


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("signed", [False, True])
def test_statistics_equal_those_of_all_values_at_once(signed):
    batches = [
        normal(2, 5, 24, seed=1),
        10 * normal(3, 7, 24, seed=2),
        0.01 * normal(1, 2, 24, seed=3),
    ]
    everything = np.concatenate([batch.ravel() for batch in batches])
    statistics = run(batches, signed=signed).statistics()
    assert statistics.minimum == everything.min() and statistics.maximum == everything.max()
    assert statistics.count == everything.size and statistics.batches == 3
    assert statistics.histogram.equals(Histogram.of(everything, signed=signed))


def test_batch_size_and_order_do_not_matter():
    data = normal(12, 4, 16) * np.geomspace(0.1, 100, 12, dtype=np.float32)[:, None, None]
    whole = run([data]).statistics()
    for batches in (np.split(data, 12), np.split(data[::-1], 4), [data[:1], data[1:]]):
        split = run(batches).statistics()
        assert split.histogram.equals(whole.histogram)
        assert (split.minimum, split.maximum, split.count) == (
            whole.minimum,
            whole.maximum,
            whole.count,
        )


def test_merged_ranks_equal_one_pass():
    batches = [normal(2, 8, 8, seed=seed) * 4.0**seed for seed in range(4)]
    batches = [batch.astype(np.float32) for batch in batches]
    merged = merge(run(batches[:2]).statistics(), run(batches[2:]).statistics())
    single = run(batches).statistics()
    assert merged.histogram.equals(single.histogram) and merged.count == single.count


@pytest.mark.parametrize(
    "shape, mask_shape",
    [
        ((3, 6, 20), (3, 6, 1)),
        ((3, 6, 256), (3, 6, 1)),
        ((2, 3, 5, 8), (2, 1, 5, 1)),
        ((2, 3, 5, 5), (2, 1, 5, 5)),
        ((2, 3, 5, 5), (2, 1, 1, 5)),
        ((2, 3, 5), (3, 5)),
        ((2, 3, 5), (5,)),
        ((4, 7), (4, 7)),
        ((4, 7), ()),
    ],
)
def test_padding_is_excluded(shape, mask_shape):
    x = normal(*shape)
    mask = np.random.default_rng(3).integers(0, 2, mask_shape).astype(np.float32)
    mask.ravel()[:1] = True
    keep = np.broadcast_to(mask, shape).astype(bool)
    x[~keep] *= 1000
    x.ravel()[np.flatnonzero(~keep.ravel())[:1]] = (
        np.nan
    )  # what stands in padding is nobody's business
    statistics = run([x], [mask], signed=True).statistics()
    assert statistics.minimum == x[keep].min() and statistics.maximum == x[keep].max()
    assert statistics.count == keep.sum()
    assert statistics.histogram.equals(Histogram.of(x[keep], signed=True))


@pytest.mark.parametrize("dtype", [np.float16, bool, np.int64])
def test_a_mask_may_be_of_any_type(dtype):
    x, mask = normal(2, 3, 4), np.array([[1, 1, 0], [1, 0, 0]])[:, :, None].astype(dtype)
    assert run([x], [mask]).statistics().equals(run([x], [mask.astype(np.float32)]).statistics())


def test_a_batch_of_padding_only_changes_nothing():
    x, mask = normal(2, 3, 4), np.ones((2, 3, 1), np.float32)
    alone = run([x], [mask]).statistics()
    for empty in (np.zeros_like(x), 1e9 * np.ones_like(x)):
        observer = run([empty, x, empty], [0 * mask, mask, 0 * mask])
        assert observer.statistics().equals(alone)


def test_an_empty_batch_changes_nothing():
    x = normal(2, 3, 4)
    assert run([x[:0], x]).statistics().equals(run([x]).statistics())


@pytest.mark.parametrize("signed", [False, True])
def test_an_all_zero_first_batch_is_counted(signed):
    zero, x = np.zeros((2, 8), np.float32), normal(3, 8)
    statistics = run([zero, x], signed=signed).statistics()
    assert statistics.histogram.equals(Histogram.of(np.concatenate([zero, x]), signed=signed))
    only_zero = run([zero], signed=signed).statistics()
    assert only_zero.minimum == only_zero.maximum == 0 and only_zero.histogram.counts.sum() == 16


@pytest.mark.parametrize("signed", [False, True])
def test_memory_is_fixed_while_values_grow_a_millionfold(signed):
    batches = [np.full((1, 4), 10.0**power, np.float32) for power in range(-3, 4)]
    observer = run(batches, signed=signed)
    histogram = observer.statistics().histogram
    assert observer.nbytes <= 32 * 1024 and histogram.counts.size == 2048
    assert histogram.equals(Histogram.of(np.concatenate(batches), signed=signed))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(2, 3, 4), (40, 30, 128)])
def test_nan_and_infinity_name_the_site_and_the_batch(bad, shape):
    x = normal(*shape)
    broken = x.copy()
    broken.ravel()[17] = bad
    observer = run([x, x, broken, x, broken], sample=1024)
    for method in (observer.check, observer.statistics):
        with pytest.raises(
            NonFiniteError, match=r"layer_0/output: NaN or Inf in calibration batch 2;"
        ):
            method()


def test_reset_forgets_everything_also_a_broken_batch():
    x = normal(2, 3)
    observer = run([np.full_like(x, np.nan)])
    observer.reset()
    observer.update(tf.constant(x))
    assert observer.statistics().equals(run([x]).statistics())


def test_moving_averages_start_at_the_first_batch_that_counts():
    batches = [normal(3, 4, seed=seed) for seed in range(4)]
    masks = [np.float32(index > 0) * np.ones((3, 1), np.float32) for index in range(4)]
    statistics = run(batches, masks, decay=0.75).statistics()
    low, high = batches[1].min(), batches[1].max()
    for batch in batches[2:]:
        low, high = 0.75 * low + 0.25 * batch.min(), 0.75 * high + 0.25 * batch.max()
    np.testing.assert_allclose(
        [statistics.ema_minimum, statistics.ema_maximum], [low, high], rtol=1e-6
    )


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64])
def test_other_float_types_are_counted_as_float32(dtype):
    x = tf.cast(normal(4, 6), dtype)
    observer = Observer("site", signed=True, seed=0)
    tf.function(observer.update)(x)
    assert observer.statistics().histogram.equals(
        Histogram.of(tf.cast(x, tf.float32).numpy(), signed=True)
    )


@pytest.mark.parametrize("shape", [(), (1,), (5,), (300,)])
def test_scalars_and_vectors_can_be_observed(shape):
    x = normal(*shape) if shape else np.float32(-2.5)
    observer = Observer("site", signed=False, seed=0)
    observer.update(tf.constant(x))
    assert observer.statistics().histogram.equals(Histogram.of(x, signed=False))


def test_a_tensor_of_unknown_rank_can_be_observed_without_a_mask():
    observer = Observer("site", signed=False, seed=0)
    x = normal(3, 4, 5)
    tf.function(observer.update, input_signature=[tf.TensorSpec(None)])(x)
    assert observer.statistics().histogram.equals(Histogram.of(x, signed=False))


MASKS = {"none": None, "token": (16, 24, 1), "head": (16, 1, 24, 1), "pair": (16, 1, 24, 24)}


@pytest.mark.parametrize(
    "mask_name, shape",
    [
        ("none", (16, 24, 192)),
        ("token", (16, 24, 192)),
        ("head", (16, 6, 24, 32)),
        ("pair", (16, 6, 24, 24)),
    ],
)
@pytest.mark.parametrize("signed", [False, True])
def test_the_tail_of_a_sampled_tensor_is_counted_exactly(mask_name, shape, signed):
    x = np.random.default_rng(5).standard_t(3, size=shape).astype(np.float32)
    keep = np.ones(shape, bool)
    masks = None
    if MASKS[mask_name] is not None:
        mask = np.random.default_rng(6).random(MASKS[mask_name]) < 0.8
        keep, masks = np.broadcast_to(mask, shape), [mask]
        x[~keep] = 1e6
    sample = 4096
    statistics = run([x], masks, signed=signed, sample=sample).statistics()
    exact = Histogram.of(x[keep], signed=signed)
    assert statistics.histogram.bin_width == exact.bin_width
    magnitudes = np.sort(np.abs(x[keep]))
    cell = 64
    # The largest cells hold at least one value each, so that many values at least are exact.
    tail = magnitudes[-(sample * 3 // 4 // cell)]
    beyond = np.maximum(np.abs(exact.edges[:-1]), np.abs(exact.edges[1:])) - exact.bin_width >= tail
    assert exact.counts[beyond].sum() > 10
    np.testing.assert_array_equal(statistics.histogram.counts[beyond], exact.counts[beyond])


def test_the_bulk_of_a_sampled_tensor_is_estimated_without_bias():
    x = np.abs(normal(16, 64, 192))
    exact = np.cumsum(Histogram.of(x, signed=False, bins=16).counts)
    observer = run([x], bins=16, sample=4096)
    step = tf.function(observer.update)
    for _ in range(19):
        step(tf.constant(x))
    totals = np.cumsum(observer.statistics().histogram.counts) / 20
    # 20 samples of 1,024: one standard error of a share is at most 0.0035.
    np.testing.assert_allclose(totals / x.size, exact / x.size, atol=0.0105)


def test_long_batches_weigh_more_than_short_ones():
    long, short = np.full((40, 256), 0.3, np.float32), np.full((4, 256), 0.9, np.float32)
    histogram = run([long, short], sample=1024, bins=8).statistics().histogram
    counts = histogram.counts[[np.searchsorted(histogram.edges, value) - 1 for value in (0.3, 0.9)]]
    np.testing.assert_allclose(counts, [40 * 256, 4 * 256], rtol=0.05)


def test_a_percentile_of_sampled_batches_equals_that_of_all_values():
    from calib import Grid, Method, Statistics

    batches = [
        np.random.default_rng(seed).standard_t(4, size=(8, 96, 192)).astype(np.float32)
        for seed in range(4)
    ]
    grid, method = Grid(-127, 127), Method.parse("percentile", percentile=99.99)
    sampled = method.estimate(run(batches, sample=16384).statistics(), grid)[1]
    everything = np.concatenate(batches)
    exact = Statistics(
        everything.min(),
        everything.max(),
        everything.size,
        4,
        Histogram.of(everything, signed=False),
    )
    assert sampled == pytest.approx(float(method.estimate(exact, grid)[1]), rel=1e-3)


def test_the_same_seed_gives_the_same_sample_and_another_seed_another():
    batches = [normal(8, 64, 96, seed=seed) for seed in range(2)]
    first, again, other = (run(batches, sample=2048, seed=seed).statistics() for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.histogram.equals(other.histogram)


def test_values_of_any_magnitude_have_a_place():
    largest = np.finfo(np.float32).max
    tiny, x = (
        np.array([[1e-40, 1e-30, -1e-30]], np.float32),
        np.array([[-largest, 1.0, largest]], np.float32),
    )
    unsigned, signed = (
        run([tiny, x], signed=signed).statistics().histogram.counts for signed in (False, True)
    )
    assert unsigned[0] == 4 and unsigned[-1] == 2 and unsigned.sum() == 6
    assert (signed[0], signed[1023], signed[1024], signed[-1]) == (1, 1, 3, 1)


def test_a_graph_may_observe_one_tensor_at_several_sites():
    observers = [Observer(f"site_{index}", signed=bool(index), seed=index) for index in range(2)]

    @tf.function
    def step(x):
        for observer in observers:
            observer.update(x)
            x = 2 * x
        return x

    x = normal(3, 4)
    step(x)
    step(x)
    assert [float(o.statistics().maximum) for o in observers] == [x.max(), 2 * x.max()]
    assert [o.statistics().batches for o in observers] == [2, 2]


@pytest.mark.parametrize(
    "options, message",
    [({"bins": 1000}, "power of two"), ({"decay": 1.0}, "decay"), ({"sample": 10}, "sample")],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Observer("site", **{"signed": False, "seed": 0} | options)


def test_integers_and_masks_that_do_not_fit_are_refused_by_name():
    observer = Observer("bert/pooler", signed=False, seed=0)
    with pytest.raises(TypeError, match="bert/pooler: only floating tensors.*int32"):
        observer.update(tf.constant([1, 2]))
    for mask in (tf.ones([3, 5]), tf.ones([1, 3, 4])):
        with pytest.raises(ValueError, match="bert/pooler: mask .* does not broadcast"):
            observer.update(tf.ones([3, 4]), mask)
