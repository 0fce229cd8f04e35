"""One rank of two.

A model with dropout trained whole, and stopped by a signal to rank 1 and resumed; prints what it
found.
"""

import json
import os
import pathlib
import signal
import sys

import keras
import numpy as np

from tfquant.distributed.group import Horovod
from tfquant.training import BertAdamW, Trainer, TrainingInterrupted, TrainOptions, seed_variables

STEPS = 6
DATA = np.random.default_rng(0).normal(size=(STEPS, 8, 4)).astype(np.float32)


def trainer(folder, group):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(8, "relu", name="a"),
        keras.layers.Dropout(0.5, seed=5),
        keras.layers.Dense(1, name="b"),
    ]
    model = keras.Sequential([keras.Input([4]), *layers], name="model")

    def loss(model, batch):
        target = keras.ops.sum(batch["x"], -1, keepdims=True)
        return keras.ops.mean((model(batch["x"], training=True) - target) ** 2)

    return Trainer(model, loss, BertAdamW(1e-2), TrainOptions(folder, STEPS), group=group)


def main(folder: str) -> None:
    group, folder = Horovod(), pathlib.Path(folder)

    def batches(start, stop=None):
        for number in range(start, STEPS):
            if number == stop and group.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield {"x": DATA[number][group.rank :: group.size]}

    whole = trainer(folder / "whole", group)
    whole.fit(batches)
    cut = trainer(folder / "cut", group)
    try:
        cut.fit(lambda start: batches(start, stop=2))
    except TrainingInterrupted as stopped:
        found = {"rank": group.rank, "step": stopped.step, "code": stopped.code}
    group.gather(b"")  # rank 0 has written
    resumed = trainer(folder / "cut", group)
    found["restored"] = resumed.restore()
    resumed.fit(batches)
    pairs = list(zip(whole.model.weights, resumed.model.weights, strict=True))
    found["equal"] = all(np.array_equal(one.numpy(), two.numpy()) for one, two in pairs)
    found["moved"] = not np.array_equal(pairs[0][0].numpy(), cut.model.weights[0].numpy())
    found["seeds"] = [seed_variables(one.model)[0].numpy().tolist() for one in (whole, resumed)]
    print("FOUND " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
