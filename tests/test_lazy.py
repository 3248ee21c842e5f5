"""The package stands before torch does: importing it takes nothing, its names come when they are asked for."""

import subprocess
import sys

import pytest

import ctm


def test_no_torch_before_it_is_needed():
    code = """
import sys, ctm, ctm.cli
for arguments in (["--version"], ["--help"]):
    try:
        ctm.cli.main(arguments)
    except SystemExit as stop:
        assert stop.code == 0
assert "torch" not in sys.modules and "numpy" not in sys.modules
assert ctm.karras_grid(2).tolist()[0] == 80
assert "torch" in sys.modules
from ctm import sampling, generate
assert sampling.generate is generate is ctm.generate
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_public_name_is_there_and_no_other():
    assert set(ctm.__all__) <= set(dir(ctm))
    assert all(getattr(ctm, name) is not None for name in ctm.__all__)
    with pytest.raises(AttributeError, match="module 'ctm' has no attribute 'nothing'"):
        ctm.nothing  # noqa: B018
