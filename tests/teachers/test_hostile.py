"""Checkpoints made to cost more than their size: refused, or read in time and memory that follow it."""

import io
import struct
import time
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from ctm.teachers.checkpoints import read_checkpoint
from ctm.teachers.files import read_state
from ctm.teachers.safe_pickle import read_pickle
from ctm.teachers.stack_machine import MOST_OPERATIONS
from ctm.teachers.tensors import STORAGES
from ctm.teachers.torch_files import read_torch

from .edm_files import Persistent, edm_object, example_tensors, write_pickle
from .test_safe_pickle import Calls

ARGUMENTS = {"img_resolution": 8, "img_channels": 3, "label_dim": 0, "model_type": "SongUNet", "num_blocks": 1}
DOUBLED = b")\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(60))

NESTED = b")\x94" + b"".join(b"h%c\x86\x94" % i for i in range(60))  # the same, alone on the stack


def pickled(tmp_path, content: bytes):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + content + b".")
    return tmp_path / "a.pkl"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x8f(" + DOUBLED + b"\x90", "a tuple in it is a key or a set's member"),
        (b"}(" + DOUBLED + b"K\x01u", "a tuple in it is a key"),
        (b"cbuiltins\nset\n](" + DOUBLED + b"e\x85R", "a tuple in it is a key"),
        (b"}\x8f(" + b"K\x01\x90K\x01s", "treats|is a key"),
        (b"}G\x00\x00\x00\x00\x00\x00\x00\x00K\x01s", "a float in it is a key"),
        (b"}\x8a\x09" + (2**64).to_bytes(9, "little") + b"K\x01s", "a large int in it is a key"),
        (b"(" + DOUBLED + b"lcnumpy\ndtype\n(" + DOUBLED + b"tR", "operation LIST"),
        (b"cnumpy\ndtype\n(" + DOUBLED + b"tR", "in a way that a network's file does not need"),
        (b"cnumpy\ndtype\n" + NESTED + b"\x85R", "a numpy number of kind 'a tuple'"),
        (b"c_codecs\nencode\n" + NESTED + b"\x8c\x06latin1\x86R", "encodes text otherwise"),
    ],
)
def test_case_18_what_would_be_walked_for_ever(tmp_path, content, message):
    started = time.process_time()
    with pytest.raises(ValueError, match=message):
        read_pickle(pickled(tmp_path, content))
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "again",
    [
        b"cbuiltins\nset\n(h\x00tR",  # a set of the list
        b"c_codecs\nencode\n(h\x01\x8c\x06latin1tR",  # bytes of the text
    ],
)
def test_what_is_copied_again_and_again_ends(tmp_path, again):
    """1,000 copies of 2,000 parts of a file of 24 kB: four times the file may be copied."""
    numbers = b"".join(b"M" + struct.pack("<H", i) for i in range(2000))
    text = b"X" + struct.pack("<I", 2000) + b"a" * 2000
    with pytest.raises(ValueError, match="it repeats its parts until they are larger than the file"):
        read_pickle(pickled(tmp_path, b"](" + numbers + b"e\x94" + text + b"\x94" + again * 1000))


