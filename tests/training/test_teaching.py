"""Distillation as a loss of a Trainer.

Its terms, its gradients, students and teachers of any size, exact resume.
"""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import modeling
import tfquant
from tests.graph import models
from tfquant import checkpoint
from tfquant.training import (
    BertAdamW,
    Distillation,
    DistillationOptions,
    QuantizationSchedule,
    Trainer,
    TrainOptions,
    seed_variables,
)

INPUTS = ("input_ids", "input_mask", "segment_ids")


def network(seed=0, layers=1, dropout=False, **changes):
    return modeling.build_squad_model(
        models.bert_config(layers, **changes), dropout=dropout, seed=seed
    )


def batch(index=0, rows=2, length=5):
    rng = np.random.default_rng([7, index])
    mask = (np.arange(length) < rng.integers(2, length + 1, (rows, 1))).astype(np.int32)
    ids = rng.integers(0, models.VOCAB, (rows, length)).astype(np.int32) * mask
    return {"input_ids": ids, "input_mask": mask, "segment_ids": 0 * ids, "label": ids[:, 0] % 2}


def tensors(index=0):
    return {name: tf.constant(value) for name, value in batch(index).items()}


def hard(outputs, batch):
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], outputs["start_logits"])
    )


def distil(student, teacher, mask=lambda batch: batch["input_mask"], **options):
    options = {"logits_scale": 2.0, "hidden_scale": 3.0, "attention_scale": 5.0} | options
    return Distillation(
        student,
        teacher,
        hard,
        inputs=lambda batch: {n: batch[n] for n in INPUTS},
        mask=mask,
        options=DistillationOptions(**options),
    )


@pytest.fixture(scope="module")
def teacher():
    return network(seed=1, layers=3)


def quantized(model, update="frozen"):
    spec = tfquant.QuantSpec(method="max", update=update)
    recipe = tfquant.Recipe((tfquant.Rule(spec, role=("weight", "linear_input")),))
    return tfquant.quantize(
        model,
        recipe,
        calibration=[{n: batch(i)[n] for n in INPUTS} for i in range(2)],
        progress=False,
    )


def states(model, data, layers):
    """Hidden states that leave the layers, from the layers themselves."""
    bert = model.get_layer("bert")
    mask = tf.cast((1 - data["input_mask"])[:, None, None, :], tf.float32) * -10000.0
    found = [bert.embeddings(data["input_ids"], data["segment_ids"])]
    for layer in bert.encoder.stack:
        found.append(layer(found[-1], mask))
    return [found[layer + 1].numpy() for layer in layers]


def test_the_loss_is_the_scaled_sum_of_terms_that_follow_from_the_mapped_layers(teacher):
    student, data = network(layers=2), tensors()
    loss = distil(student, teacher)
    assert loss.pairs == [(0, 0), (1, 2)] and not loss.variables
    parts = {name: float(value) for name, value in loss.parts(data).items()}
    assert float(loss(student, data)) == pytest.approx(
        parts["hard"] + 2 * parts["logits"] + 3 * parts["hidden"] + 5 * parts["attention"], rel=1e-5
    )
    pairs = zip(states(student, data, (0, 1)), states(teacher, data, (0, 2)), strict=True)
    real = batch()["input_mask"].astype(bool)
    assert parts["hidden"] == pytest.approx(
        np.mean([((s - t)[real] ** 2).mean() for s, t in pairs]), rel=1e-4
    )
    assert parts["hard"] == pytest.approx(
        float(hard(student({n: data[n] for n in INPUTS}), data)), rel=1e-4
    )
    assert set(distil(student, teacher, hidden_scale=0.0, attention_scale=0.0).parts(data)) == {
        "hard",
        "logits",
    }
    assert set(distil(student, teacher, logits_scale=0.0, hidden_scale=0.0).parts(data)) == {
        "hard",
        "attention",
    }


def test_values_of_a_regression_are_compared_by_their_squared_error(teacher):
    student, data = network(layers=2), tensors()
    inputs = {n: data[n] for n in INPUTS}
    loss = Distillation(
        student,
        teacher,
        hard,
        inputs=lambda batch: {n: batch[n] for n in INPUTS},
        options=DistillationOptions(logits_scale=2.0),
        logits=lambda outputs, batch: [outputs["start_logits"][:, :1]],
        regression=True,
    )
    ours, theirs = (model(inputs)["start_logits"].numpy()[:, 0] for model in (student, teacher))
    parts = {name: float(value) for name, value in loss.parts(data).items()}
    assert parts["logits"] == pytest.approx(np.mean((ours - theirs) ** 2), rel=1e-4) != 0.0
    assert float(loss(student, data)) == pytest.approx(
        parts["hard"] + 2 * parts["logits"], rel=1e-5
    )


