"""Every output of a file is judged by itself and by its kind.

A right file passes, any other is refused.
"""

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf

import tfquant
from tfquant.export import TARGETS, ExportError, MismatchError, parity
from tfquant.export.request import ExportRequest
from tfquant.model import engine_of
from tfquant.runtimes import open_file
from tfquant.weights import named_weights

L = keras.layers
ROWS = np.random.default_rng(7).normal(size=(48, 8)).astype(np.float32)
HEADS = {
    "number": lambda h: L.Dense(1)(h),
    "sigmoid": lambda h: L.Dense(1, activation="sigmoid")(h),
    "labels": lambda h: L.Dense(4, activation="sigmoid")(h),
    "axis": lambda h: keras.ops.squeeze(L.Dense(1)(h), -1),
    "logits": lambda h: L.Dense(3)(h),
    "softmax": lambda h: L.Dense(3, activation="softmax")(h),
    "unit": lambda h: L.UnitNormalization()(L.Dense(12)(h)),
    "tanh": lambda h: L.Dense(12, activation="tanh")(h),
    "tiny": lambda h: L.Rescaling(1e-6)(L.Dense(1)(h)),
    "large": lambda h: L.Rescaling(1e5, offset=1e5)(L.Dense(1)(h)),
    "map": lambda h: L.Reshape((4, 4))(L.Dense(16, activation="relu")(h)),
    "best": lambda h: keras.ops.argmax(L.Dense(6)(h), -1),
    "above": lambda h: L.Dense(4)(h) > 0.0,
}
KINDS = {
    "number": "number",
    "sigmoid": "number",
    "labels": "number",
    "axis": "number",
    "tiny": "number",
    "large": "number",
    "logits": "classes",
    "softmax": "classes",
    "unit": "vector",
    "tanh": "vector",
    "map": "feature_map",
    "best": "exact",
    "above": "exact",
}


def network(seed, heads=tuple(HEADS)):
    keras.utils.set_random_seed(seed)
    x = keras.Input((8,), name="x")
    h = L.Dense(24, activation="relu")(x)
    return keras.Model(x, {name: HEADS[name](h) for name in heads})


def quantized(seed, recipe="cpu_onnxruntime", heads=tuple(HEADS)):
    return tfquant.quantize(network(seed, heads), recipe, calibration=[ROWS], progress=False)


@pytest.fixture(scope="module")
def model():
    return quantized(1)


def answers(model, rows=ROWS):
    return {name: value.numpy() for name, value in model(rows).items()}


def judged(model, session, batches=(ROWS,), **kinds):
    """Name -> agreement of each output with what `session` answers."""
    found = parity.agreement(
        ExportRequest(engine_of(model), "quantized"), session, batches, kinds=kinds
    )
    return {output.name: output for output in found.outputs}


def refused(model, session, tolerance=0.1):
    return {name for name, output in judged(model, session).items() if not output.agrees(tolerance)}


def test_kinds_are_found_in_graph_and_data(model):
    found = judged(model, lambda feed: answers(model))
    assert {name: output.kind for name, output in found.items()} == KINDS
    assert all(output.same == 1.0 and output.agrees(0.0) for output in found.values())


def test_another_network_is_refused_in_every_output(model):
    other = answers(quantized(2))
    assert refused(model, lambda feed: other) == set(HEADS)


def test_answers_of_other_rows_are_refused_in_every_output(model):
    turned = {name: np.roll(value, 1, 0) for name, value in answers(model).items()}
    assert refused(model, lambda feed: turned) == set(HEADS)


@pytest.mark.parametrize("constant", ["zeros", "means"])
def test_answers_that_do_not_depend_on_the_input_are_refused_in_every_output(model, constant):
    def answer(value):
        if constant == "zeros" or value.dtype == bool:
            return np.zeros_like(value)
        return np.broadcast_to(value.mean(0).astype(value.dtype), value.shape)

    assert refused(
        model, lambda feed: {name: answer(value) for name, value in answers(model).items()}
    ) == set(HEADS)


def test_exchanged_outputs_are_refused(model):
    def exchanged(feed):
        own = answers(model)
        pairs = {"number": "sigmoid", "logits": "softmax", "unit": "tanh", "tiny": "large"}
        return own | {
            one: own[other] for one, other in (pairs | {b: a for a, b in pairs.items()}).items()
        }

    assert refused(model, exchanged) == {
        "number",
        "sigmoid",
        "logits",
        "softmax",
        "unit",
        "tanh",
        "tiny",
        "large",
    }


