"""Calibration in sequential order, against a network computed by hand, and by the ranges of its own
result.
"""

import keras
import numpy as np
import pytest

import calib
import modeling
import tfquant
from tests.distributed.ranks import on_ranks
from tfquant.intermediate_outputs import tap
from tfquant.rules import Recipe, Rule
from tfquant.spec import QuantSpec

BATCHES = [
    np.random.default_rng(i).normal(size=(10 + i, 6)).astype(np.float32) * (1 + i % 3)
    for i in range(4)
]
COARSE = Recipe(
    (
        Rule(QuantSpec(format="int4", granularity="per_channel"), "weight"),
        Rule(QuantSpec(format="int3", symmetric=False), "linear_input"),
    ),
    name="coarse",
)
FIRST, SECOND = "first:linear_input:input", "second:linear_input:input"


def symmetric(x: np.ndarray, amax: np.ndarray, largest: int) -> np.ndarray:
    return np.clip(np.rint(x / amax * largest), -largest, largest) * amax / largest


def asymmetric(x: np.ndarray, lower: float, upper: float, steps: int) -> np.ndarray:
    lower, upper = min(lower, 0), max(upper, 0)
    step = (upper - lower) / steps
    zero = np.rint(-lower / step)
    return (np.clip(np.rint(x / step) + zero, 0, steps) - zero) * step


class ByHand:
    """The two layers of the fixture in NumPy, float64; `range_of` maps the batches a site has seen
    to its range.
    """

    def __init__(self, model: keras.Model, range_of):
        weights = {v.path: v.numpy().astype(np.float64) for v in model.weights}
        self.kernel = symmetric(weights["first/kernel"], abs(weights["first/kernel"]).max(0), 7)
        self.bias, self.range_of = weights["first/bias"], range_of
        self.seen = {FIRST: [], SECOND: []}

    def site(self, address: str, x: np.ndarray) -> np.ndarray:
        self.seen[address].append(x)
        return asymmetric(x, *self.range_of(self.seen[address]), 7)

    def run(self, batch: np.ndarray) -> None:
        self.site(
            SECOND,
            np.maximum(self.site(FIRST, batch.astype(np.float64)) @ self.kernel + self.bias, 0),
        )

    def ranges(self) -> dict:
        found = {address: self.range_of(seen) for address, seen in self.seen.items()}
        return {
            address: (min(lower, 0), max(upper, 0)) for address, (lower, upper) in found.items()
        }


def moving(values: list[np.ndarray], decay: float = 0.9) -> tuple[float, float]:
    lower, upper = values[0].min(), values[0].max()
    for x in values[1:]:
        lower, upper = decay * lower + (1 - decay) * x.min(), decay * upper + (1 - decay) * x.max()
    return lower, upper


def searched(method: calib.Method, values: list[np.ndarray]) -> tuple[float, float]:
    """The range of a method in a histogram of all the values, which tests of the methods vouch
    for.
    """
    values = np.concatenate([x.ravel() for x in values]).astype(np.float32)
    histogram = calib.Histogram.of(values, signed=True)
    stats = calib.Statistics(values.min(), values.max(), values.size, len(values), histogram)
    return tuple(map(float, method.estimate(stats, calib.Grid(0, 7, symmetric=False))))


RANGES = {
    "max": (
        calib.Method("max"),
        lambda v: (min(x.min() for x in v), max(x.max() for x in v)),
        1e-5,
    ),
    "current_minmax": (calib.Method("current_minmax"), lambda v: (v[-1].min(), v[-1].max()), 1e-5),
    "moving_average": (calib.Method("moving_average", {"decay": 0.9}), moving, 1e-5),
}


@pytest.fixture(scope="module")
def two_dense(make_two_dense):
    return make_two_dense()


@pytest.fixture(scope="module")
def bert(tiny_bert_config):
    return modeling.build_squad_model(tiny_bert_config, seed=3)


def calibrated(
    model, recipe: Recipe, batches=BATCHES, **options
) -> tuple[tfquant.QuantizedModel, calib.Calibration]:
    quantized = tfquant.quantize(model, recipe)
    return quantized, tfquant.calibrate(
        quantized, batches, progress=False, order="sequential", **options
    )


