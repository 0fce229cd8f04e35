"""Method cross_entropy at the logits of a classifier.

Which rows it sees, and where it is refused.
"""

import keras
import numpy as np
import pytest

import calib
import tfquant
from tests.distributed.ranks import on_ranks
from tfquant.rules import Recipe, Rule
from tfquant.spec import QuantSpec

BATCHES = [np.random.default_rng(i).normal(size=(3 + i, 4, 8)).astype(np.float32) for i in range(4)]
LOGITS = "classes:logits:output"


def recipe_of(**options) -> Recipe:
    method = calib.Method("cross_entropy", options)
    return Recipe(
        (
            Rule(QuantSpec(granularity="per_channel"), "weight"),
            Rule(QuantSpec(format="int4", symmetric=False, method=method), "logits", port="output"),
        ),
        name="logits",
    )


@pytest.fixture(scope="module")
def classifier() -> keras.Model:
    """[batch, 4, 8] -> [batch, 3]: one block of attention, and a classifier on its first token."""
    inputs = keras.Input((4, 8), name="tokens")
    attended = keras.layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    hidden = keras.layers.LayerNormalization(name="norm")(inputs + attended)
    return keras.Model(inputs, keras.layers.Dense(3, name="classes")(hidden[:, 0]))


def least(rows: np.ndarray, candidates: int) -> float:
    """Smallest cross-entropy among the candidates -r..r within the data, or shifted by steps."""
    reach, losses = float(abs(rows).max()), []
    shares = np.exp(rows.astype(np.float64))
    shares /= shares.sum(-1, keepdims=True)
    for half in np.arange(1, candidates + 1) * reach / candidates:
        for shift in np.arange(-3, 4) * 2 * half / 15:
            losses.append(
                loss_of(rows, shares, max(shift - half, rows.min()), min(shift + half, rows.max()))
            )
    return min(losses)


def loss_of(rows: np.ndarray, shares: np.ndarray, lower: float, upper: float) -> float:
    lower, upper = np.float32(lower), np.float32(upper)
    step = (upper - lower) / np.float32(15)
    zero = np.rint(-lower / step)
    logits = ((np.clip(np.rint(rows / step) + zero, 0, 15) - zero) * step).astype(np.float64)
    return float(-(shares * (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).sum())


@pytest.mark.parametrize("order", ["parallel", "sequential"])
def test_the_range_of_logits_has_the_least_cross_entropy_over_all_batches(classifier, order):
    recipe = recipe_of(candidates=30)
    if order == "parallel":
        rows = np.concatenate([classifier(batch).numpy() for batch in BATCHES])
    else:
        weights = Recipe(recipe.rules[:1], name="weights")
        quantized = tfquant.quantize(
            classifier, weights, calibration=[], inputs=BATCHES[0], progress=False
        )
        rows = np.concatenate([quantized(batch).numpy() for batch in BATCHES])
    quantized = tfquant.quantize(classifier, recipe)
    calibration = tfquant.calibrate(quantized, BATCHES, progress=False, order=order)
    np.testing.assert_allclose(calibration[LOGITS].statistics.rows, rows, atol=1e-5)
    rows = calibration[LOGITS].statistics.rows
    shares = np.exp(rows.astype(np.float64)) / np.exp(rows.astype(np.float64)).sum(
        -1, keepdims=True
    )
    found = loss_of(rows, shares, *map(float, quantized.ranges()[LOGITS]))
    assert found == pytest.approx(least(rows, 30), rel=1e-6)


def test_no_more_rows_are_kept_than_asked_for_also_in_the_file(classifier, tmp_path):
    quantized = tfquant.quantize(classifier, recipe_of(rows=5))
    calibration = tfquant.calibrate(quantized, BATCHES, progress=False)
    rows = np.concatenate([classifier(batch).numpy() for batch in BATCHES])[:5]
    np.testing.assert_allclose(calibration[LOGITS].statistics.rows, rows, atol=1e-5)
    calibration.save(tmp_path / "c.npz")
    again = calib.Calibration.load(tmp_path / "c.npz")
    assert again.equals(calibration)
    other = again.reestimate("cross_entropy", LOGITS, search="golden_section", rows=5)
    assert other[LOGITS].lower < 0 < other[LOGITS].upper


@pytest.mark.parametrize("order", ["parallel", "sequential"])
def test_several_ranks_keep_the_rows_of_one(classifier, order):
    recipe = recipe_of(rows=11)
    models = [tfquant.quantize(keras.models.clone_model(classifier), recipe) for _ in range(3)]
    for model in models:
        model.original.set_weights(classifier.get_weights())
    alone = tfquant.calibrate(models[2], BATCHES, progress=False, order=order)
    assert len(alone[LOGITS].statistics.rows) == 11

    def work(group):
        return tfquant.calibrate(
            models[group.rank], BATCHES, progress=False, order=order, group=group
        )

    for calibration in on_ranks(2, work):
        assert not isinstance(calibration, Exception), calibration
        assert calibration.equals(alone)


def test_other_sites_are_refused_naming_them_and_what_fits(classifier):
    for role, site in (
        ("linear_input", "attention/.*:linear_input:input"),
        ("logits", "classes:logits:input"),
    ):
        recipe = Recipe((Rule(QuantSpec(method="cross_entropy"), role, port="input"),))
        with pytest.raises(
            ValueError, match=f"^site {site}: method 'cross_entropy' is for role logits or "
        ) as error:
            tfquant.quantize(classifier, recipe, calibration=BATCHES, progress=False)
        assert "\n" not in str(error.value) and "max, percentile, mse" in str(error.value)
    recipe = Recipe((Rule(QuantSpec(method="cross_entropy"), "weight"),))
    with pytest.raises(
        calib.CalibrationError,
        match="^attention/.*:weight:kernel: method 'cross_entropy' is for logits",
    ):
        tfquant.quantize(classifier, recipe, calibration=BATCHES, progress=False)


def test_methods_and_options_survive_yaml_and_json():
    methods = (
        calib.Method("mse", {"search": "grid", "candidates": 50, "margin": 0.5}),
        calib.Method("mse", {"search": "golden_section"}),
        calib.Method("moving_average", {"decay": 0.9}),
        calib.Method("current_minmax"),
        calib.Method("cross_entropy", {"rows": 7}),
    )
    rules = tuple(
        Rule(QuantSpec(method=method), "linear_input", path=f"layer_{i}")
        for i, method in enumerate(methods)
    )
    recipe = Recipe(rules)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe == Recipe.from_json(recipe.to_json())
    short = (
        "rules: [{role: linear_input, spec: {method: {name: mse, search: grid, candidates: 50,"
        " margin: 0.5}}, path: layer_0}]"
    )
    assert Recipe.from_yaml(short).rules[0].spec == recipe.rules[0].spec


def test_a_mistake_in_a_method_names_its_rule():
    text = "rules: [{name: inputs, role: linear_input, spec: {method: {name: mse, search: fast}}}]"
    with pytest.raises(
        ValueError,
        match="rule 'inputs': range method 'mse': search must be one of bins, grid, golden_section",
    ):
        Recipe.from_yaml(text)
