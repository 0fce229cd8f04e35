"""Token-wise clipping against a slow search written out in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from calib import Calibration, EmptyStatisticsError, Grid, Histogram, Method, Statistics
from calib.rows import RowSample, extremes_of
from calib.statistics import merge
from calib.weights import per_channel_range

GRIDS = {
    "narrow": Grid(-127, 127),
    "unsigned": Grid(0, 255),
    "asymmetric": Grid(-128, 127, symmetric=False),
    "four bits": Grid(-8, 7, symmetric=False),
}


def statistics_of(values: np.ndarray, signed: bool = True) -> Statistics:
    """Statistics of tokens [tokens, size]."""
    values = np.asarray(values, np.float32)
    histogram = Histogram.of(values, signed=signed, bins=2048)
    tokens = np.stack([values.min(1), values.max(1)], 1)
    return Statistics(values.min(), values.max(), values.size, 1, histogram, tokens=tokens)


def outlying(tokens: int = 200, size: int = 16, seed: int = 0) -> np.ndarray:
    """Tokens of which 2 % are far larger than the others."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(tokens, size))
    values[:: tokens // 4] *= 30
    return values.astype(np.float32)


def quantized(x: np.ndarray, lower: float, upper: float, grid: Grid) -> np.ndarray:
    scale = (upper - lower) / (grid.qmax - grid.qmin)
    if grid.symmetric:
        scale = upper / grid.qmax
    zero = (
        0 if grid.symmetric else np.clip(np.rint(grid.qmin - lower / scale), grid.qmin, grid.qmax)
    )
    return (np.clip(np.rint(x / scale) + zero, grid.qmin, grid.qmax) - zero) * scale


def searched(values: np.ndarray, grid: Grid, candidates: int) -> tuple[float, float, float]:
    """(lower, upper, share) by sorting tokens and quantizing all values for each candidate."""
    stats = statistics_of(values)
    filled = np.flatnonzero(stats.histogram.counts)
    centers, counts = stats.histogram.centers[filled], stats.histogram.counts[filled]
    best = (np.inf, 0.0, 0.0, 0.0)
    for number in range(candidates):
        share = 1 - 0.5 * (number / (candidates - 1)) ** 2
        place = share * (len(values) - 1)
        ends = []
        for extremes in (np.sort(values.max(1)), np.sort(-values.min(1))):
            low = int(place)
            high = min(low + 1, len(values) - 1)
            ends.append(extremes[low] + (place - low) * (extremes[high] - extremes[low]))
        upper, lower = max(ends[0], 0.0), -max(ends[1], 0.0)
        if grid.symmetric:
            upper = upper if grid.qmin == 0 else max(upper, -lower)
            lower = 0.0 if grid.qmin == 0 else -upper
        loss = float(((quantized(centers, lower, upper, grid) - centers) ** 2 * counts).sum())
        if loss < best[0] * (1 - 1e-9):
            best = (loss, lower, upper, share)
    return best[1], best[2], best[3]


@pytest.mark.parametrize("grid", ["narrow", "asymmetric", "four bits"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_range_is_that_of_the_written_out_search(grid, seed):
    values = outlying(seed=seed)
    lower, upper, _ = searched(values, GRIDS[grid], 100)
    found = Method("token_wise").estimate(statistics_of(values), GRIDS[grid])
    np.testing.assert_allclose(found, (lower, upper), rtol=1e-5)


def test_unsigned_codes_end_at_the_maxima_of_tokens():
    values = np.abs(outlying())
    lower, upper = Method("token_wise", {"share": 0.9}).estimate(
        statistics_of(values, signed=False), GRIDS["unsigned"]
    )
    assert lower == 0
    np.testing.assert_allclose(upper, np.quantile(values.max(1), 0.9), rtol=1e-6)


def test_equal_tokens_are_not_clipped():
    values = np.tile(np.linspace(-2, 3, 16, dtype=np.float32), (50, 1))
    found = Method("token_wise").estimate(statistics_of(values), GRIDS["asymmetric"])
    assert found == (-2, 3)


def test_one_outlying_token_of_a_thousand_is_clipped():
    values = np.random.default_rng(2).uniform(-1, 1, (1000, 32)).astype(np.float32)
    values[17, 5] = 12.0
    lower, upper = Method("token_wise").estimate(statistics_of(values), GRIDS["four bits"])
    assert upper < 1.01 and lower >= -1
    assert Method("token_wise", {"share": 1.0}).estimate(
        statistics_of(values), GRIDS["four bits"]
    ) == (values.min(), 12)


def test_all_zeros_have_an_empty_range():
    found = Method("token_wise").estimate(statistics_of(np.zeros((4, 3))), GRIDS["narrow"])
    assert found == (0, 0)


def test_extremes_leave_padding_out_whether_rows_or_elements_are_padding():
    x = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    rows = np.array([[1, 0, 1, 0], [0, 1, 1, 1]], np.float32)[..., np.newaxis]
    wanted = [[v.min(), v.max()] for v in x[rows[..., 0] > 0]]
    np.testing.assert_array_equal(extremes_of(tf.constant(x), tf.constant(rows), 9), wanted)
    np.testing.assert_array_equal(extremes_of(tf.constant(x), tf.constant(rows), 2), wanted[:2])
    elements = np.array([[[1, 1, 0]], [[0, 0, 0]]], bool)
    wanted = [[v[0], v[1]] for v in x[0]]
    np.testing.assert_array_equal(extremes_of(tf.constant(x), tf.constant(elements), 9), wanted)
    assert extremes_of(tf.constant(x, tf.bfloat16), None, 9).dtype == tf.float32


def test_merged_statistics_are_those_of_all_batches():
    values = outlying()
    whole = statistics_of(values)
    joined = merge(statistics_of(values[:70]), statistics_of(values[70:]))
    np.testing.assert_array_equal(joined.tokens, whole.tokens)
    method = Method("token_wise")
    assert method.estimate(joined, GRIDS["narrow"]) == method.estimate(whole, GRIDS["narrow"])
    with pytest.raises(ValueError, match="^cannot merge: rows of values were kept of only one"):
        merge(whole, Statistics(0, 1, 4, 1, whole.histogram))


def test_a_weight_has_its_own_extremes():
    weight = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    lower, upper = per_channel_range(weight, 1, "token_wise", GRIDS["narrow"], name="kernel")
    np.testing.assert_array_equal(upper, np.abs(weight).max(0))
    np.testing.assert_array_equal(lower, -upper)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, "share must be a number above 0 and up to 1, or none to search it, got 0"),
        ({"share": 1.5}, "share must be a number above 0 and up to 1"),
        ({"candidates": 0}, "candidates must be an integer of at least 1, got 0"),
        ({"tokens": True}, "tokens must be an integer of at least 1, got True"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^range method 'token_wise': {message}"):
        Method("token_wise", options)


def test_statistics_without_tokens_are_refused_by_site():
    stats = Statistics(-1, 1, 4, 1, Histogram.of(np.ones(4), signed=True))
    assert not Method("token_wise").can_use(stats)
    with pytest.raises(EmptyStatisticsError, match="^ffn: no extremes of tokens were kept; "):
        Method("token_wise").estimate(stats, GRIDS["narrow"], site="ffn")


def test_samples_of_ranks_join_to_that_of_one():
    batches = [outlying(40, seed=seed) for seed in range(4)]
    alone, *ranks = (RowSample(90, extremes=True) for _ in range(3))
    for number, batch in enumerate(batches):
        rows = alone.of_batch(tf.constant(batch), None, "site").numpy()
        alone.add(number, rows)
        ranks[number % 2].add(number, rows)
    ranks[0].join([(rank.values, rank.numbers) for rank in ranks])
    np.testing.assert_array_equal(ranks[0].values, alone.values)


def test_a_calibration_with_the_method_is_saved_and_reestimated(tmp_path):
    inputs = keras.Input((None, 8), name="x")
    model = keras.Model(inputs, keras.layers.Dense(4, name="dense")(inputs))
    batches = [outlying(40, 8, seed).reshape(4, 10, 8) for seed in range(3)]
    recipe = tfquant.Recipe(
        (
            tfquant.Rule("int8", "weight"),
            tfquant.Rule(
                tfquant.QuantSpec("int8", symmetric=False, method="token_wise"), "linear_input"
            ),
        )
    )
    for order in ("parallel", "sequential"):
        found = tfquant.calibrate(tfquant.quantize(model, recipe), batches, order=order)
        site = found["dense:linear_input:input"]
        values = np.concatenate(batches).reshape(-1, 8)
        np.testing.assert_array_equal(
            site.statistics.tokens, np.stack([values.min(1), values.max(1)], 1)
        )
        lower, upper, share = searched(values, GRIDS["asymmetric"], 100)
        np.testing.assert_allclose((site.lower, site.upper), (lower, upper), rtol=1e-5)
        found.save(tmp_path / "c.npz")
        again = Calibration.load(tmp_path / "c.npz")["dense:linear_input:input"]
        assert again.statistics.equals(site.statistics)
