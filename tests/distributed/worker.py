"""One rank of the two that test_two_ranks.py starts; trains in several ways and prints what it
found as one line of JSON.
"""

import json
import pathlib
import sys

import keras
import numpy as np

import tfquant
from tfquant.distributed.group import DivergedError, Group, Horovod, Single
from tfquant.rules import Recipe, Rule
from tfquant.spec import QuantSpec
from tfquant.training import BertAdamW, Trainer, TrainOptions

MOVING = Recipe(
    (
        Rule(QuantSpec(granularity="per_channel"), "weight"),
        Rule(QuantSpec(update="moving_average", decay=0.5), "linear_input", path="first*"),
        Rule(
            QuantSpec(update="moving_average", decay=0.5, symmetric=False),
            "linear_input",
            path="second*",
        ),
    ),
    name="moving",
)
# What a case leaves out of what several ranks need, or does in another way.
CASES = ("averaged", "accumulated", "moving", "unreduced", "ranges apart")


class Unreduced(Horovod):
    """Horovod whose gradients are deliberately not averaged."""

    def average(self, tensors):
        return Single.average(self, tensors)


def train(case: str, folder: pathlib.Path, group: Group) -> dict:
    """Ten batches, in ten steps or five."""
    keras.utils.set_random_seed(group.rank)  # different weights, until they are broadcast
    inputs = keras.Input([4])
    hidden = keras.layers.Dense(8, activation="relu", name="first")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, name="second")(hidden))
    data = np.random.default_rng(0).normal(size=(10, 8, 4)).astype(np.float32)
    if case in ("moving", "ranges apart"):
        model = tfquant.quantize(model, MOVING, calibration=[data[0]], progress=False)
    if case == "moving":
        model.share_ranges(group)
    group.broadcast(model.variables)

    def batches(start):
        return ({"x": batch[group.rank :: group.size]} for batch in data[start:])

    def loss(model, batch):
        return keras.ops.mean(
            (model(batch["x"], training=True) - keras.ops.sum(batch["x"], -1, keepdims=True)) ** 2
        )

    accumulation = 2 if case == "accumulated" else 1
    options = TrainOptions(folder / case, 10 // accumulation, accumulation=accumulation)
    trainer, found = Trainer(model, loss, BertAdamW(1e-2), options, group=group), {"error": ""}
    try:
        summary = trainer.fit(batches)
        found |= {
            "share": summary.allreduce_share,
            "own": summary.examples_per_second,
            "total": summary.total_examples_per_second,
        }
    except DivergedError as error:
        found["error"] = str(error)
    return found | {"variables": {v.path: v.numpy().tolist() for v in model.variables}}


def main(folder: str) -> None:
    group = Horovod()
    found = {"rank": group.rank}
    for case in CASES:
        found[case] = train(
            case, pathlib.Path(folder), Unreduced() if case == "unreduced" else group
        )
    print("FOUND " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
