"""Put a finished run's model into models/: float16 weights, recipe, metrics and where it came from.

Usage: python tools/publish_model.py RUN_DIRECTORY NAME
"""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from ctm import load_model
from ctm.training.run_directory import RunDirectory

LIMIT = 4_000_000


def publish(run: Path, target: Path) -> None:
    """Write target/ with config.json, model.safetensors (float16), recipe.yaml, metrics.jsonl and provenance.json."""
    metrics = RunDirectory(run).read_metrics()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    load_model(run).half().save_pretrained(target)
    shutil.copy(run / "config.yaml", target / "recipe.yaml")
    shutil.copy(run / "metrics.jsonl", target / "metrics.jsonl")
    about = {
        "commit": commit,
        "steps": metrics[-1]["step"],
        "seconds": metrics[-1]["seconds"],
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    (target / "provenance.json").write_text(json.dumps(about, indent=2) + "\n")
    size = (target / "model.safetensors").stat().st_size
    if size > LIMIT:
        raise SystemExit(f"{target} has {size} bytes of weights, more than {LIMIT}: train a smaller network")


if __name__ == "__main__":
    publish(Path(sys.argv[1]), Path("models") / sys.argv[2])
