"""Which of many alike tests `make test` runs."""

import pytest


def few(names, kept=("subclassed", "hub_bert", "function_with_signature")):
    """Parameters of a test, of which `make test` runs those in `kept` alone and `make test-long`
    the others.
    """
    return [
        (
            one
            if one in kept
            else pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=pytest.mark.long)
        )
        for one in names
    ]
