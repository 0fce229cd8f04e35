"""Several kernels behind one variable.

Each has the range of its own values, in its own layout, by a NumPy reference.
"""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tfquant import QuantSpec, Recipe, Rule
from tfquant.model import engine_of

WEIGHTS = Recipe((Rule(QuantSpec(granularity="per_channel"), role="weight"),))
TABLES = Recipe(
    (
        Rule(QuantSpec(granularity="per_channel"), role="weight", optional=True),
        Rule(QuantSpec(), role="embedding"),
    )
)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rounded(w: np.ndarray, *channel_axes: int) -> np.ndarray:
    """Symmetric QDQ to 8 bits with one range for each index along `channel_axes`."""
    w = np.asarray(w, np.float32)
    others = tuple(axis for axis in range(w.ndim) if axis not in channel_axes)
    scale = np.abs(w).max(others, keepdims=True) / np.float32(127)
    return np.clip(np.rint(w / scale), -127, 127) * scale


SQUARE = numbers(8, 8, seed=1)
SQUARE[3] *= 40
SQUARE[:, 5] *= 9
WIDE = numbers(8, 24, seed=2)
WIDE[:, 8:16] *= 10
WIDE[:, 16:] *= 0.05
STACK = numbers(3, 8, 8, seed=3) * np.array([1, 10, 0.05], np.float32)[:, None, None]
THIRDS = tuple(slice(i, i + 8) for i in (0, 8, 16))


@dataclasses.dataclass(frozen=True)
class Case:
    """`network(x, variable)`, what it computes with rounded kernels, the variable's value, shape of
    `x`, number of sites.
    """

    network: object
    reference: object
    value: np.ndarray
    sites: int
    shape: tuple[int, ...] = (16, 8)


def low_rank(x, w):
    return [tf.matmul(x, w + tf.matmul(w[:, :2], w[:2])), tf.matmul(x, w)]


CASES = {
    "transposed": Case(
        lambda x, w: tf.matmul(tf.nn.relu(tf.matmul(x, w)), tf.transpose(w)),
        lambda x, w: np.maximum(x @ rounded(w, 1), 0) @ rounded(w.T, 1),
        SQUARE,
        2,
    ),
    "transposed by the product": Case(
        lambda x, w: tf.matmul(tf.nn.relu(tf.matmul(x, w)), w, transpose_b=True),
        lambda x, w: np.maximum(x @ rounded(w, 1), 0) @ rounded(w, 0).T,
        SQUARE,
        2,
    ),
    "sliced": Case(
        lambda x, w: [tf.matmul(x, w[:, part]) for part in THIRDS],
        lambda x, w: [x @ rounded(w[:, part], 1) for part in THIRDS],
        WIDE,
        3,
    ),
    "split": Case(
        lambda x, w: [tf.matmul(x, part) for part in tf.split(w, 3, axis=1)],
        lambda x, w: [x @ rounded(w[:, part], 1) for part in THIRDS],
        WIDE,
        3,
    ),
    "unstacked": Case(
        lambda x, w: [tf.matmul(x, part) for part in tf.unstack(w)],
        lambda x, w: [x @ rounded(part, 1) for part in w],
        STACK,
        3,
    ),
    "gathered": Case(
        lambda x, w: [tf.matmul(x, tf.gather(w, i)) for i in (2, 0, 1)],
        lambda x, w: [x @ rounded(w[i], 1) for i in (2, 0, 1)],
        STACK,
        3,
    ),
    "reshaped": Case(
        lambda x, w: [tf.matmul(x, w), tf.einsum("bi,inh->bnh", x, tf.reshape(w, (8, 3, 8)))],
        lambda x, w: [x @ rounded(w, 1), (x @ rounded(w, 1)).reshape(-1, 3, 8)],
        WIDE,
        2,
    ),
    "scaled": Case(
        lambda x, w: [tf.matmul(x, w), tf.matmul(x, w * 2), tf.matmul(x, w / tf.norm(w, axis=0))],
        lambda x, w: [
            x @ rounded(w, 1),
            x @ rounded(w * 2, 1),
            x @ rounded(w / np.linalg.norm(w, axis=0), 1),
        ],
        SQUARE,
        3,
    ),
    "concatenated": Case(
        lambda x, w: [tf.matmul(x, tf.concat([w, 30 * w], 1)), tf.matmul(x, w)],
        lambda x, w: [x @ rounded(np.concatenate([w, 30 * w], 1), 1), x @ rounded(w, 1)],
        SQUARE,
        2,
    ),
    "merged with a product of low rank": Case(
        low_rank, lambda x, w: [x @ rounded(w + w[:, :2] @ w[:2], 1), x @ rounded(w, 1)], SQUARE, 2
    ),
    "read twice": Case(
        lambda x, w: tf.matmul(tf.nn.relu(tf.matmul(x, w)), w),
        lambda x, w: np.maximum(x @ rounded(w, 1), 0) @ rounded(w, 1),
        SQUARE,
        1,
    ),
    "channels apart": Case(
        lambda x, w: tf.einsum("btd,ndh->bnth", x, w),
        lambda x, w: np.einsum("btd,ndh->bnth", x, rounded(w, 0, 2)),
        STACK,
        1,
        (2, 5, 8),
    ),
    "experts": Case(
        lambda x, w: tf.einsum("etd,edh->eth", x, w),
        lambda x, w: np.einsum("etd,edh->eth", x, rounded(w, 0, 2)),
        STACK,
        1,
        (3, 5, 8),
    ),
}


