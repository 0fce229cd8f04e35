"""One rank of the two that train with delayed scales in test_eight_bit_ranks.py; prints what it
found as one line of JSON.
"""

import json
import sys

from tests.distributed import eight_bit
from tfquant.distributed.group import Horovod


def main(folder: str) -> None:
    group = Horovod()
    found = eight_bit.trained(folder, group, parts=2)
    print("FOUND " + json.dumps({"rank": group.rank, **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
