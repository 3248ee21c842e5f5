"""The package stands before torch does: importing it takes nothing, its names come when they are asked for."""

import subprocess
import sys
from pathlib import Path

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
import ctm.networks, ctm.teachers
assert "diffusers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_ctrl_c_is_guarded_before_anything_else_is_imported():
    """Python without its site directory has few modules; `ctm` brings none but its own until the handler stands."""
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import ctm.cli
ctm.cli._handle(lambda *_: None)
print(*sorted(set(sys.modules) - before))
"""
    place = str(Path(ctm.__file__).parents[1])
    made = subprocess.run([sys.executable, "-S", "-c", code, place], check=True, capture_output=True, text=True)
    assert made.stdout.split() == ["ctm", "ctm.cli", "ctm.version"]


def test_every_public_name_is_there_and_no_other():
    assert set(ctm.__all__) <= set(dir(ctm))
    assert all(getattr(ctm, name) is not None for name in ctm.__all__)
    with pytest.raises(AttributeError, match="module 'ctm' has no attribute 'nothing'"):
        ctm.nothing  # noqa: B018
