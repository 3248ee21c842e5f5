"""No file of the reference directory goes unread: every one is of a kind that some test module covers."""

import importlib
from fnmatch import fnmatch
from pathlib import Path

from . import vectors


def covered() -> list[str]:
    """The patterns of file names that the modules of this folder say they read."""
    modules = [path.stem for path in Path(__file__).parent.glob("test_*.py")]
    found = [importlib.import_module(f"{__package__}.{name}") for name in modules]
    return [pattern for module in found for pattern in getattr(module, "KINDS", ())]


def test_every_file_of_the_manifest_is_of_a_known_kind():
    patterns = covered()
    unknown = [name for name in vectors.names("*") if not any(fnmatch(name, pattern) for pattern in patterns)]
    assert not unknown, f"no test reads {', '.join(unknown)}"


def test_the_manifest_and_the_files_agree():
    listed = set(vectors.manifest())
    present = {path.name for path in vectors.directory().glob("*.safetensors")}
    assert present == listed
