"""The former name of `calib.codebook.UniformCodebook`."""

from calib.codebook import UniformCodebook as Grid

__all__ = ["Grid"]