def quantized(case: Case, recipe: Recipe = WEIGHTS):
    """The network with a recipe, and a batch."""
    w, x = tf.Variable(case.value, name="layer/kernel"), numbers(*case.shape, seed=9)
    network = tf.function(lambda x: case.network(x, w))
    return tfquant.quantize(network, recipe, calibration=[(x,)], progress=False), x, network


def same(expected, found, rtol: float = 1e-5) -> None:
    for a, b in zip(tf.nest.flatten(expected), tf.nest.flatten(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=rtol * np.abs(a).max())


@pytest.mark.parametrize("name", CASES)
def test_every_kernel_is_rounded_in_its_own_layout(name):
    case = CASES[name]
    model, x, _ = quantized(case)
    assert len(model.plan.sites) == case.sites
    same(case.reference(x, case.value), model(x))


@pytest.mark.parametrize("name", ["transposed", "split", "scaled"])
def test_kernels_of_one_variable_are_saved_and_loaded(name, tmp_path):
    model, x, network = quantized(CASES[name], tfquant.recipe("int8_residual"))
    tfquant.save(model, tmp_path / "model")
    again = tfquant.load(tmp_path / "model", network, inputs=(x,))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(tf.nest.flatten(model(x)), tf.nest.flatten(again(x)), strict=True)
    )


def test_addresses_do_not_depend_on_the_mode():
    """Slices of one kernel keep their numbers in the training trace."""
    x = keras.Input((5, 4))
    model = keras.Model(x, keras.layers.LSTM(6, unroll=True, dropout=0.1)(x))
    batch = numbers(8, 5, 4)
    made = tfquant.quantize(model, WEIGHTS, calibration=[batch], progress=False)
    for training in (False, True):
        for site, edge in engine_of(made).placements(training):
            assert edge.address in site.members and edge.tensor.shape == site.shape


@pytest.mark.representatives("Bidirectional", "LSTM")
@pytest.mark.parametrize("layer", ["GRU", "LSTM", "Bidirectional"])
def test_unrolled_recurrent_layers_are_close_to_float(layer):
    inner = (
        keras.layers.GRU(6, unroll=True, reset_after=False)
        if layer == "GRU"
        else keras.layers.LSTM(6, unroll=True)
    )
    x = keras.Input((5, 4))
    model = keras.Model(
        x, keras.layers.Bidirectional(inner)(x) if layer == "Bidirectional" else inner(x)
    )
    batch = numbers(8, 5, 4)
    found, expected = (
        tfquant.quantize(model, calibration=[batch], progress=False)(batch).numpy(),
        model(batch).numpy(),
    )
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("layer", [keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN])
@pytest.mark.parametrize("length", [5, None])
def test_the_cell_that_tells_a_loop_its_shapes_is_no_site(layer, length):
    """Keras calls it once outside the loop: its values reach no output."""
    x = keras.Input((length, 4))
    model = keras.Model(x, keras.layers.Dense(3, name="head")(layer(6)(x, mask=x[..., 0] > 0)))
    plan = tfquant.plan(model)
    assert {site.path for site in plan.sites} == {"head"}
    assert any("unroll=True" in product.reason for product in plan.skipped)


