"""Measure the filters' false alarms on harmless pictures, and what the block list still finds after changes: Markdown tables.

    python tools/filter_table.py [--most 1000] digits fashion-mnist photographs=FOLDER …

A source is a data set by name, or NAME=FOLDER with picture files at any depth. Every picture is taken to be harmless and
different from the others, so each that a filter marks is a false alarm. Recall of the classifier is not measured: that needs
pictures which are not harmless. For the block list, every second picture of a source is on the list, and the others are looked
up in it."""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import binomtest

from ctm.data import load_images
from ctm.data.files import open_picture
from ctm.safety import Policy
from ctm.safety.block_list import BlockList
from ctm.safety.open_nsfw import OpenNsfw

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
_NEAR = (0.95, 0.98, 0.99, 0.995)
_LONGEST = 1024  # pixels of a photograph's longer side: the filters see 224


def pictures(source: str, most: int) -> tuple[str, list[np.ndarray]]:
    """(name, pictures uint8 (H, W, 3)) of a source; at most `most`, spread evenly over it."""
    name, _, folder = source.partition("=")
    if folder:
        paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in _ENDINGS and path.is_file())
        return name, [_rgb(open_picture(path).image) for path in spread(paths, most)]
    pixels = load_images(name).pixels
    return name, [
        _rgb(Image.fromarray(each.squeeze(-1) if each.shape[2] == 1 else each)) for each in spread(pixels, most)
    ]


def spread(items: list | np.ndarray, most: int) -> list:
    """At most `most` of the items, evenly spaced."""
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, min(most, len(items)))]


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode in ("RGBA", "LA", "P", "PA"):
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    image = image.convert("RGB")
    image.thumbnail((_LONGEST, _LONGEST))
    return np.asarray(image)


def jpeg(image: np.ndarray) -> np.ndarray:
    """JPEG of quality 75."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file).convert("RGB"))


def halved(image: np.ndarray) -> np.ndarray:
    """Half the size and back."""
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((max(1, width // 2), max(1, height // 2))).resize((width, height)))


def noisy(image: np.ndarray) -> np.ndarray:
    """Normal noise of 5 of 255 levels."""
    noise = np.random.default_rng(0).normal(0, 5, image.shape)
    return np.clip(image + noise, 0, 255).round().astype(np.uint8)


def cropped(image: np.ndarray) -> np.ndarray:
    """5 % off each side, back to the size."""
    height, width = image.shape[:2]
    y, x = max(1, round(height * 0.05)), max(1, round(width * 0.05))
    return np.asarray(Image.fromarray(image[y : height - y, x : width - x]).resize((width, height)))


_CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the same": lambda image: image,
    "JPEG 75": jpeg,
    "half size": halved,
    "noise 5/255": noisy,
    "crop 5 %": cropped,
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
}


def share(count: int, total: int) -> str:
    """A share in percent with the end of its 95 % interval (Clopper-Pearson)."""
    upper = binomtest(count, total).proportion_ci(0.95).high
    return f"{count / total:.1%} (≤ {upper:.1%})"


def of_filter(call: Callable, images: list[np.ndarray], category: str) -> tuple[np.ndarray, float]:
    """(scores, milliseconds for each picture)."""
    begun, scores = time.perf_counter(), []
    for start in range(0, len(images), 8):
        scores += [float(each[category]) for each in call(images[start : start + 8])]
    return np.array(scores), 1000 * (time.perf_counter() - begun) / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--most", type=int, default=1000, help="pictures of one source")
    settings = parser.parse_args()
    sources = [pictures(source, settings.most) for source in settings.sources]
    limits = Policy().thresholds["open_nsfw"]["nsfw"]
    classifier = OpenNsfw()
    print(f"open_nsfw {classifier.checksum[:16]}\n")
    ends = f"held from {limits.hold} on | blocked from {limits.block} on"
    print(f"| pictures | number | shorter side | median | 99 % | largest | {ends} | ms |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name, images in sources:
        scores, ms = of_filter(classifier, images, "nsfw")
        sides = sorted(min(image.shape[:2]) for image in images)
        side = str(sides[0]) if sides[0] == sides[-1] else f"{sides[0]} … {sides[-1]}"
        numbers = f"{np.median(scores):.3f} | {np.quantile(scores, 0.99):.3f} | {scores.max():.3f}"
        held = share(int(((scores >= limits.hold) & (scores < limits.block)).sum()), len(scores))
        blocked = share(int((scores >= limits.block).sum()), len(scores))
        print(f"| {name} | {len(images)} | {side} | {numbers} | {held} | {blocked} | {ms:.0f} |", flush=True)
    print("\nblock_list: share at or above a cosine\n")
    print(f"| pictures | of | {' | '.join(map(str, _NEAR))} | ms |")
    print(f"|---|---|{'--:|' * (len(_NEAR) + 1)}")
    for name, images in sources:
        listed, others = images[::2], images[1::2]
        found = BlockList.of(image[None] for image in listed)
        rows = {"others (false alarms)": others} | {
            words: [change(image) for image in listed[:200]] for words, change in _CHANGES.items()
        }
        for words, asked in rows.items():
            scores, ms = of_filter(found, asked, "near")
            shares = " | ".join(share(int((scores >= limit).sum()), len(scores)) for limit in _NEAR)
            print(f"| {name} | {words} | {shares} | {ms:.0f} |", flush=True)


if __name__ == "__main__":
    main()
