import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctm.data import load, load_images
from ctm.data.resize import fit, is_colour, normal_mode


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path) if mode is None else Image.fromarray(array).convert(mode).save(path)


def grey(value, height=10, width=10):
    return np.full((height, width), value, dtype=np.uint8)


def colour(value, height=10, width=10):
    return np.dstack([grey(value, height, width), grey(0, height, width), grey(255, height, width)])


def test_a_folder_of_classes(tmp_path):
    save(tmp_path / "b" / "1.png", grey(10))
    save(tmp_path / "a" / "deep" / "2.png", grey(20))
    save(tmp_path / "a" / "1.png", grey(30))
    (tmp_path / "a" / "notes.txt").write_text("left alone")
    images = load_images(str(tmp_path), size=8)
    assert images.class_names == ["a", "b"]
    assert images.labels.tolist() == [0, 0, 1]
    assert images.pixels.shape == (3, 8, 8, 1)
    assert images.pixels[:, 0, 0, 0].tolist() == [30, 20, 10]


def test_a_flat_folder_of_colour_has_no_labels(tmp_path):
    save(tmp_path / "x.png", colour(100, 20, 30))
    save(tmp_path / "y.jpg", colour(50, 33, 21))
    images = load_images(str(tmp_path), size=8)
    assert images.labels is None
    assert images.num_classes == 0
    assert images.shape == (3, 8, 8)


def test_the_folder_is_decoded_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    save(folder / "x.png", grey(10))
    first = load_images(str(folder), size=8)
    from ctm.data import decoded as module

    def never(*arguments):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_decode", never)
        again = load_images(str(folder), size=8)
    assert np.array_equal(first.pixels, again.pixels)
    save(folder / "x.png", grey(90, 12, 12))
    assert load_images(str(folder), size=8).pixels[0, 0, 0, 0] == 90


def test_an_unreadable_picture_is_named_and_nothing_is_cached(tmp_path):
    save(tmp_path / "good.png", grey(1))
    (tmp_path / "zbad.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"zbad\.png cannot be read as a picture .* repair or remove it"):
            load_images(str(tmp_path), size=8)
    assert not list(Path(os.environ["CTM_CACHE"]).glob("*"))


def test_all_unreadable_pictures_are_named_at_once(tmp_path):
    for number in range(30):
        save(tmp_path / "a" / f"{number}.png", grey(number))
    for number in range(25):
        (tmp_path / "b" / f"{number}.jpg").parent.mkdir(exist_ok=True)
        (tmp_path / "b" / f"{number}.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"cannot be read as a picture") as caught:
        load_images(str(tmp_path), size=8)
    said = str(caught.value)
    assert "0.jpg cannot be read as a picture" in said
    assert "24 others cannot be read: " in said
    assert said.endswith("20.jpg and 4 more")
    assert ".png" not in said


def test_a_mistyped_path_beside_files_is_no_hub_id(tmp_path, monkeypatch):
    save(tmp_path / "pictures" / "x.png", grey(10))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file or folder pictures/flowers: give a path that exists"):
        load_images("pictures/flowers", size=8)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no pictures: files ending in"):
        load_images(str(tmp_path))


def test_pictures_at_two_depths_are_refused(tmp_path):
    save(tmp_path / "a" / "1.png", grey(1))
    save(tmp_path / "2.png", grey(1))
    with pytest.raises(ValueError, match=r"both directly \(2.png\) and in sub-folders \(a\)"):
        load_images(str(tmp_path))


def test_mixed_channels_are_colour_and_can_be_converted(tmp_path):
    save(tmp_path / "a.png", grey(7))
    save(tmp_path / "b.png", colour(7))
    assert load_images(str(tmp_path), size=8).shape == (3, 8, 8)
    assert load_images(str(tmp_path), size=8, channels=3).shape == (3, 8, 8)
    assert load_images(str(tmp_path), size=8, channels=1).shape == (1, 8, 8)


def test_sizes_must_agree_unless_one_is_given(tmp_path):
    save(tmp_path / "a.png", grey(7, 10, 10))
    save(tmp_path / "b.png", grey(7, 12, 12))
    with pytest.raises(
        ValueError, match=r"b\.png is 12 high and 12 wide but .*a\.png is 10 high and 10 wide: give --data"
    ):
        load_images(str(tmp_path))
    save(tmp_path / "a.png", grey(7, 10, 14))
    with pytest.raises(ValueError, match=r"a\.png is 10 high and 14 wide, not square: give --data.size '\[10, 14\]'"):
        load_images(str(tmp_path))


def test_fit_halves_then_resizes_then_crops():
    """A 64×96 ramp to 16: box-halved to 16×24 exactly, then the middle 16 columns."""
    ramp = np.tile(np.arange(96, dtype=np.uint8) * 2, (64, 1))
    made = np.asarray(fit(Image.fromarray(ramp), 16)).astype(int)
    boxes = ramp.reshape(16, 4, 24, 4).mean((1, 3))[:, 4:20]
    assert made.shape == (16, 16)
    assert np.abs(made - boxes).max() <= 1
    assert fit(Image.new("L", (5, 9)), 8).size == (8, 8)


def test_modes_follow_the_stated_rules(tmp_path):
    sixteen = Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16))
    assert not is_colour(sixteen)
    assert np.asarray(normal_mode(sixteen, False)).tolist() == [[100] * 4] * 4
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert normal_mode(clear, True).getpixel((0, 0)) == (255, 255, 255)
    assert is_colour(clear)
    palette = Image.new("RGB", (4, 4), (9, 9, 9)).convert("P")
    assert not is_colour(palette)
    assert normal_mode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), True).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("keys", [("arr_0", "arr_1"), ("images", "labels")])
