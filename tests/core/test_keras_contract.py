"""Quantizing changes nothing else.

`fit`, `evaluate` and `predict` in float mode give the original's numbers.
"""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras import layers

import tfquant
from tfquant.model import engine_of
from tfquant.training import BertAdamW, Trainer, TrainOptions

RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=shape).astype(np.float32) for shape in ((32, 8), (32, 1)))
IDS, STEPS = RNG.integers(0, 4, (32, 6)), RNG.normal(size=(32, 6, 2)).astype(np.float32)
CLASSES = RNG.integers(0, 3, 32)


def in_float(model, batch=X):
    quantized = tfquant.quantize(model, calibration=[batch], progress=False)
    quantized.set_mode("float")
    return quantized


def assert_alike(build, x, y, compile_with, **fit):
    """The histories, evaluations and weights of a model and of its quantized copy in float mode."""
    found = []
    for wrap in (lambda model: model, lambda model: in_float(model, x)):
        keras.utils.set_random_seed(3)
        model = build()
        wrapped = wrap(model)
        wrapped.compile(**(compile_with() if callable(compile_with) else compile_with))
        history = wrapped.fit(x, y, epochs=2, batch_size=8, shuffle=False, verbose=0, **fit).history
        scores = wrapped.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
        found.append((history, scores, [v.numpy() for v in model.weights]))
    (history, scores, weights), (other_history, other_scores, other_weights) = found
    assert list(history) == list(other_history) and set(scores) == set(other_scores)
    for name, values in history.items():
        np.testing.assert_allclose(other_history[name], values, rtol=1e-5, err_msg=name)
    for name, value in scores.items():
        np.testing.assert_allclose(other_scores[name], value, rtol=1e-5, err_msg=name)
    for own, other in zip(weights, other_weights, strict=True):
        np.testing.assert_allclose(other, own, rtol=1e-4, atol=1e-6)
    wrapped.set_mode("quantized")
    wrapped.fit(x, y, batch_size=8, verbose=0)
    return history


class Inverted(layers.Layer):
    """Changes the mask."""

    supports_masking = True

    def call(self, x):
        return 2.0 * x

    def compute_mask(self, x, mask=None):
        return None if mask is None else keras.ops.logical_not(mask)


class Attending(keras.Model):
    """Subclassed, with a mapping of outputs, one of them without a mask."""

    def __init__(self):
        super().__init__()
        self.table, self.attention = (
            layers.Embedding(10, 8, mask_zero=True),
            layers.MultiHeadAttention(2, 4),
        )
        self.head = layers.Dense(2)

    def call(self, x, training=False):
        hidden = self.table(x)
        hidden = hidden + self.attention(hidden, hidden)
        return {"steps": self.head(hidden), "pooled": keras.ops.mean(hidden, 1)}


def masked_functional():
    x = keras.Input((6,), dtype="int32")
    hidden = layers.Embedding(10, 8, mask_zero=True)(x)
    outputs = [
        layers.Dense(2, name="kept")(hidden),
        layers.Dense(2, name="changed")(Inverted()(hidden)),
    ]
    return keras.Model(
        x, [*outputs, layers.Dense(1, name="dropped")(layers.GlobalAveragePooling1D()(hidden))]
    )


def masked_nested():
    encoder = keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(10, 8, mask_zero=True),
            layers.GRU(8, return_sequences=True),
        ]
    )
    return keras.Sequential([keras.Input((6,), dtype="int32"), encoder, layers.Dense(2)])


def masking_layer():
    x = keras.Input((6, 2))
    return keras.Model(
        x, layers.Dense(2)(layers.LSTM(4, return_sequences=True)(layers.Masking()(x)))
    )


def attending():
    model = Attending()
    model(IDS)
    return model


@pytest.mark.representatives("subclassed")
@pytest.mark.parametrize(
    ("build", "x", "y", "loss"),
    [
        (
            masked_functional,
            IDS,
            [STEPS, STEPS, Y],
            {"kept": "mse", "changed": "mae", "dropped": "mse"},
        ),
        (masked_nested, IDS, STEPS, "mse"),
        (masking_layer, np.where(np.arange(6)[:, None] > 3, 0, STEPS), STEPS, "mse"),
        (
            attending,
            IDS,
            {"steps": STEPS, "pooled": RNG.normal(size=(32, 8))},
            {"steps": "mse", "pooled": "mae"},
        ),
    ],
    ids=["functional", "nested", "masking", "subclassed"],
)
def test_masks_reach_losses_and_metrics(build, x, y, loss):
    metrics = {name: ["mae"] for name in loss} if isinstance(loss, dict) else ["mae"]
    assert_alike(build, x, y, {"optimizer": "sgd", "loss": loss, "metrics": metrics})


