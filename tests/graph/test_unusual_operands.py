"""Operands in unusual places, of unknown shapes, or looked up in unusual ways.

Roles are found and numbers stay close.
"""

import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tfquant import QuantSpec, Recipe, Rule
from tfquant.graph.plan import Plan, RecipeError

EVERYTHING = Recipe((Rule(QuantSpec("int16"), optional=True),))


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(network, batch, signature=None, recipe=EVERYTHING) -> Plan:
    """Check that 16 bits change little, and return the plan."""
    options = {} if signature is None else {"signature": (signature,)}
    model = tfquant.quantize(
        tf.function(network), recipe, calibration=[(batch,)], progress=False, **options
    )
    expected, found = network(tf.constant(batch)).numpy(), model(batch).numpy()
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)
    return model.plan


KERNEL = tf.Variable(numbers(8, 8, seed=1), name="dense/kernel")
TABLE = tf.Variable(numbers(16, 8, seed=2), name="positions/table")
ROWS = tf.Variable(numbers(6, 8, seed=3), name="rows/table")
IDS = np.random.default_rng(0).integers(0, 5, (4, 6)).astype(np.int32)
OPEN = tf.TensorSpec([None, None, 8], tf.float32)


@pytest.mark.parametrize(
    ("network", "signature"),
    [
        (lambda x: tf.einsum("...d,dh->...h", x, KERNEL), tf.TensorSpec(None, tf.float32)),
        (lambda x: tf.einsum("btd,dd->btd", x, KERNEL), OPEN),
        (lambda x: tf.matmul(x, KERNEL) + TABLE[: tf.shape(x)[1]], OPEN),
        (lambda x: tf.matmul(x, KERNEL) + tf.gather(TABLE, tf.range(tf.shape(x)[1])), OPEN),
        (lambda x: tf.matmul(x + TABLE[: tf.shape(x)[1]], KERNEL), OPEN),
        (
            lambda x: (
                tf.matmul(x, KERNEL) * tf.math.rsqrt(tf.reduce_mean(tf.square(tf.reduce_max(x))))
            ),
            OPEN,
        ),
    ],
    ids=[
        "unknown rank",
        "diagonal",
        "table added to a product",
        "taken by length",
        "table added to an input",
        "scalar statistics",
    ],
)
def test_operands_of_unknown_shape_and_tables_beside_anything(network, signature):
    close(network, numbers(4, 5, 8), signature)


@pytest.mark.parametrize(
    ("network", "lookup"),
    [
        (lambda ids: tf.matmul(tf.one_hot(ids, 6), ROWS), True),
        (lambda ids: tf.einsum("bte,ed->btd", tf.one_hot(ids, 6), ROWS), True),
        (lambda ids: tf.matmul(tf.reshape(tf.one_hot(ids, 6), (-1, 6)), ROWS), True),
        (lambda ids: tf.matmul(tf.one_hot(ids, 6, 0.9, 0.7), ROWS), False),
        (lambda ids: tf.matmul(tf.one_hot(ids[0], 5), ROWS, transpose_a=True), False),
        (lambda ids: tf.matmul(tf.one_hot(ids[0], 6, axis=0), ROWS), False),
    ],
    ids=["rows", "einsum", "reshaped", "smoothed", "summed by class", "other axis"],
)
def test_only_products_that_pick_rows_are_lookups(network, lookup):
    plan = close(network, IDS)
    assert plan.count("embedding") == lookup and plan.count("weight") == (not lookup)


def test_an_outer_product_is_skipped():
    """The angles of rotary embeddings: positions x frequencies."""
    frequencies = tf.constant([1.0, 0.1, 0.01, 0.001])

    def network(x):
        positions = tf.cast(tf.range(tf.shape(x)[1]), tf.float32) + tf.reduce_max(x)
        angles = tf.einsum("bi,j->bij", positions[None], frequencies)
        return tf.matmul(x, KERNEL) * tf.sin(tf.concat([angles, angles], axis=-1))

    plan = close(network, numbers(4, 5, 8), OPEN)
    assert {site.path for site in plan.sites} == {"dense"}
    assert [s.reason for s in plan.skipped] == ["outer product, which sums over no axis"]


def test_kernels_whose_shape_is_not_known_are_refused_in_one_line():
    def network(x):
        kept = tf.norm(KERNEL, axis=0) > 1.0
        return tf.matmul(x, tf.boolean_mask(KERNEL, tf.ensure_shape(kept, [8]), axis=1))

    recipe = Recipe((Rule(QuantSpec(granularity="per_channel"), role="weight"),))
    with pytest.raises(
        RecipeError,
        match=r"per_channel at dense:weight:kernel, whose shape .* is not known: use per_tensor",
    ):
        tfquant.plan(network, recipe, signature=(tf.TensorSpec([None, 8], tf.float32),))
