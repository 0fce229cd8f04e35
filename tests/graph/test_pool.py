"""Every kind of model.

What is found in it, that nothing is lost, that its numbers stay, that it trains.
"""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfquant
from tests.few import few
from tests.graph import models
from tfquant.model import engine_of

ROLES_OF_PRODUCTS = ("weight", "linear_input", "matmul_input", "pooler", "logits", "embedding")
PRODUCTS = {
    "MatMul",
    "BatchMatMul",
    "BatchMatMulV2",
    "BatchMatMulV3",
    "Einsum",
    "Conv2D",
    "DepthwiseConv2dNative",
}


ALL = [*models.KERAS, *models.FUNCTIONS, *models.SAVED]
# hub_bert stands for the backbones of KerasHub, subclassed for models of the same layers.
KEPT = [name for name in ALL if name not in ("hub_roberta", "hub_distilbert", "functional")]
TRAINED = [name for name in KEPT if name not in ("own_bert", "encoder_decoder")]


@dataclasses.dataclass
class Quantized:
    name: str
    case: models.Case
    model: object
    outputs: list[
        list[np.ndarray]
    ]  # of the original, for each batch, before anything was done to it


@pytest.fixture(scope="module", params=few(ALL, KEPT))
def pool(request, tmp_path_factory) -> Quantized:
    case = models.build(request.param, str(tmp_path_factory.mktemp("saved")))
    outputs = [[as_float(t) for t in case.run(case.model, batch)] for batch in case.batches]
    return Quantized(
        request.param,
        case,
        tfquant.quantize(case.model, calibration=case.batches, progress=False),
        outputs,
    )


def rounding(pool: Quantized, steps: int) -> float:
    """Share of the largest value by which float mode may differ from the original.

    The original ran eagerly. Traced, some CPUs fuse products of bfloat16 with what follows and
    round once where single operations round after each: a few of the steps of 2^-8 of each
    operation behind them.
    """
    return steps * 2**-8 if pool.name == "mixed_bfloat16" else 0.0


def as_float(tensor) -> np.ndarray:
    return np.asarray(tf.cast(tensor, tf.float32))


def paths_of(plan: tfquant.plan, *roles: str, port: str = "") -> set[str]:
    edges = [address.rsplit(":", 2) for site in plan.sites for address in site.members]
    return {path for path, role, name in edges if role in roles and (not port or name == port)}


def test_expected_layers_have_a_weight_and_an_input_site(pool):
    assert paths_of(pool.model.plan, "weight", port="kernel") == set(pool.case.linear)
    assert paths_of(pool.model.plan, "linear_input", port="input") == set(pool.case.linear)


def test_attention_has_q_k_v_and_probabilities(pool):
    for port in ("q", "k", "v", "probabilities"):
        assert paths_of(pool.model.plan, "matmul_input", port=port) == set(pool.case.attention)


def test_every_product_of_the_graph_is_quantized_or_skipped_with_a_reason(pool):
    plan = pool.model.plan
    # product -> its addresses; a product of two activations has two ports of its own
    quantized = {}
    for site in plan.sites:
        for address in site.members:
            path, role, port = address.rsplit(":", 2)
            if role in ROLES_OF_PRODUCTS:
                side = {
                    "q": "scores",
                    "k": "scores",
                    "v": "context",
                    "probabilities": "context",
                }.get(port, "linear")
                quantized.setdefault((path, side), []).append(address)
    assert all(entry.reason for entry in plan.skipped)
    assert len({entry.op for entry in plan.skipped}) == len(plan.skipped)
    assert len(quantized) + len(plan.skipped) == products_in(pool.case)


def products_in(case: models.Case) -> int:
    """Counts the products of a trace made here, functions and loop bodies included."""
    batch = tf.nest.map_structure(tf.constant, case.batches[0])
    definition = (
        tf.function(lambda b: case.run(case.model, b))
        .get_concrete_function(batch)
        .graph.as_graph_def()
    )
    library = {f.signature.name: f.node_def for f in definition.library.function}

    def count(nodes):
        total = 0
        for node in nodes:
            total += node.op in PRODUCTS
            called = [v.func.name for v in node.attr.values() if v.HasField("func")]
            total += sum(count(library[name]) for name in called)
        return total

    return count(definition.node)


def test_float_mode_gives_the_numbers_of_the_original(pool):
    pool.model.set_mode("float")
    for batch, expected in zip(pool.case.batches, pool.outputs, strict=True):
        for got, want in zip(pool.case.run(pool.model, batch), expected, strict=True):
            tolerance = max(1e-6, rounding(pool, steps=8) * np.abs(want).max())
            np.testing.assert_allclose(as_float(got), want, rtol=1e-6, atol=tolerance)