@pytest.mark.representatives("False-quantized", "True-float")
@pytest.mark.parametrize("mode", ["float", "quantized"])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_have_masks_in_every_mode(mode, training):
    model = masked_functional()
    quantized = in_float(model, IDS)
    quantized.set_mode(mode)
    masks = [getattr(output, "_keras_mask", None) for output in quantized(IDS, training=training)]
    np.testing.assert_array_equal(masks[0], IDS != 0)
    np.testing.assert_array_equal(masks[1], IDS == 0)
    assert masks[2] is None


def test_an_input_with_a_mask_is_refused():
    quantized = in_float(
        keras.Sequential([keras.Input((6, 8)), layers.GRU(4), layers.Dense(2)]),
        RNG.normal(size=(4, 6, 8)),
    )
    with pytest.raises(ValueError, match="carries a Keras mask, with which it was not traced"):
        quantized(layers.Embedding(10, 8, mask_zero=True)(IDS))


class Adding(layers.Layer):
    def call(self, x, training=False):
        self.add_loss((0.2 if training else 0.1) * keras.ops.mean(keras.ops.square(x)))
        return x


def with_regularizers():
    x = keras.Input((8,))
    hidden = layers.Dense(
        8, activity_regularizer="l2", kernel_regularizer="l1", bias_regularizer="l2"
    )(x)
    return keras.Model(x, layers.Dense(1)(Adding()(hidden)))


def with_loss_alone():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(4)

        def call(self, x):
            y = self.dense(x)
            self.add_loss(keras.ops.mean(y**2))
            return y

    model = Own()
    model(X)
    return model


@pytest.mark.representatives("False")
@pytest.mark.parametrize("eager", [False, True])
def test_losses_that_layers_add_count_once(eager):
    assert_alike(
        with_regularizers, X, Y, {"optimizer": "adam", "loss": "mse", "run_eagerly": eager}
    )


def test_a_model_may_have_no_other_losses():
    assert_alike(with_loss_alone, X, None, {"optimizer": "sgd"})


def test_losses_of_a_quantized_model_are_those_of_its_last_call():
    model = with_regularizers()
    quantized = in_float(model)
    for training in (True, False):
        model(X, training=training)
        own = [float(loss) for loss in model.losses]
        for _ in range(2):
            quantized(X, training=training)
            np.testing.assert_allclose(sorted(map(float, quantized.losses)), sorted(own), rtol=1e-5)


def test_the_trainer_counts_added_losses(tmp_path):
    def loss(model, batch):
        return tf.reduce_mean((model(batch["x"], training=True) - batch["y"]) ** 2)

    found = []
    for wrap in (lambda model: model, in_float):
        keras.utils.set_random_seed(2)
        model = wrap(with_regularizers())
        expected = float(loss(model, {"x": X, "y": Y}) + sum(model.losses))
        options = TrainOptions(
            directory=str(tmp_path / str(len(found))), total_steps=1, progress=False
        )
        trainer = Trainer(model, loss, BertAdamW(1e-3), options)
        found.append((trainer.fit(lambda first: iter([{"x": X, "y": Y}])).loss, expected))
    np.testing.assert_allclose(np.ravel(found), found[0][1], rtol=1e-5)


