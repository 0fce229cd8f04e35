"""Incremental quantization on each rank, and in one process in their place."""

import numpy as np
import tensorflow as tf

import tfquant
from tests.core.conftest import two_dense_layers
from tfquant.recipes.incremental import recipe_of
from tfquant.training import BertAdamW, IncrementalQuantization, Trainer, TrainOptions

FRACTIONS, STARTS = (0.5, 0.75, 1.0), (0, 2, 4)


def batches(group, start):
    """This rank's half of every batch of eight."""
    for index in range(start, 4):
        random = np.random.default_rng([3, index])
        x, y = (random.normal(size=(8, size)).astype(np.float32) for size in (6, 3))
        yield {"x": x[group.rank :: group.size], "y": y[group.rank :: group.size]}


def trained(folder, group, seed: int) -> dict[str, list]:
    """Weights after four steps."""
    network = tfquant.quantize(two_dense_layers(seed), recipe_of("lin", 4, embeddings=False))
    group.broadcast(network.variables)
    hook = IncrementalQuantization(network, FRACTIONS, STARTS)
    trainer = Trainer(
        network,
        lambda model, batch: tf.reduce_mean((model(batch["x"], training=True) - batch["y"]) ** 2),
        BertAdamW(1e-2),
        TrainOptions(folder, 4, progress=False),
        group=group,
        hooks=[hook],
    )
    trainer.fit(lambda start: batches(group, start))
    return {v.path: v.numpy().tolist() for v in network.original.weights}
