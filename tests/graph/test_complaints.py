"""What users of other quantizers asked for and did not get, one test each."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfquant
from tests.graph.models import floats


def only(*paths: str) -> tfquant.Recipe:
    """A recipe for weights and inputs of the layers at some paths."""
    weight = tfquant.QuantSpec(granularity="per_channel")
    rules = [tfquant.Rule(weight, "weight", path) for path in paths]
    return tfquant.Recipe(
        (*rules, *(tfquant.Rule(tfquant.QuantSpec(), "linear_input", path) for path in paths)),
        name="chosen",
    )


def paths(plan, role: str) -> set[str]:
    return {
        address.rsplit(":", 2)[0]
        for s in plan.sites
        for address in s.members
        if f":{role}:" in address
    }


def trains(quantized, inputs, watched) -> bool:
    """One step of `fit` changes the watched variables of the original."""
    before = [np.array(v) for v in watched]
    outputs = quantized(inputs)
    quantized.compile(
        keras.optimizers.SGD(0.1), loss=tf.nest.map_structure(lambda _: "mse", outputs)
    )
    targets = tf.nest.map_structure(lambda t: floats(tuple(t.shape))[0], outputs)
    quantized.fit(inputs, targets, batch_size=64, verbose=0)
    return all((np.array(v) != b).any() for v, b in zip(watched, before, strict=True))


def near(got, want, tolerance=0.05) -> bool:
    got, want = np.asarray(got), np.asarray(want)
    return bool((got != want).any() and np.abs(got - want).max() < tolerance * np.abs(want).max())


def test_model_optimization_661_dense_layers_are_quantized_in_a_model_that_holds_multi_head_attention():  # noqa: E501
    """There, annotating only the Dense layers failed on the shapes of the attention's variables."""
    inputs = keras.Input((16, 8), batch_size=4)
    attended = keras.layers.MultiHeadAttention(num_heads=2, key_dim=4, name="attention")(
        query=inputs, value=inputs
    )
    model = keras.Model(inputs, keras.layers.Dense(64, name="dense")(attended))
    data = floats((4, 16, 8))[0]
    want = model(data)
    quantized = tfquant.quantize(model, only("dense"), calibration=[data], progress=False)
    assert {s.path for s in quantized.plan.sites} == {"dense"}
    assert {s.path for s in quantized.plan.skipped} == {
        "attention",
        *(f"attention/{name}" for name in ("query", "key", "value", "attention_output")),
    }
    assert near(quantized(data), want)
    assert trains(quantized, data, [model.get_layer("dense").kernel])


# test_pool.py trains models with such layers.
@pytest.mark.long
def test_model_optimization_718_multi_head_attention_is_trained_quantized():
    """There, the layer had no configuration.

    It has several inputs and needs points inside of it.
    """
    inputs = keras.Input((8, 8), batch_size=5)
    x = keras.layers.MultiHeadAttention(num_heads=2, key_dim=4, name="attention")(inputs, inputs)
    model = keras.Model(inputs, keras.layers.Flatten()(x))
    data = floats((5, 8, 8))[0]
    want = model(data)
    quantized = tfquant.quantize(model, calibration=[data], progress=False)
    projections = {f"attention/{name}" for name in ("query", "key", "value", "attention_output")}
    assert paths(quantized.plan, "weight") == paths(quantized.plan, "linear_input") == projections
    assert {s.port for s in quantized.plan.sites if s.role == "matmul_input"} == {
        "q",
        "k",
        "v",
        "probabilities",
    }
    assert quantized.plan.skipped == ()
    assert near(quantized(data), want)
    attention = model.get_layer("attention")
    assert trains(
        quantized,
        data,
        [attention.query_dense.kernel, attention.value_dense.kernel, attention.output_dense.kernel],
    )


def test_model_optimization_957_a_model_inside_a_model_is_quantized():
    """There: "Quantizing a tf.keras Model inside another tf.keras Model is not supported"."""
    inputs = keras.Input((3,))
    inner = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, name="within")], name="inner"
    )
    outer = keras.Model(inputs, keras.layers.Dense(2, name="outside")(inner(inputs)))
    data = floats((4, 3))[0]
    want = outer(data)
    quantized = tfquant.quantize(outer, calibration=[data], progress=False)
    assert paths(quantized.plan, "weight") == {"inner/within", "outside"}
    assert near(quantized(data), want)
    assert trains(quantized, data, [inner.layers[0].kernel, outer.layers[-1].kernel])


