"""What cannot be read as a model is said by name: in place of a model directory, and in place of a checkpoint."""

import json
import struct

import numpy as np
import pytest
import torch

import ctm
from ctm.evaluation.reference import is_statistics
from ctm.teachers.files import read_state
from ctm.teachers.load import load_teacher
from ctm.terminal.recipe_files import recipe_path


def directory(tmp_path, **files):
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / name.replace("__", ".")).write_bytes(data)
    return tmp_path


UNET = {"_class_name": "UNet2DModel", "_diffusers_version": "0.30.0", "sample_size": 32}


@pytest.mark.parametrize(
    ("files", "models", "teachers"),
    [
        (
            {"config__json": UNET, "model__safetensors": bytes(9)},
            "a diffusers UNet2DModel and no model directory: ctm convert",
            "has a network and no scheduler_config.json",
        ),
        ({"config__json": UNET}, "is a diffusers UNet2DModel", "has a network and no scheduler_config.json"),
        (
            {"model_index__json": {"_class_name": "DDPMPipeline"}},
            "is a diffusers DDPMPipeline",
            "is a pipeline DDPMPipeline without one unet or transformer",
        ),
        (
            {"model_index__json": {"_class_name": ["x"]}},
            "is a diffusers pipeline",
            "is a pipeline of its own code without",
        ),
    ],
)
def test_a_directory_of_diffusers_is_no_model_and_may_be_a_teacher(tmp_path, files, models, teachers):
    made = directory(tmp_path, **files)
    for load, message in ((ctm.load_model, models), (ctm.load_teacher, teachers)):
        with pytest.raises(ValueError, match=message) as caught:
            load(made)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("load", [ctm.load_model, ctm.load_teacher])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config__json": {"model_type": "bert", "architectures": ["B"]}}, r"is a model of transformers \(bert\)"),
        ({"config__json": {"architectures": ["ViTModel"]}}, r"is a model of transformers \(ViTModel\)"),
        ({"adapter_config__json": {"peft_type": "LORA"}}, "is an adapter of PEFT"),
        ({"pytorch_model__bin": b"PK"}, r"holds weights as pickles \(\.bin\) .*pytorch_model\.bin"),
        ({"model__onnx": b"\x08"}, "holds an ONNX model"),
        ({"last__ckpt": b"PK"}, "holds a checkpoint of Lightning"),
        ({"net__pkl": b"\x80"}, "holds a checkpoint file: give that file itself"),
        ({"model__safetensors": bytes(9)}, "holds weights without the config.json"),
        ({"notes__txt": b""}, "no config.json in .* nor in"),
        ({"config__json": b"<!DOCTYPE html>"}, "is not a model's configuration: it is not readable as JSON"),
        ({"config__json": b"version https://git-lfs.github.com/spec/v1"}, "is not a model's configuration"),
        ({"config__json": [1]}, "it holds no names with values"),
        ({"config__json": {"a": 1}}, 'it needs "network" and "shape"'),
    ],
)
def test_case_29_a_directory_of_another_library(tmp_path, load, files, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(directory(tmp_path, **files))
    assert str(tmp_path) in str(caught.value)
    assert "needs config.json and model.safetensors" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9",
            "a pointer of git-lfs, not the file itself",
        ),
        (b"<!DOCTYPE html>", "it begins like a web page"),
        (b"", "it is empty"),
        (struct.pack("<Q", 40) + b'{"w":{"dtype":"F32"}}', "it is a safetensors file, weights alone"),
        (b"\x08\x07\x12\x07pytorch", "it is an ONNX file"),
        (b"GGUF\x03", "it is a GGUF file"),
        (b"\x89HDF\r\n", "it is an HDF5 file"),
        (b"\x1f\x8b\x08", "it is packed by gzip: unpack it first"),
        (b"\x01\x02\x03", "it begins with the bytes 01 02 03"),
    ],
)
def test_a_file_of_another_kind(tmp_path, content, message):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        ctm.load_model(file)
    with pytest.raises(ValueError, match=message):
        read_state(file)


def test_a_checkpoint_in_place_of_a_model_directory_names_the_way(tmp_path):
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04N.")
    with pytest.raises(
        ValueError, match=r"net\.pkl is a file and no model directory: .* ctm convert .*net\.pkl DIRECTORY"
    ):
        ctm.load_model(tmp_path / "net.pkl")


def test_weights_that_are_a_pointer(tmp_path):
    ctm.DiffusionModel(ctm.networks.MLP((2,), width=8, blocks=1, embedding=8), shape=(2,)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"model\.safetensors is no safetensors file: it is a pointer of git-lfs"):
        ctm.load_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(
        FileNotFoundError, match=r"it needs config\.json and model\.safetensors; .* holds weights as pickles"
    ):
        ctm.load_model(tmp_path)


def test_a_checkpoint_of_lightning(tmp_path):
    torch.save(
        {"state_dict": {"w": torch.ones(1)}, "pytorch-lightning_version": "2.0", "epoch": 3}, tmp_path / "a.ckpt"
    )
    with pytest.raises(ValueError, match=r"a\.ckpt is a checkpoint of Lightning, which is not read here"):
        read_state(tmp_path / "a.ckpt")


def test_endings_count_in_any_case(tmp_path):
    (tmp_path / "a.PKL").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a checkpoint becomes one by ctm convert .*a\.PKL"):
        ctm.load_model(tmp_path / "a.PKL")
    with pytest.raises(FileNotFoundError, match=r"holds a checkpoint file: .* \(a\.PKL\)"):
        ctm.load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"absent\.Pt"):
        load_teacher(tmp_path / "absent.Pt")
    np.savez(tmp_path / "s.npz", mu=np.zeros(3), sigma=np.eye(3))
    (tmp_path / "s.npz").rename(tmp_path / "S.NPZ")
    assert is_statistics(str(tmp_path / "S.NPZ"), 3)
    assert recipe_path("digits-ctm.YAML") == recipe_path("digits-ctm")