def test_quantized_outputs_differ_but_are_near(pool):
    pool.model.set_mode("quantized")
    for batch, expected in zip(pool.case.batches, pool.outputs, strict=True):
        got = [as_float(t) for t in pool.case.run(pool.model, batch)]
        assert any((g != w).any() for g, w in zip(got, expected, strict=True))
        for g, w in zip(got, expected, strict=True):
            assert np.abs(g - w).max() < 0.08 * np.abs(w).max()


def test_calling_the_quantized_model_leaves_the_original_as_it_was(pool):
    for batch, expected in zip(pool.case.batches, pool.outputs, strict=True):
        for got, want in zip(pool.case.run(pool.case.model, batch), expected, strict=True):
            np.testing.assert_array_equal(as_float(got), want)


@pytest.mark.representatives(*TRAINED)
def test_gradients_are_those_of_the_original_in_float_mode_and_near_when_quantized(pool):
    variables, batch = pool.case.trainable(), pool.case.batches[0]
    want = gradients(pool.case, pool.case.model, variables, batch)
    # Of all of them: the gradient of the bias of the keys is zero but for rounding.
    tolerance = max(1e-5, rounding(pool, steps=24) * max(np.abs(w).max() for w in want))
    pool.model.set_mode("float")
    for got, expected in zip(gradients(pool.case, pool.model, variables, batch), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=tolerance)
    pool.model.set_mode("quantized")
    got = np.concatenate([g.ravel() for g in gradients(pool.case, pool.model, variables, batch)])
    expected = np.concatenate([g.ravel() for g in want])
    assert (got != expected).any()
    assert got @ expected > 0.9 * np.linalg.norm(got) * np.linalg.norm(expected)


def gradients(case: models.Case, model, variables: list[tf.Variable], batch) -> list[np.ndarray]:
    """Of a loss that looks at every output; zeros where the original has none."""
    with tf.GradientTape() as tape:
        loss = 0.0
        for output in case.run(model, batch):
            weights = (
                np.cos(np.arange(np.prod(output.shape))).reshape(output.shape).astype(np.float32)
            )
            loss += tf.reduce_sum(tf.cast(output, tf.float32) * weights)
    found = tape.gradient(loss, variables)
    found = [
        tf.zeros(v.shape) if g is None else tf.convert_to_tensor(g)
        for g, v in zip(found, variables, strict=True)
    ]
    return [as_float(g) for g in found]


@pytest.mark.representatives(*[name for name in TRAINED if name != "hub_bert"])
def test_one_training_step_changes_the_weights_of_the_original(pool):
    pool.model.set_mode("quantized")
    batch, variables = pool.case.batches[0], pool.case.trainable()
    before = [v.numpy() for v in variables]
    if isinstance(pool.model, keras.Model):
        outputs = pool.model(batch)
        loss = tf.nest.map_structure(lambda _: "mse", outputs)
        pool.model.compile(keras.optimizers.SGD(0.1), loss=loss, run_eagerly=False)
        targets = tf.nest.map_structure(
            lambda t: np.random.default_rng(0).normal(size=t.shape).astype(np.float32), outputs
        )
        history = pool.model.fit(batch, targets, batch_size=16, epochs=1, verbose=0)
        assert np.isfinite(history.history["loss"]).all()
    else:
        assert {id(v) for v in pool.model.trainable_variables} == {id(v) for v in variables}
        for variable, gradient in zip(
            variables, gradients(pool.case, pool.model, variables, batch), strict=True
        ):
            variable.assign_sub(0.1 * gradient)
    changed = [(v.numpy() != b).any() for v, b in zip(variables, before, strict=True)]
    reached = [
        np.abs(g).max() > 1e-6 for g in gradients(pool.case, pool.case.model, variables, batch)
    ]
    assert sum(reached) > 0
    assert [c for c, r in zip(changed, reached, strict=True) if r] == [True] * sum(reached)


def test_addresses_are_the_same_in_training_and_inference(pool):
    engine = engine_of(pool.model)
    inference, training = (
        {e.address for e in t.analysis.roles.edges} for t in (engine.inference, engine.training)
    )
    assert inference == training


def test_ranges_are_float32_and_known(pool):
    assert pool.model.calibrated
    for lower, upper in pool.model.ranges().values():
        assert lower.dtype == upper.dtype == np.float32
