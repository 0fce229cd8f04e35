"""Networks of a run: float weights from a checkpoint, teachers, and the graph of inference."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

import modeling
import tfquant
from fileio.messages import printable
from runs.batches import INPUTS, only
from runs.logging import log
from tfquant.store import holds_ranges

_SHOWN = 6


def load_weights(
    model: keras.Model, path: str, *, new_head: bool, who: str = "", note: str = ""
) -> modeling.LoadReport:
    """Load float weights by name and log one line about them.

    Args:
        model: float network.
        path: prefix of a TensorFlow checkpoint, or a Hugging Face folder.
        new_head: whether variables of the head may keep their random values.
        who: begins the line.
        note: follows the path in the line.
    """
    loaded = modeling.load_weights(model, path, new_head=new_head)
    log(f"{who}loaded {len(loaded.loaded)} variables from {path}{note}{_fresh_head(loaded)}")
    return loaded


def _fresh_head(loaded: modeling.LoadReport) -> str:
    """Return "; new, not in the checkpoint: ..." for the line about a checkpoint; empty if nothing
    is new.
    """
    if not loaded.missing:
        return ""
    text = f"; new, not in the checkpoint: {', '.join(loaded.missing)}"
    names = [printable(name, 60) for name in loaded.unexpected]
    if not names:
        return text
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{text}; left out, of another task: {', '.join(names[:_SHOWN])}{more}"


def loaded_teacher(
    teacher: keras.Model,
    load: Callable[[keras.Model], None],
    path: str,
    *,
    quantized: str | None = None,
) -> Any:
    """Load a teacher that is not trained.

    Args:
        teacher: network with random weights.
        load: loads its weights in float.
        path: where these come from.
        quantized: option that asks for a teacher that answers quantized, by the recipe and the
          ranges of its checkpoint; None answers in float.

    Raises:
        ValueError: it is to answer quantized, and its checkpoint holds no ranges.
    """
    teacher.trainable = False
    if quantized is None:
        load(teacher)
        if holds_ranges(path):
            log("teacher: its ranges are not used, it answers in float")
        return teacher
    if not holds_ranges(path):
        raise ValueError(
            f"{quantized}: the teacher {printable(path)} holds no ranges: leave the option out, or"
            " name a quantized checkpoint"
        )
    network = tfquant.load(path, teacher)
    log(f"teacher: loaded {path}, it answers quantized ({network.recipe.name})")
    return network


def inference_graph(network: Any) -> Callable[[Mapping[str, Any]], Mapping[str, tf.Tensor]]:
    """Return a network, float or quantized, as one graph for batches of every size."""
    signature = {name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}
    graph = tf.function(
        lambda inputs: network(inputs, training=False),
        input_signature=[signature],
        autograph=False,
        jit_compile=False,
    )
    return lambda batch: graph(only(batch, INPUTS))
