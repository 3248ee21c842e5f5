"""A run's directory: config.yaml, metrics.jsonl, events, samples/, checkpoints/<step>/ and model/ (the EMA weights)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save

__all__ = ["RunDirectory"]

_KEPT = 2


class RunDirectory:
    """The files of one run. Everything appears under its name only when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples, self.checkpoints, self.model = path / "samples", path / "checkpoints", path / "model"
        self.config, self.metrics = path / "config.yaml", path / "metrics.jsonl"

    def claim(self, settings: str) -> None:
        """Take the directory for a run with these settings (YAML), or continue in it where they are the same.

        Raises ValueError where it was used with others, naming them, or holds something else."""
        if self.config.is_file():
            other = _differences(yaml.safe_load(self.config.read_text()), yaml.safe_load(settings))
            if other:
                raise ValueError(
                    f"{self.path} holds a run with other settings ({'; '.join(other[:4])}). Use another --out, or repeat "
                    f"the settings of {self.config} to continue that run"
                )
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(f"{self.path} exists and is not a run directory (no config.yaml): use another --out")
        for directory in (self.path, self.samples, self.checkpoints):
            directory.mkdir(parents=True, exist_ok=True)
        write_whole(self.config, settings.encode())

    def latest(self) -> Path | None:
        """The newest checkpoint, None before the first."""
        found = [d for d in self.checkpoints.glob("*") if d.name.isdigit()] if self.checkpoints.is_dir() else []
        return max(found, key=lambda d: int(d.name), default=None)

    def save(self, step: int, modules: dict[str, Any], optimizers: dict[str, Any], elapsed: float) -> None:
        """Write checkpoints/<step>/ under a temporary name and rename it; keep the newest two."""
        target = self.checkpoints / f"{step:08d}"
        temporary = self.checkpoints / f".writing-{step:08d}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, module in modules.items():
            tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
            (temporary / f"{name}.safetensors").write_bytes(save(tensors))
        for name, optimizer in optimizers.items():
            torch.save(optimizer.state_dict(), temporary / f"{name}.optimizer.pt")
        (temporary / "state.json").write_text(json.dumps({"step": step, "elapsed_seconds": elapsed}) + "\n")
        _sync(temporary)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        for old in sorted(d for d in self.checkpoints.glob("*") if d.name.isdigit())[:-_KEPT]:
            shutil.rmtree(old)

    def load(self, checkpoint: Path, modules: dict[str, Any], optimizers: dict[str, Any]) -> tuple[int, float]:
        """Load a checkpoint in place. Returns (step, seconds trained so far)."""
        for name, module in modules.items():
            module.load_state_dict(load_file(checkpoint / f"{name}.safetensors"))
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(torch.load(checkpoint / f"{name}.optimizer.pt", weights_only=True))
        state = json.loads((checkpoint / "state.json").read_text())
        return state["step"], state["elapsed_seconds"]

    def publish(self, model: Any, name: str = "model") -> None:
        """Write a model directory of that name, replacing the one before as a whole."""
        target, temporary, old = self.path / name, self.path / f".{name}-writing", self.path / f".{name}-old"
        for directory in (temporary, old):
            shutil.rmtree(directory, ignore_errors=True)
        model.save_pretrained(temporary)
        _sync(temporary)
        if target.is_dir():
            os.replace(target, old)
        os.replace(temporary, target)
        shutil.rmtree(old, ignore_errors=True)

    def log(self, row: dict[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.jsonl."""
        return [json.loads(line) for line in self.metrics.read_text().splitlines()] if self.metrics.is_file() else []

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps that a continued run will write again."""
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        write_whole(self.metrics, "".join(json.dumps(row) + "\n" for row in rows).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _sync(directory: Path) -> None:
    """Bring a directory's files to the disk."""
    for file in directory.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Settings that differ, as 'name: before → now'."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [
            d for key in keys for d in _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
        ]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [d for i, pair in enumerate(zip(before, now, strict=True)) for d in _differences(*pair, f"{path}[{i}]")]
    return [] if before == now else [f"{path}: {before} there, {now} here"]
