"""Two processes under mpirun that freeze and train the same weights as one."""

import numpy as np
import pytest

from tests.distributed import incremental
from tests.distributed.ranks import found_by_two_ranks, needs_ranks
from tfquant.distributed.group import Single


# test_two_ranks.py stands for it.
@pytest.mark.long
@needs_ranks
def test_two_ranks_quantize_incrementally_as_one_process_does(tmp_path):
    first, second = sorted(
        found_by_two_ranks("incremental_worker.py", tmp_path / "two"), key=lambda one: one["rank"]
    )
    assert first["weights"] == second["weights"]
    expected = incremental.trained(tmp_path / "one", Single(), seed=0)
    for name, values in expected.items():
        np.testing.assert_allclose(first["weights"][name], values, rtol=1e-4, atol=1e-5)
