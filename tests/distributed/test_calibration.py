"""Calibration shared out to several ranks: the same as that of one process, to the last bit."""

import pathlib
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import calib
import modeling
import tfquant
import tfquant.calibration
import tfquant.observer_runner
from tests.distributed.ranks import needs_ranks, on_ranks, two_ranks
from tfquant.distributed.errors import OtherRankError
from tfquant.distributed.group import Horovod
from tfquant.model import engine_of
from tfquant.rules import Recipe, Rule
from tfquant.spec import QuantSpec

SAMPLE = 1024
METHODS = {
    "max": {},
    "percentile": {"percentile": 99.0},
    "mse": {},
    "entropy": {},
    "moving_average": {},
}
# An asymmetric site keeps both signs, a symmetric one magnitudes.
RECIPE = Recipe(
    (
        Rule(QuantSpec(granularity="per_channel"), "weight"),
        Rule(QuantSpec(), "linear_input", path="first*"),
        Rule(QuantSpec(symmetric=False), "linear_input", path="second*"),
    ),
    name="ranks",
)


def make_model() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input(
        (6,), name="number"
    )  # also what the function that observes calls one of its own
    hidden = keras.layers.Dense(5, "relu", name="first")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, name="second")(hidden))


def make_batches(count: int = 5) -> list[np.ndarray]:
    """Sizes around the sample's, spans that grow and shrink by powers of two and between."""
    rng = np.random.default_rng(3)
    scales = rng.permutation(np.geomspace(0.03, 30, count))
    return [
        (s * rng.normal(size=(100 + 90 * (n % 4), 6))).astype(np.float32)
        for n, s in enumerate(scales)
    ]


def assert_same(one: calib.Calibration, other: calib.Calibration) -> None:
    assert not isinstance(other, Exception), other
    assert one.equals(other)
    assert one.to_bytes() == other.to_bytes()


@pytest.fixture(scope="module")
def models():
    return [make_model() for _ in range(7)]


@pytest.mark.representatives("3-*")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_ends_with_the_calibration_of_one_process(models, method, size):
    recipe, batches = RECIPE.with_method(method, **METHODS[method]), make_batches()
    quantized = [tfquant.quantize(model, recipe) for model in models[: size + 1]]
    alone = tfquant.calibrate(quantized[-1], batches, sample=SAMPLE, progress=False)
    for one in quantized[:size]:
        one.set_mode("float")
    shared = on_ranks(
        size,
        lambda group: tfquant.calibrate(
            quantized[group.rank], iter(batches), sample=SAMPLE, progress=False, group=group
        ),
    )
    for rank, calibration in enumerate(shared):
        assert_same(alone, calibration)
        assert quantized[rank].mode == "quantized"
        for address, ranges in quantized[-1].ranges().items():
            np.testing.assert_array_equal(quantized[rank].ranges()[address], ranges)
    assert alone.samples == sum(map(len, batches))


def test_the_sample_is_on_in_these_tests_and_depends_on_the_number_of_the_batch(models):
    quantized, (batch, *_) = tfquant.quantize(models[0], RECIPE), make_batches()[3:]
    first = tfquant.calibrate(quantized, [batch, 0 * batch[:1]], sample=SAMPLE, progress=False)
    second = tfquant.calibrate(quantized, [0 * batch[:1], batch], sample=SAMPLE, progress=False)
    address = "first:linear_input:input"
    assert not first[address].statistics.histogram.equals(second[address].statistics.histogram)


@pytest.mark.representatives("4")
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ranks_without_a_batch_have_the_result_too(models, count):
    recipe, batches = RECIPE.with_method("moving_average"), make_batches(count)
    quantized = [tfquant.quantize(model, recipe) for model in models[:6]]
    alone = tfquant.calibrate(quantized[5], batches, sample=SAMPLE, progress=False)
    shared = on_ranks(
        5,
        lambda g: tfquant.calibrate(
            quantized[g.rank], batches, sample=SAMPLE, progress=False, group=g
        ),
    )
    for calibration in shared:
        assert_same(alone, calibration)


def test_a_bert_with_padding():
    config = modeling.BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
    )
    rng, batches = np.random.default_rng(0), []
    for lengths in (
        [3, 9, 16],
        [2, 2],
        [0, 0],
        [11, 16, 16, 16, 8],
        [1],
    ):  # the third holds padding only
        mask = (np.arange(16) < np.array(lengths)[:, None]).astype(np.int32)
        ids = rng.integers(1, 30, mask.shape).astype(np.int32) * mask
        batches.append({"input_ids": ids, "input_mask": mask, "segment_ids": np.zeros_like(ids)})
    recipe = tfquant.recipe("int8_residual_both").with_method("moving_average")
    quantized = [
        tfquant.quantize(modeling.build_squad_model(config, seed=3), recipe) for _ in range(3)
    ]
    alone = tfquant.calibrate(quantized[2], batches, sample=SAMPLE, progress=False)
    assert 4 in {site.statistics.batches for site in alone.values()}
    for calibration in on_ranks(
        2,
        lambda g: tfquant.calibrate(
            quantized[g.rank], batches, sample=SAMPLE, progress=False, group=g
        ),
    ):
        assert_same(alone, calibration)


