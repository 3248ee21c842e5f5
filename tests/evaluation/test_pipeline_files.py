"""Pipelines of strangers for --peer: what their files may not ask of diffusers and transformers."""

import io
import json
import shutil
import sys

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from ctm.evaluation.pipelines import open_pipeline

from ..commands.test_cli import sentence
from ..text_pipeline import random_pipeline


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The directory of a tiny Stable Diffusion, and a file of prompts."""
    place = tmp_path_factory.mktemp("peers") / "pipe"
    random_pipeline(place)
    (place.parent / "prompts.txt").write_text("a seven")
    return place, str(place.parent / "prompts.txt")


@pytest.fixture
def place(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "pipe")


def change_json(file, **entries):
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, **entries}))


def test_a_whole_pipeline_is_opened_with_its_own_weights(made):
    """As diffusers opens it."""
    model = open_pipeline(str(made[0]), made[1])
    alone = diffusers.DiffusionPipeline.from_pretrained(made[0])
    assert set(model.parts) == {"vae", "text_encoder", "unet"}
    for name, part in model.parts.items():
        tensors = getattr(alone, name).state_dict()
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in part.state_dict().items())
        assert not part.training


@pytest.mark.parametrize(
    ("library", "kind"), [("transformers", "AutoTokenizer"), ("transformers", "AutoModel"), ("diffusers", "AutoModel")]
)
def test_no_class_that_the_files_choose_is_opened(made, place, capsys, monkeypatch, library, kind):
    """Their libraries ask on the terminal whether code of the directory may run: here somebody answers yes."""
    change_json(place / "model_index.json", tokenizer=[library, kind])
    for name in ("tokenizer_config.json", "config.json"):
        change_json(
            place / "tokenizer" / name, auto_map={"AutoTokenizer": ["evil.Evil", None], "AutoModel": "evil.Evil"}
        )
    code = f"import pathlib\npathlib.Path({str(place.parent / 'ran')!r}).touch()\nclass Evil: ...\n"
    (place / "tokenizer" / "evil.py").write_text(code)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    asked = ["evaluate", "--data", "digits", "--num", "20", "--out", place.parent / "out", "--prompts", made[1]]
    said = sentence(capsys, *asked, "--peer", f"{place}@1")
    assert f"its tokenizer is {kind}, which takes whatever class the files name: nothing was imported" in said
    assert sys.stdin.tell() == 0
    assert not (place.parent / "ran").exists()


CODE = {"auto_map": {"AutoModel": "evil.Evil"}}
QUANTIZED = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("tokenizer/tokenizer_config.json", CODE, "asks for code of its own .auto_map."),
        ("text_encoder/config.json", CODE, "asks for code of its own"),
        ("unet/config.json", CODE, "asks for code of its own"),
        ("scheduler/scheduler_config.json", CODE, "asks for code of its own"),
        ("text_encoder/config.json", {"attn_implementation": "evil/kernel"}, "asks for kernels from elsewhere"),
        ("text_encoder/config.json", QUANTIZED, "its weights are quantized"),
        ("unet/config.json", QUANTIZED, "its weights are quantized"),
        ("text_encoder/adapter_config.json", {"peft_type": "LORA"}, "has adapter_config.json"),
    ],
)
def test_settings_that_lead_elsewhere_are_refused_before_anything_is_opened(made, place, file, entries, message):
    change_json(place / file, **entries)
    with pytest.raises(ValueError, match=message):
        open_pipeline(str(place), made[1])


@pytest.mark.parametrize("part", ["text_encoder/model", "unet/diffusion_pytorch_model"])
def test_weights_that_are_missing_or_not_finite_are_refused(made, place, part):
    """The libraries fill them with random numbers, and pictures of noise would be measured."""
    file = place / f"{part}.safetensors"
    whole = load_file(file)
    last = sorted(whole)[-1]
    save_file({name: tensor for name, tensor in whole.items() if name != last}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 of its tensors are not in its weights, first .* with random numbers"):
        open_pipeline(str(place), made[1])
    save_file({**whole, last: torch.full_like(whole[last], float("nan"))}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is not finite"):
        open_pipeline(str(place), made[1])
