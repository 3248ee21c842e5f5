import contextlib
import io
import os
import pickle
import pickletools
import struct
import sys
import tracemalloc
import types
from collections import OrderedDict
from importlib import import_module

import numpy as np
import pytest
import torch

from ctm.teachers.safe_pickle import Stored, UnsafePickleError, read_pickle

from .edm_files import Persistent, example_tensors, write_edm, write_pickle

ARGUMENTS = {"img_resolution": 8, "img_channels": 3, "label_dim": 0, "model_type": "SongUNet", "num_blocks": 1}


class Calls:
    """Pickles as a call of something."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


@pytest.fixture
def trap(tmp_path):
    """A command whose running would be seen, and the place where it would be."""
    seen = tmp_path / "ran"
    return f"touch {seen}", seen


def refused(path, message: str) -> None:
    with pytest.raises(UnsafePickleError, match=message) as caught:
        read_pickle(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_edm_file_is_read_as_data(tmp_path, protocol):
    tensors = example_tensors()
    contents = read_pickle(write_edm(tmp_path / "net.pkl", tensors, ARGUMENTS, protocol=protocol))
    assert set(contents) == {"ema", "loss_fn", "augment_pipe", "dataset_kwargs"}
    network = contents["ema"]
    assert isinstance(network, Stored)
    assert network.class_name == "EDMPrecond"
    assert network.state["_init_kwargs"] == ARGUMENTS
    assert network.state["sigma_max"] == float("inf")
    inner = network.state["_modules"]["model"]
    assert inner.class_name == "SongUNet"
    assert inner.state["skip_scale"] == pytest.approx(0.5**0.5, abs=0)
    assert isinstance(inner.state["skip_scale"], float)
    assert inner.state["_non_persistent_buffers_set"] == set()
    first = inner.state["_modules"]["enc"].state["_modules"]["8x8_conv"].state["_parameters"]["weight"]
    assert torch.equal(first, tensors["model.enc.8x8_conv.weight"])
    last = inner.state["_modules"]["dec"].state["_modules"]["8x8_aux_conv"].state["_parameters"]["weight"]
    assert last.dtype == torch.float16
    assert torch.equal(last, tensors["model.dec.8x8_aux_conv.weight"])


def test_views_and_every_number_type_come_through(tmp_path):
    whole = torch.arange(24).reshape(4, 6)
    values = {
        "view": whole[1:, ::2].t(),
        "empty": torch.empty(0, 3),
        "number": torch.tensor(2.5, dtype=torch.float64),
        "flags": torch.tensor([True, False]),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "scalars": [np.float64(0.1), np.float32(0.5), np.int64(-3), np.bool_(True)],
        "plain": (1, -5, 2**40, 1.5, None, True, b"ab", "ü", {1}, [[]], ()),
    }
    read = read_pickle(write_pickle(tmp_path / "x.pkl", values))
    for name in ("view", "empty", "number", "flags", "half"):
        assert torch.equal(read[name], values[name])
        assert read[name].dtype == values[name].dtype
    assert read["scalars"] == [0.1, 0.5, -3, True]
    assert read["plain"] == values["plain"]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "function",
    [
        os.system,
        eval,
        exec,
        getattr,
        __import__,
        open,
        torch.load,
        np.load,
        pickle.loads,
        torch.hub.load,
        import_module,
    ],
    ids=lambda function: function.__qualname__,
)
def test_no_function_is_called(tmp_path, trap, function, protocol):
    command, seen = trap
    path = tmp_path / "bad.pkl"
    write_pickle(path, {"ema": Calls(function, command)}, protocol)
    refused(path, "asks for .*, which a network's file does not need. Refused; nothing in it was run")
    assert not seen.exists()


def test_the_function_is_named(tmp_path, trap):
    refused(
        write_pickle(tmp_path / "bad.pkl", Calls(os.system, trap[0])), r"asks for posix\.system|asks for nt\.system"
    )
    refused(write_pickle(tmp_path / "eval.pkl", Calls(eval, "1")), r"asks for builtins\.eval")


def nested(data: bytes) -> Calls:
    return Calls(torch.storage._load_from_bytes, data)


class TestNestedTensorData:
    """torch.storage._load_from_bytes inside: our machine again, with the names of a storage; never torch.load."""

    def test_a_pickle_that_calls(self, tmp_path, trap):
        command, seen = trap
        refused(write_pickle(tmp_path / "a.pkl", nested(pickle.dumps(Calls(os.system, command)))), "not in the form")
        assert not seen.exists()

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_torch_file_that_calls(self, tmp_path, trap, zipped):
        command, seen = trap
        buffer = io.BytesIO()
        torch.save({"x": torch.ones(2), "y": Calls(os.system, command)}, buffer, _use_new_zipfile_serialization=zipped)
        expected = "not in the form" if zipped else r"asks for (posix|nt)\.system"
        refused(write_pickle(tmp_path / "a.pkl", nested(buffer.getvalue())), expected)
        assert not seen.exists()

    def test_something_other_than_a_storage(self, tmp_path):
        buffer = io.BytesIO()
        torch.save({"x": torch.ones(2)}, buffer, _use_new_zipfile_serialization=False)
        refused(write_pickle(tmp_path / "a.pkl", nested(buffer.getvalue())), "no storage of numbers")

    def test_a_storage_that_claims_more_than_it_holds(self, tmp_path):
        buffer = io.BytesIO()
        torch.save(torch.ones(3).storage(), buffer, _use_new_zipfile_serialization=False)
        data = buffer.getvalue()
        assert data.count(b"K\x03") == 1
        huge = data.replace(b"K\x03", b"\x8a\x06" + (2**44).to_bytes(6, "little"))
        with pytest.raises(ValueError, match="a storage in it has two sizes"):
            read_pickle(write_pickle(tmp_path / "a.pkl", nested(huge)))

    def test_no_bytes_at_all(self, tmp_path):
        refused(write_pickle(tmp_path / "a.pkl", nested(b"")), "not in the form")


@pytest.mark.parametrize(
    ("data", "operation"),
    [
        (b"(cos\nsystem\nS'true'\no.", None),
        (b"\x80\x02(ios\nsystem\nU\x04true.", "INST"),
        (b"\x80\x02(U\x04truecbuiltins\nset\no.", "SHORT_BINSTRING"),
        (b"\x80\x02(X\x04\x00\x00\x00trueios\nsystem\n.", "INST"),
        (b"\x80\x02(cbuiltins\nset\no.", "OBJ"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "BINPERSID"),
        (b"\x80\x02Pabc\n.", "PERSID"),
        (b"\x80\x02cbuiltins\nset\n)}\x92.", "NEWOBJ_EX"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x02]2.", "DUP"),
    ],
)
def test_operations_that_a_network_needs_not(tmp_path, data, operation):
    path = tmp_path / "bad.pkl"
    path.write_bytes(data)
    if operation is None:
        with pytest.raises(ValueError, match="is empty or no pickle of protocol 2 or later"):
            read_pickle(path)
    else:
        refused(path, f"operation {operation} at byte")


def test_the_state_of_other_objects_is_not_set(tmp_path):
    for data in (b"\x80\x04]}b.", b"\x80\x04cbuiltins\nset\n}b.", b"\x80\x04ccollections\nOrderedDict\n)R}b."):
        (tmp_path / "bad.pkl").write_bytes(data)
        refused(tmp_path / "bad.pkl", "it sets the state of a")


def test_only_admitted_names_are_called(tmp_path):
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x04])R.")
    refused(tmp_path / "bad.pkl", "it calls a list, which is no admitted name")


@pytest.mark.parametrize(
    "name", ["torch_utils.persistence _src_to_module", "torch.storage  _load_from_bytes", "numpy  dtype"]
)
def test_names_beside_the_admitted_ones(tmp_path, name):
    module, function = name.split(" ", 1)
    (tmp_path / "bad.pkl").write_bytes(f"\x80\x04c{module}\n{function}\n.".encode("latin1"))
    refused(tmp_path / "bad.pkl", "asks for")


def test_numpy_beyond_numbers(tmp_path):
    array = np.array([{"a": 1}], dtype=object)
    refused(write_pickle(tmp_path / "a.pkl", array), "numpy number of kind 'O8'")
    kept = read_pickle(write_pickle(tmp_path / "b.pkl", {"scale": np.arange(3)}))
    assert vars(kept["scale"]) == {}  # read over: EDM2's encoders hold arrays that no network needs
    refused(write_pickle(tmp_path / "c.pkl", np.dtype("O")), "numpy number of kind 'O8'")
    refused(write_pickle(tmp_path / "d.pkl", np.dtype([("a", "f8")])), "numpy number of kind 'V8'")


def test_text_is_encoded_to_bytes_only(tmp_path):
    import codecs

    refused(write_pickle(tmp_path / "a.pkl", Calls(codecs.encode, "print(1)", "rot13")), "encodes text otherwise")


def tensor_of(storage, offset, size, stride):
    return Calls(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (10**9, 10**9), (0, 0)),
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (-1, (1,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, (2.0,), (1,)),
    ],
)
def test_tensors_stay_within_their_data(tmp_path, offset, size, stride):
    path = write_pickle(tmp_path / "a.pkl", tensor_of(torch.ones(4).storage(), offset, size, stride))
    with pytest.raises(ValueError, match=r"tensor|argument"):
        read_pickle(path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_cut_anywhere_is_a_sentence(tmp_path, protocol):
    whole = write_edm(tmp_path / "net.pkl", example_tensors(), ARGUMENTS, protocol=protocol).read_bytes()
    cut = tmp_path / "cut.pkl"
    for length in [*range(200), *range(200, len(whole), 97), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut short|empty or no pickle") as caught:
            read_pickle(cut)
        assert "\n" not in str(caught.value)


def test_bytes_changed_anywhere_never_run_and_are_a_sentence(tmp_path):
    """Whatever a damaged file holds, it is read to data or refused with ValueError."""
    whole = write_edm(tmp_path / "net.pkl", example_tensors(), ARGUMENTS).read_bytes()
    random = np.random.default_rng(0)
    damaged = tmp_path / "damaged.pkl"
    for _ in range(400):
        changed = bytearray(whole)
        for place in random.integers(1, len(whole), 3):
            changed[place] = random.integers(256)
        damaged.write_bytes(changed)
        with contextlib.suppress(ValueError):
            read_pickle(damaged)


def test_the_dictionaries_of_edm(tmp_path, monkeypatch):
    """dnnlib.util.EasyDict, a dict whose items are attributes, is a dict here."""
    module = types.ModuleType("dnnlib.util")
    module.EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    monkeypatch.setitem(sys.modules, "dnnlib", types.ModuleType("dnnlib"))
    monkeypatch.setitem(sys.modules, "dnnlib.util", module)
    read = read_pickle(write_pickle(tmp_path / "a.pkl", module.EasyDict(a=1, b=module.EasyDict())))
    assert read == {"a": 1, "b": {}}
    assert type(read) is type(read["b"]) is dict


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", b"hello", b"{}", b"\x7fELF", b"<html></html>", b"\x80", b"\x80\x04"]
)
def test_no_pickle_at_all(tmp_path, data):
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.pkl is (empty or no pickle|cut short or no pickle)"):
        read_pickle(tmp_path / "a.pkl")


def peak_while_refusing(path) -> int:
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.pkl"):
        read_pickle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc",  # BINBYTES8 of 2^60 bytes
        b"\x80\x04B\xff\xff\xff\xff" + b"abc",  # BINBYTES of 4 GB
        b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N",  # a frame that long
        b"\x80\x04Nr\xff\xff\xff\xff0",  # a memo entry of index 2^32 − 1
        b"\x80\x04\x8b\xff\xff\xff\x7fabc",  # an integer of 2 GB
    ],
)
def test_claimed_sizes_take_no_memory(tmp_path, data):
    (tmp_path / "a.pkl").write_bytes(data)
    assert peak_while_refusing(tmp_path / "a.pkl") < 2**20


def test_repeated_doubling_takes_no_memory(tmp_path):
    """A list of two of itself, 200 times over: 2^200 elements if anything walked it."""
    levels: list = []
    for _ in range(200):
        levels = [levels, levels]
    path = write_pickle(tmp_path / "a.pkl", levels)
    assert len(path.read_bytes()) < 4096
    assert len(read_pickle(path)) == 2


def test_weights_are_not_copied_many_times(tmp_path):
    """40 MB of weights: besides the tensors themselves, python holds one tensor's bytes at a time."""
    tensors = {f"model.enc.8x8_block{i}.conv0.weight": torch.zeros(1_000_000) for i in range(10)}
    path = write_edm(tmp_path / "net.pkl", tensors, ARGUMENTS)
    tracemalloc.start()
    read_pickle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6


def test_the_stored_code_is_not_run(tmp_path):
    path = write_pickle(tmp_path / "a.pkl", {"ema": Persistent("Evil", x=1)})
    assert b"must never run" in path.read_bytes()
    assert read_pickle(path)["ema"] == Stored("Evil", {"x": 1})


def test_the_test_files_are_real_pickles(tmp_path):
    """What the tests write would be read by pickle itself, through the names that EDM's files have."""
    data = write_edm(tmp_path / "net.pkl", example_tensors(), ARGUMENTS, protocol=4).read_bytes()
    names = {argument for operation, argument, _ in pickletools.genops(data) if isinstance(argument, str)}
    assert {"torch_utils.persistence", "_reconstruct_persistent_obj", "_load_from_bytes", "ModuleDict"} <= names
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(data)
