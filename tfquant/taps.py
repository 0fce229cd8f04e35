"""Former name of `tfquant.intermediate_outputs`, kept for code written for version 0.1."""

from tfquant.intermediate_outputs import Tapped, tap

__all__ = ["Tapped", "tap"]