@pytest.mark.representatives("current_minmax", "moving_average")
@pytest.mark.parametrize("name", RANGES)
def test_ranges_equal_those_of_a_network_computed_by_hand(two_dense, name):
    method, range_of, tolerance = RANGES[name]
    by_hand = ByHand(two_dense, range_of)
    for batch in BATCHES:
        by_hand.run(batch)
    quantized, calibration = calibrated(two_dense, COARSE.with_method(method))
    for address, expected in by_hand.ranges().items():
        np.testing.assert_allclose(
            quantized.ranges()[address], expected, rtol=tolerance, atol=1e-6, err_msg=address
        )
    parallel = tfquant.calibrate(quantized, BATCHES, progress=False)
    assert abs(calibration[SECOND].upper / parallel[SECOND].upper - 1) > 1e-3
    assert calibration[FIRST].equals(parallel[FIRST])


@pytest.mark.parametrize(
    "method",
    [calib.Method("percentile", {"percentile": 90.0}), calib.Method("mse", {"search": "grid"})],
    ids=str,
)
def test_a_range_searched_in_a_histogram_is_used_at_once(two_dense, method):
    by_hand = ByHand(two_dense, lambda values: searched(method, values))
    for batch in BATCHES:
        by_hand.run(batch)
    _, calibration = calibrated(two_dense, COARSE.with_method(method))
    for address, expected in by_hand.ranges().items():
        width = calibration[address].statistics.histogram.bin_width
        found = calibration[address].lower, calibration[address].upper
        np.testing.assert_allclose(found, expected, rtol=0, atol=width, err_msg=address)


@pytest.mark.representatives("mse")
@pytest.mark.parametrize("method", ["max", "mse", "entropy"])
def test_any_method_runs_over_several_batches(bert, make_bert_batch, method):
    recipe = tfquant.recipe("int8_residual_both_asymmetric").with_method(method)
    batches = [make_bert_batch([5, 3], seed=1), make_bert_batch([4, 7, 2], seed=2)]
    quantized, calibration = calibrated(bert, recipe, batches)
    assert quantized.calibrated and quantized.mode == "quantized"
    assert calibration.samples == 5
    assert all(
        np.isfinite(e.lower).all() and np.isfinite(e.upper).all() for e in calibration.values()
    )


@pytest.mark.representatives("False")
@pytest.mark.parametrize("share", [True, False])
def test_ranges_of_one_batch_are_the_extremes_in_the_network_that_comes_out(
    bert, make_bert_batch, share
):
    recipe = (
        tfquant.recipe("int8_residual_both")
        .with_method("max")
        .with_spec(roles=["*"], format="int4")
    )
    recipe = Recipe(recipe.rules, share=share)
    batch = make_bert_batch([6, 6])
    quantized, calibration = calibrated(bert, recipe, [batch])
    addresses = [
        site.address
        for site in quantized.plan.sites
        if not site.is_weight and site.role != "model_output"
    ]
    _, found = tap(quantized)(batch, addresses)
    for address in addresses:
        np.testing.assert_allclose(
            calibration[address].upper,
            abs(found[address].numpy()).max(),
            rtol=1e-5,
            err_msg=address,
        )
    parallel = tfquant.calibrate(quantized, [batch], progress=False)
    changed = [a for a in addresses if abs(parallel[a].upper / calibration[a].upper - 1) > 1e-3]
    assert len(changed) > len(addresses) // 2


def test_padding_does_not_count(bert, make_bert_batch):
    recipe = tfquant.recipe("int8_residual_both").with_method("max")
    padded, alone = make_bert_batch([5], width=9), make_bert_batch([5], width=9)
    alone = {name: value[:, :5] for name, value in alone.items()}
    with_padding, without = (calibrated(bert, recipe, [batch])[1] for batch in (padded, alone))
    for address in without:
        assert with_padding[address].statistics.count == without[address].statistics.count
        np.testing.assert_allclose(
            with_padding[address].upper, without[address].upper, rtol=0.02, err_msg=address
        )


def test_a_site_that_is_disabled_has_a_range_and_changes_nothing(two_dense):
    recipe = Recipe(COARSE.rules, disable=("first:", "weight"))
    quantized, calibration = calibrated(two_dense, recipe)
    assert calibration.equals(tfquant.calibrate(quantized, BATCHES, progress=False))


