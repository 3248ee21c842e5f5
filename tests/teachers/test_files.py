import os
from collections import OrderedDict

import pytest
import torch

from ctm.teachers.files import read_state

from .edm_files import Persistent, edm_object, example_tensors, write_edm, write_pickle

ARGUMENTS = {"img_resolution": 8, "img_channels": 3, "label_dim": 4, "model_type": "SongUNet", "num_blocks": 1}


def same(tensors, others) -> bool:
    return set(tensors) == set(others) and all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_an_edm_pickle_gives_names_tensors_and_arguments(tmp_path):
    state = read_state(write_edm(tmp_path / "net.pkl", example_tensors(), ARGUMENTS))
    assert same(state.tensors, example_tensors())
    assert state.arguments["model_type"] == "SongUNet"
    assert (state.arguments["img_resolution"], state.arguments["label_dim"]) == (8, 4)
    assert (state.arguments["sigma_data"], state.arguments["sigma_min"]) == (0.5, 0)
    assert state.arguments["num_blocks"] == 1
    assert "EDM pickle, EDMPrecond around SongUNet (its code was not run)" in state.notes[0]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_of_torch_save(tmp_path, zipped):
    state = OrderedDict(example_tensors())
    torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    read = read_state(tmp_path / "model.pt")
    assert same(read.tensors, state)
    assert (read.arguments, read.notes) == ({}, [])


def test_parts_and_wrappers(tmp_path):
    tensors = example_tensors()
    parts = {
        name: {f"module.{key}": value + add for key, value in tensors.items()}
        for add, name in enumerate(["model", "ema_0.999", "ema_0.9999", "target"])
    }
    torch.save({**parts, "step": 7}, tmp_path / "all.pt")
    read = read_state(tmp_path / "all.pt")
    assert same(read.tensors, {key: value + 2 for key, value in tensors.items()})
    assert read.notes[0] == "read part 'ema_0.9999' of ema_0.999, ema_0.9999, model, target"
    assert "left away 'module.'" in read.notes[1]
    assert same(read_state(tmp_path / "all.pt", "model").tensors, tensors)
    with pytest.raises(ValueError, match="has no part 'best': it holds ema_0"):
        read_state(tmp_path / "all.pt", "best")
    del parts["ema_0.999"], parts["ema_0.9999"]
    torch.save(parts, tmp_path / "two.pt")
    assert "read part 'target'" in read_state(tmp_path / "two.pt").notes[0]


class Bad:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_that_calls_is_refused(tmp_path, zipped):
    torch.save({"w": torch.ones(1), "x": Bad()}, tmp_path / "bad.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"asks for (posix|nt)\.system, which a network's file does not need. Refused"
    ) as caught:
        read_state(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.97])
def test_a_torch_file_cut_short(tmp_path, zipped, kept):
    torch.save(example_tensors(), tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=r"cut\.pt is cut short or damaged .*download or copy it again") as caught:
        read_state(tmp_path / "cut.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([torch.ones(1)], "holds a list, not a state dict"),
        ({}, "holds a dict, not a state dict"),
        ({"w": torch.ones(1), "step": 3}, "is no state dict: step in it are no tensors"),
        (torch.ones(1), "holds a Tensor, not a state dict"),
    ],
)
def test_torch_files_without_a_state_dict(tmp_path, contents, message):
    torch.save(contents, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        read_state(tmp_path / "x.pt")


def test_tensors_that_claim_more_than_the_file_holds(tmp_path):
    torch.save({"w": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "huge.pt")
    assert (tmp_path / "huge.pt").stat().st_size < 4096
    with pytest.raises(ValueError, match=r"huge\.pt: it claims more numbers than it holds"):
        read_state(tmp_path / "huge.pt")


def test_files_of_no_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pt is no file"):
        read_state(tmp_path / "absent.pt")
    for data, message in [
        (b"", "it is empty"),
        (b"<!DOCTYPE html>", "it begins like a web page or a text"),
        (b"\x89PNG", "it is a PNG picture"),
    ]:
        (tmp_path / "x.pt").write_bytes(data)
        with pytest.raises(ValueError, match=f"is neither an EDM pickle nor a file of torch.save .{message}"):
            read_state(tmp_path / "x.pt")


def test_pickles_of_other_kinds(tmp_path):
    write_pickle(tmp_path / "a.pkl", {"G_ema": Persistent("Generator")})
    with pytest.raises(ValueError, match="without EDM's network under 'ema': it holds G_ema"):
        read_state(tmp_path / "a.pkl")
    write_pickle(tmp_path / "b.pkl", [1, 2])
    with pytest.raises(ValueError, match="it holds a list"):
        read_state(tmp_path / "b.pkl")
    write_edm(tmp_path / "c.pkl", example_tensors(), ARGUMENTS, precond="VPPrecond")
    with pytest.raises(
        ValueError, match="holds a VPPrecond network; of EDM's files those of class EDMPrecond are read"
    ):
        read_state(tmp_path / "c.pkl")


def test_another_part_of_a_pickle(tmp_path):
    write_pickle(tmp_path / "a.pkl", {"net": edm_object(example_tensors(), ARGUMENTS)})
    assert same(read_state(tmp_path / "a.pkl", "net").tensors, example_tensors())


def test_modules_that_hold_themselves_end(tmp_path):
    children: dict = {}
    loop = Persistent("Loop", _modules=children, _parameters={"w": torch.ones(1)})
    children.update(a=loop, b=loop)
    precond = edm_object(example_tensors(), ARGUMENTS)
    precond.state["_modules"]["model"].state["_modules"]["loop"] = Persistent("Loop", _modules=children)
    write_pickle(tmp_path / "a.pkl", {"ema": precond})
    assert len(read_state(tmp_path / "a.pkl").tensors) == len(example_tensors()) + 1


@pytest.mark.parametrize("zipped", [True, False])
def test_bytes_changed_anywhere_are_data_or_a_sentence(tmp_path, zipped):
    torch.save(example_tensors(), tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole.pt").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(whole), (250,), generator=generator).tolist() + list(range(1, 120)):
        at = place - 120 if place < 120 else place  # the last bytes are a zip file's table of contents
        changed = bytearray(whole)
        changed[at] ^= 1 + place % 255
        (tmp_path / "x.pt").write_bytes(changed)
        try:
            read_state(tmp_path / "x.pt")
        except ValueError as error:
            message = str(error)
        else:
            continue
        assert "\n" not in message
