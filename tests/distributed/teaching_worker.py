"""One rank of the two that learn from a teacher in test_teaching_ranks.py; prints what it found as
one line of JSON.
"""

import json
import sys

from tests.distributed import teaching
from tfquant.distributed.group import Horovod


def main(folder: str) -> None:
    group = Horovod()
    found = teaching.taught(
        folder, group, seed=group.rank
    )  # different weights, until they are broadcast
    print("FOUND " + json.dumps({"rank": group.rank, "weights": found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