def test_columns_in_another_order_are_refused(model):
    session = lambda feed: {n: v[..., ::-1] if v.ndim > 1 else v for n, v in answers(model).items()}  # noqa: E731
    assert refused(model, session) == {
        "labels",
        "logits",
        "softmax",
        "unit",
        "tanh",
        "map",
        "above",
    }


@pytest.mark.representatives("tiny", "best")
@pytest.mark.parametrize("name", ["tiny", "sigmoid", "axis", "best"])
def test_a_small_output_beside_large_ones_is_judged_by_itself(model, name):
    other = answers(quantized(2))[name]
    assert refused(model, lambda feed: answers(model) | {name: other}) == {name}


def test_one_wrong_column_of_many_is_refused(model):
    def session(feed):
        found = answers(model)
        return found | {"tanh": np.where(np.arange(12) == 3, 0.0, found["tanh"]).astype(np.float32)}

    found = judged(model, session)["tanh"]
    assert found.columns == 1 and not found.agrees(0.5)


@pytest.mark.parametrize("name", ["number", "axis", "unit", "map", "softmax"])
def test_nan_of_the_file_is_refused(model, name):
    def session(feed):
        found = answers(model)
        return found | {
            name: np.where(
                np.arange(found[name].size).reshape(found[name].shape) == 5, np.nan, found[name]
            )
        }

    with pytest.raises(
        MismatchError,
        match=f"check_data, batch 0: the exported file answers NaN in output '{name}'",
    ):
        judged(model, session)


@pytest.mark.parametrize("name", ["number", "axis", "logits", "map"])
def test_infinity_of_the_file_is_refused(model, name):
    def session(feed):
        found = answers(model)
        found[name][::4] = np.inf
        return found

    assert refused(model, session) == {name}


def test_steps_of_rounding_pass(model):
    """Another realization of the rounding errors, which is the most that integer kernels make of
    them.
    """
    rng = np.random.default_rng(0)
    model_in_float = quantized(1)
    model_in_float.set_mode("float")
    exact, own = answers(model_in_float), answers(model)

    def session(feed):
        floats = [name for name, value in own.items() if value.dtype == np.float32]
        errors = {
            name: np.abs(own[name] - exact[name]) * rng.choice([-1, 1], own[name].shape)
            for name in floats
        }
        return own | {name: (own[name] + errors[name]).astype(np.float32) for name in floats}

    assert refused(model, session, tolerance=0.01) == set()


def test_a_near_tie_is_the_same_class(model):
    def session(feed):
        found = answers(model)
        logits = found["logits"].copy()
        first, second = np.sort(logits, -1)[:, -1], np.sort(logits, -1)[:, -2]
        close = np.argmin(first - second)
        best, other = logits[close].argsort()[::-1][:2]
        logits[close, other] = logits[close, best] + 1e-6
        return found | {"logits": logits}

    assert judged(model, session)["logits"].same == 1.0


@pytest.mark.representatives("1")
@pytest.mark.parametrize("rows", [1, 2])
def test_few_rows_are_enough_to_refuse_another_network(model, rows):
    other = quantized(2)
    found = judged(model, lambda feed: answers(other, ROWS[:rows]), (ROWS[:rows],))
    passed = {name for name, output in found.items() if output.agrees(0.1)}
    assert passed <= {"best", "above"}  # answers of few values are equal by chance
    assert "few rows" in found["number"].note or "constant" in found["number"].note
    own = judged(model, lambda feed: answers(model, ROWS[:rows]), (ROWS[:rows],))
    assert all(output.agrees(0.0) for output in own.values())


def test_a_constant_output_is_judged_by_its_magnitude_and_said_so(model):
    rows = np.repeat(ROWS[:1], 16, 0)
    other = quantized(2)
    found = judged(model, lambda feed: answers(other, rows), (rows,))
    assert not any(
        found[name].agrees(0.1)
        for name in ("number", "sigmoid", "logits", "unit", "map", "tiny", "large")
    )
    assert found["number"].note.startswith("constant over the batches")


def scores_with_marks(seed):
    """Scores of positions, -1e9 where the mask is 0, as many heads for questions have them."""
    rng = np.random.default_rng(seed)
    kernel = tf.Variable(rng.normal(size=(4, 1)).astype(np.float32), name="kernel")

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, 4], name="x"),
            tf.TensorSpec([None, None], name="mask"),
        ]
    )
    def scores(x, mask):
        return {"start": tf.squeeze(tf.matmul(x, kernel), -1) + (1.0 - mask) * -1e9}

    return scores