class Inner(keras.layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(units, activation="relu", name="dense")

    def call(self, x):
        return self.dense(x)


class Outer(keras.layers.Layer):
    """Layers in layers, some of them in a list."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stages = [Inner(6, name="first"), Inner(5, name="second")]
        self.head = keras.layers.Dense(3, name="head")

    def call(self, x):
        for stage in self.stages:
            x = stage(x)
        return self.head(x)


def test_model_optimization_638_layers_nested_in_layers_are_quantized():
    """There, only the layers that a model lists itself were seen."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Outer(name="outer")(inputs))
    data = floats((4, 4))[0]
    want = model(data)
    quantized = tfquant.quantize(model, calibration=[data], progress=False)
    assert paths(quantized.plan, "weight") == {
        "outer/first/dense",
        "outer/second/dense",
        "outer/head",
    }
    assert near(quantized(data), want)
    assert trains(
        quantized, data, [v for v in model.trainable_variables if v.path.endswith("kernel")]
    )


@pytest.mark.representatives("keras")
@pytest.mark.parametrize("kind", [keras, tf_keras])
def test_model_optimization_1139_outputs_that_are_slices_do_not_hinder(kind):
    """There, a segmentation model whose output is sliced into several failed on the slicing.

    Its layer was not known.
    """
    inputs = kind.Input((8, 8, 3))
    x = kind.layers.Conv2D(4, 3, padding="same", activation="relu", name="features")(inputs)
    scores = kind.layers.Conv2D(6, 1, name="scores")(x)
    outputs = [scores[:, :, :, 0:2], scores[:, :, :, 2:4], scores[:, 1:-1, ::2, 4:6]]
    model = kind.Model(inputs, outputs)
    data = floats((2, 8, 8, 3))[0]
    wanted = [np.asarray(t) for t in model(data)]
    quantized = tfquant.quantize(model, calibration=[data], progress=False)
    assert paths(quantized.plan, "weight") == {"features", "scores"}
    assert [t.shape for t in quantized(data)] == [(2, 8, 8, 2), (2, 8, 8, 2), (2, 6, 4, 2)]
    assert all(near(g, w) for g, w in zip(quantized(data), wanted, strict=True))
    assert trains(
        quantized, data, [model.get_layer("features").kernel, model.get_layer("scores").kernel]
    )


def test_model_optimization_1139_class_maps_beside_the_scores_are_returned():
    inputs = keras.Input((8, 8, 3))
    scores = keras.layers.Conv2D(4, 1, name="scores")(inputs)
    maps = [
        keras.ops.expand_dims(keras.ops.argmax(scores[..., i : i + 2], axis=-1), -1) for i in (0, 2)
    ]
    model = keras.Model(inputs, [scores, *maps])
    data = floats((2, 8, 8, 3))[0]
    quantized = tfquant.quantize(model, calibration=[data], progress=False)
    for got, want in zip(quantized(data), model(data), strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
    assert np.mean(np.asarray(quantized(data)[1]) == np.asarray(model(data)[1])) > 0.95


# test_pool.py has such layers.
@pytest.mark.long
def test_model_optimization_367_layers_without_a_quantization_configuration_are_quantized_or_left_alone_but_never_refused():  # noqa: E501
    """The text of that issue could not be looked up; here is what such a tool's list of supported
    layers leaves out.
    """
    ids = keras.Input((6,), dtype="int32", name="ids")
    x = keras.layers.Embedding(20, 8, name="embedding")(ids)
    x = keras.layers.SeparableConv1D(8, 3, padding="same", name="separable")(x)
    x = keras.layers.LayerNormalization(name="norm")(keras.layers.Lambda(lambda t: 2.0 * t)(x))
    x = keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True), name="lstm")(x)
    x = keras.layers.UpSampling1D(2)(keras.layers.PReLU()(x))
    x = keras.layers.Conv1DTranspose(4, 3, name="transposed")(x)
    outputs = keras.layers.Dense(3, activation="softmax", name="head")(
        keras.layers.Concatenate(axis=1)([x, x[:, ::-1]])
    )
    model = keras.Model(ids, outputs)
    data = np.random.default_rng(0).integers(0, 20, (3, 6)).astype(np.int32)
    want = model(data)
    quantized = tfquant.quantize(model, calibration=[data], progress=False)
    assert {"head"} < paths(quantized.plan, "weight")
    reasons = {s.path: s.reason for s in quantized.plan.skipped}
    assert "is not quantized" in reasons["transposed"]
    assert (
        sum("inside a While" in reason for reason in reasons.values()) == 4
    )  # two products in each direction
    assert near(quantized(data), want)
    assert trains(
        quantized, data, [model.get_layer("embedding").embeddings, model.get_layer("head").kernel]
    )


def test_model_optimization_1181_one_dense_layer_of_a_keras_3_sequential_is_chosen():
    """There, annotating a layer of Keras 3 failed as it was none of tf-keras."""
    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(20, name="chosen"),
            keras.layers.Flatten(),
            keras.layers.Dense(5, name="other"),
        ],
        name="model",
    )
    data = floats((4, 20))[0]
    want = model(data)
    quantized = tfquant.quantize(model, only("*/chosen"), calibration=[data], progress=False)
    assert [(s.path, s.role) for s in quantized.plan.sites] == [
        ("model/chosen", "linear_input"),
        ("model/chosen", "weight"),
    ]
    assert [s.path for s in quantized.plan.skipped] == ["model/other"]
    assert near(quantized(data), want)
    assert trains(quantized, data, [model.layers[0].kernel])


class MyNet(keras.Model):
    """A subclassed model with a condition in Python, a layer called twice and a bare operation."""

    def __init__(self, deep: bool):
        super().__init__(name="net")
        self.conv = keras.layers.Conv2D(4, 3, padding="same", name="conv")
        self.again = keras.layers.Conv2D(4, 3, padding="same", name="again") if deep else None
        self.head = keras.layers.Dense(3, name="head")

    def call(self, x):
        x = keras.ops.relu(self.conv(x))
        if self.again is not None:
            x = self.again(keras.ops.relu(self.again(x)))
        return self.head(keras.ops.mean(x, axis=(1, 2)))


@pytest.mark.parametrize("deep", [False, True])
def test_tensorrt_2640_a_subclassed_model_is_quantized_as_it_is(deep):
    """There: only Sequential and Functional models, as others cannot be cloned."""
    model = MyNet(deep)
    data = floats((2, 8, 8, 3))[0]
    quantized = tfquant.quantize(model, calibration=[data], progress=False)
    want = model(data)
    expected = {"net/conv", "net/head"} | ({"net/again", "net/again#2"} if deep else set())
    assert paths(quantized.plan, "weight") == expected
    assert near(quantized(data), want)
    assert trains(quantized, data, [model.conv.kernel, model.head.kernel])
