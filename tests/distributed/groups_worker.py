"""One rank of the two that test_groups.py starts; prints what each operation gave as one line of
JSON.
"""

import json

import keras
import tensorflow as tf

from tests.distributed.test_groups import slices
from tfquant.distributed.group import DivergedError, Horovod, start


def main() -> None:
    group = start(horovod=True)

    @tf.function(jit_compile=False)
    def work():
        rank = tf.fill([2], float(group.rank))
        both = [
            rank,
            slices(group.rank),
            tf.cast(group.rank, tf.bfloat16),
            slices(group.rank, tf.bfloat16),
        ]
        return group.average(both), group.extremes(rank, rank + 1)

    @tf.function(jit_compile=False)
    def other(group, tensors):
        return group.average(tensors)

    (dense, table, half, table_bfloat16), extremes = work()
    (table_dense,) = other(Horovod(sparse_as_dense=True), [slices(group.rank)])
    (compressed,) = other(Horovod("fp16"), [tf.fill([2], float(group.rank))])
    kernel = keras.Variable([float(group.rank)], name="kernel")
    group.broadcast([kernel])
    found = {
        "ranks": [group.rank, group.size, group.local_rank],
        "dense": dense.numpy().tolist(),
        "half": [half.dtype.name, float(half)],
        "extremes": [end.numpy().tolist() for end in extremes],
        "sparse": [isinstance(t, tf.IndexedSlices) for t in (table, table_bfloat16, table_dense)],
        "table": tf.convert_to_tensor(table).numpy().tolist(),
        "table_bfloat16": (
            tf.cast(tf.convert_to_tensor(table_bfloat16), tf.float32).numpy().tolist()
        ),
        "table_dense": table_dense.numpy().tolist(),
        "compressed": compressed.numpy().tolist(),
        "gathered": [data.decode() for data in group.gather(b"x" * group.rank)],
        "kernel": kernel.numpy().tolist(),
    }
    group.check_equal({"kernel": kernel}, "first")
    kernel.assign([float(group.rank)])
    try:
        group.check_equal({"kernel": kernel}, "later")
    except DivergedError as error:
        found["diverged"] = str(error)
    print("FOUND " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
