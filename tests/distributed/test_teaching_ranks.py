"""Two processes under mpirun that learn from one teacher."""

import pytest

from tests.distributed import teaching
from tests.distributed.ranks import found_by_two_ranks, needs_ranks
from tfquant.distributed.group import Single


# test_two_ranks.py stands for it.
@pytest.mark.long
@needs_ranks
def test_two_ranks_learn_from_a_teacher_what_one_process_learns_on_the_whole_batches(tmp_path):
    first, second = sorted(
        found_by_two_ranks("teaching_worker.py", tmp_path / "two"), key=lambda one: one["rank"]
    )
    assert first["weights"] == second["weights"]
    expected = teaching.taught(tmp_path / "one", Single(), seed=0)
    assert "distillation/projection_0" in expected
    # Softmax takes no notice of some biases: what moves those is rounding.
    assert first["weights"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
