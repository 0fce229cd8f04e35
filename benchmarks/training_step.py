"""Cost of quantizers in a training step of the 6-layer, 384-wide model: batch 8, length 384, forward, backward and update.

    python -m benchmarks.training_step --shared=../shared
"""

from __future__ import annotations

import argparse
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf

import tfquant
from benchmarks import timing
from benchmarks.results import Results
from benchmarks.squad_data import Squad

BATCH, LENGTH = 8, 384


def make_step(model):
    """A compiled training step on a fixed batch; runs once per call."""
    rng = np.random.default_rng(0)
    inputs = {
        "input_ids": tf.constant(rng.integers(1000, 30000, (BATCH, LENGTH)), tf.int32),
        "input_mask": tf.ones((BATCH, LENGTH), tf.int32),
        "segment_ids": tf.zeros((BATCH, LENGTH), tf.int32),
    }
    labels = tf.constant(rng.integers(0, LENGTH, (2, BATCH)), tf.int32)
    optimizer = keras.optimizers.AdamW(1e-6)
    variables = model.trainable_variables
    optimizer.build(variables)

    # Open shapes, as with batches of different lengths: the model is traced for all of them alike.
    @tf.function(jit_compile=False, input_signature=[{name: tf.TensorSpec([None, None], tf.int32) for name in inputs}])
    def step(inputs):
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            losses = [
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels[i], logits[name])
                for i, name in enumerate(("start_logits", "end_logits"))
            ]
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, [v.value for v in variables])
        optimizer.apply(gradients, variables)
        return loss

    return lambda: step(inputs).numpy()


def measure(squad: Squad, rounds: int) -> dict:
    model = squad.model(dropout=True)
    batches = squad.calibration_batches(windows=32)
    contenders = {"float": make_step(model)}
    replayed = tfquant.quantize(model, "int8_residual_float")
    replayed.set_mode("float")
    contenders["replayed, no site"] = make_step(replayed)
    contenders["replayed, no site"]()  # traced in this mode
    for recipe in ("int8_residual_float", "int8_residual_both"):
        quantized = tfquant.quantize(model, recipe, calibration=batches, progress=False)
        contenders[recipe] = make_step(quantized)
    seconds = timing.interleaved(contenders, rounds=rounds, label="training steps")
    ratios = {name: round(timing.ratio(seconds, name, "float"), 3) for name in contenders}
    return {"seconds": timing.medians(seconds), "ratio to float": ratios, "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=pathlib.Path, default=pathlib.Path("../shared"), help="folder with models/ and data/")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    results = Results("training_step", seed=0, fresh=True)
    results.row("training_step", lambda: measure(Squad(arguments.shared), arguments.rounds))
    print(json.dumps({"limit": {"quantized": 1.15, "replayed, no site": 1.02}}))


if __name__ == "__main__":
    main()