class Scaled(keras.Model):
    """Own loss, metrics and results."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.own = keras.metrics.Mean(name="own")
        self.factor = 3.0

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = self.factor * super().compute_loss(x, y, y_pred, sample_weight, training)
        self.own.update_state(loss)
        return loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return {**super().compute_metrics(x, y, y_pred, sample_weight), "extra": self.own.result()}


class Stepping(keras.Model):
    """Own steps and a property of metrics."""

    def __init__(self, inner=False):
        super().__init__()
        self.dense, self.inner = layers.Dense(1), inner
        self.tracker, self.error = (
            keras.metrics.Mean(name="loss"),
            keras.metrics.MeanAbsoluteError(name="mae"),
        )

    @property
    def metrics(self):
        return [self.tracker, self.error]

    def call(self, x, training=False):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            found = self.dense(x) if self.inner else self(x, training=True)
            loss = keras.ops.mean((found - y) ** 2)
        self.optimizer.apply_gradients(
            zip(
                tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True
            )
        )
        return self._results(loss, y, found)

    def test_step(self, data):
        x, y = data
        found = self(x, training=False)
        return self._results(keras.ops.mean((found - y) ** 2), y, found)

    def predict_step(self, data):
        return 10.0 * self(data[0] if isinstance(data, tuple) else data)

    def _results(self, loss, y, found):
        self.tracker.update_state(loss)
        self.error.update_state(y, found)
        return {metric.name: metric.result() for metric in self.metrics}


def scaled():
    x = keras.Input((8,))
    return Scaled(x, layers.Dense(1, kernel_regularizer="l2")(x))


def stepping(inner=False):
    model = Stepping(inner)
    model(X)
    return model


def test_compute_loss_and_compute_metrics_of_the_model_are_used():
    assert "extra" in assert_alike(scaled, X, Y, {"optimizer": "sgd", "loss": "mse"})


def test_steps_of_the_model_are_used():
    assert list(assert_alike(stepping, X, Y, {"optimizer": "sgd"})) == ["loss", "mae"]
    model = stepping()
    np.testing.assert_allclose(in_float(model).predict(X, verbose=0), 10 * model(X), rtol=1e-5)


def test_a_step_that_leaves_out_the_quantized_network_is_refused():
    quantized = tfquant.quantize(stepping(inner=True), calibration=[X], progress=False)
    quantized.compile("sgd")
    with pytest.raises(ValueError, match=r"train_step of Stepping does not call self\(...\)"):
        quantized.fit(X, Y, verbose=0)


def test_steps_that_cannot_be_kept_are_refused_by_quantize():
    class Foreign(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = tf_keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            return {}

    with pytest.raises(ValueError, match="Foreign replaces train_step of tf-keras"):
        tfquant.quantize(Foreign(), inputs=X)
    model = scaled()
    model.compute_loss = lambda *args, **kwargs: 0.0
    with pytest.raises(ValueError, match="compute_loss is set on the model itself"):
        tfquant.quantize(model)


@pytest.mark.representatives("sample_weight", "accumulation")
@pytest.mark.parametrize("how", ["class_weight", "sample_weight", "validation", "accumulation"])
def test_weights_validation_averages_and_accumulation(how):
    def build():
        x = keras.Input((8,))
        hidden = layers.BatchNormalization()(layers.Dense(8, use_bias=False)(x))
        return keras.Model(x, layers.Dense(3, activation="softmax")(hidden))

    def compile_with():
        more = {"use_ema": True, "gradient_accumulation_steps": 2} if how == "accumulation" else {}
        return {
            "optimizer": keras.optimizers.SGD(0.1, **more),
            "loss": "sparse_categorical_crossentropy",
            "metrics": ["accuracy"],
            "weighted_metrics": ["accuracy"],
        }

    fit = {
        "class_weight": {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}},
        "sample_weight": {"sample_weight": np.linspace(0, 1, 32)},
        "validation": {"validation_data": (X[:8], CLASSES[:8])},
        "accumulation": {},
    }[how]
    assert_alike(build, X, CLASSES, compile_with, **fit)


def two_outputs():
    x = keras.Input((8,), name="x")
    hidden = layers.Dense(8, name="hidden")(x)
    return keras.Model(x, [layers.Dense(1, name="a")(hidden), layers.Dense(1, name="b")(hidden)])


def test_outputs_have_the_names_that_keras_gives_them():
    stop = keras.callbacks.EarlyStopping("a_loss", mode="min", patience=0, min_delta=100)
    losses = {"optimizer": "sgd", "loss": {"a": "mse", "b": "mse"}, "metrics": {"b": ["mae"]}}
    history = assert_alike(
        two_outputs, X, {"a": Y, "b": Y}, losses, callbacks=[stop], validation_split=0.25
    )
    assert {"a_loss", "b_loss", "b_mae", "val_a_loss"} <= set(history)


def test_layers_names_and_shapes_are_those_of_the_original():
    model = two_outputs()
    quantized = in_float(model)
    assert quantized.layers == model.layers and quantized.get_layer("hidden") is model.get_layer(
        "hidden"
    )
    assert quantized.output_names == ["a", "b"] and quantized.count_params() == model.count_params()
    assert quantized.compute_output_shape((None, 8)) == model.compute_output_shape((None, 8))
    assert quantized.dtype_policy == model.dtype_policy and quantized.input is model.input
    lines = []
    quantized.summary(print_fn=lambda line, **_: lines.append(line))
    assert "hidden" in "".join(lines)


def test_trainable_variables_follow_the_original():
    model = two_outputs()
    quantized = in_float(model)
    for change in (
        lambda: setattr(model.get_layer("hidden"), "trainable", False),
        lambda: setattr(quantized, "trainable", False),
    ):
        change()
        assert [v.path for v in quantized.trainable_variables] == [
            v.path for v in model.trainable_variables
        ]
    foreign = tf_keras.Sequential(
        [tf_keras.layers.Dense(8, input_shape=(8,)), tf_keras.layers.Dense(1)]
    )
    foreign.layers[0].trainable = False
    quantized = in_float(foreign)
    assert len(quantized.trainable_variables) == 2
    foreign.layers[0].trainable = True
    quantized.compile("sgd", "mse")
    assert len(quantized.trainable_variables) == 4


def test_compile_takes_a_frozen_batch_normalization():
    def moved(wrap):
        keras.utils.set_random_seed(1)
        x = keras.Input((8,))
        model = keras.Model(
            x, layers.Dense(1)(layers.BatchNormalization(name="norm")(layers.Dense(8)(x)))
        )
        wrapped = wrap(model)
        for trainable in (False, True, False):
            model.get_layer("norm").trainable = trainable
            wrapped.compile(keras.optimizers.SGD(1e-3), "mse")
            wrapped.fit(X + 3, Y, epochs=2, shuffle=False, verbose=0)
        return model.get_layer("norm").moving_mean.numpy()

    np.testing.assert_allclose(moved(in_float), moved(lambda model: model), atol=1e-5)


def test_compile_takes_a_dropout_rate_and_traces_once():
    x = keras.Input((8,))
    dropout = layers.Dropout(0.9)
    quantized = in_float(keras.Model(x, layers.Dense(1)(dropout(x))))
    assert (quantized(X, training=True).numpy() != quantized(X).numpy()).any()
    dropout.rate = 0.0
    quantized.compile("sgd", "mse")
    np.testing.assert_allclose(quantized(X, training=True), quantized(X), atol=1e-6)
    trace = engine_of(quantized).inference
    quantized.fit(X, Y, verbose=0)
    quantized.compile("sgd", "mse")
    assert engine_of(quantized).inference is trace


def test_compile_takes_lora_and_keeps_the_ranges():
    model = two_outputs()
    quantized = tfquant.quantize(model, calibration=[X], progress=False)
    before = quantized.ranges()
    model.get_layer("hidden").enable_lora(2)
    quantized.compile("sgd", "mse")
    assert {"hidden/lora_kernel_a", "hidden/lora_kernel_b"} <= {
        v.path for v in quantized.trainable_variables
    }
    for address in set(before) & set(quantized.ranges()):
        np.testing.assert_equal(quantized.ranges()[address], before[address])
    quantized.fit(X, [Y, Y], verbose=0)
    assert np.abs(model.get_layer("hidden").lora_kernel_b.numpy()).sum() > 0
    quantized.set_mode("float")
    for own, other in zip(model(X), quantized(X), strict=True):
        np.testing.assert_allclose(other, own, atol=1e-5)


def test_a_site_that_is_new_is_named_with_the_remedy():
    class Switched(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.deep = (
                layers.Dense(8),
                layers.Dense(8, name="later"),
                False,
            )

        def call(self, x):
            return self.second(self.first(x)) if self.deep else self.first(x)

    model = Switched()
    model.second.build((None, 8))
    quantized = tfquant.quantize(model, calibration=[X], progress=False)
    model.deep = True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantized.compile("sgd", "mse")
    assert any(
        "later" in str(w.message) and "run tfquant.calibrate(model, batches)" in str(w.message)
        for w in caught
    )
    with pytest.raises(tfquant.UncalibratedError, match="later"):
        quantized(X)


class Both(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(4), layers.Dense(4)

    def call(self, x, memory):
        return self.first(x) + self.second(memory)


class Optional(Both):
    def call(self, x, memory=None):
        return self.first(x) + (0 if memory is None else self.second(memory))


@pytest.mark.representatives("batch0", "batch3")
@pytest.mark.parametrize(
    "batch", [(X, X[::-1]), [X, X[::-1]], ((X, X[::-1]), Y), {"x": X, "memory": X[::-1]}]
)
def test_several_arguments_of_call_are_quantized(batch):
    model = Both()
    quantized = in_float(model, batch)
    for call in (
        lambda f: f(X, X[::-1]),
        lambda f: f(X, memory=X[::-1]),
        lambda f: f(x=X, memory=X[::-1]),
    ):
        np.testing.assert_allclose(call(quantized), call(model), atol=1e-5)


def test_arguments_that_were_not_traced_are_refused():
    with pytest.raises(ValueError, match="takes x, memory: give a batch as a tuple of them"):
        in_float(Both(), X)
    quantized = in_float(Optional(), X)
    for call in (lambda: quantized(X, X), lambda: quantized(X, memory=X)):
        with pytest.raises(ValueError, match="was not given when the model was traced"):
            call()
    model = Optional()
    np.testing.assert_allclose(
        in_float(model, {"x": X, "memory": X})(X, memory=X), model(X, X), atol=1e-5
    )


@pytest.mark.representatives("float16")
@pytest.mark.parametrize("dtype", ["float64", "int64", "uint8", "float16"])
def test_numbers_are_cast_as_keras_casts_them(dtype):
    x = keras.Input((6,), dtype="int32")
    embedded = keras.Model(x, layers.Dense(2)(layers.Embedding(10, 8)(x)))
    for values in (IDS.astype(dtype), tf.constant(IDS.astype(dtype))):
        np.testing.assert_allclose(in_float(embedded, values)(values), embedded(values), atol=1e-6)
    model = two_outputs()
    values = (4 * X).astype(dtype)
    for own, other in zip(model(values), in_float(model, values)(values), strict=True):
        np.testing.assert_allclose(other, own, rtol=1e-5, atol=1e-4)


def test_batches_are_taken_as_fit_takes_them():
    a, b = keras.Input((8,)), keras.Input((1,))
    model = keras.Model([a, b], layers.Dense(1)(layers.Concatenate()([a, b])))
    weights = np.ones(32)
    for batch in (
        ((X, Y), Y),
        ((X, Y), Y, weights),
        ([X, Y], Y),
        [[X, Y], Y],
        (X, Y),
        [X, Y],
        (X, Y[:, 0]),
    ):
        assert tfquant.quantize(model, calibration=[batch], progress=False).calibrated
    single = keras.Model([a], layers.Dense(1)(a))
    for batch in (X, [X], (X, Y), (X,)):
        assert tfquant.quantize(single, calibration=[batch], progress=False).calibrated


WRITERS = {
    "save": lambda model, path: model.save(path),
    "export": lambda model, path: model.export(path),
    "save_model": lambda model, path: keras.saving.save_model(
        model, path, zipped=path.suffix == ".keras"
    ),
}


@pytest.mark.representatives("two_outputs-m.keras-*", "stepping-m-*", "two_outputs-m.h5-save")
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m"])
@pytest.mark.parametrize("make", [two_outputs, stepping])
def test_what_keras_would_write_is_refused_before_the_path_is_touched(tmp_path, make, writer, name):
    quantized = in_float(make())
    path = tmp_path / name
    path.write_bytes(b"as before")
    with pytest.raises(ValueError, match="tfquant.save|tfquant.export"):
        WRITERS[writer](quantized, path)
    assert path.read_bytes() == b"as before" and list(tmp_path.iterdir()) == [path]
    path.unlink()
    with pytest.raises(ValueError, match="tfquant.save|tfquant.export"):
        WRITERS[writer](quantized, path)
    assert not list(tmp_path.iterdir())


def test_weights_of_a_model_around_a_quantized_one_are_saved_and_it_is_exported(tmp_path):
    inner = tfquant.quantize(two_outputs(), calibration=[X], progress=False)
    inputs = keras.Input((8,))
    outer = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()(inner(inputs))))
    expected = outer(X).numpy()
    outer.save_weights(tmp_path / "m.weights.h5")
    for variable in outer.weights:
        variable.assign(tf.zeros_like(variable))
    outer.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(outer(X), expected)
    outer.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(loaded.serve(X), expected, rtol=1e-5, atol=1e-6)


def test_losses_of_a_call_of_the_original_are_not_counted():
    """Both share their layers; a custom step may use the original as teacher."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8,))
    hidden = layers.Dense(8, activity_regularizer="l2", kernel_regularizer="l1")(x)
    model = keras.Model(x, layers.Dense(1)(hidden))
    quantized = in_float(model)
    model(X)
    expected = [float(loss) for loss in model.losses]
    quantized(X)
    model(X)
    np.testing.assert_allclose([float(loss) for loss in quantized.losses], expected, rtol=1e-6)
