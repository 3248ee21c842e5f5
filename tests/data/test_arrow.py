"""Arrow sets: read memory-mapped, equal to what datasets gives, refused where they are damaged or would inflate."""

import json
import subprocess
import sys

import numpy as np
import pyarrow
import pytest

from ctm.data import load_images
from ctm.data import table as module
from ctm.data.captions import load_captions

from .test_tables import colour, parquet, png

PICTURES = [colour(7 * i, 6, 6) for i in range(9)]


def saved(place, **columns):
    """A directory of save_to_disk."""
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"]), "text": datasets.Value("string")}
    )
    held = {
        "image": [{"bytes": png(p), "path": None} for p in PICTURES],
        "label": [0, 1, 0] * 3,
        "text": list("abcdefghi"),
    }
    datasets.Dataset.from_dict(held | columns, features=features).save_to_disk(place, num_shards=2)
    return place


def stream(file, columns, options=None, kind=pyarrow.ipc.new_stream):
    batch = pyarrow.RecordBatch.from_pydict(columns)
    with kind(str(file), batch.schema, options=options or pyarrow.ipc.IpcWriteOptions()) as writer:
        writer.write(batch)
    return str(file)


def test_a_saved_set_is_read_with_its_labels_and_captions(tmp_path):
    place = str(saved(tmp_path / "set"))
    found = load_images(place)
    assert np.array_equal(found.pixels, np.stack(PICTURES))
    assert (found.labels.tolist(), found.class_names) == ([0, 1, 0] * 3, ["a", "b"])
    assert load_captions(place, found, "text") == list("abcdefghi")
    assert load_images(place, image="image", label="text").num_classes == 9


def test_a_set_with_splits_asks_which(tmp_path):
    import datasets

    saved(tmp_path / "all" / "train")
    saved(tmp_path / "all" / "test", label=[1] * 9)
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert load_images(str(tmp_path / "all")).labels.tolist() == [0, 1, 0] * 3
    assert load_images(str(tmp_path / "all"), split="test").labels.tolist() == [1] * 9
    assert datasets.load_from_disk(str(tmp_path / "all"))["test"]["label"] == [1] * 9
    with pytest.raises(ValueError, match=r"--data.split other .* has train, test"):
        load_images(str(tmp_path / "all"), split="other")


@pytest.mark.parametrize("kind", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file], ids=["stream", "file"])
def test_one_file_of_either_form_is_read(tmp_path, kind):
    file = stream(tmp_path / "x.arrow", {"image": [png(p) for p in PICTURES]}, kind=kind)
    assert np.array_equal(load_images(file).pixels, np.stack(PICTURES))


def test_many_pictures_are_decoded_once_into_the_cache(tmp_path, monkeypatch):
    """The same pixels, memory-mapped; again without decoding; anew where the file has changed."""
    monkeypatch.setattr(module, "_IN_MEMORY", 100)
    file = parquet(tmp_path / "x.parquet", {"image": [png(p) for p in PICTURES]})
    found = load_images(file)
    assert isinstance(found.pixels, np.memmap)
    assert np.array_equal(found.pixels, np.stack(PICTURES))
    calls, own = [], module._fill
    monkeypatch.setattr(module, "_fill", lambda *given: calls.append(1) or own(*given))
    assert np.array_equal(load_images(file).pixels, np.stack(PICTURES))
    assert not calls
    parquet(tmp_path / "x.parquet", {"image": [png(p) for p in PICTURES[::-1]]})
    assert np.array_equal(load_images(file).pixels, np.stack(PICTURES[::-1]))
    assert calls
    with pytest.raises(ValueError, match=r"x.parquet: image 8 cannot be read as a picture"):
        load_images(parquet(tmp_path / "x.parquet", {"image": [*map(png, PICTURES[:8]), b"none"]}))
    assert not list((tmp_path / "cache").glob("*.partial.*"))


_MEMORY = """
import sys
from ctm.data import load_images
def anonymous():
    words = open("/proc/self/status").read().split()
    return int(words[words.index("RssAnon:") + 1]) * 1024
load_images(sys.argv[1])
before = anonymous()
images = load_images(sys.argv[2])
total = sum(int(images.pixels[row].sum()) for row in range(0, len(images), 50))
print(len(images), total > 0, images.nbytes, anonymous() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_a_large_set_takes_little_memory_of_its_own(tmp_path, form):
    """120 MB of pictures, 120 MB once decoded: neither is held in anonymous memory. A first small set loads the libraries."""
    raw, count, side = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8), 1000, 200
    pictures = []
    for row in range(count):
        raw[0, 0] = (row % 256, row // 256, 0)
        pictures.append(b"P6 200 200 255\n" + raw.tobytes())
    for name, some in (("small", pictures[:2]), ("large", pictures)):
        columns = {"image": pyarrow.array(some, pyarrow.binary())}
        if form == "arrow":
            stream(tmp_path / f"{name}.arrow", columns)
        else:
            pyarrow.parquet.write_table(
                pyarrow.table(columns),
                tmp_path / f"{name}.parquet",
                compression="none",
                use_dictionary=False,
                row_group_size=100,
            )
    files = [str(tmp_path / f"{name}.{form}") for name in ("small", "large")]
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, *files], capture_output=True, text=True, check=True, timeout=500
    )
    rows, seen, size, anonymous = done.stdout.split()[-4:]
    assert (int(rows), seen, int(size)) == (count, "True", count * side * side * 3)
    assert int(anonymous) < 40e6


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda f: stream(f, {"image": [png(PICTURES[0])]}, pyarrow.ipc.IpcWriteOptions(compression="zstd")),
            "compressed parts",
        ),
        (
            lambda f: stream(f, {"image": pyarrow.array([png(PICTURES[0])] * 2).dictionary_encode()}),
            "once for several rows",
        ),
        (lambda f: stream(f, {"number": [1, 2]}), "no column of images"),
        (lambda f: stream(f, {"image": pyarrow.array([], pyarrow.binary())}), "holds no rows"),
        (lambda f: f.write_bytes(b"ARROW1\0\0" + bytes(64)) and str(f), "cannot be read as an Arrow set"),
        (lambda f: f.write_bytes(b"") or str(f), "cannot be read as an Arrow set"),
    ],
    ids=["compressed", "dictionary", "columns", "rows", "damaged", "empty"],
)
def test_what_is_not_read_is_refused_in_a_sentence(tmp_path, make, words):
    with pytest.raises(ValueError, match=words):
        load_images(make(tmp_path / "x.arrow"))


def test_offsets_that_lie_are_refused(tmp_path):
    """The file's own numbers say where a picture begins: one that points beyond the file is not followed."""
    file = stream(tmp_path / "x.arrow", {"image": [png(PICTURES[0]), png(PICTURES[1])]})
    content, length = bytearray((tmp_path / "x.arrow").read_bytes()), len(png(PICTURES[0]))
    offsets = np.array([0, length, length + len(png(PICTURES[1]))], dtype="<i4").tobytes()
    place = content.find(offsets)
    assert place > 0
    content[place + 4 : place + 8] = (1 << 30).to_bytes(4, "little")
    (tmp_path / "x.arrow").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.arrow"):
        load_images(file)


def test_a_list_of_files_that_leads_out_of_its_directory_is_refused(tmp_path):
    place = saved(tmp_path / "set")
    state = json.loads((place / "state.json").read_text())
    state["_data_files"] = [{"filename": "../../etc/passwd"}]
    (place / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="which is no file beside it"):
        load_images(str(place))
