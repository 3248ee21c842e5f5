"""Make a hostile file of each kind, give it to ctm in a process of its own, and put what it cost into docs/security.md.

Usage: python tools/security_table.py [NAME …]     (names of rows: the others stay as they are; without any, all are measured)
"""

import importlib
import io
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

PAGE = Path(__file__).parents[1] / "docs" / "security.md"
BEGIN, END = "<!-- measured -->", "<!-- end -->"
SECONDS = 120  # a row that takes longer has failed
DOUBLINGS = 60


def doubled(start: bytes) -> bytes:
    """A pickle's tuple of two of itself, 60 times over: 2^60 empty tuples, if anything walks it. The last is on the stack."""
    return b"".join([start, *(b"h%ch%c\x86\x94" % (i, i) for i in range(DOUBLINGS))])


def doubled_for_torch() -> bytes:
    """The same in the operations that torch's files have, memo from 1 on."""
    return b")q\x01" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(1, DOUBLINGS))


def pickle(folder: Path, content: bytes) -> list[str]:
    (folder / "net.pkl").write_bytes(b"\x80\x04" + content + b".")
    return ["convert", str(folder / "net.pkl"), str(folder / "out")]


def claimed(folder: Path) -> list[str]:
    return pickle(folder, b"\x8e" + struct.pack("<Q", 2**60))


def torch_key(folder: Path) -> list[str]:
    return torch_zip(folder, b"\x80\x02}q\x00" + doubled_for_torch() + b"K\x01s.")


def not_a_number(folder: Path) -> list[str]:
    return model(folder, lambda config: config.update(sigma_data=float("nan")))


def laughs(folder: Path) -> list[str]:
    return recipe(folder, RADAM + LAUGHS)


def huge_pictures(folder: Path) -> list[str]:
    return model(folder, lambda config: config.update(shape=[1, 10**6, 10**6]))


def large_integers(folder: Path) -> list[str]:
    """Integers whose hashes are all 0, in a set: each is compared with all others."""
    numbers = [(i * (2**61 - 1)).to_bytes(12, "little") for i in range(1, 200_000)]
    return pickle(folder, b"\x8f(" + b"".join(b"\x8a\x0c" + number for number in numbers) + b"\x90")


def repeated_sets(folder: Path) -> list[str]:
    """A list of 50,000 numbers, made a set 200,000 times."""
    numbers = b"".join(b"M" + struct.pack("<H", i) for i in range(50_000))
    return pickle(folder, b"](" + numbers + b"e\x94cbuiltins\nset\n\x94" + b"h\x01h\x00\x85R" * 200_000)


