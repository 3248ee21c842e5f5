"""Put a finished run's model into models/: float16 weights, recipe, metrics, where it came from, and a card that says so.

Usage: python tools/publish_model.py RUN_DIRECTORY NAME
       python tools/publish_model.py --cards        (write the cards of all models anew)
"""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from ctm import load_model
from ctm.training.card import published_card
from ctm.training.run_directory import RunDirectory

LIMIT = 4_000_000
LICENSE = "mit"  # models in this repository are published under the repository's licence: LICENSE
MODELS = Path(__file__).parents[1] / "models"


def publish(run: Path, target: Path, commit: str) -> None:
    """Write target/ with config.json, model.safetensors (float16), the files of the run that say how it was made
    (recipe.yaml, metrics.jsonl, provenance.json, and made_of.json and evaluations.jsonl where it has them), and the card."""
    metrics = RunDirectory(run).read_metrics()
    load_model(run).half().save_pretrained(target)
    shutil.copy(run / "config.yaml", target / "recipe.yaml")
    shutil.copy(run / "metrics.jsonl", target / "metrics.jsonl")
    for name in ("made_of.json", "evaluations.jsonl"):
        if (run / name).is_file():
            shutil.copy(run / name, target / name)
    about = {
        "commit": commit,
        "steps": metrics[-1]["step"],
        "seconds": metrics[-1]["seconds"],
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    (target / "provenance.json").write_text(json.dumps(about, indent=2) + "\n")
    (target / "README.md").write_text(card_of(target))
    size = (target / "model.safetensors").stat().st_size
    if size > LIMIT:
        raise SystemExit(f"{target} has {size} bytes of weights, more than {LIMIT}: train a smaller network")


def card_of(target: Path) -> str:
    """The card of a published model, from the files beside it."""
    return published_card(target, load_model(target), license=LICENSE)


def published() -> list[Path]:
    """The directories of the models that are published."""
    return sorted(path.parent for path in MODELS.glob("*/config.json"))


if __name__ == "__main__":
    if sys.argv[1] == "--cards":
        for directory in published():
            (directory / "README.md").write_text(card_of(directory))
    else:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        publish(Path(sys.argv[1]), MODELS / sys.argv[2], head)
