"""Quantizers before softmax leave masked entries as they are, and ranges do not hold them."""

import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.graph import models
from tfquant.masked_scores import is_masked, without_masked
from tfquant.recipes.op_groups import FUSION_LEVELS, recipe_of
from tfquant.rules import Recipe, Rule

SIZE, LENGTH = 8, 6
RNG = np.random.default_rng(0)
KERNELS = [
    tf.Variable(RNG.normal(size=(SIZE, SIZE)).astype(np.float32), name=f"self/{name}/kernel")
    for name in ("query", "key", "value")
]
X = RNG.normal(size=(4, LENGTH, SIZE)).astype(np.float32)
SIGNATURE = [tf.TensorSpec([None, LENGTH, SIZE])]
CAUSAL = np.tril(np.ones((LENGTH, LENGTH), bool))
MASKS = {
    "added": lambda scores: scores - 10000.0 * tf.cast(~CAUSAL, tf.float32),
    "selected": lambda scores: tf.where(CAUSAL, scores, -1e9),
    "infinite": lambda scores: tf.where(CAUSAL, scores, -np.inf),
    "lowest": lambda scores: scores + tf.where(CAUSAL, 0.0, scores.dtype.min / 2),
}


def network(mask, softmax=tf.nn.softmax):
    def attention(x):
        q, k, v = (x @ kernel for kernel in KERNELS)
        return tf.matmul(softmax(mask(tf.matmul(q, k, transpose_b=True) / 3.0)), v)

    return attention


def quantized(mask, spec, **options):
    recipe = Recipe((Rule(spec, role="softmax_input"),))
    return tfquant.quantize(
        network(mask), recipe, [X], signature=SIGNATURE, progress=False, **options
    )


def scores() -> np.ndarray:
    q, k = (X @ kernel.numpy() for kernel in KERNELS[:2])
    return q @ k.swapaxes(1, 2) / np.float32(3)


@pytest.mark.parametrize("name", MASKS)
def test_the_range_is_that_of_the_scores_and_what_is_masked_gets_no_attention(name):
    model = quantized(MASKS[name], tfquant.QuantSpec("int4"))
    ((lower, upper),) = model.ranges().values()
    amax = np.abs(scores()[:, CAUSAL]).max()
    assert (-lower, upper) == pytest.approx((amax, amax), rel=1e-6)

    def rounded(values):
        codes = tf.clip_by_value(tf.round(values / (amax / 7)), -7, 7)
        return tf.nn.softmax(tf.where(CAUSAL, codes * (amax / 7), -np.inf))

    wanted = network(lambda scores: scores, rounded)(tf.constant(X))
    np.testing.assert_allclose(model(X), wanted, rtol=1e-4, atol=1e-5)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(X) ** 2)
    assert np.isfinite(tape.gradient(loss, KERNELS[0]).numpy()).all()


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (tfquant.QuantSpec("int8"), {"order": "sequential"}),
        ("e2m1", {}),  # without a scale, up to 6
        ("posit8_1", {}),
    ],
)
def test_every_kind_of_scale_leaves_out_what_is_masked(spec, options):
    model = quantized(MASKS["infinite"], spec, **options)
    changed = X.copy()
    changed[:, -1] += 5.0  # which only the last position may see
    before, after = (model(x).numpy()[:, :-1] for x in (X, changed))
    assert np.isfinite(before).all()
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_dynamic_ranges_leave_out_what_is_masked():
    model = quantized(MASKS["selected"], tfquant.QuantSpec("int8", dynamic=True))
    exact = network(MASKS["selected"])(tf.constant(X))
    np.testing.assert_allclose(model(X), exact, atol=0.2)
    assert np.abs(model(X) - exact).max() > 1e-4


def test_rows_that_are_masked_as_a_whole_stay_and_have_no_part_in_ranges():
    values = tf.constant([[1.0, 2.0, -1e9], [-1e9, -1e9, -1e9], [-40.0, 3.0, 1.0]])
    assert is_masked(values).numpy().tolist() == [
        [False, False, True],
        [True, True, True],
        [True, False, False],
    ]
    seen = []

    def quantize(filled):
        seen.append(filled.numpy().tolist())
        return filled * 2.0

    result = without_masked(values, quantize)
    assert seen == [[[1, 2, 2], [0, 0, 0], [3, 3, 1]]]
    np.testing.assert_array_equal(result, [[2, 4, -1e9], [-1e9] * 3, [-40, 6, 2]])
    half = without_masked(tf.cast(values, tf.bfloat16), lambda filled: filled)
    assert half.dtype == tf.bfloat16


def test_padding_has_no_effect_on_a_model_without_any_fusion():
    case = models.own_bert()
    spec = tfquant.QuantSpec("int8")
    recipe = recipe_of(spec, spec, FUSION_LEVELS["no fusion"])
    model = tfquant.quantize(case.model, recipe, case.batches, progress=False)
    batch = case.batches[0]
    padding = batch["input_mask"] == 0
    other = dict(batch, input_ids=np.where(padding, 7, batch["input_ids"]).astype(np.int32))
    outputs = (tf.nest.flatten(model(inputs)) for inputs in (batch, other))
    for one, two in zip(*outputs, strict=True):
        np.testing.assert_allclose(
            np.asarray(one)[~padding], np.asarray(two)[~padding], rtol=1e-5, atol=1e-5
        )
