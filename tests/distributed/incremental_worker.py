"""One rank of the two that quantize incrementally in test_incremental_ranks.py; prints its weights
as one line of JSON.
"""

import json
import sys

from tests.distributed import incremental
from tfquant.distributed.group import Horovod


def main(folder: str) -> None:
    group = Horovod()
    found = incremental.trained(folder, group, seed=group.rank)
    print("FOUND " + json.dumps({"rank": group.rank, "weights": found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
