"""Distillation losses and their gradients against closed forms in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from tfquant.training.distillation_losses import (
    attention_loss,
    divergence,
    hidden_loss,
    layer_mapping,
)


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("direction", ["student_teacher", "teacher_student"])
def test_divergence_and_its_gradient_equal_the_closed_form(direction, temperature):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    p, q = softmax(student / temperature), softmax(teacher / temperature)
    if direction == "student_teacher":
        rows = (p * np.log(p / q)).sum(-1)
        slope = p * (np.log(p / q) - rows[:, None])
    else:
        rows = (q * np.log(q / p)).sum(-1)
        slope = p - q
    s, t = tf.Variable(student, dtype=tf.float32), tf.Variable(teacher, dtype=tf.float32)
    with tf.GradientTape() as tape:
        value = divergence(s, t, temperature, direction)
    gradient, to_teacher = tape.gradient(value, [s, t])
    np.testing.assert_allclose(value, rows.mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, slope / temperature / len(rows), rtol=1e-4, atol=1e-7)
    assert to_teacher is None


def test_divergence_defaults_to_student_teacher():
    student, teacher = tf.constant([[2.0, -1.0, 0.5]]), tf.constant([[0.0, 1.0, -3.0]])
    default = float(divergence(student, teacher))
    assert default == float(divergence(student, teacher, 3.0, "student_teacher"))
    assert default != pytest.approx(float(divergence(student, teacher, 3.0, "teacher_student")))


def test_unknown_direction_is_refused():
    with pytest.raises(
        ValueError, match="'both'; it must be one of student_teacher, teacher_student"
    ):
        divergence(tf.zeros((1, 2)), tf.zeros((1, 2)), direction="both")


def test_layers_are_spread_evenly_and_the_last_learns_from_the_last():
    assert layer_mapping(6, 12) == [1, 3, 5, 7, 9, 11]
    assert layer_mapping(5, 12) == [1, 3, 6, 8, 11]
    assert layer_mapping(1, 12) == [11]
    assert layer_mapping(4, 4) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="student has 5 layers and the teacher 4"):
        layer_mapping(5, 4)
    with pytest.raises(ValueError, match="0 and 4; both must be at least 1"):
        layer_mapping(0, 4)


MASK = np.array([[1, 1, 0], [1, 0, 0]])


def test_hidden_loss_and_gradients_equal_the_closed_form_over_real_tokens():
    rng = np.random.default_rng(1)
    students, teachers = ([rng.normal(size=(2, 3, width)) for _ in range(2)] for width in (4, 5))
    projections = [rng.normal(size=(4, 5)) for _ in range(2)]
    s, t, p = (
        [tf.Variable(v, dtype=tf.float32) for v in values]
        for values in (students, teachers, projections)
    )
    with tf.GradientTape() as tape:
        value = hidden_loss(s, t, p, mask=tf.constant(MASK))
    to_student, to_teacher, to_projection = tape.gradient(value, [s, t, p])
    errors = [
        (x @ w - y) * MASK[..., None]
        for x, y, w in zip(students, teachers, projections, strict=True)
    ]
    count = MASK.sum() * 5 * 2  # real tokens, width, pairs
    np.testing.assert_allclose(value, sum((e**2).sum() for e in errors) / count, rtol=1e-5)
    for i, error in enumerate(errors):
        np.testing.assert_allclose(
            to_student[i], 2 * error @ projections[i].T / count, rtol=1e-4, atol=1e-6
        )
        slope = 2 * np.einsum("bsi,bso->io", students[i], error) / count
        np.testing.assert_allclose(to_projection[i], slope, rtol=1e-4, atol=1e-6)
    assert to_teacher == [None, None]


def test_hidden_loss_without_mask_and_projection_is_the_plain_mean():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(
        hidden_loss([tf.constant(a)], [tf.constant(b)]), ((a - b) ** 2).mean(), rtol=1e-5
    )


def test_padding_reaches_neither_loss_nor_gradient_even_if_it_is_nan():
    a, b = np.ones((2, 3, 4), np.float32), np.zeros((2, 3, 4), np.float32)
    a[MASK == 0] = b[MASK == 0] = np.nan
    student, projection = tf.Variable(a), tf.Variable(tf.eye(4))
    with tf.GradientTape() as tape:
        value = hidden_loss([student], [tf.constant(b)], [projection], mask=tf.constant(MASK))
    assert float(value) == 1.0
    to_student, to_projection = tape.gradient(value, [student, projection])
    np.testing.assert_allclose(
        to_student, 2.0 * np.repeat(MASK[..., None], 4, -1) / (MASK.sum() * 4), rtol=1e-6
    )
    np.testing.assert_allclose(to_projection, np.full((4, 4), 0.5))
    assert float(hidden_loss([student], [tf.constant(b)], mask=tf.zeros((2, 3)))) == 0.0


def test_hidden_states_that_do_not_fit_are_refused():
    narrow, wide = tf.zeros((1, 2, 4)), tf.zeros((1, 2, 6))
    with pytest.raises(
        ValueError, match=r"width is 4, the teacher's 6; give a projection variable \[4, 6\]"
    ):
        hidden_loss([narrow], [wide])
    with pytest.raises(
        ValueError, match=r"projection 0 has shape \[6, 4\]; these hidden states need \[4, 6\]"
    ):
        hidden_loss([narrow], [wide], [tf.Variable(tf.zeros((6, 4)))])
    with pytest.raises(ValueError, match="2 projections for 1 pairs"):
        hidden_loss([narrow], [narrow], [None, None])
    with pytest.raises(ValueError, match="1 hidden states of the student and 2 of the teacher"):
        hidden_loss([narrow], [narrow, narrow])
    with pytest.raises(ValueError, match="0 attention probabilities of the student"):
        attention_loss([], [])


@pytest.mark.parametrize("heads", [2, 4])
def test_attention_loss_and_its_gradient_equal_the_closed_form(heads):
    rng = np.random.default_rng(3)
    student, teacher = (
        softmax(rng.normal(size=(2, 2, 3, 3))),
        softmax(rng.normal(size=(2, heads, 3, 3))),
    )
    real = (MASK[:, :, None] * MASK[:, None, :])[:, None]
    s, t = tf.Variable(student, dtype=tf.float32), tf.Variable(teacher, dtype=tf.float32)
    with tf.GradientTape() as tape:
        value = attention_loss([s], [t], mask=tf.constant(MASK))
    gradient, to_teacher = tape.gradient(value, [s, t])
    if heads == 2:
        error = (student - teacher) * real
        expected, slope = (error**2).sum() / (2 * real.sum()), error / real.sum()
    else:  # the mean over heads is compared, so both heads get half of its gradient
        error = (student.mean(1, keepdims=True) - teacher.mean(1, keepdims=True)) * real
        expected, slope = (error**2).sum() / real.sum(), np.repeat(error, 2, axis=1) / real.sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-7)
    assert to_teacher is None
