"""A run's adapters as files of their own, adapter.json and adapter.safetensors, and the whole model that they and the teacher
make."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ctm.files import whole_file
from ctm.foreign.text import plain, read_json
from ctm.models import AnyModel
from ctm.models.files import MODELS
from ctm.models.reading import check_weights, read_scaling
from ctm.networks.adapters import OwnTensors, add_adapters, own_tensors, with_merged_network
from ctm.networks.description import build, describe
from ctm.teachers import load_teacher
from ctm.training.origin import model_digest
from ctm.training.recipe import LoraSettings

__all__ = ["ADAPTER", "AdapterFiles", "merge_adapter"]

ADAPTER, TENSORS = "adapter.json", "adapter.safetensors"
_BRANCHES = ("s_embedding", "student", "guidance_embedding")  # what a student's network has more than its teacher's


@dataclass(frozen=True)
class AdapterFiles:
    """What `RunDirectory.publish` writes as adapter/. model: with adapters. teacher: its name and digest."""

    model: AnyModel
    lora: LoraSettings
    teacher: dict[str, str]

    def save_pretrained(self, directory: Path) -> None:
        """Write both files into a directory, which is made."""
        directory.mkdir(parents=True, exist_ok=True)
        about = {
            "model": type(self.model).__name__,
            "settings": self.model._settings(),
            "network": describe(self.model.network),
            "class_names": self.model.class_names,
            **({} if self.model.scaling is None else {"scaling": self.model.scaling.as_json()}),
            "lora": asdict(self.lora),
            "teacher": self.teacher,
        }
        tensors = {name: tensor.cpu().contiguous() for name, tensor in own_tensors(self.model).items()}
        with whole_file(directory / ADAPTER) as words, whole_file(directory / TENSORS) as numbers:
            words.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            save_file(tensors, numbers, metadata={"format": "pt"})
            numbers.chmod(words.stat().st_mode)


def merge_adapter(source: str | Path, directory: str | Path) -> AnyModel:
    """The whole model of adapters (a directory with adapter.json, as a run's adapter/) on the teacher that they were trained on.

    source: that teacher, as `load_teacher` takes it. One of diffusers that does not say its sigma_data has the adapters'.
    The network can be the teacher's with its branches only, and as large as the tensors in the file say. Raises
    FileNotFoundError where there is no such file, and ValueError for files that are damaged, and for another teacher."""
    file = Path(directory) / ADAPTER
    if not file.is_file():
        raise FileNotFoundError(f"there is no {ADAPTER} in {directory}: give a run's adapter/")
    about = _read(file)
    teacher = load_teacher(source, sigma_data=lambda shape: (float(about["settings"]["sigma_data"]), "of the adapters"))
    digest = model_digest(teacher)
    if about["teacher"]["digest"] != digest:
        raise ValueError(
            f"{file} was trained on another teacher, {plain(about['teacher']['name'], 80)} with the digest "
            f"{about['teacher']['digest'][:12]}; that of the one given is {digest[:12]}"
        )
    try:
        tensors = load_file(file.with_name(TENSORS))
        check_weights(tensors, str(directory))
        return _merged(teacher, about, tensors)
    except (SafetensorError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        reason = plain(str(error), 200)
        raise ValueError(
            f"{directory}: these are no adapters for that teacher, or they are damaged ({reason})"
        ) from error


def _merged(teacher: AnyModel, about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> AnyModel:
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name}
    if ranks != {about["lora"]["rank"]}:
        raise ValueError(
            f"{ADAPTER} says rank {plain(str(about['lora']['rank']), 20)}, and the tensors have {sorted(ranks)[:4]}"
        )
    with torch.random.fork_rng(devices=[]):
        model = MODELS[about["model"]](build(_network(teacher, about["network"])), **about["settings"])
        add_adapters(model.network, teacher.network, rank=about["lora"]["rank"], alpha=about["lora"]["alpha"])
    OwnTensors(model).load_state_dict(tensors)
    model.class_names = about["class_names"]
    model.scaling = read_scaling({**about, "shape": model.shape}, ADAPTER)
    return with_merged_network(model)


def _network(teacher: AnyModel, described: Any) -> dict[str, Any]:
    """The described network. Raises ValueError unless it is the teacher's with branches."""
    own = describe(teacher.network) or {}

    def plainly(spec: Any) -> Any:
        kept = {name: value for name, value in spec["init_args"].items() if name not in _BRANCHES}
        return json.loads(json.dumps({"class_path": spec["class_path"], "init_args": kept}))

    if not own or plainly(own) != plainly(described):
        raise ValueError(f"{ADAPTER} describes another network than the teacher's")
    found: dict[str, Any] = described
    return found


def _read(file: Path) -> dict[str, Any]:
    """What adapter.json holds. Raises ValueError, naming it, where that is of another form."""
    about: Any = read_json(file)
    kinds = {"model": str, "settings": dict, "network": dict, "class_names": list, "lora": dict, "teacher": dict}
    fits = isinstance(about, dict) and all(isinstance(about.get(name), kind) for name, kind in kinds.items())
    fits = (
        fits
        and type(about["settings"].get("sigma_data")) in (int, float)
        and about["model"] in MODELS
        and {"name", "digest"} <= about["teacher"].keys()
    )
    if not fits or not all(isinstance(text, str) for text in about["teacher"].values()):
        raise ValueError(f"{file} is no record of adapters: it needs {', '.join(kinds)}")
    LoraSettings(**{name: about["lora"].get(name) for name in ("rank", "alpha")})
    found: dict[str, Any] = about
    return found
