"""Knowledge distillation: how far a student's answers are from a teacher's."""

import tensorflow as tf

TEMPERATURE = 3.0
DIRECTIONS = ("student_teacher", "teacher_student")


def divergence(
    student: tf.Tensor, teacher: tf.Tensor, temperature: float = TEMPERATURE, direction: str = "student_teacher"
) -> tf.Tensor:
    """Kullback-Leibler divergence of softened answers, averaged over the batch.

    The default direction, the temperature and the absence of a temperature-squared factor are those of NVIDIA's
    quantization-aware BERT (TensorFlow), whose scale of 10000 for this term goes with them; after Hinton et al. 2015,
    arXiv:1503.02531, who have the other direction.

    Args:
        student, teacher: logits [..., classes]; no gradient reaches the teacher.
        temperature: both are divided by it.
        direction: "student_teacher" is KL(student || teacher), "teacher_student" is KL(teacher || student).

    Returns:
        float32 scalar, at least 0 up to rounding.

    Raises:
        ValueError: the direction is unknown.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction of the divergence is {direction!r}; it must be one of {', '.join(DIRECTIONS)}")
    student = tf.nn.log_softmax(tf.cast(student, tf.float32) / temperature)
    teacher = tf.nn.log_softmax(tf.cast(tf.stop_gradient(teacher), tf.float32) / temperature)
    first, second = (student, teacher) if direction == "student_teacher" else (teacher, student)
    return tf.reduce_mean(tf.reduce_sum(tf.exp(first) * (first - second), axis=-1))