def test_layers_may_be_mapped_by_hand_and_a_layer_may_teach_several(teacher):
    student, data = network(layers=2), tensors()
    loss = distil(student, teacher, layers={1: 0, 0: 0}, attention_scale=0.0)
    assert loss.pairs == [(0, 0), (1, 0)]
    pairs = zip(states(student, data, (0, 1)), states(teacher, data, (0, 0)), strict=True)
    real = batch()["input_mask"].astype(bool)
    expected = np.mean([((s - t)[real] ** 2).mean() for s, t in pairs])
    assert float(loss.parts(data)["hidden"]) == pytest.approx(expected, rel=1e-4)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn():
    student = network(seed=3)
    parts = distil(student, network(seed=3)).parts(tensors())
    assert (
        max(abs(float(parts[name])) for name in ("logits", "hidden", "attention"))
        < 1e-9
        < float(parts["hard"])
    )


def test_padding_has_no_share_in_what_is_learned_from_inside(teacher):
    student, data = network(), tensors()
    loss = distil(student, teacher)
    padded = {n: tf.pad(v, [[0, 0], [0, 3]]) if n in INPUTS else v for n, v in data.items()}
    parts, wider = loss.parts(data), loss.parts(padded)
    for name in ("hidden", "attention"):
        assert float(wider[name]) == pytest.approx(float(parts[name]), rel=1e-4)
    unmasked = distil(student, teacher, mask=lambda batch: None).parts(padded)
    assert float(unmasked["hidden"]) != pytest.approx(float(parts["hidden"]), rel=1e-2)


@pytest.mark.representatives("options0")
@pytest.mark.parametrize("options", [{}, {"hidden_scale": 0.0}])
def test_padding_is_found_in_the_student_unless_a_mask_is_given(teacher, options):
    student, data = network(), tensors()
    given, found, none = (
        distil(student, teacher, mask, **options).parts(data)
        for mask in (
            lambda batch: batch["input_mask"],
            "auto",
            None,
        )
    )
    assert float(found["attention"]) == pytest.approx(float(given["attention"]), rel=1e-6)
    assert float(found.get("hidden", 0.0)) == pytest.approx(
        float(given.get("hidden", 0.0)), rel=1e-6
    )
    assert float(none["attention"]) != pytest.approx(float(given["attention"]), rel=1e-2)


@pytest.mark.representatives("options3")
@pytest.mark.parametrize(
    "options",
    [
        {"hidden_scale": 0.0, "attention_scale": 0.0, "direction": "teacher_student"},
        {"logits_scale": 0.0, "attention_scale": 0.0},
        {"logits_scale": 0.0, "hidden_scale": 0.0},
        {},
    ],
)
def test_gradients_of_student_and_projections_agree_with_finite_differences(options):
    student, data = network(), tensors()
    loss = distil(student, network(seed=1, hidden_size=24, num_attention_heads=3), **options)
    variables = [v.value for v in [*student.trainable_variables, *loss.variables]]
    run = tf.function(lambda: loss(student, data), autograph=False)
    with tf.GradientTape() as tape:
        value = run()
    gradients = [
        None if g is None else tf.convert_to_tensor(g) for g in tape.gradient(value, variables)
    ]
    assert all(g is not None for g in gradients[len(student.trainable_variables) :])
    moved = [(v, g) for v, g in zip(variables, gradients, strict=True) if g is not None]
    norm = float(tf.linalg.global_norm([g for _, g in moved]))
    ends = []
    for sign in (1, -2, 1):  # to one side, to the other, and back
        for variable, gradient in moved:
            variable.assign_add(sign * 2e-3 / norm * gradient)
        ends.append(float(run()))
    assert ends[0] - ends[1] == pytest.approx(4e-3 * norm, rel=0.02)


def test_no_gradient_reaches_the_teacher():
    student, teacher = network(), network(seed=1)
    loss = distil(student, teacher)
    with tf.GradientTape() as tape:
        value = loss(student, tensors())
    assert all(
        g is None for g in tape.gradient(value, [v.value for v in teacher.trainable_variables])
    )


def test_a_teacher_with_dropout_teaches_without_it():
    teacher = network(seed=1, dropout=True, hidden_dropout_prob=0.5)
    loss, seeds = distil(network(), teacher), seed_variables(teacher)
    before = [v.numpy() for v in seeds]
    first, second = (loss.parts(tensors()) for _ in range(2))
    assert len(seeds) > 0 and all(np.array_equal(first[name], second[name]) for name in first)
    np.testing.assert_array_equal(before, [v.numpy() for v in seeds])


def wide_teacher():
    return network(seed=1, layers=2, hidden_size=24, num_attention_heads=3)


