"""Distillation losses and their gradients against closed forms in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from tfquant.training.distillation import divergence


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
    with pytest.raises(ValueError, match="'both'; it must be one of student_teacher, teacher_student"):
        divergence(tf.zeros((1, 2)), tf.zeros((1, 2)), direction="both")
