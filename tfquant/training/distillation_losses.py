"""Losses of knowledge distillation: distances between student and teacher."""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from tfquant.choices import DIRECTIONS, TEMPERATURE


def divergence(
    student: tf.Tensor,
    teacher: tf.Tensor,
    temperature: float = TEMPERATURE,
    direction: str = "student_teacher",
) -> tf.Tensor:
    """KL divergence of temperature-scaled softmax outputs, averaged over the batch.

    The default direction, the temperature and the absence of a temperature-squared factor are those
    of NVIDIA's quantization-aware BERT (TensorFlow), whose scale of 10000 for this term goes with
    them; after Hinton et al. 2015, arXiv:1503.02531, who have the other direction.

    Args:
        student, teacher: logits [..., classes]; no gradient reaches the teacher.
        temperature: both are divided by it.
        direction: "student_teacher" is KL(student || teacher), "teacher_student" is KL(teacher ||
          student).

    Returns:
        float32 scalar, at least 0 up to rounding.

    Raises:
        ValueError: the direction is unknown.
    """
    if direction not in DIRECTIONS:
        raise ValueError(
            f"direction of the divergence is {direction!r}; it must be one of"
            f" {', '.join(DIRECTIONS)}"
        )
    student = tf.nn.log_softmax(tf.cast(student, tf.float32) / temperature)
    teacher = tf.nn.log_softmax(tf.cast(tf.stop_gradient(teacher), tf.float32) / temperature)
    first, second = (student, teacher) if direction == "student_teacher" else (teacher, student)
    return tf.reduce_mean(tf.reduce_sum(tf.exp(first) * (first - second), axis=-1))