def test_npz(tmp_path, keys):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", **{keys[0]: pixels, keys[1]: np.array([0, 2, 1, 1, 0])})
    images = load_images(str(tmp_path / "set.npz"))
    assert np.array_equal(images.pixels, pixels)
    assert images.num_classes == 3
    assert load_images(str(tmp_path / "set.npz"), size=3, channels=1).shape == (1, 3, 3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros(3)}, "holds the arrays other: the images must be called images or arr_0"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, r"images must be uint8 \(N, H, W, C\)"),
        ({"arr_0": np.zeros((2, 4, 4), np.uint8), "arr_1": np.zeros(3, int)}, "labels must be 2 whole numbers"),
        ({"arr_0": np.zeros((2, 4, 6), np.uint8)}, "not square: give --data.size"),
    ],
)
def test_npz_mistakes(tmp_path, arrays, message):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_images(str(tmp_path / "set.npz"))


def test_files_that_are_not_there_or_not_images(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK nonsense")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.npz"):
        load_images(str(tmp_path / "absent.npz"))
    with pytest.raises(ValueError, match=r"broken\.npz cannot be read as an \.npz file"):
        load_images(str(tmp_path / "broken.npz"))
    with pytest.raises(ValueError, match="is neither a folder"):
        load_images(str(tmp_path / "text.txt"))


def test_a_name_that_is_nothing(monkeypatch):
    with pytest.raises(FileNotFoundError, match="digits, mnist5k, fashion-mnist"):
        load_images("no-such-set-anywhere")


def write_idx(path, array):
    header = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_fashion_mnist_reads_debians_files(tmp_path, monkeypatch):
    """On a machine without the Debian package the test writes its own small files in the same format."""
    if load.FASHION_DIRECTORY.is_dir():
        images = load_images("fashion-mnist")
        assert (len(images), images.shape) == (60_000, (1, 28, 28))
        assert len(load_images("fashion-mnist", split="test")) == 10_000
    pixels = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    for prefix, count in (("train", 4), ("t10k", 2)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", pixels[:count])
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.array([9, 0, 3, 3], dtype=np.uint8)[:count])
    monkeypatch.setattr(load, "FASHION_DIRECTORY", tmp_path)
    images = load_images("fashion-mnist")
    assert np.array_equal(images.pixels[..., 0], pixels)
    assert images.labels.tolist() == [9, 0, 3, 3]
    assert images.class_names[9] == "Ankle boot"
    assert len(load_images("fashion-mnist", split="test")) == 2


def test_fashion_mnist_absent_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "FASHION_DIRECTORY", tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        load_images("fashion-mnist")


def test_mnist5k():
    images = load_images("mnist5k")
    assert (len(images), images.shape, images.num_classes) == (5000, (1, 28, 28), 10)
    assert np.bincount(images.labels).tolist() == [500] * 10


def test_mnist5k_absent_says_what_to_install(monkeypatch):
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'ctm-torch\[mnist5k\]'"):
        load_images("mnist5k")


def test_parquet_through_datasets(tmp_path):
    import datasets

    pictures = [Image.fromarray(grey(10 * i, 6, 6)) for i in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    table = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 1, 0]}, features=features)
    table.to_parquet(tmp_path / "set.parquet")
    images = load_images(str(tmp_path / "set.parquet"))
    assert images.shape == (1, 6, 6)
    assert images.labels.tolist() == [0, 1, 1, 0]
    assert images.class_names == ["cat", "dog"]
    assert images.pixels[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.parquet"):
        load_images(str(tmp_path / "absent.parquet"))


@pytest.mark.parametrize(
    ("options", "message"), [({"size": 0}, "data.size"), ({"channels": 2}, "data.channels must be 1")]
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        load_images("digits", **options)
