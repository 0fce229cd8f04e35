"""Commands of `python -m tfquant`, one module each, with `add` (its flags) and `run`."""

from tfquant.cli import benchmark, check, export

__all__ = ["benchmark", "check", "export"]
