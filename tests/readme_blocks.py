"""Code blocks of a Markdown file, and the comparison of what they print with what the file
shows.
"""

from __future__ import annotations

import dataclasses
import re

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
      language: behind the fence.
      code: its lines.
      printed: the block of text right behind it, which shows what it prints; empty where there is
        none.
    """

    language: str
    code: str
    printed: str


def blocks_of(text: str) -> list[Block]:
    """All blocks but those that show what others print."""
    found, matches = [], list(_FENCE.finditer(text))
    for match, following in zip(matches, [*matches[1:], None], strict=True):
        shown = (
            following is not None
            and following[1] == "text"
            and not text[match.end() : following.start()].strip()
        )
        if match[1] != "text":
            found.append(Block(match[1], match[2], following[2] if shown else ""))
    return found


def differences(shown: str, printed: str, tolerance: float, step: float = 0.0) -> list[str]:
    """Lines that are shown and were not printed, in order.

    Args:
      shown: in the file; a line with "..." stands for any number of lines.
      printed: by the code.
      tolerance: relative, of the numbers in a line. All else has to be equal, but for the width of
        what is drawn or padded.
      step: numbers may be so far apart in any case.
    """
    left, missing = printed.splitlines(), []
    for line in shown.splitlines():
        if "..." in line:
            continue
        place = next(
            (i for i, other in enumerate(left) if _alike(line, other, tolerance, step)), None
        )
        if place is None:
            missing.append(line)
        else:
            left = left[place + 1 :]
    return missing


def _alike(first: str, second: str, tolerance: float, step: float) -> bool:
    words = [
        " ".join(re.sub("[━─]+", "─", _NUMBER.sub("#", line)).split()) for line in (first, second)
    ]
    if words[0] != words[1]:
        return False
    numbers = [[float(n) for n in _NUMBER.findall(line)] for line in (first, second)]
    return all(
        abs(a - b) <= max(step, tolerance * max(abs(a), abs(b)))
        for a, b in zip(*numbers, strict=True)
    )
