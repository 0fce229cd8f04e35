"""Training with delayed scales of values and gradients, in one process or in several."""

import keras
import numpy as np
import tensorflow as tf

import tfquant
from tfquant import QuantSpec, Recipe, Rule
from tfquant.training import BertAdamW, Trainer, TrainOptions, WarmupLinearDecay

ROWS, STEPS, HISTORY = 4, 3, 2


def quantized():
    inputs = keras.Input((6,), name="x")
    initializer = keras.initializers.GlorotUniform(seed=1)
    hidden = keras.layers.Dense(5, "relu", name="first", kernel_initializer=initializer)(inputs)
    outputs = keras.layers.Dense(3, name="second", kernel_initializer=initializer)(hidden)
    values = QuantSpec("e4m3", source="delayed", history=HISTORY, ste="identity")
    errors = QuantSpec("e5m2", source="delayed", history=HISTORY)
    rules = (
        Rule(values, role=("weight", "linear_input")),
        Rule(errors, role="linear_output", direction="backward"),
    )
    return tfquant.quantize(keras.Model(inputs, outputs), Recipe(rules))


def part(number):
    """Part of the training data that one rank sees in a step, or one process in an accumulation."""
    rng = np.random.default_rng([3, number])
    x = rng.standard_normal((ROWS, 6)).astype(np.float32) * 2.0 ** (number % 5)
    return {"x": x, "y": rng.standard_normal((ROWS, 3)).astype(np.float32)}


def loss(model, batch):
    return tf.reduce_mean((model(batch["x"], training=True) - batch["y"]) ** 2)


def histories(network):
    engine = network._engine
    return {
        address: quantizer.state.history.numpy().ravel().tolist()
        for address, quantizer in (*engine.quantizers.items(), *engine.gradients.items())
    }


def trained(folder, group, parts):
    """Histories and checksum of the weights after a training in which each step has `parts`."""
    network = quantized()
    network.share_ranges(group)
    trainer = Trainer(
        network,
        loss,
        BertAdamW(WarmupLinearDecay(1e-3, STEPS, 0)),
        TrainOptions(str(folder), STEPS, accumulation=parts // group.size, checkpoint_every=0),
        group=group,
    )

    def batches(start):
        own = range(group.rank, STEPS * parts, group.size)
        return (part(number) for number in list(own)[start:])

    trainer.fit(batches)
    weights = [float(np.abs(v.numpy()).sum()) for v in network.trainable_variables]
    return {"histories": histories(network), "weights": weights}
