"""What a run says of the head of a network that starts from a checkpoint of another task."""

from fileio.messages import printable
from modeling import LoadReport

_SHOWN = 6


def fresh_head(loaded: LoadReport) -> str:
    """Return "; new, not in the checkpoint.

    ..." to follow the line about a checkpoint; empty if nothing is new.
    """
    if not loaded.missing:
        return ""
    text = f"; new, not in the checkpoint: {', '.join(loaded.missing)}"
    names = [printable(name, 60) for name in loaded.unexpected]
    if not names:
        return text
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{text}; left out, of another task: {', '.join(names[:_SHOWN])}{more}"