def layer_mapping(student_layers: int, teacher_layers: int) -> list[int]:
    """Map each student layer, counted from 0, to a teacher layer: evenly spaced, last to last.

    Raises:
        ValueError: a number of layers is below 1, or the student has more than the teacher.
    """
    if student_layers < 1 or teacher_layers < 1:
        raise ValueError(
            f"layers of student and teacher are {student_layers} and {teacher_layers}; both must be"
            " at least 1"
        )
    if student_layers > teacher_layers:
        raise ValueError(
            f"the student has {student_layers} layers and the teacher {teacher_layers}: a student's"
            " layer would have none to learn from; take a deeper teacher, or say which layer"
            " learns from which"
        )
    return [(layer + 1) * teacher_layers // student_layers - 1 for layer in range(student_layers)]


def layer_pairs(
    student_layers: int, teacher_layers: int, layers: Mapping[int, int] | None = None
) -> list[tuple[int, int]]:
    """Pairs (student layer, teacher layer), counted from 0, sorted by student layer.

    Args:
        layers: the same for those layers that learn; None is `layer_mapping` for all.

    Raises:
        ValueError: `layers` is empty or names a layer that does not exist; as for `layer_mapping`.
    """
    if layers is None:
        return list(enumerate(layer_mapping(student_layers, teacher_layers)))
    if not layers:
        raise ValueError(
            "no layer of the student learns from one of the teacher; name at least one pair"
        )
    for student, teacher in layers.items():
        for whose, layer, count in (
            ("student", student, student_layers),
            ("teacher", teacher, teacher_layers),
        ):
            if not 0 <= layer < count:
                raise ValueError(
                    f"{student}:{teacher} names layer {layer} of the {whose}, whose layers are 0 to"
                    f" {count - 1}"
                )
    return sorted(layers.items())


def hidden_loss(
    students: Sequence[tf.Tensor],
    teachers: Sequence[tf.Tensor],
    projections: Sequence[tf.Variable | None] | None = None,
    *,
    mask: tf.Tensor | None = None,
) -> tf.Tensor:
    """Mean squared error of hidden states over real tokens, averaged over pairs; after Jiao et al.
    2020, arXiv:1909.10351.

    Args:
        students, teachers: hidden states [B, S, width], in pairs; no gradient reaches the teachers.
        projections: for each pair a variable [student width, teacher width] that the student's
          state is multiplied
            with, or None; needed where the widths differ.
        mask: [B, S], not zero where a token is real; without it all are.

    Returns:
        float32 scalar; 0 if no token is real.

    Raises:
        ValueError: the tensors do not pair up; the message names the pair.
    """
    _check_pairs(students, teachers, "hidden states")
    projections = [None] * len(students) if projections is None else list(projections)
    if len(projections) != len(students):
        raise ValueError(
            f"there are {len(projections)} projections for {len(students)} pairs of hidden states;"
            " give one each, or None"
        )
    losses = []
    for index, (student, teacher, projection) in enumerate(
        zip(students, teachers, projections, strict=True)
    ):
        narrow, wide = student.shape[-1], teacher.shape[-1]
        if projection is None and narrow != wide:
            raise ValueError(
                f"hidden states {index}: the student's width is {narrow}, the teacher's {wide}; "
                f"give a projection variable [{narrow}, {wide}]"
            )
        if projection is not None and tuple(projection.shape) != (narrow, wide):
            raise ValueError(
                f"projection {index} has shape {list(projection.shape)}; these hidden states need"
                f" [{narrow}, {wide}]"
            )
        student, teacher = (
            _only_real(student, mask, 2),
            _only_real(tf.stop_gradient(teacher), mask, 2),
        )
        if projection is not None:
            student = tf.matmul(student, tf.cast(tf.convert_to_tensor(projection), tf.float32))
        losses.append(
            _mean_of_real(
                tf.reduce_mean(tf.math.squared_difference(student, teacher), axis=-1), mask
            )
        )
    return tf.add_n(losses) / len(losses)


def attention_loss(
    students: Sequence[tf.Tensor], teachers: Sequence[tf.Tensor], *, mask: tf.Tensor | None = None
) -> tf.Tensor:
    """Mean squared error of attention probabilities, averaged over pairs; after Jiao et al. 2020,
    arXiv:1909.10351.

    They compare scores; probabilities are what stays comparable when heads are averaged.

    Args:
        students, teachers: probabilities [B, heads, S, S], in pairs; no gradient reaches the
          teachers. Where the numbers
            of heads differ, the mean over heads is compared.
        mask: [B, S], not zero where a token is real; only real queries and keys count. Without it
          all do.

    Returns:
        float32 scalar; 0 if no token is real.

    Raises:
        ValueError: the tensors do not pair up.
    """
    _check_pairs(students, teachers, "attention probabilities")
    if mask is not None:
        real = tf.cast(tf.cast(mask, tf.bool), tf.float32)
        mask = real[:, :, None] * real[:, None, :]
    losses = []
    for student, teacher in zip(students, teachers, strict=True):
        student, teacher = (
            _only_real(student, mask, 1),
            _only_real(tf.stop_gradient(teacher), mask, 1),
        )
        if student.shape[1] != teacher.shape[1]:
            student, teacher = (
                tf.reduce_mean(t, axis=1, keepdims=True) for t in (student, teacher)
            )
        errors = tf.reduce_mean(tf.math.squared_difference(student, teacher), axis=1)
        losses.append(_mean_of_real(errors, mask))
    return tf.add_n(losses) / len(losses)


def _only_real(values: tf.Tensor, mask: tf.Tensor | None, axis: int) -> tf.Tensor:
    """Cast to float32 and set elements to zero where the mask, expanded by `axis`, is zero.

    Before any arithmetic: what padding holds, NaN too, must reach neither the loss nor a gradient.
    """
    values = tf.cast(values, tf.float32)
    if mask is None:
        return values
    return tf.where(tf.expand_dims(tf.cast(mask, tf.bool), axis), values, tf.zeros_like(values))


def _mean_of_real(errors: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """Mean over real elements of errors that are zero elsewhere."""
    if mask is None:
        return tf.reduce_mean(errors)
    return tf.math.divide_no_nan(
        tf.reduce_sum(errors), tf.reduce_sum(tf.cast(tf.cast(mask, tf.bool), tf.float32))
    )


def _check_pairs(students: Sequence[tf.Tensor], teachers: Sequence[tf.Tensor], what: str) -> None:
    if not students or len(students) != len(teachers):
        raise ValueError(
            f"there are {len(students)} {what} of the student and {len(teachers)} of the teacher;"
            " give as many of both, at least one (layer_mapping picks the teacher's)"
        )
