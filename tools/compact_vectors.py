"""Write the part of a reference directory that the repository keeps, so that the parity tests mean something alone.

Usage: python tools/compact_vectors.py VECTORS_DIRECTORY
"""

import json
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path

KEPT = (
    "ctm_song_ncsnpp_uncond",
    "edm_adm_cond_heads",
    "edm_loss",
    "edm_sampler_*",
    "edm_song_ddpmpp_uncond",
    "editing_*",
    "math_*",
    "samplers_cifar_repo",
    "train_ctm_default",
    "train_gan_generator",
    "train_nets",
    "train_run",
)
LIMIT = 4_500_000


def compact(source: Path, target: Path) -> int:
    """Copy the kept files and their part of the manifest; the number of bytes written."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    manifest = json.loads((source / "manifest.json").read_text())
    names = [name for name in manifest["files"] if any(fnmatch(name, f"{pattern}.safetensors") for pattern in KEPT)]
    for name in names:
        shutil.copy(source / name, target / name)
    kept = {**manifest, "files": {name: manifest["files"][name] for name in names}}
    (target / "manifest.json").write_text(json.dumps(kept, separators=(",", ":")) + "\n")
    return sum(path.stat().st_size for path in target.iterdir())


if __name__ == "__main__":
    written = compact(Path(sys.argv[1]), Path(__file__).parents[1] / "tests" / "data" / "vectors")
    if written > LIMIT:
        raise SystemExit(f"{written} bytes written, more than {LIMIT}: keep fewer files")
