"""Exported files of networks that take one variable in several layouts, or whose channels lie along
axes that are no neighbours.
"""

import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tfquant import QuantSpec, Recipe, Rule
from tfquant.export.onnx.parameters import Joined

CHANNELS = (
    Rule(QuantSpec(granularity="per_channel"), role="weight"),
    Rule(QuantSpec(), role="linear_input"),
)
ONE_RANGE = (
    Rule(QuantSpec(), role=("weight", "linear_input")),
    Rule(QuantSpec(), role="embedding", optional=True),
)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


SQUARE = numbers(8, 8, seed=1) * np.geomspace(0.1, 10, 8, dtype=np.float32)
STACK = numbers(3, 8, 4, seed=2) * np.array([1, 30, 0.1], np.float32)[:, None, None]
NETWORKS = {
    "transposed": (
        lambda x, w: tf.matmul(tf.nn.relu(tf.matmul(x, w)), tf.transpose(w)),
        SQUARE,
        (32, 8),
    ),
    "slices": (lambda x, w: [tf.matmul(x, w[:, i : i + 4]) for i in (0, 4)], SQUARE, (32, 8)),
    "split": (
        lambda x, w: [tf.matmul(x, part) for part in tf.split(w, 2, axis=1)],
        SQUARE,
        (32, 8),
    ),
    "scaled": (
        lambda x, w: [tf.matmul(x, w), tf.matmul(x, w / tf.norm(w, axis=0))],
        SQUARE,
        (32, 8),
    ),
    "channels apart": (lambda x, w: tf.einsum("btd,ndh->bnth", x, w), STACK, (4, 5, 8)),
    "experts": (lambda x, w: tf.einsum("etd,edh->eth", x, w), STACK, (3, 5, 8)),
    "stack of matrices": (lambda x, w: tf.matmul(x[:, None], w), STACK, (4, 5, 8)),
}


# Products of stacked matrices stay in float in both runtimes, of which export warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*quantized products in integers")


def largest_error(network, batch, recipe, path, target) -> float:
    """Largest difference of a file from the simulation as a share of the largest answer."""
    model = tfquant.quantize(
        tf.function(network), Recipe(recipe), calibration=[batch], progress=False
    )
    tfquant.export(model, path, target=target, check_data=[batch])
    largest = max(np.abs(answer).max() for answer in tf.nest.flatten(model(*batch)))
    return tfquant.compare(model, path, [batch]).largest / largest


@pytest.mark.representatives("transposed", "slices", "channels apart", "experts")
@pytest.mark.parametrize("name", NETWORKS)
def test_files_answer_as_the_simulation(name, tmp_path):
    network, value, shape = NETWORKS[name]
    w, batch = tf.Variable(value, name="layer/kernel"), (numbers(*shape, seed=3),)
    assert (
        largest_error(
            lambda x: network(x, w), batch, CHANNELS, tmp_path / "model.onnx", "onnxruntime"
        )
        < 1e-5
    )


@pytest.mark.parametrize("name", ["transposed", "channels apart", "experts"])
def test_openvino_answers_as_the_simulation(name, tmp_path):
    pytest.importorskip("openvino")
    network, value, shape = NETWORKS[name]
    w, batch = tf.Variable(value, name="layer/kernel"), (numbers(*shape, seed=3),)
    assert (
        largest_error(lambda x: network(x, w), batch, CHANNELS, tmp_path / "model.xml", "openvino")
        < 1e-5
    )


def test_one_range_in_two_layouts_is_stored_in_both(tmp_path):
    w, batch = tf.Variable(SQUARE, name="layer/kernel"), (numbers(32, 8, seed=3),)
    error = largest_error(
        lambda x: NETWORKS["transposed"][0](x, w),
        batch,
        ONE_RANGE,
        tmp_path / "model.onnx",
        "onnxruntime",
    )
    assert error < 1e-5


@pytest.mark.parametrize("transposed", [False, True])
def test_a_table_tied_to_logits_is_stored_as_rows_and_as_kernel(tmp_path, transposed):
    table, ids = (
        tf.Variable(numbers(12, 8), name="rows/table"),
        np.arange(12, dtype=np.int32).reshape(3, 4),
    )

    def network(ids):
        rows = tf.reshape(tf.gather(table, ids), (-1, 8))
        return (
            tf.matmul(rows, tf.transpose(table))
            if transposed
            else tf.matmul(rows, table, transpose_b=True)
        )

    assert largest_error(network, (ids,), ONE_RANGE, tmp_path / "model.onnx", "onnxruntime") < 1e-5


@pytest.mark.parametrize(
    ("axes", "shape"),
    [((0, 2), (2, 3, 4)), ((1, 3), (2, 3, 4, 5)), ((0, 1), (2, 3, 4)), ((0, 3), (2, 3, 4, 5))],
)
def test_joined_channels_come_apart_where_they_were(axes, shape):
    values, joined = numbers(*shape), Joined(axes, shape)
    together = joined.join(values)
    assert together.shape[joined.axis] == np.prod([shape[axis] for axis in axes])
    apart = together.reshape(joined.apart)
    np.testing.assert_array_equal(
        apart if joined.back is None else apart.transpose(joined.back), values
    )