def test_marks_on_padding_do_not_hide_the_scores():
    rng = np.random.default_rng(3)
    lengths = [12, 20]
    batches = []
    for length in lengths:
        mask = (np.arange(length) < rng.integers(3, length, (16, 1))).astype(np.float32)
        batches.append((rng.normal(size=(16, length, 4)).astype(np.float32), mask))
    one, other = (
        tfquant.quantize(
            scores_with_marks(seed), "int8_residual_float", calibration=batches, progress=False
        )
        for seed in (1, 2)
    )
    run = lambda model: lambda feed: {"start": model(feed["x"], feed["mask"])["start"].numpy()}  # noqa: E731
    own = judged(one, run(one), batches)["start"]
    assert own.kind == "classes" and own.agrees(0.0)
    assert not judged(one, run(other), batches)["start"].agrees(0.5)

    def unmasked(feed):
        return run(one)(feed | {"mask": np.ones_like(feed["mask"])})

    assert not judged(one, unmasked, batches)["start"].agrees(0.5)


def test_a_user_says_what_an_output_is(model):
    session = lambda feed: answers(model)  # noqa: E731
    assert judged(model, session, logits="vector")["logits"].kind == "vector"
    with pytest.raises(
        ValueError, match="check: there is no output 'scores', the network has above, axis"
    ):
        judged(model, session, scores="vector")
    with pytest.raises(
        ValueError, match="check: 'logits' is 'ranking', must be one of classes, number"
    ):
        judged(model, session, logits="ranking")
    with pytest.raises(ValueError, match="check: 'best' is 'vector', but its type int"):
        judged(model, session, best="vector")


@pytest.mark.parametrize("tolerance", [float("nan"), float("inf"), -0.1, 1.5, "0.1", True])
def test_tolerances_that_are_no_share_are_refused(tmp_path, model, tolerance):
    for call in (
        lambda: tfquant.export(model, tmp_path / "m.onnx", check_data=[ROWS], tolerance=tolerance),
        lambda: tfquant.compare(model, tmp_path / "m.onnx", [ROWS], tolerance=tolerance),
    ):
        with pytest.raises(ValueError, match="tolerance=.*: is a share of rows, from 0 to 1"):
            call()
    assert not list(tmp_path.iterdir())


def test_nan_in_check_data_or_weights_is_refused(tmp_path):
    model = quantized(3, heads=("number",))
    rows = ROWS.copy()
    rows[4, 2] = np.nan
    with pytest.raises(ValueError, match="check_data, batch 1: input 'x' holds NaN"):
        tfquant.export(model, tmp_path / "m.onnx", check_data=[ROWS, rows])
    bias = next(v for v in named_weights(engine_of(model)).values() if len(v.shape) == 1)
    bias.assign(tf.fill(bias.shape, np.nan))
    with pytest.raises(ExportError, match="holds NaN"):
        tfquant.export(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


# All targets but that which takes nothing but BERT.
@pytest.mark.representatives("nan-*")
@pytest.mark.parametrize("target", sorted(TARGETS.keys() - {"fastertransformer"}))
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_variable_that_is_not_finite_is_refused_for_every_target(
    tmp_path, monkeypatch, target, broken
):
    model = quantized(3, heads=("number",))
    # Whether the recipe suits the target is not the question here.
    for name in ("check_formats", "missing_packages"):
        monkeypatch.setattr(type(TARGETS[target]), name, lambda *arguments: [])
    name, kernel = next(
        (n, v) for n, v in named_weights(engine_of(model)).items() if len(v.shape) == 2
    )
    kernel.assign(np.where(np.arange(kernel.shape[1]) == 1, broken, kernel.numpy()))
    with pytest.raises(ExportError, match=f"variable {name} holds NaN or Inf: load or train"):
        tfquant.export(model, tmp_path / TARGETS[target].file, target=target)
    assert not list(tmp_path.iterdir())


@pytest.mark.representatives("onnxruntime", "openvino", "litert", "saved_model", "packed")
@pytest.mark.parametrize(
    "target", ["onnx", "onnxruntime", "openvino", "litert", "saved_model", "packed"]
)
def test_a_right_file_passes_in_every_runtime_and_another_does_not(tmp_path, target):
    heads = ("number", "sigmoid", "axis", "softmax", "unit", "map", "tiny")
    recipe = "litert" if target == "litert" else "cpu_onnxruntime"
    one, other = quantized(1, recipe, heads), quantized(2, recipe, heads)
    path = tmp_path / TARGETS[target].file
    found = tfquant.export(one, path, target=target, check_data=[ROWS[:32], ROWS[32:]])
    if target == "packed":  # which is loaded, not run
        again = tfquant.load_packed(path, network(3, heads))
        assert judged(one, lambda feed: answers(again)).values() and not refused(
            one, lambda feed: answers(again), 0.0
        )
        return
    assert {output.name for output in found.agreement.outputs} == set(heads)
    assert len(found.agreement.table().splitlines()) == len(heads)
    assert tfquant.compare(one, path, [ROWS]).same == 1.0
    with pytest.raises(
        MismatchError, match="output 'axis', number: same answer in .* output 'number', number"
    ):
        tfquant.compare(other, path, [ROWS], tolerance=0.5)


def test_a_feature_map_and_a_pooled_head_agree_in_openvino(tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3), name="x")
    features = L.Conv2D(8, 3, padding="same", activation="relu")(x)
    head = L.Dense(5)(L.GlobalAveragePooling2D()(features))
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    model = tfquant.quantize(
        keras.Model(x, {"map": features, "head": head}),
        "cpu_openvino",
        calibration=[images],
        progress=False,
    )
    found = tfquant.export(
        model, tmp_path / "model.xml", target="openvino", check_data=[images], tolerance=0.05
    )
    assert {output.name: output.kind for output in found.agreement.outputs} == {
        "map": "feature_map",
        "head": "classes",
    }


