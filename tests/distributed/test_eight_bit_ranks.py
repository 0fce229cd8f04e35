"""Several processes have the delayed scales of one process that accumulates their batches."""

import numpy as np
import pytest
import tensorflow as tf

from tests.distributed import eight_bit
from tests.distributed.ranks import found_by_two_ranks, needs_ranks, on_ranks
from tfquant.distributed.group import Single


def steps(network, parts_of_step, group=None):
    for step in range(eight_bit.STEPS):
        for number in parts_of_step(step):
            with tf.GradientTape() as tape:
                loss = eight_bit.loss(network, eight_bit.part(number))
            tape.gradient(loss, [v.value for v in network.trainable_variables])
        network.update_scales(group)
    return eight_bit.histories(network)


def test_ranks_exchange_the_largest_magnitudes_of_a_step():
    networks = [eight_bit.quantized() for _ in range(2)]

    def work(group):
        return steps(networks[group.rank], lambda step: [2 * step + group.rank], group)

    first, second = on_ranks(2, work)
    assert first == second
    alone = steps(eight_bit.quantized(), lambda step: [2 * step, 2 * step + 1])
    assert first == alone and all(all(history) for history in alone.values())


# The test above stands for it, without processes.
@pytest.mark.long
@needs_ranks
def test_two_processes_hold_the_histories_of_one_that_accumulates(tmp_path):
    first, second = sorted(
        found_by_two_ranks("eight_bit_worker.py", tmp_path / "two"), key=lambda one: one["rank"]
    )
    assert first["histories"] == second["histories"]
    assert first["weights"] == second["weights"]
    alone = eight_bit.trained(tmp_path / "one", Single(), parts=2)
    assert first["histories"].keys() == alone["histories"].keys()
    for address, history in alone["histories"].items():
        np.testing.assert_allclose(first["histories"][address], history, rtol=1e-5, err_msg=address)
    np.testing.assert_allclose(first["weights"], alone["weights"], rtol=1e-5)