def test_operations_are_counted(tmp_path):
    assert read_pickle(pickled(tmp_path, b"N0" * 1000 + b"N")) is None
    with pytest.raises(ValueError, match="more than 500000 operations"):
        read_pickle(pickled(tmp_path, b"N0" * (MOST_OPERATIONS // 2 + 1) + b"N"))


@pytest.mark.parametrize("seed", range(4))
def test_operations_in_any_order_end(tmp_path, seed):
    """Programs of random operations over a few shared parts: read to data or refused, and no part is larger than the file."""
    parts = [
        b")",
        b"]",
        b"}",
        b"\x8f",
        b"(",
        b"N",
        b"K\x01",
        b"\x8c\x01a",
        b"\x94",
        b"h\x00",
        b"h\x01",
        b"h\x02",
        b"h\x03",
    ]
    parts += [b"\x85", b"\x86", b"\x87", b"t", b"a", b"e", b"s", b"u", b"\x90", b"0", b"1", b"R", b"b", b"\x81"]
    parts += [
        b"cbuiltins\nset\n",
        b"ccollections\nOrderedDict\n",
        b"c_codecs\nencode\n",
        b"\x8c\x06latin1",
        b"cnumpy\ndtype\n",
    ]
    random = np.random.default_rng(seed)
    messages = []
    for _ in range(150):
        chosen = random.integers(len(parts), size=random.integers(5, 200))
        program = b")\x94]\x94}\x94\x8f\x94" + b"".join(parts[i] for i in chosen)
        try:
            read_pickle(pickled(tmp_path, program))
        except ValueError as error:
            messages.append(str(error))
    assert messages
    assert max(map(len, messages)) < 600


def test_arguments_of_an_edm_file_are_numbers_or_left_out(tmp_path):
    """What a file says of its network comes into messages; a list of 2^60 parts does not."""
    levels: list = []
    for _ in range(60):
        levels = [levels, levels]
    network = edm_object(example_tensors(), {**ARGUMENTS, "resample_filter": levels, "dropout": "x" * 10**6})
    network.state["sigma_data"] = 2**2000
    write_pickle(tmp_path / "a.pkl", {"ema": network})
    arguments = read_state(tmp_path / "a.pkl").arguments
    assert "resample_filter" not in arguments
    assert "dropout" not in arguments
    with pytest.raises(ValueError, match=r"a\.pkl") as caught:
        read_checkpoint(tmp_path / "a.pkl")
    assert len(str(caught.value)) < 1000


def test_deep_and_wide_networks_of_an_edm_file_end(tmp_path):
    module = Persistent("M", _modules={})
    inner = module
    for _ in range(100):
        below = Persistent("M", _modules={})
        inner.state["_modules"]["a" * 20] = below
        inner = below
    precond = edm_object(example_tensors(), ARGUMENTS)
    precond.state["_modules"]["model"].state["_modules"]["deep"] = module
    write_pickle(tmp_path / "a.pkl", {"ema": precond})
    with pytest.raises(
        ValueError, match="holds a network of more than 100000 parts, or with names of more than 1000 letters"
    ):
        read_state(tmp_path / "a.pkl")


def test_tensors_of_an_edm_file_do_not_overlap(tmp_path):
    """Forty buffers over one storage of a thousand numbers."""
    precond, storage = edm_object(example_tensors(), ARGUMENTS), torch.ones(1000).storage()
    for i in range(40):
        view = Calls(torch._utils._rebuild_tensor_v2, storage, i, (900,), (1,), False, OrderedDict())
        precond.state["_modules"]["model"].state["_buffers"][f"b{i}"] = view
    write_pickle(tmp_path / "a.pkl", {"ema": precond})
    with pytest.raises(ValueError, match="claims more numbers than it holds: its tensors overlap"):
        read_state(tmp_path / "a.pkl")


def repacked(tmp_path, change, compression=zipfile.ZIP_STORED):
    """A file of torch.save whose parts went through change(name, content) -> content."""
    saved = io.BytesIO()
    torch.save({"w": torch.arange(6.0).reshape(2, 3)}, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(tmp_path / "a.pt", "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return tmp_path / "a.pt"


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_packed_anew_is_read_where_it_is_stored(tmp_path, mapped):
    """Also where its numbers lie at odd places."""
    read = read_torch(repacked(tmp_path, lambda name, content: content), mapped=mapped)
    assert torch.equal(read["w"], torch.arange(6.0).reshape(2, 3))


def test_a_packed_torch_file_is_refused(tmp_path):
    path = repacked(tmp_path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"in it is compressed, which torch\.save does not do: it could inflate"):
        read_state(path)


def test_parts_of_a_zip_do_not_share_bytes(tmp_path):
    path = repacked(tmp_path, lambda name, content: content)
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    at = data.index(b"PK\x01\x02", start + 4) + 42  # where the second entry says that it lies: at the first's place
    path.write_bytes(data[:at] + bytes(4) + data[at + 4 :])
    with pytest.raises(ValueError, match=r"the files in it overlap|cut short or damaged"):
        read_state(path)


@pytest.mark.parametrize("dtype", sorted(STORAGES.values(), key=str), ids=str)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_number_type_is_read_as_torch_reads_it(tmp_path, dtype, zipped):
    whole = torch.arange(24).reshape(4, 6).to(dtype)
    values = {"a": whole, "b": whole[1:, ::2].t(), "c": torch.tensor(1).to(dtype), "d": torch.empty(0, 3, dtype=dtype)}
    contents = {"x": values, "step": 7, "betas": (0.9, None, True), "names": ["ü"]}
    torch.save(contents, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    read, expected = read_torch(tmp_path / "a.pt", mapped=zipped), torch.load(tmp_path / "a.pt", weights_only=True)
    assert read.keys() == expected.keys()
    assert (read["step"], read["betas"], read["names"]) == (7, (0.9, None, True), ["ü"])
    for name in values:
        assert torch.equal(read["x"][name], expected["x"][name])
        assert read["x"][name].dtype == dtype


def test_an_optimiser_state_is_read_as_torch_reads_it(tmp_path):
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "a.pt")
    read = read_torch(tmp_path / "a.pt")
    assert read["param_groups"] == optimizer.state_dict()["param_groups"]
    for number, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(read["state"][number][name], value) for name, value in state.items())
