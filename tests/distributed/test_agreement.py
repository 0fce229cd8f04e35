"""Work distributed to ranks, and errors that all ranks raise."""

import numpy as np
import pytest

import calib
from tests.distributed.ranks import on_ranks
from tfquant.distributed.errors import OtherRankError, shard_by_cost, together
from tfquant.distributed.group import Single


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_work_is_dealt_out_so_that_no_rank_has_much_more_than_another(size):
    costs = np.random.default_rng(0).integers(1, 13, 40).tolist()
    owners = shard_by_cost(costs, size)
    loads = np.bincount(owners, costs, minlength=size)
    assert (
        len(owners) == 40 and loads.sum() == sum(costs) and loads.max() - loads.min() <= max(costs)
    )
    assert max(loads) <= 1.1 * sum(costs) / size
    assert owners == shard_by_cost(costs, size)


def test_equal_pieces_go_round_and_fewer_pieces_than_ranks_are_fine():
    assert shard_by_cost([1] * 5, 2) == [0, 1, 0, 1, 0]
    assert shard_by_cost([3], 4) == [0] and shard_by_cost([], 4) == []


def test_the_error_that_one_process_alone_would_have_met_first_is_raised_on_every_rank():
    def work(group):
        number = 0
        with together(group, lambda: (number, f"piece {number}")):
            for number in range(group.rank, 9, 3):
                if number in (4, 5, 6):
                    raise calib.NonFiniteError(f"piece {number} is broken")

    for error in on_ranks(3, work):
        assert type(error) is calib.NonFiniteError and str(error) == "piece 4 is broken"


def test_an_error_of_an_unknown_kind_tells_its_rank_place_and_name():
    def work(group):
        with together(group, lambda: (0, "the second half")):
            if group.rank:
                raise KeyError("weight")
        return "went on"

    first, second = on_ranks(2, work)
    assert (
        type(first) is OtherRankError
        and str(first) == "rank 1 failed at the second half: KeyError: 'weight'"
    )
    assert type(second) is KeyError


def test_without_an_error_all_go_on_and_one_process_alone_raises_its_own():
    def work(group):
        with together(group, lambda: (0, "")):
            pass
        return group.rank

    assert on_ranks(2, work) == [0, 1]
    with pytest.raises(KeyError), together(Single(), lambda: (0, "")):
        raise KeyError
