"""The version, in one place: floor one, so that all may name it."""

__all__ = ["__version__"]

__version__ = "0.1.0.dev0"
