"""Cost of quantizers, learned ranges and a teacher in a training step of the 6-layer, 384-wide
model: batch 8, length 384.

A step is forward, backward and update.

    python -m benchmarks.training_step --shared=../shared
"""

from __future__ import annotations

import json

import keras
import numpy as np
import tensorflow as tf

import tfquant
from benchmarks import timing
from benchmarks.command_line import shared_parser
from benchmarks.results import Results
from benchmarks.squad_data import INPUTS, Squad
from runs.squad.flags import RANGES_OF
from tfquant.host_memory import keep_freed_memory
from tfquant.recipes.incremental import recipe_of as incremental_recipe
from tfquant.site import ROLES
from tfquant.training import Distillation, IncrementalQuantization
from tfquant.training_args import recipe_of_args

BATCH, LENGTH = 8, 384
DELAYED = "qs=per_tensor_symmetric,ahl=10"
# Name -> format of activations and weights, spec of gradients at the results of products.
EIGHT_BIT = (
    ("e4m3, gradients e5m2", "e4m3", f"e5m2,{DELAYED}"),
    ("posit8_1, gradients posit8_1", "posit8_1", f"posit8_1,{DELAYED}"),
)


def cross_entropy(logits, batch):
    losses = [
        tf.nn.sparse_softmax_cross_entropy_with_logits(batch["labels"][i], logits[name])
        for i, name in enumerate(("start_logits", "end_logits"))
    ]
    return tf.reduce_mean(losses)


def only_inputs(batch):
    return {name: batch[name] for name in INPUTS}


def make_step(model, teacher=None, hook=None):
    """A compiled training step on a fixed batch; runs once per call.

    A teacher's answers count as well; a hook acts after the update.
    """
    rng = np.random.default_rng(0)
    inputs = {
        "input_ids": tf.constant(rng.integers(1000, 30000, (BATCH, LENGTH)), tf.int32),
        "input_mask": tf.ones((BATCH, LENGTH), tf.int32),
        "segment_ids": tf.zeros((BATCH, LENGTH), tf.int32),
    }
    labels = tf.constant(rng.integers(0, LENGTH, (2, BATCH)), tf.int32)
    distillation = (
        None if teacher is None else Distillation(model, teacher, cross_entropy, inputs=only_inputs)
    )
    optimizer = keras.optimizers.AdamW(1e-6)
    variables = model.trainable_variables
    optimizer.build(variables)

    # Open shapes, as with batches of different lengths: the model is traced for all of them alike.
    @tf.function(
        jit_compile=False,
        input_signature=[{name: tf.TensorSpec([None, None], tf.int32) for name in inputs}],
    )
    def step(inputs):
        batch = inputs | {"labels": labels}
        with tf.GradientTape() as tape:
            loss = (
                distillation(model, batch)
                if distillation
                else cross_entropy(model(inputs, training=True), batch)
            )
        gradients = tape.gradient(loss, [v.value for v in variables])
        optimizer.apply(gradients, variables)
        if isinstance(model, tfquant.QuantizedModel):
            model.update_scales()
        if hook is not None:
            hook.after_update()
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
        contenders[recipe] = make_step(
            tfquant.quantize(model, recipe, calibration=batches, progress=False)
        )
    recipe = tfquant.recipe("int8_residual_both").with_spec(roles=ROLES, format="e4m3")
    contenders["e4m3 at all sites"] = make_step(
        tfquant.quantize(model, recipe, calibration=batches, progress=False)
    )
    for name, dtype, error in EIGHT_BIT:
        arguments = {"activation": dtype, "weight": dtype, "error": error}
        contenders[name] = make_step(tfquant.quantize(model, recipe_of_args(arguments)))
    contenders["IR-Net weights"] = make_step(tfquant.quantize(model, "irnet"))
    incremental = tfquant.quantize(model, incremental_recipe("p2", 5))
    hook = IncrementalQuantization(incremental, (0.5, 1.0), (0, 10**9))
    hook.before_step(0)
    contenders["INQ, half of the weights frozen"] = make_step(incremental, hook=hook)
    for update in ("frozen", "moving_average", "lsq"):
        recipe = tfquant.recipe("int8_residual").with_spec(roles=ROLES, update=update)
        quantized = tfquant.quantize(model, recipe, calibration=batches, progress=False)
        contenders[f"int8_residual, {update}"] = make_step(quantized)
    # The last one, with all ranges learned, once more beside a teacher of the same size.
    contenders["int8_residual, lsq, teacher"] = make_step(quantized, squad.model())
    # What benchmarks/squad_qat.py trains.
    recipe = tfquant.recipe("int8_residual_asymmetric").with_spec(
        roles=RANGES_OF["activations"], update="tqt"
    )
    contenders["int8_residual_asymmetric, tqt"] = make_step(
        tfquant.quantize(model, recipe, calibration=batches, progress=False)
    )
    seconds = timing.interleaved(contenders, rounds=rounds, label="training steps")
    ratios = {name: round(timing.ratio(seconds, name, "float"), 3) for name in contenders}
    return {"seconds": timing.medians(seconds), "ratio to float": ratios, "rounds": rounds}


def main() -> None:
    parser = shared_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    keep_freed_memory()  # as run_squad.py does
    results = Results("training_step", seed=0, fresh=True)
    results.row("training_step", lambda: measure(Squad(arguments.shared), arguments.rounds))
    limits = {"quantized, e4m3": 1.15, "replayed, no site": 1.02, "lsq": 1.25, "lsq, teacher": 1.6}
    limits |= {"e4m3, gradients e5m2": 1.35, "posit8_1, gradients posit8_1": 1.5}
    limits |= {"IR-Net weights": 1.3, "INQ, half of the weights frozen": 1.05}
    print(json.dumps({"limit": limits}))


if __name__ == "__main__":
    main()
