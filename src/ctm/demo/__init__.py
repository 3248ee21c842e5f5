"""`ctm demo`: the whole method on the shipped digits, measured and drawn."""

from ctm.demo.run import run_demo

__all__ = ["run_demo"]