def test_several_ranks_find_what_one_finds(two_dense):
    recipe = COARSE.with_method("moving_average")
    models = [tfquant.quantize(keras.models.clone_model(two_dense), recipe) for _ in range(3)]
    for model in models:
        model.original.set_weights(two_dense.get_weights())
    alone = tfquant.calibrate(models[2], BATCHES, progress=False, order="sequential")
    shared = on_ranks(
        2,
        lambda group: tfquant.calibrate(
            models[group.rank], iter(BATCHES), progress=False, order="sequential", group=group
        ),
    )
    for calibration in shared:
        assert not isinstance(calibration, Exception), calibration
        assert calibration.equals(alone)


OTHERS = {
    "more": (lambda: [*BATCHES, BATCHES[0]], "ranks were given"),
    "other values": (lambda: [batch + np.float32(1) for batch in BATCHES], "other content"),
    "another order": (lambda: BATCHES[::-1], "other content"),
}


@pytest.mark.representatives("iter-other values", "list-more")
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("made", [iter, list])
def test_other_batches_on_one_rank_are_refused_on_all(two_dense, name, made):
    models = [tfquant.quantize(two_dense, COARSE) for _ in range(2)]
    other, message = OTHERS[name]
    found = on_ranks(
        2,
        lambda group: tfquant.calibrate(
            models[group.rank],
            made(other() if group.rank else BATCHES),
            progress=False,
            order="sequential",
            group=group,
        ),
    )
    assert all(type(error) is ValueError and message in str(error) for error in found), found
    assert not any(model.calibrated for model in models)


@pytest.mark.parametrize("place", [0, 2])
def test_nan_names_site_and_batch_and_changes_nothing(two_dense, place):
    quantized, _ = calibrated(two_dense, COARSE)
    quantized.set_mode("float")
    before = {
        address: (lower.copy(), upper.copy())
        for address, (lower, upper) in quantized.ranges().items()
    }
    broken = [batch.copy() for batch in BATCHES]
    broken[place][1, 2] = np.nan
    with pytest.raises(
        calib.NonFiniteError, match=f"^{FIRST}: NaN or Inf in calibration batch {place}; "
    ) as error:
        tfquant.calibrate(quantized, broken, progress=False, order="sequential")
    assert "\n" not in str(error.value)
    np.testing.assert_equal(quantized.ranges(), before)
    assert quantized.mode == "float"


def test_a_failed_search_is_one_line_that_names_the_site(two_dense, monkeypatch):
    def broken(stats, grid, **options):
        raise calib.EmptyStatisticsError("nothing there")

    quantized = tfquant.quantize(two_dense, COARSE.with_method("percentile"))
    monkeypatch.setattr(calib.methods.percentile, "estimate", broken)
    with pytest.raises(calib.EmptyStatisticsError, match=f"^{FIRST}: nothing there$"):
        tfquant.calibrate(quantized, BATCHES, progress=False, order="sequential")
    assert not quantized.calibrated


def test_a_range_too_wide_for_float32_is_refused_at_its_site_and_not_behind_it(two_dense):
    quantized = tfquant.quantize(two_dense, COARSE)
    wide = np.full((2, 6), 2.0**126.5, np.float32) * np.eye(2, 6, dtype=np.float32)
    for order in ("parallel", "sequential"):
        with pytest.raises(ValueError, match=f"site {FIRST}: range .* is too wide for float32"):
            tfquant.calibrate(quantized, [wide], progress=False, order=order)
    assert not quantized.calibrated


def test_an_empty_first_batch_does_not_matter(bert, make_bert_batch):
    recipe = tfquant.recipe("int8_residual").with_method("mse")
    empty, batch = make_bert_batch([4]), make_bert_batch([5, 3], seed=1)
    empty["input_mask"][:] = 0
    ranges = calibrated(bert, recipe, [empty, batch])[0].ranges()
    np.testing.assert_equal(ranges, calibrated(bert, recipe, [batch])[0].ranges())
    with pytest.raises(calib.EmptyStatisticsError, match="^bert/.*: no value was seen"):
        calibrated(bert, recipe, [empty])


def test_another_order_is_refused(two_dense):
    quantized = tfquant.quantize(two_dense, COARSE)
    with pytest.raises(
        ValueError, match="unknown order 'backwards' of calibration; known: parallel, sequential"
    ):
        tfquant.calibrate(quantized, BATCHES, order="backwards")


def test_quantize_takes_the_order(two_dense):
    by_quantize = tfquant.quantize(
        two_dense, COARSE, calibration=BATCHES, order="sequential", progress=False
    )
    np.testing.assert_equal(by_quantize.ranges(), calibrated(two_dense, COARSE)[0].ranges())
