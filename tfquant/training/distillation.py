"""Knowledge distillation: how far a student's answers are from a teacher's."""

import tensorflow as tf

TEMPERATURE = 3.0


def divergence(student: tf.Tensor, teacher: tf.Tensor, temperature: float = TEMPERATURE) -> tf.Tensor:
    """KL(student || teacher) of softened answers, averaged over the batch.

    Direction, temperature and the absence of a temperature-squared factor are those of NVIDIA's quantization-aware
    BERT (TensorFlow), whose scale of 10000 for this term goes with them; after Hinton et al. 2015, arXiv:1503.02531.

    Args:
        student, teacher: logits [..., classes]; no gradient reaches the teacher.
        temperature: both are divided by it.

    Returns:
        float32 scalar, at least 0.
    """
    student = tf.nn.log_softmax(tf.cast(student, tf.float32) / temperature)
    teacher = tf.nn.log_softmax(tf.cast(tf.stop_gradient(teacher), tf.float32) / temperature)
    return tf.reduce_mean(tf.reduce_sum(tf.exp(student) * (student - teacher), axis=-1))
