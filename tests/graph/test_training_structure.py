"""Models whose training graph differs from that for inference.

What is in both is quantized in both, and the model trains.
"""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

import tfquant
from tfquant.model import engine_of

X = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)


class TwoLayers(keras.layers.Layer):
    """A feed-forward part; `call` of each subclass does something else in training."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (
            keras.layers.Dense(8, name=name) for name in ("first", "second", "third")
        )

    def build(self, shape):
        for layer in (self.first, self.second, self.third):
            layer.build(shape)

    def forward(self, x):
        return self.second(ops.relu(self.first(x)))

    def compute_output_spec(self, x, training=None):
        return keras.KerasTensor(x.shape, x.dtype)


class StochasticDepth(TwoLayers):
    def call(self, x, training=None):
        branch = self.forward(x)
        if training:
            kept = ops.cast(keras.random.uniform((ops.shape(x)[0], 1)) < 0.8, x.dtype)
            branch = branch / 0.8 * kept
        return x + branch


class CalledOnceMoreBefore(TwoLayers):
    def call(self, x, training=None):
        extra = 0.1 * self.first(2.0 * x) if training else 0.0
        return self.forward(x) + extra


class CalledOnceMoreBehind(TwoLayers):
    def call(self, x, training=None):
        y = self.forward(x)
        return y + 0.1 * self.forward(x + 1.0) if training else y


class AuxiliaryHead(TwoLayers):
    def call(self, x, training=None):
        y = self.forward(x)
        return y + 0.1 * self.third(x) if training else y


class LayerOfInferenceAlone(TwoLayers):
    def call(self, x, training=None):
        return self.first(x) if training else self.forward(x)


class DroppedWeights(TwoLayers):
    def call(self, x, training=None):
        kernel = keras.random.dropout(self.first.kernel, 0.3) if training else self.first.kernel
        return self.second(ops.relu(ops.matmul(x, kernel)))


class DroppedWeightsOnTheLeft(TwoLayers):
    def call(self, x, training=None):
        kernel = keras.random.dropout(self.first.kernel, 0.3) if training else self.first.kernel
        return self.second(ops.relu(ops.transpose(ops.matmul(kernel, ops.transpose(x)))))


class RelativePositions(TwoLayers):
    """Attention with keys of a table.

    A constant product in inference, with dropout an activation, as in DeBERTa.
    """

    def build(self, shape):
        super().build(shape)
        self.table = self.add_weight(shape=(4, shape[-1]), name="table")

    def call(self, x, training=None):
        table = (
            keras.random.dropout(self.table, 0.3) if training else ops.convert_to_tensor(self.table)
        )
        scores = ops.matmul(self.second(x), ops.transpose(self.first(table)))
        return ops.matmul(ops.softmax(scores), self.first(table))


LAYERS = [
    StochasticDepth,
    CalledOnceMoreBefore,
    CalledOnceMoreBehind,
    AuxiliaryHead,
    LayerOfInferenceAlone,
    DroppedWeights,
    DroppedWeightsOnTheLeft,
    RelativePositions,
]


def quantized_with(layer, **spec):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(layer(inputs)))
    spec = tfquant.QuantSpec(method={"name": "max"}, **spec)
    recipe = tfquant.Recipe((tfquant.Rule(spec, role=("weight", "linear_input", "matmul_input")),))
    # Ranges of inference have room for what training adds to the values of inference.
    return model, tfquant.quantize(model, recipe, calibration=[X, 4 * X], progress=False)


def readers(quantized, training):
    """Address -> the operations that read the quantized value, without the numbers that make their
    names unique.
    """
    found = {}
    for site, edge in engine_of(quantized).placements(training):
        found.setdefault(site.address.split("/")[-1], []).append(edge.consumer[0].split("/")[-1])
    return found


@pytest.mark.representatives(
    "StochasticDepth",
    "CalledOnceMoreBehind",
    "AuxiliaryHead",
    "DroppedWeights",
    "RelativePositions",
)
@pytest.mark.parametrize("layer", LAYERS)
def test_models_train_that_compute_something_else_in_training(layer):
    model, quantized = quantized_with(layer())
    for mode in ("quantized", "float"):
        quantized.set_mode(mode)
        quantized.compile("sgd", "mse")
        before = model.get_weights()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(Gradients do not exist|quantized edges)")
            quantized.fit(X, np.ones((6, 3)), verbose=0)
        assert any((old != new).any() for old, new in zip(before, model.get_weights(), strict=True))


@pytest.mark.representatives("CalledOnceMoreBefore", "AuxiliaryHead")
@pytest.mark.parametrize(
    "layer", [CalledOnceMoreBefore, CalledOnceMoreBehind, AuxiliaryHead, LayerOfInferenceAlone]
)
@pytest.mark.filterwarnings("ignore:training computes")
def test_the_training_graph_at_16_bits_is_that_of_the_original(layer):
    model, quantized = quantized_with(layer(), format="int16")
    expected, found = (np.asarray(network(X, training=True)) for network in (model, quantized))
    assert 0 < np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()


def test_a_layer_called_once_more_in_training_has_quantized_weights_in_both_calls_and_its_range_where_inference_calls_it():  # noqa: E501
    for layer in (CalledOnceMoreBefore, CalledOnceMoreBehind):
        _, quantized = quantized_with(layer())
        placed = [
            (site.address, edge.tensor.name) for site, edge in engine_of(quantized).placements(True)
        ]
        assert sum("first:weight:kernel" in address for address, _ in placed) == 2
        inputs = [tensor for address, tensor in placed if "first:linear_input:input" in address]
        assert inputs == [engine_of(quantized).training.inputs[0].name]


def test_what_training_alone_computes_stays_in_float():
    _, quantized = quantized_with(AuxiliaryHead())
    assert readers(quantized, True) == readers(quantized, False)


@pytest.mark.parametrize("layer", [DroppedWeights, DroppedWeightsOnTheLeft])
def test_a_weight_with_dropout_keeps_its_quantizer_before_the_dropout(layer):
    layer = layer()
    _, quantized = quantized_with(layer, granularity="per_tensor")
    edges = {site.address: edge for site, edge in engine_of(quantized).placements(True)}
    assert len(edges) == len(quantized.plan.sites)
    weight = next(
        edge for address, edge in edges.items() if "first" in address and ":weight:" in address
    )
    assert weight.tensor.op.type == "ReadVariableOp"


@pytest.mark.representatives("per_channel")
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_a_table_that_dropout_makes_an_activation_keeps_the_quantizers_of_inference(granularity):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(RelativePositions()(inputs)))
    weight, activation = (tfquant.QuantSpec(granularity=g) for g in (granularity, "per_tensor"))
    recipe = tfquant.Recipe(
        (tfquant.Rule(weight, role="weight"), tfquant.Rule(activation, role="linear_input"))
    )
    quantized = tfquant.quantize(model, recipe, calibration=[X], progress=False)
    placed = {site.address: edge for site, edge in engine_of(quantized).placements(True)}
    assert placed.keys() == {site.address for site in quantized.plan.sites}
    for site in quantized.plan.sites:
        assert tuple(placed[site.address].tensor.shape) == site.shape
    quantized.compile("sgd", "mse")
    quantized.fit(X, np.ones((6, 3)), verbose=0)


def test_what_inference_alone_computes_is_named_in_a_warning():
    _, quantized = quantized_with(LayerOfInferenceAlone())
    with pytest.warns(
        UserWarning,
        match="training computes 2 of the quantized edges in no place: .*second:linear_input:input",
    ):
        quantized(X, training=True)
