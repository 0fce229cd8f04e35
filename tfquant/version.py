"""Version of the package, the only place where it is given."""

__version__ = "0.2.0"