def torch_zip(
    folder: Path, data: bytes | None = None, compression: int = zipfile.ZIP_STORED, size: int = 2
) -> list[str]:
    """A file of torch.save with another data.pkl, or packed."""
    saved = io.BytesIO()
    torch.save({"w": torch.zeros(size)}, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(folder / "net.pt", "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, data if data is not None and name.endswith("data.pkl") else old.read(name))
    return ["convert", str(folder / "net.pt"), str(folder / "out")]


def torch_before_zip(folder: Path) -> list[str]:
    """The form before zip files, its object a dictionary with the doubled tuple as key."""
    saved = io.BytesIO()
    torch.save({}, saved, _use_new_zipfile_serialization=False)
    data = saved.getvalue()
    assert data.count(b"\x80\x02}q\x00.") == 1
    (folder / "net.pt").write_bytes(data.replace(b"}q\x00.", b"}q\x00" + doubled_for_torch() + b"K\x01s."))
    return ["convert", str(folder / "net.pt"), str(folder / "out")]


def overlapping(folder: Path) -> list[str]:
    """Tensors of 10^12 numbers over one."""
    torch.save({"w": torch.ones(1).expand(10**6, 10**6)}, folder / "net.pt")
    return ["convert", str(folder / "net.pt"), str(folder / "out")]


def model(folder: Path, change: Callable[[dict], object] = lambda config: None) -> list[str]:
    """A small model with another config.json."""
    from ctm import TrajectoryModel
    from ctm.networks import MLP

    network = MLP((1, 8, 8), 10, width=16, blocks=1, embedding=8)
    TrajectoryModel(network, shape=(1, 8, 8), num_classes=10).save_pretrained(folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    change(config)
    (folder / "model" / "config.json").write_text(json.dumps(config))
    return ["sample", str(folder / "model"), "--num", "1", "--out", str(folder / "out.png")]


def network(**arguments: object) -> Callable[[dict], object]:
    return lambda config: config["network"]["init_args"].update(arguments)


def deep_config(folder: Path) -> list[str]:
    arguments = model(folder)
    (folder / "model" / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    return arguments


def long_config(folder: Path) -> list[str]:
    arguments = model(folder)
    os.truncate(folder / "model" / "config.json", 1 << 30)
    return arguments


def adapter(folder: Path, text: str) -> list[str]:
    """A model as the teacher, and adapters for it that hold this text."""
    model(folder)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter.json").write_text(text)
    return ["merge", str(folder / "model"), str(folder / "adapter"), str(folder / "out")]


def long_header(folder: Path) -> list[str]:
    arguments = model(folder)
    (folder / "model" / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{" + bytes(100))
    return arguments


def latents_header(folder: Path) -> list[str]:
    (folder / "latents.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{" + bytes(100))
    model(folder)
    data = ["--data", str(folder / "latents.safetensors"), "--features", "classifier"]
    return ["evaluate", str(folder / "model"), *data, "--out", str(folder / "out")]


def diffusers(folder: Path) -> list[str]:
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel", "sample_size": 32}')
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(64))
    return ["tune", str(folder / "unet")]


def pipeline(
    folder: Path,
    unet: dict | None = None,
    scheduler: dict | None = None,
    weights: bytes | None = None,
    named: object = None,
) -> list[str]:
    """A pipeline of diffusers of 20 kB, with changed files."""
    from diffusers import DDPMScheduler, UNet2DModel

    place = folder / "pipe"
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [4]}
    made = UNet2DModel(8, 1, 1, layers_per_block=1, norm_num_groups=4, add_attention=False, **blocks)
    made.save_pretrained(place / "unet")
    DDPMScheduler().save_pretrained(place / "scheduler")
    parts = {"unet": named or ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (place / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", **parts}))
    for file, change in (
        (place / "unet" / "config.json", unet),
        (place / "scheduler" / "scheduler_config.json", scheduler),
    ):
        file.write_text(json.dumps({**json.loads(file.read_text()), **(change or {})}))
    if weights is not None:
        (place / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        (place / "unet" / "diffusion_pytorch_model.bin").write_bytes(weights)
    return ["convert", str(place), str(folder / "out"), "--set", "sigma_data=0.5"]


def diffusers_pickle(folder: Path) -> list[str]:
    return pipeline(folder, weights=b"cos\nsystem\n\x8c\x04true\x85R.")


def peer(folder: Path, index: dict | None = None, **changes: object) -> list[str]:
    """The same pipeline as a row of an evaluation, with other entries of its index."""
    place = Path(pipeline(folder, **changes)[1])  # type: ignore[arg-type]
    settings = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps({**settings, **(index or {})}))
    return ["evaluate", "--data", "digits", "--num", "20", "--out", str(folder / "out"), "--peer", f"{place}@1"]


def peer_pickle(folder: Path) -> list[str]:
    return peer(folder, weights=b"cos\nsystem\n\x8c\x04true\x85R.")


RECIPE = """data: {name: digits, batch_size: 16}
network: {class_path: ctm.networks.MLP, init_args: {width: 16, blocks: 1, embedding: 8, s_embedding: false}}
model: {kind: diffusion}
objectives: [{class_path: ctm.objectives.DenoisingScoreMatching}]
steps: 2
"""
RADAM = "optimizer: {class_path: torch.optim.RAdam, init_args: {lr: 1.0e-3}}\n"
LAUGHS = "\n".join(["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, DOUBLINGS))]) + "\n"


def recipe(folder: Path, text: str) -> list[str]:
    (folder / "recipe.yaml").write_text(RECIPE + text)
    return ["train", "--config", str(folder / "recipe.yaml"), "--out", str(folder / "run")]


def recipe_that_runs(folder: Path) -> list[str]:
    return recipe(folder, f'optimizer: {{class_path: os.system, init_args: {{command: "touch {folder}/ran"}}}}\n')


def recipe_that_calls(folder: Path) -> list[str]:
    named = "ctm.training.storage.write_whole, init_args: {path: ran, content: YWJj}"
    return recipe(folder, f"optimizer: {{class_path: {named}}}\n")


def run_directory(folder: Path) -> list[str]:
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(LAUGHS)
    return recipe(folder, RADAM)


def picture(folder: Path) -> list[str]:
    """A PNG of 40,000 × 40,000 black pixels in 1.6 MB."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(40_001)) for _ in range(40_000)) + packer.flush()
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    (folder / "pictures").mkdir()
    content = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (folder / "pictures" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return [*recipe(folder, RADAM), "--data.name", str(folder / "pictures"), "--data.size", "8"]


def arrays(folder: Path) -> list[str]:
    """2 GB of zeros in an .npz of 2 MB, written without holding them."""
    with (
        zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w", force_zip64=True) as file,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (2**21, 32, 32)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(2**11):
            file.write(bytes(2**20))
    return [*recipe(folder, RADAM), "--data.name", str(folder / "x.npz")]


def zipped(folder: Path, labels: bytes = b"", count: int = 20, behind: int = 0) -> list[str]:
    """Pictures of 8 × 8 in a .zip, each with zeros behind it, and their dataset.json."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "png")
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(count):
            archive.writestr(f"{index}.png", file.getvalue() + bytes(behind))
        if labels:
            archive.writestr("dataset.json", labels)
    return [*recipe(folder, RADAM), "--data.name", str(folder / "x.zip")]


def samples(folder: Path, blocks: list[bytes]) -> list[str]:
    """Pictures in an .npz whose sample.json is these blocks, one after another."""
    np.savez(folder / "x.npz", arr_0=np.zeros((4, 8, 8, 1), np.uint8))
    with (
        zipfile.ZipFile(folder / "x.npz", "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("sample.json", "w") as file,
    ):
        for block in blocks:
            file.write(block)
    return ["evaluate", "--data", "digits", "--samples", str(folder / "x.npz"), "--out", str(folder / "out")]


def parquet(folder: Path, groups: int, rows: int) -> list[str]:
    """Row groups of a PNG with 20 MB of zeros behind it, which is stored once in each and stands in all its rows."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "png")
    picture = pyarrow.array([file.getvalue() + bytes(20_000_000)], pyarrow.binary())
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), picture)
    table = pyarrow.table({"image": column})
    options = {"compression": "zstd", "write_statistics": False, "store_schema": False}
    with ParquetWriter(folder / "x.parquet", table.schema, **options) as writer:
        for _ in range(groups):
            writer.write_table(table)
    return [*recipe(folder, RADAM), "--data.name", str(folder / "x.parquet")]


def data(folder: Path, name: str, content: bytes) -> list[str]:
    """Training on a file."""
    (folder / name).write_bytes(content)
    return [*recipe(folder, RADAM), "--data.name", str(folder / name)]


def npy(header: dict, content: bytes = b"") -> bytes:
    """An .npy with this header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


def npz_claims(folder: Path) -> list[str]:
    """A part that is stored as it is, and says more numbers than the zip has bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.npy", npy({"descr": "<f4", "fortran_order": False, "shape": (10**12, 4)}, bytes(64)))
    return data(folder, "x.npz", file.getvalue())


def tensors(metadata: dict) -> bytes:
    """A file of latents of zeros with this metadata."""
    from safetensors.torch import save

    return save({"latents": torch.zeros(4, 1, 8, 8)}, metadata=metadata)


def arrow(folder: Path) -> list[str]:
    """A compressed part, whose first number says that it is 2^40 bytes long."""
    import pyarrow

    batch = pyarrow.RecordBatch.from_pydict({"image": pyarrow.array([bytes(100_000)], pyarrow.binary())})
    file = io.BytesIO()
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with pyarrow.ipc.new_stream(file, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    content = file.getvalue()
    length = (100_000).to_bytes(8, "little")
    assert content.count(length) >= 1
    return data(folder, "x.arrow", content.replace(length, (1 << 40).to_bytes(8, "little")))


def arrow_list(folder: Path) -> list[str]:
    """The directory of save_to_disk whose list names a file elsewhere."""
    (folder / "set").mkdir()
    (folder / "set" / "x.arrow").write_bytes(b"")
    (folder / "set" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../../dev/zero"}]}))
    return [*recipe(folder, RADAM), "--data.name", str(folder / "set")]


def marked_picture(folder: Path) -> list[str]:
    """A PNG of ctm whose text inflates to 64 MB, from 65 kB."""
    import zlib

    from PIL import PngImagePlugin

    file, text = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "png")
    PngImagePlugin.putchunk(text, b"iTXt", b"ctm:seed\0\1\0\0\0" + zlib.compress(b"1" * (64 << 20)))
    plain = file.getvalue()
    (folder / "x.png").write_bytes(plain[:33] + text.getvalue() + plain[33:])
    return ["verify", str(folder / "x.png")]


def long_picture(folder: Path) -> list[str]:
    (folder / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    os.truncate(folder / "x.png", 1 << 30)
    return ["verify", str(folder / "x.png")]


def long_nonces(folder: Path) -> list[str]:
    """A line of 1 GB."""
    model(folder)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "x.png")
    (folder / "key").write_bytes(bytes(32))
    (folder / "nonces.jsonl").write_bytes(b'{"nonce": "')
    os.truncate(folder / "nonces.jsonl", 1 << 30)
    options = {"model": "model", "key": "key", "nonces": "nonces.jsonl"}
    return ["verify", str(folder / "x.png"), *(f"--{name}={folder / file}" for name, file in options.items())]


def state_of(folder: Path, policy: str = "") -> Path:
    """A state of a service whose record has one entry."""
    from ctm.safety import State

    state = State.open(folder / "state")
    state.store.note("began", {"what": "a test"})
    state.store.close()
    (folder / "state" / "policy.yaml").write_text(policy)
    return folder / "state"


def block_list(folder: Path, content: bytes) -> list[str]:
    """A block list of a stranger, whose digest fits."""
    import hashlib

    from ctm.safety.block_list import _weights

    state = state_of(folder, "thresholds: {block_list: {near: {block: 1.0}}}\nblock_list: list\n")
    (state / "list").write_bytes(content)
    about = {"form": 2, "pictures": 1, "features": _weights(), "sha256": hashlib.sha256(content).hexdigest()}
    (state / "list.json").write_text(json.dumps(about))
    return ["moderate", "policy", "--check", "--state", str(state)]


def usearch_index(folder: Path) -> list[str]:
    """An index that ends the process that reads it: usearch's own, with bytes changed."""
    from usearch.index import Index

    index = Index(ndim=1280, metric="cos", dtype="f32")
    index.add(np.arange(4), np.eye(4, 1280, dtype=np.float32))
    content = bytearray(index.save())
    content[-400:-100] = b"\xff" * 300
    return block_list(folder, bytes(content))


def head(folder: Path, size: int = 0) -> list[str]:
    """A head of 100,000 brackets, or of `size` bytes."""
    (folder / "head.json").write_bytes(b"[" * 100_000 + b"]" * 100_000)
    if size:
        os.truncate(folder / "head.json", size)
    return ["moderate", "verify", "--state", str(state_of(folder)), "--head", str(folder / "head.json")]


def export(folder: Path, size: int = 0) -> list[str]:
    """An export with a line of 100,000 brackets, or of `size` bytes."""
    (folder / "record.jsonl").write_bytes(b"[" * 100_000 + b"]" * 100_000)
    if size:
        os.truncate(folder / "record.jsonl", size)
    return ["moderate", "verify", "--state", str(state_of(folder)), "--export", str(folder / "record.jsonl")]


def upload(folder: Path, make: Callable[[Path], list[str]] | None, size: int = 0) -> list[str]:
    """The picture that another row makes, or `size` zero bytes, sent to a service as a picture to vary."""
    file = folder / "upload"
    if make is None:
        file.write_bytes(b"\x89PNG\r\n\x1a\n")
        os.truncate(file, size)
    else:
        make(folder)
        next(folder.rglob("*.png")).rename(file)
    return ["http", str(file), str(folder / "state")]


def json_body(folder: Path) -> list[str]:
    (folder / "body.json").write_bytes(b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    return ["http", str(folder / "body.json"), str(folder / "state")]


@dataclass(frozen=True)
class Input:
    """what: the file, in words; bound: the rule that it meets; make(folder): writes it and gives the arguments of ctm."""

    what: str
    bound: str
    make: Callable[[Path], list[str]]


KEYS = "keys and members of sets are text and small numbers"
NAMES = "only what ctm has, or the user allows, is imported"
MEMORY = "1 GB, or ten times the file (data.max_gb)"
FITS = "no more than the weights hold is built"
INPUTS: dict[str, Input] = {
    "pickle-set": Input(
        "pickle of 368 bytes: a tuple of 2^60 parts in a set",
        KEYS,
        lambda f: pickle(f, b"\x8f(" + doubled(b")\x94") + b"\x90"),
    ),
    "pickle-key": Input(
        "the same as a dictionary's key", KEYS, lambda f: pickle(f, b"}(" + doubled(b")\x94") + b"K\x01u")
    ),
    "pickle-hashes": Input("pickle of 2.8 MB: a set of integers with one hash", KEYS, large_integers),
    "pickle-copies": Input(
        "pickle of 1.5 MB: a list copied 200,000 times", "four times the file is copied at most", repeated_sets
    ),
    "pickle-empty": Input(
        "pickle of 50 MB: empty sets", "500,000 operations", lambda f: pickle(f, b"\x8f" * 50_000_000)
    ),
    "pickle-size": Input(
        "pickle of 14 bytes that claims 2^60",
        "what is not there is not read",
        claimed,
    ),
    "pickle-call": Input("pickle that calls os.system", NAMES, lambda f: pickle(f, b"cos\nsystem\n\x8c\x04true\x85R")),
    "edm2-array": Input(
        "EDM2 pickle whose numpy array is made of another class",
        NAMES,
        lambda f: pickle(f, b"cnumpy.core.multiarray\n_reconstruct\n(cbuiltins\nset\nK\x00\x85C\x01btR"),
    ),
    "torch-key": Input(
        ".pt with a dictionary's key of 2^60 parts",
        KEYS,
        torch_key,
    ),
    "torch-old-key": Input("the same in torch's form before zip files", KEYS, torch_before_zip),
    "torch-inflates": Input(
        ".pt of 1 MB that inflates to 1 GB",
        "no part may be compressed",
        lambda f: torch_zip(f, compression=zipfile.ZIP_DEFLATED, size=1 << 28),
    ),
    "torch-overlap": Input(".pt of 1 kB with a tensor of 4 TB", "tensors stay inside their data", overlapping),
    "config-class": Input(
        "config.json that names evilmod.Net",
        NAMES,
        lambda f: model(f, lambda c: c["network"].update(class_path="evilmod.Net")),
    ),
    "config-blocks": Input("config.json with blocks: 10^9", "stated ranges", lambda f: model(f, network(blocks=10**9))),
    "config-width": Input(
        "config.json with width: 65,536 over 20 kB of weights", FITS, lambda f: model(f, network(width=65536))
    ),
    "config-many": Input(
        "config.json with blocks: 1,024 over 20 kB of weights", FITS, lambda f: model(f, network(blocks=1024))
    ),
    "config-nan": Input(
        "config.json with sigma_data: NaN",
        "finite numbers",
        not_a_number,
    ),
    "config-shape": Input(
        "config.json with pictures of 10^6 × 10^6",
        "2^26 numbers in a sample",
        huge_pictures,
    ),
    "config-pipeline": Input(
        "config.json whose autoencoder is evilmod.Net in another folder",
        NAMES,
        lambda f: model(f, lambda config: config.update(pipeline={"../vae": ["evilmod", "Net"]})),
    ),
    "config-deep": Input("config.json of 100,000 brackets", "50 levels", deep_config),
    "config-long": Input("config.json of 1 GB", "1 MB", long_config),
    "weights-header": Input(
        "model.safetensors whose header claims 2^60 bytes", "16 MB, and the file's size", long_header
    ),
    "latents-header": Input(
        "latents.safetensors whose header claims 2^60 bytes", "16 MB, and the file's size", latents_header
    ),
    "diffusers": Input(
        "a network of diffusers without its scheduler, in place of a model", "said what it is", diffusers
    ),
    "diffusers-class": Input(
        "pipeline of diffusers whose network is evilmod.Net", NAMES, lambda f: pipeline(f, named=["evilmod", "Net"])
    ),
    "diffusers-scheduler": Input(
        "pipeline of diffusers with a scheduler of its own code",
        NAMES,
        lambda f: pipeline(f, scheduler={"_class_name": "evilmod.Scheduler"}),
    ),
    "diffusers-code": Input(
        "network of diffusers with auto_map to code in its directory",
        NAMES,
        lambda f: pipeline(f, unet={"auto_map": {"AutoModel": "evil.Net"}}),
    ),
    "diffusers-pickle": Input(
        "network of diffusers with a pickle that calls os.system", "weights are safetensors", diffusers_pickle
    ),
    "peer-class": Input(
        "pipeline for --peer whose scheduler is evilmod.Net",
        NAMES,
        lambda f: peer(f, {"scheduler": ["evilmod", "Net"]}),
    ),
    "peer-code": Input(
        "pipeline for --peer with code of its own", NAMES, lambda f: peer(f, {"_class_name": ["pipeline", "Evil"]})
    ),
    "peer-pickle": Input(
        "pipeline for --peer with a pickle that calls os.system", "weights are safetensors", peer_pickle
    ),
    "diffusers-width": Input(
        "network of diffusers with 65,536 channels over 20 kB of weights",
        FITS,
        lambda f: pipeline(f, unet={"block_out_channels": [65536]}),
    ),
    "diffusers-many": Input(
        "network of diffusers with 60,000 layers a block over 20 kB of weights",
        FITS,
        lambda f: pipeline(f, unet={"layers_per_block": 60000}),
    ),
    "diffusers-shape": Input(
        "network of diffusers for pictures of 60,000 × 60,000",
        "2^26 numbers in a sample",
        lambda f: pipeline(f, unet={"sample_size": 60000}),
    ),
    "diffusers-levels": Input(
        "scheduler of diffusers with 10^9 timesteps",
        "20,000 levels",
        lambda f: pipeline(f, scheduler={"num_train_timesteps": 10**9}),
    ),
    "recipe-system": Input("recipe with os.system as optimiser", NAMES, recipe_that_runs),
    "recipe-function": Input(
        "recipe with a function of ctm that writes files", "an entry is a class of its kind", recipe_that_calls
    ),
    "recipe-laughs": Input("recipe of 2 kB with 2^60 values behind aliases", "20,000 values", laughs),
    "run-laughs": Input("config.yaml of a run directory with the same", "20,000 values", run_directory),
    "picture": Input("PNG of 1.6 MB with 1.6·10^9 pixels", "Pillow's limit of pixels", picture),
    "arrays": Input(".npz of 2 MB that inflates to 2 GB", MEMORY, arrays),
    "npy-claims": Input(
        ".npy of 192 bytes that claims 4·10^12 numbers",
        "the file's size",
        lambda f: data(f, "x.npy", npy({"descr": "<f4", "fortran_order": False, "shape": (10**12, 4)}, bytes(64))),
    ),
    "npy-objects": Input(
        ".npy of a pickle that calls os.system",
        NAMES,
        lambda f: data(
            f, "x.npy", npy({"descr": "|O", "fortran_order": False, "shape": (1, 1)}, b"cos\nsystem\n(Vtouch ran\ntR.")
        ),
    ),
    "npz-claims": Input(".npz whose part, not packed, claims 4·10^12 numbers", "the file's size", npz_claims),
    "tensors-header": Input(
        "data.safetensors whose header claims 2^60 bytes",
        "16 MB, and the file's size",
        lambda f: data(f, "data.safetensors", struct.pack("<Q", 1 << 60) + b"{" + bytes(100)),
    ),
    "latents-class": Input(
        "latents.safetensors whose autoencoder is evilmod.Net in another folder",
        NAMES,
        lambda f: data(f, "latents.safetensors", tensors({"pipeline": '{"../vae": ["evilmod", "Net"]}'})),
    ),
    "latents-deep": Input(
        "latents.safetensors whose record is 100,000 brackets",
        "50 levels",
        lambda f: data(f, "latents.safetensors", tensors({"pipeline": "[" * 100_000})),
    ),
    "arrow-inflates": Input(
        ".arrow of 1 kB with a part that inflates to 2^40 bytes", "no part may be compressed", arrow
    ),
    "arrow-list": Input("set of datasets whose list leads out of its directory", "files of its directory", arrow_list),
    "zip-labels": Input(
        "zip of 33 kB whose dataset.json inflates to 31 MB of labels",
        "as many labels as pictures",
        lambda f: zipped(f, b'{"labels":[' + b"[]," * (10 << 20) + b"[]]}"),
    ),
    "zip-deep": Input("zip whose dataset.json is 60,000 brackets", "50 levels", lambda f: zipped(f, b"[" * 60_000)),
    "zip-pictures": Input(
        "zip of 200 kB whose 5 pictures of 8×8 inflate to 200 MB",
        "the bytes that a picture's pixels ask for",
        lambda f: zipped(f, count=5, behind=40 << 20),
    ),
    "parquet-inflates": Input(
        "parquet of 51 kB whose pictures inflate to 1.2 GB", MEMORY, lambda f: parquet(f, groups=60, rows=1)
    ),
    "parquet-repeats": Input(
        "parquet of 0.9 kB in which one picture of 20 MB stands 1,000 times",
        MEMORY,
        lambda f: parquet(f, groups=1, rows=1000),
    ),
    "samples-inflates": Input(
        ".npz of 0.6 MB whose sample.json inflates to 600 MB",
        "16 MB",
        lambda f: samples(f, [bytes(1_000_000)] * 600),
    ),
    "samples-deep": Input(
        ".npz whose sample.json is 100,000 brackets",
        "50 levels",
        lambda f: samples(f, [b"[" * 100_000, b"]" * 100_000]),
    ),
    "adapter-deep": Input(
        "adapter.json of 100,000 brackets", "50 levels", lambda f: adapter(f, "[" * 100_000 + "]" * 100_000)
    ),
    "verify-text": Input("PNG of 65 kB for ctm verify whose text inflates to 64 MB", "1 MB of text", marked_picture),
    "verify-size": Input("picture of 1 GB for ctm verify", "64 MB", long_picture),
    "verify-nonces": Input("file of nonces with a line of 1 GB", "64 kB a line", long_nonces),
    "list-header": Input(
        "block list whose header claims 2^60 bytes",
        "the file's size",
        lambda f: block_list(f, struct.pack("<Q", 1 << 60) + b"{" + bytes(100)),
    ),
    "list-index": Input("block list that is a damaged index of usearch", "numbers, no index", usearch_index),
    "head-deep": Input("head of a record of 100,000 brackets", "50 levels", head),
    "head-long": Input("head of a record of 1 GB", "1 MB", lambda f: head(f, 1 << 30)),
    "export-deep": Input("exported record with a line of 100,000 brackets", "50 levels", export),
    "export-line": Input("exported record with a line of 1 GB", "16 MB a line", lambda f: export(f, 1 << 30)),
    "upload-pixels": Input(
        "upload: PNG of 1.6 MB with 1.6·10^9 pixels", "pixels, before any is decoded", lambda f: upload(f, picture)
    ),
    "upload-text": Input(
        "upload: PNG of 65 kB whose text inflates to 64 MB", "1 MB of text", lambda f: upload(f, marked_picture)
    ),
    "upload-size": Input("upload of 100 MB", "10 MB (--largest)", lambda f: upload(f, None, 100_000_000)),
    "body-deep": Input("request whose JSON has 100,000 brackets", "100,000 lists and objects, few levels", json_body),
}


def run_one(arguments: list[str]) -> None:
    """In a process of its own: the command after its imports; prints exit code, seconds and MB beyond them as JSON."""
    if arguments[0] == "http":
        print(json.dumps(sent(*map(Path, arguments[1:]))))
        return
    from ctm.cli import main

    importlib.import_module(f"ctm.commands.{arguments[0]}")
    if any((Path(argument.removesuffix("@1")) / "model_index.json").is_file() for argument in arguments):
        from diffusers import DDPMScheduler, UNet2DModel  # noqa: F401
    with redirect_stdout(io.StringIO()), suppress(SystemExit):
        main([arguments[0], "--help"])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    seconds = time.monotonic() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"code": code, "seconds": seconds, "megabytes": grown / 1024}))


def sent(file: Path, folder: Path) -> dict:
    """What a request costs that sends a file to a service over the shipped digits. code: 2 where the service refuses it (4xx)."""
    import yaml
    from starlette.testclient import TestClient

    from ctm.serve.app import create_app
    from ctm.serve.opening import Opening
    from ctm.serve.service import Settings

    policy = folder.with_name("policy.yaml")
    policy.write_text(yaml.safe_dump({"thresholds": {}}))
    models = (str(PAGE.parents[1] / "models" / "digits-ctm"),)
    service = Opening(models, folder, policy, "cpu", Settings()).service()
    with TestClient(create_app(service)) as client:
        client.post("/v1/images/generations", json={"prompt": "3"})  # so that all is imported
        content = file.read_bytes()
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        if file.suffix == ".json":
            answer = client.post(
                "/v1/images/generations", content=content, headers={"Content-Type": "application/json"}
            )
        else:
            answer = client.post("/v1/images/variations", files={"image": ("x.png", content, "image/png")})
        seconds = time.monotonic() - started
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(answer.status_code, answer.text[:300], file=sys.stderr)
    code = 2 if 400 <= answer.status_code < 500 else answer.status_code
    return {"code": code, "seconds": seconds, "megabytes": grown / 1024}


def measure(name: str) -> dict:
    """What one input costs: exit code (None: it took longer than SECONDS), seconds, MB, and the sentence."""
    with tempfile.TemporaryDirectory() as place:
        arguments = INPUTS[name].make(Path(place))
        command = [sys.executable, __file__, "--one", json.dumps(arguments)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CTM_CACHE": f"{place}/cache"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, cwd=place)
        except subprocess.TimeoutExpired:
            return {"code": None, "seconds": SECONDS, "megabytes": float("nan"), "sentence": ""}
        lines = done.stdout.strip().splitlines()
        result = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {"code": done.returncode}
        said = done.stderr.strip().splitlines()
        return {"seconds": float("nan"), "megabytes": float("nan"), **result, "sentence": said[-1] if said else ""}


def row(name: str, result: dict) -> str:
    refused = "refused" if result["code"] == 2 else f"NOT REFUSED (exit {result['code']})"
    entry = INPUTS[name]
    return (
        f"| {name} | {entry.what} | {entry.bound} | {refused} | {result['seconds']:.2f} | {result['megabytes']:.0f} |"
    )


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        run_one(json.loads(sys.argv[2]))
        return
    unknown = [name for name in sys.argv[1:] if name not in INPUTS]
    if unknown:
        raise SystemExit(f"there is no row {unknown[0]}: rows are {', '.join(INPUTS)}")
    rows = []
    for name in sys.argv[1:] or INPUTS:
        result = measure(name)
        rows.append(row(name, result))
        print(f"{rows[-1]}\n    {result['sentence'][:300]}", flush=True)
    head = ["| row | input | bound | end | seconds | MB |", "|---|---|---|---|--:|--:|"]
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    table, after = rest.split(END)
    there = {line.split(" | ")[0].removeprefix("| "): line for line in [*table.strip().splitlines()[2:], *rows]}
    lines = [there[name] for name in INPUTS if name in there]
    PAGE.write_text(f"{before}{BEGIN}\n{chr(10).join([*head, *lines])}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
