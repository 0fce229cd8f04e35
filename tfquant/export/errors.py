"""Export exceptions."""

from __future__ import annotations


class ExportError(RuntimeError):
    """A model cannot be written in the form asked for; the message names the place."""


class MismatchError(ExportError):
    """The exported file answers otherwise than the simulation."""