def test_a_model_of_which_nothing_is_quantized_is_reported():
    x = keras.Input((5, 4))
    hidden = keras.layers.LSTM(6)(x)
    with pytest.raises(ValueError, match="nothing to quantize: .*unroll=True"):
        tfquant.quantize(keras.Model(x, hidden))
    recipe = tfquant.recipe("int8_residual").with_rules(Rule(None, path="head*", name="float"))
    with pytest.warns(UserWarning, match="nothing is quantized.*unroll=True"):
        tfquant.quantize(keras.Model(x, keras.layers.Dense(3, name="head")(hidden)), recipe)


TABLE = numbers(20, 8, seed=5)
TABLE[:, 7] *= 9
IDS = np.random.default_rng(0).integers(0, 20, (2, 4, 5)).astype(np.int32)
LOOKUPS = {
    "two look-ups": (
        lambda a, b, w: tf.gather(w, a) + 3 * tf.gather(w, b),
        lambda a, b, w: rounded(w)[a] + 3 * rounded(w)[b],
    ),
    "scaled": (
        lambda a, b, w: [tf.gather(w * tf.norm(w, axis=0), a), tf.gather(w, b)],
        lambda a, b, w: [rounded(w * np.linalg.norm(w, axis=0))[a], rounded(w)[b]],
    ),
    "columns": (
        lambda a, b, w: tf.gather(tf.transpose(w), a, axis=1) + b,
        lambda a, b, w: rounded(w.T)[:, a] + b,
    ),
    "halves": (
        lambda a, b, w: tf.gather(w[:, :7], a % 10) + tf.gather(9 * w[10:, :7], b % 10),
        lambda a, b, w: rounded(w[:, :7])[a % 10] + rounded(9 * w[10:, :7])[b % 10],
    ),
    "one-hot rows of a part": (
        lambda a, b, w: [tf.matmul(tf.one_hot(a, 20), w[:, :4]), tf.gather(w, b)],
        lambda a, b, w: [rounded(w[:, :4])[a], rounded(w)[b]],
    ),
    "tied to logits": (
        lambda a, b, w: [tf.matmul(tf.gather(w, a), tf.transpose(w)), tf.gather(w, b)],
        lambda a, b, w: [rounded(w)[a] @ rounded(w.T, 1), rounded(w)[b]],
    ),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_every_lookup_has_the_range_of_what_it_picks_from(name):
    network, reference = LOOKUPS[name]
    w = tf.Variable(TABLE, name="table/rows")
    function = tf.function(
        lambda a, b: (
            network(a, tf.cast(b, tf.int32), w)
            if name != "columns"
            else network(a, tf.cast(b, tf.float32), w)
        )
    )
    model = tfquant.quantize(function, TABLES, calibration=[tuple(IDS)], progress=False)
    same(reference(*IDS, TABLE), model(*IDS))


def test_a_layer_norm_that_is_called_again_has_sites_of_its_own():
    norm = keras.layers.LayerNormalization(name="norm")
    x = keras.Input((8,))
    model = keras.Model(x, norm(10 * norm(x) + 1))
    recipe = Recipe((Rule(QuantSpec(), role=("layernorm_input", "layernorm_output")),))
    plan = tfquant.plan(model, recipe)
    assert [site.address for site in plan.sites] == [
        "norm:layernorm_input:input",
        "norm:layernorm_output:output",
        "norm#2:layernorm_input:input",
        "norm#2:layernorm_output:output",
    ]


class Positions(keras.layers.Layer):
    """Adds a learned table to its input."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], name="table", initializer="normal")

    def call(self, x):
        return x + keras.ops.expand_dims(
            keras.ops.take(self.table, keras.ops.arange(x.shape[1]), axis=0), 0
        )


@pytest.mark.parametrize("bias", [True, False])
def test_a_table_may_be_added_to_what_is_no_embedding(bias):
    x = keras.Input((16, 8))
    h = Positions(name="positions")(keras.layers.Dense(8, use_bias=bias)(x))
    model = keras.Model(
        x, keras.layers.LayerNormalization()(h + keras.layers.MultiHeadAttention(2, 4)(h, h))
    )
    everything = Recipe((Rule(QuantSpec("int16"), optional=True),))
    batch = numbers(4, 16, 8)
    found, expected = (
        tfquant.quantize(model, everything, calibration=[batch], progress=False)(batch).numpy(),
        model(batch).numpy(),
    )
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)