def test_a_feature_map_and_a_head_that_openvino_answers_with_zeros_are_not_written(tmp_path):
    """Swish and a batch normalization behind an integer convolution, as OpenVINO 2026.4 computes
    them.
    """
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3), name="x")
    features = L.BatchNormalization()(L.Conv2D(8, 3, padding="same", activation="swish")(x))
    head = L.Dense(5)(L.GlobalAveragePooling2D()(features))
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    model = tfquant.quantize(
        keras.Model(x, {"map": features, "head": head}),
        "cpu_openvino",
        calibration=[images],
        progress=False,
    )
    path = tmp_path / "model.xml"
    try:
        tfquant.export(model, path, target="openvino", check_data=[images])
    except MismatchError as error:
        assert "output 'head', classes" in str(error) and "output 'map', feature_map" in str(error)
        assert "OpenVINO's integer kernels are not" in str(error) and not list(tmp_path.iterdir())
    else:  # another version of OpenVINO, or another processor
        assert not refused(model, lambda feed: open_file(path)({"x": images}))
    tfquant.export(model, tmp_path / "model.onnx", check_data=[images])


def test_a_file_whose_head_was_made_zero_is_refused_by_the_name_of_the_output(tmp_path):
    model, path = quantized(1, heads=("logits", "tiny")), tmp_path / "model.onnx"
    tfquant.export(model, path)
    proto = onnx.load(path)
    (bias,) = (node for node in proto.graph.node if "tiny" in node.output)
    zero = onnx.helper.make_node("Sub", [bias.output[0] + "/own"] * 2, list(bias.output))
    bias.output[0] += "/own"
    proto.graph.node.append(zero)
    onnx.save(proto, path)
    with pytest.raises(MismatchError, match="; output 'tiny', number: same answer in"):
        tfquant.compare(model, path, [ROWS])


def test_numbers_for_positions_of_texts_of_several_lengths(model):
    """An axis of open length has no columns: every position is a number."""
    batches = [
        (
            np.random.default_rng(length).normal(size=(8, length, 4)).astype(np.float32),
            np.ones((8, length), np.float32),
        )
        for length in (5, 9)
    ]
    one, other = (
        tfquant.quantize(
            scores_with_marks(seed), "int8_residual_float", calibration=batches, progress=False
        )
        for seed in (1, 2)
    )
    for kind in ("number", "classes", "vector", "feature_map"):
        run = lambda model: lambda feed: {"start": model(feed["x"], feed["mask"])["start"].numpy()}  # noqa: E731
        assert judged(one, run(one), batches, start=kind)["start"].agrees(0.0)
        assert not judged(one, run(other), batches, start=kind)["start"].agrees(0.5)


def test_complex_numbers_are_judged():
    kernel = tf.Variable(
        np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32), name="kernel"
    )
    spectrum = tf.function(lambda x: {"spectrum": tf.signal.rfft(tf.matmul(x, kernel))})
    model = tfquant.quantize(spectrum, "int8_residual_float", calibration=[(ROWS,)], progress=False)
    own = {"spectrum": model(ROWS)["spectrum"].numpy()}
    assert judged(model, lambda feed: own, [(ROWS,)])["spectrum"].agrees(0.0)
    assert not judged(model, lambda feed: {"spectrum": own["spectrum"].conj()}, [(ROWS,)])[
        "spectrum"
    ].agrees(0.5)