@pytest.mark.parametrize("size", [2, 3])
def test_groups_of_dimensions_and_ranges_of_each_are_those_of_one_process(models, size):
    groups = QuantSpec(granularity="per_embedding_group", groups=3, permute="own", symmetric=False)
    each = QuantSpec(granularity="per_embedding")
    rules = (
        Rule(groups, "linear_input", path="first*"),
        Rule(each, "linear_input", path="second*"),
    )
    recipe, batches = (
        Recipe(rules, name="along"),
        [b * np.float32([1, 1, 9, 1, 1, 4]) for b in make_batches()],
    )
    quantized = [tfquant.quantize(model, recipe) for model in models[: size + 1]]
    alone = tfquant.calibrate(quantized[-1], batches, progress=False, dimensions=True)
    shared = on_ranks(
        size,
        lambda g: tfquant.calibrate(
            quantized[g.rank], batches, progress=False, group=g, dimensions=True
        ),
    )
    for rank, calibration in enumerate(shared):
        assert_same(alone, calibration)
        np.testing.assert_array_equal(quantized[rank](batches[0]), quantized[-1](batches[0]))
    address = "first:linear_input:input"
    rows = np.concatenate(batches)
    np.testing.assert_array_equal(alone[address].statistics.maximum, rows.max(0))
    order = np.argsort(rows.max(0) - rows.min(0))
    np.testing.assert_array_equal(
        np.argsort(alone[address].grouping.group_of, kind="stable"),
        np.sort(order.reshape(3, 2)).ravel(),
    )


def test_dimensions_of_sites_with_one_range_are_those_of_one_process(models):
    quantized = [tfquant.quantize(model, RECIPE) for model in models[:3]]
    alone = tfquant.calibrate(
        quantized[2], make_batches(), sample=SAMPLE, progress=False, dimensions=True
    )
    assert len(alone.dimensions) == 2
    for calibration in on_ranks(
        2,
        lambda g: tfquant.calibrate(
            quantized[g.rank],
            make_batches(),
            sample=SAMPLE,
            progress=False,
            dimensions=True,
            group=g,
        ),
    ):
        assert_same(alone, calibration)


def failures(models, size, batches_of):
    """The error on each rank; also that no rank's ranges changed."""
    quantized = [tfquant.quantize(model, RECIPE) for model in models[:size]]
    errors = on_ranks(
        size,
        lambda g: tfquant.calibrate(quantized[g.rank], batches_of(g.rank), progress=False, group=g),
    )
    assert not any(one.calibrated for one in quantized)
    return errors


def test_nan_is_raised_on_all_ranks_with_the_number_of_the_earliest_batch(models):
    batches = make_batches(7)
    for number in (2, 3, 6):  # rank 1 meets its own first, and goes no further
        batches[number][4, 1] = np.nan
    alone = tfquant.quantize(models[-1], RECIPE)
    with pytest.raises(
        calib.NonFiniteError, match="^first:linear_input:input: NaN or Inf in calibration batch 2;"
    ) as expected:
        tfquant.calibrate(alone, batches, progress=False)
    for size in (2, 3):
        for error in failures(models, size, lambda _: batches):
            assert type(error) is calib.NonFiniteError and str(error) == str(expected.value)


def test_a_batch_that_does_not_fit_is_raised_on_all_ranks(models):
    batches = make_batches(4)
    batches[3] = batches[3][:, :4]
    first, second = failures(models, 2, lambda _: batches)
    assert type(first) is type(second) is ValueError and str(first) == str(second)
    assert str(first).startswith("calibration batch 3: ")


def test_no_batch_at_all_and_unlike_numbers_of_batches_are_raised_on_all_ranks(models):
    for error in failures(models, 2, lambda _: []):
        assert type(error) is ValueError and "no calibration batch was given" in str(error)
    for error in failures(models, 2, lambda rank: make_batches(3 + rank)):
        assert type(error) is ValueError and "ranks were given 3 and 4 batches" in str(error)


def test_another_failure_names_its_rank(models):
    def batches_of(rank):
        yield make_batches()[0]
        if rank == 1:
            raise OSError("the disk\nis gone")
        yield from make_batches()[1:]

    first, second = failures(models, 2, batches_of)
    assert (
        type(first) is OtherRankError
        and str(first) == "rank 1 failed at calibration batch 1: OSError: the disk is gone"
    )
    assert type(second) is OSError


def test_an_error_in_the_search_for_a_range_is_raised_on_all_ranks(models, monkeypatch):
    original = calib.SiteCalibration.estimate

    def estimate(*args, address):
        if address.startswith("second"):
            raise calib.EmptyStatisticsError(f"{address}: nothing to see")
        return original(*args, address=address)

    monkeypatch.setattr(calib.SiteCalibration, "estimate", estimate)
    for error in failures(models, 2, lambda _: make_batches()):
        assert (
            type(error) is calib.EmptyStatisticsError
            and str(error) == "second:linear_input:input: nothing to see"
        )