@pytest.mark.long
def test_a_quantized_student_of_another_size_learns_and_resumes_bit_for_bit(tmp_path):
    def made():
        student = quantized(network(dropout=True), update="lsq")
        loss = distil(student, wide_teacher())
        trainer = Trainer(
            student,
            loss,
            BertAdamW(1e-2),
            TrainOptions(tmp_path, 6, checkpoint_every=2, keep_checkpoints=0),
            loss_variables=loss.variables,
            seeds=seed_variables(student),
            write=lambda prefix, state: tfquant.save(student, prefix, extra=state),
        )
        return trainer, loss

    def data(start):
        return (batch(index) for index in itertools.count(start))

    whole, loss = made()
    before = loss.variables[0].numpy(), float(loss.parts(tensors(99))["hidden"])
    whole.fit(data)
    after = loss.variables[0].numpy(), float(loss.parts(tensors(99))["hidden"])
    assert after[1] < before[1] and not np.array_equal(after[0], before[0])
    stored = checkpoint.read(tmp_path / "model.ckpt-6")
    expected = {name: stored[name] for name in whole.state()}
    projection = "distillation/projection_0"
    assert {projection, projection + "/adam_m", projection + "/adam_v"} <= expected.keys()
    for name in ("model.ckpt-4", "model.ckpt-6"):
        for path in tmp_path.glob(name + ".*"):
            path.unlink()
    resumed, _ = made()
    assert resumed.restore() == 2
    resumed.fit(data)
    stored = checkpoint.read(tmp_path / "model.ckpt-6")
    for name, value in expected.items():
        np.testing.assert_array_equal(stored[name], value, err_msg=name)
    loaded = tfquant.load(tmp_path / "model.ckpt-6", network())
    assert not any(
        "projection" in v.path for v in loaded.variables
    )  # prediction knows nothing of them


def test_projections_keep_lengths_at_the_start_are_the_same_for_each_seed_and_decay_as_kernels_do():
    student, teacher = network(layers=2), wide_teacher()
    one, two, other = (distil(student, teacher, seed=seed).variables for seed in (0, 0, 1))
    assert [v.path for v in one] == ["distillation/projection_0", "distillation/projection_1"]
    for projection in one:
        np.testing.assert_allclose(
            projection @ tf.transpose(projection), np.eye(models.WIDTH), atol=1e-5
        )
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True)) and not np.array_equal(
        one[0], other[0]
    )
    assert not np.array_equal(*one)
    optimizer = BertAdamW(1e-2)
    optimizer.build(one)
    assert optimizer._use_weight_decay(one[0])


def test_a_student_that_starts_in_float_is_tapped_in_float_until_quantization_is_switched_on():
    student = quantized(network())
    loss = distil(student, network(seed=1), logits_scale=0.0)
    schedule = QuantizationSchedule(student, BertAdamW(1e-2), quant_start_step=3)
    hidden = []
    for step in (0, 2, 3):
        schedule.before_step(step)
        with tf.GradientTape() as tape:
            parts = loss.parts(tensors())
        assert tape.gradient(parts["hidden"], student.trainable_variables[0].value) is not None
        hidden.append(float(parts["hidden"]))
    student.set_mode("float")
    exact = float(loss.parts(tensors())["hidden"])
    assert hidden[0] == hidden[1] == pytest.approx(exact, rel=1e-6) and hidden[2] != hidden[0]


def test_a_quantized_model_can_teach():
    teacher = quantized(network(seed=1))
    student, data = network(), tensors()
    loss = distil(student, teacher)
    found = float(loss.parts(data)["hidden"])
    teacher.set_mode("float")
    exact = float(loss.parts(data)["hidden"])
    assert found != exact and found == pytest.approx(exact, rel=0.1)


BAD = {
    "student has 2 layers and the teacher 1.*say which layer learns from which": lambda: distil(
        network(layers=2), network()
    ),
    "1:0 names layer 1 of the student, whose layers are 0 to 0": lambda: distil(
        network(), network(), layers={1: 0}
    ),
    "1:2 names layer 2 of the teacher": lambda: distil(
        network(layers=2), network(layers=2), layers={1: 2}
    ),
    "no layer of the student learns": lambda: distil(network(), network(), layers={}),
    "layers have no effect: hidden_scale": lambda: DistillationOptions(layers={0: 0}),
    "temperature is 0": lambda: DistillationOptions(temperature=0.0),
    "direction is 'both'; it must be one of": lambda: DistillationOptions(direction="both"),
    "hidden_scale is -1": lambda: DistillationOptions(hidden_scale=-1.0),
    "logits_scale is nan": lambda: DistillationOptions(logits_scale=float("nan")),
    "are 0: set at least one": lambda: DistillationOptions(logits_scale=0.0),
    "the teacher has no attention whose result": lambda: distil(
        network(), models.sequential().model
    ),
    "made for another student": lambda: distil(network(), network())(network(), tensors()),
}


@pytest.mark.representatives(
    "1:2 names layer 2 of the teacher",
    "layers have no effect*",
    "temperature is 0",
    "direction is*",
    "hidden_scale is*",
    "logits_scale is*",
    "are 0:*",
    "made for another student",
)
@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


# test_layers_may_be_mapped_by_hand_and_a_layer_may_teach_several stands for it.
@pytest.mark.long
def test_a_student_deeper_than_its_teacher_learns_in_the_layers_that_are_mapped():
    loss = distil(network(layers=2), network(), layers={1: 0})
    assert np.isfinite(float(loss.parts(tensors())["attention"])) and loss.pairs == [(1, 0)]


def test_a_state_without_an_address_is_named():
    case = models.encoder_decoder()
    student = keras.models.clone_model(case.model)
    with pytest.raises(
        ValueError,
        match="no hidden state was found that leaves the student's layer 0 .*leave it out",
    ):
        Distillation(
            student,
            case.model,
            hard,
            inputs=lambda batch: batch,
            options=DistillationOptions(hidden_scale=1.0),
        )
