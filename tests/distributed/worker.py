"""One rank of the two that test_two_ranks.py starts; prints what it found as one line of JSON."""

import json
import sys

import keras
import numpy as np

from tfquant.distributed import DivergedError, Horovod, Single
from tfquant.training import BertAdamW, Trainer, TrainOptions


class Unreduced(Horovod):
    """Horovod whose gradients are deliberately not averaged."""

    def average(self, tensors):
        return Single.average(self, tensors)


def main(folder: str, kind: str) -> None:
    group = {"averaged": Horovod, "unreduced": Unreduced}[kind]()
    keras.utils.set_random_seed(group.rank)  # different weights, until they are broadcast
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)])
    group.broadcast(model.variables)
    data = np.random.default_rng(0).normal(size=(10, 8, 4)).astype(np.float32)

    def batches(start):
        return ({"x": batch[group.rank :: group.size]} for batch in data[start:])

    def loss(model, batch):
        return keras.ops.mean((model(batch["x"]) - keras.ops.sum(batch["x"], -1, keepdims=True)) ** 2)

    trainer = Trainer(model, loss, BertAdamW(1e-2), TrainOptions(folder, 10), group=group)
    found = {"rank": group.rank, "gathered": [data.decode() for data in group.gather(b"x" * (group.rank + 1))], "error": ""}
    try:
        trainer.fit(batches)
    except DivergedError as error:
        found["error"] = str(error)
    found["weights"] = [float(np.sum(np.abs(w))) for w in model.get_weights()]
    print("FOUND " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