def test_batches_made_beforehand_are_dealt_out_by_size(models):
    batches = [np.full((rows, 6), rows, np.float32) for rows in (40, 3, 30, 2, 5)]
    quantized = [tfquant.quantize(model, RECIPE) for model in models[:2]]
    seen = on_ranks(2, lambda g: rows_observed(quantized[g.rank], batches, g))
    assert sorted(seen) == [40, 40]
    assert sorted(on_ranks(2, lambda g: rows_observed(quantized[g.rank], iter(batches), g))) == [
        5,
        75,
    ]


def rows_observed(quantized, batches, group) -> int:
    observation = tfquant.observer_runner.Observation(engine_of(quantized))
    observation.run(batches, False, group)
    return observation.samples


def test_only_rank_0_shows_a_bar_and_one_process_keeps_nothing_of_its_batches(models, monkeypatch):
    shown, seen = [], []

    def bar(batches, *_, disable, **__):
        shown.append((threading.current_thread(), disable))
        return batches

    original = tfquant.calibration.Observation

    def observation(*args, **options):
        seen.append(original(*args, **options))
        return seen[-1]

    monkeypatch.setattr(tfquant.observer_runner, "tqdm", bar)
    monkeypatch.setattr(tfquant.calibration, "Observation", observation)
    quantized = [tfquant.quantize(model, RECIPE) for model in models[:3]]
    on_ranks(3, lambda g: tfquant.calibrate(quantized[g.rank], make_batches(), group=g))
    assert sorted(disable for _, disable in shown) == [False, True, True]
    assert sorted(len(one._extremes) for one in seen) == [1, 2, 2]
    tfquant.calibrate(quantized[0], make_batches())
    assert not shown[-1][1] and not seen[-1]._extremes


# Observers


@pytest.mark.representatives("True")
@pytest.mark.parametrize("signed", [False, True])
def test_joined_observers_equal_one_to_the_sign_of_a_zero(signed):
    rng = np.random.default_rng(1)
    batches = [
        np.float32(x) * np.ones((1, 4), np.float32) for x in (0.0, -0.0, 1e-41, -1e-41, 0.0, -0.0)
    ]
    batches += [(rng.normal(size=(1, 4)) * 3.0**k).astype(np.float32) for k in (0, 9, -9, 30, 1)]
    spec = [tf.TensorSpec([None, 4]), tf.TensorSpec([], tf.int64)]

    def observe(numbers):
        observer, extremes = calib.Observer("site", signed=signed, decay=0.9, seed=1), {}
        step = tf.function(lambda x, n: observer.update(x, None, n), input_signature=spec)
        for number in numbers:
            extremes[number] = step(batches[number], number).numpy()
        return observer, extremes

    for count in range(1, len(batches) + 1):
        whole, _ = observe(range(count))
        parts = [observe(range(rank, count, 3)) for rank in (2, 0, 1)]
        extremes = {number: pair for _, found in parts for number, pair in found.items()}
        joined = parts[0][0]
        joined.join(
            [observer.tallies() for observer, _ in parts],
            np.array([extremes[n] for n in range(count)]),
        )
        assert [v.numpy().tobytes() for v in joined.variables] == [
            v.numpy().tobytes() for v in whole.variables
        ]


def test_join_refuses_extremes_of_other_batches_and_keeps_the_first_broken_one():
    observers = [calib.Observer("site", signed=False, seed=1) for _ in range(2)]
    extremes = [
        one.update(tf.constant([[np.nan, 1.0]]), None, 4 - n) for n, one in enumerate(observers)
    ]
    with pytest.raises(ValueError, match="^site: 0 batches were counted, extremes are of 1"):
        observers[0].join([one.tallies() for one in observers], np.ones((1, 2)))
    observers[0].join([one.tallies() for one in observers], np.array(extremes))
    with pytest.raises(calib.NonFiniteError, match="calibration batch 3;"):
        observers[0].check()


# Two processes


def worker(folder: str) -> None:
    """One rank that mpirun started.

    Writes its calibration, then the error that a broken batch ends with.
    """
    group, quantized = (
        Horovod(),
        tfquant.quantize(make_model(), RECIPE.with_method("moving_average")),
    )
    path = pathlib.Path(folder) / str(group.rank)
    tfquant.calibrate(quantized, make_batches(), sample=SAMPLE, progress=False, group=group).save(
        path.with_suffix(".npz")
    )
    batches = make_batches()
    batches[3][0] = np.inf
    try:
        tfquant.calibrate(quantized, batches, progress=False, group=group)
    except calib.NonFiniteError as error:
        path.with_suffix(".txt").write_text(str(error))


@needs_ranks
def test_two_processes_under_mpirun(models, tmp_path):
    two_ranks(__file__, tmp_path)
    quantized = tfquant.quantize(models[0], RECIPE.with_method("moving_average"))
    alone = tfquant.calibrate(quantized, make_batches(), sample=SAMPLE, progress=False)
    for rank in "01":
        assert_same(alone, calib.Calibration.load(tmp_path / f"{rank}.npz"))
        assert "NaN or Inf in calibration batch 3;" in (tmp_path / f"{rank}.txt").read_text()


if __name__ == "__main__":
    worker(sys.argv[1])
