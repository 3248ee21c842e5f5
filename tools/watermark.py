"""What the watermark of the initial noise does, measured: false and true positives, and what it does to quality and diversity.
Each part is added to the results file as it is found; the same command goes on where it was stopped.

    python tools/watermark.py                    all parts; --only PART … for some of them
"""

from __future__ import annotations

import argparse
import hashlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ctm import editing, generate, load_model
from ctm.bench.results import Results
from ctm.data import Images, load_images, to_model_range
from ctm.evaluation.run import evaluate_images, judge_of, labels_of
from ctm.guidance import at_scale
from ctm.keystream import signs
from ctm.likelihood import decode, encode
from ctm.noise import karras_grid
from ctm.pictures import as_saved, to_uint8
from ctm.provenance import binomial_tail, least_matches
from ctm.provenance.watermark import inverted, match_counts

ROOT = Path(__file__).parents[1]
KEY = hashlib.sha256(b"the key of tools/watermark.py").digest()
RATE = 1e-4
CANDIDATES = (1, 1000, 10**6)
SEED = 101  # the pilot that chose level and share had another
MODELS = {
    "digits": ("models/digits-ctm", "digits", "classifier"),
    "fashion-mnist": ("models/fashion-mnist-ctm", "fashion-mnist", "efficientnet"),
}
REAL, SETS = 2000, {"digits": 2000, "fashion-mnist": 1000}  # images of the reference, and of each set that is measured
PREDICTED = {
    "said": "before these parts ran, after a pilot of 200 digits and 30 pictures of clothes at levels 0.2 and 0.5 (other seeds)",
    "false positives": "the binomial's rate in every set: chi-square p-values without pattern",
    "true positives": {
        "digits/1": [0.95, 0.8, 0.6, 0.05, 0.1, 0.75],
        "digits/8": [0.99, 0.9, 0.6, 0.05, 0.1, 0.85],
        "fashion-mnist/1": [0.9, 0.9, 0.95, 0.3, 0.02, 0.85],
        "fashion-mnist/8": [1.0, 1.0, 1.0, 0.4, 0.01, 1.0],
    },
    "gamma": "γ = 1 with 8 jumps: nothing found; γ = 0.5: less than a tenth",
    "condition": "no condition instead of the image's class: far fewer found; all ten classes tried: a few percent fewer",
    "quality": "Fréchet distance marked − unmarked within two standard errors, at one and at eight jumps",
    "one nonce": "Fréchet distance more than half as large again; diversity in a class about 0.6 of it, as |ε| alone has 36 % of "
    "the variance; recall halved",
}
EDITS = (
    "inpainting of the middle quarter",
    "inpainting of the lower half",
    "stroke, σ = 0.3, γ = 1",
    "stroke, σ = 1, γ = 1",
    "enlarging from half the size",
    "denoising, σ = 0.1",
    "variation, amount 0.3",
    "interpolation, half of the way",
)
PREDICTED_EDITS = {  # of marked images of one jump and of eight that are then edited, in the order of EDITS
    "said": "before any edit was measured",
    "digits/1": [0.05, 0.0, 0.03, 0.0, 0.0, 0.6, 0.3, 0.05],
    "digits/8": [0.05, 0.0, 0.03, 0.0, 0.0, 0.7, 0.4, 0.05],
    "fashion-mnist/1": [0.4, 0.1, 0.3, 0.01, 0.4, 0.85, 0.7, 0.4],
    "fashion-mnist/8": [0.6, 0.15, 0.5, 0.01, 0.45, 0.95, 1.0, 0.95],
}


def jpeg(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(pixels: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "jpeg", quality=quality)
        return np.asarray(Image.open(file))

    return change


def halved(pixels: np.ndarray) -> np.ndarray:
    """Down to half the side and up again, bicubic."""
    side = pixels.shape[0]
    small = Image.fromarray(pixels).resize((side // 2, side // 2), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def cropped(pixels: np.ndarray) -> np.ndarray:
    """The middle 90 % of the side, resized to the whole side, bicubic."""
    side = pixels.shape[0]
    edge = 0.05 * side
    whole = Image.fromarray(pixels)
    return np.asarray(whole.resize((side, side), Image.Resampling.BICUBIC, (edge, edge, side - edge, side - edge)))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda pixels: pixels,
    "JPEG 90": jpeg(90),
    "JPEG 75": jpeg(75),
    "half the size and back": halved,
    "crop to 90 %": cropped,
}
NOISE = "noise 0.05"


def changed(images: Tensor, name: str) -> Tensor:
    """Images as a picture file holds them, then changed."""
    if name == NOISE:
        drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(SEED))
        return as_saved(as_saved(images) + 0.05 * drawn)
    found = [CHANGES[name](pixels[..., 0]) for pixels in to_uint8(images).numpy()]
    return to_model_range(torch.from_numpy(np.stack(found))[..., None])


def nonces(count: int, purpose: str) -> list[bytes]:
    return [hashlib.sha256(f"{purpose} {i}".encode()).digest()[:16] for i in range(count)]


@dataclass
class Measurement:
    """One model, and where results go."""

    name: str
    results: Results
    images: int

    def __post_init__(self) -> None:
        path, self.data, self.features = MODELS[self.name]
        self.model = load_model(ROOT / path)

    def marked(self, count: int, steps: int, gamma: float = 0.0, watermark: object = "own", seed: int = SEED) -> Tensor:
        """count images of the classes in turn; watermark: "own", None, or a nonce that all share."""
        mark = (KEY, nonces(count, f"{self.name} {seed}")) if watermark == "own" else watermark
        labels = torch.arange(count) % self.model.num_classes
        grid = karras_grid(steps, self.model.sigma_min, self.model.sigma_max)
        options = {"grid": grid, "gamma": gamma, "seed": seed, "batch_size": 200, "watermark": mark}
        return generate(self.model, count, condition=labels, **options)

    def way_back(self, images: Tensor, labels: Tensor | None, level: float | None = 0.3) -> Tensor:
        """z of images whose classes are labels; None: no condition."""
        z = images.flatten(1).clone()
        for label in [None] if labels is None else labels.unique().tolist():
            chosen = torch.ones(len(images), dtype=torch.bool) if label is None else labels == label
            z[chosen] = inverted(self.model, images[chosen], label, level=level)
        return z

    def matches(self, z: Tensor, share: float = 0.25, tried: int = 1) -> tuple[list[int], int]:
        """Matches of each image with its own nonce, among so many bits."""
        own = nonces(len(z), f"{self.name} {SEED}")
        found = [match_counts(z[i, None], KEY, [own[i]], share=share, tried=tried) for i in range(len(z))]
        return [int(counts) for counts, _ in found], found[0][1]

    def add(self, part: str, make: Callable[[], dict]) -> None:
        name = f"{self.name}/{part}"
        if name not in self.results.entries:
            print(name, flush=True)
            self.results.add(name, make())

    def rates(self, z: Tensor, share: float = 0.25) -> dict:
        counts, bits = self.matches(z, share)
        found = {}
        for tried in CANDIDATES:
            own, of = self.matches(z, share, tried)
            found[str(tried)] = sum(count >= least_matches(of, RATE / tried) for count in own) / len(own)
        mean = sum(counts) / len(counts) / bits
        return {"images": len(counts), "bits": bits, "matching": mean, "found": found, "matches": counts}

    def true_positives(self) -> None:
        labels = torch.arange(self.images) % self.model.num_classes
        for steps in (1, 8):
            for change in (*CHANGES, NOISE):
                self.add(
                    f"true/{steps}/{change}",
                    lambda s=steps, c=change: self.rates(
                        self.way_back(changed(self.marked(self.images, s), c), labels)
                    ),
                )
            self.add(
                f"true/{steps}/none, no condition given",
                lambda s=steps: self.rates(self.way_back(as_saved(self.marked(self.images, s)), None)),
            )
        for gamma in (0.5, 1.0):
            self.add(
                f"true/8/none, γ = {gamma:g}",
                lambda g=gamma: self.rates(self.way_back(as_saved(self.marked(self.images, 8, g)), labels)),
            )

    def every_condition(self) -> None:
        """All classes tried with each image: ten comparisons."""
        for steps in (1, 8):
            self.add(f"conditions/{steps}", lambda s=steps: self._every_condition(s))

    def _every_condition(self, steps: int) -> dict:
        count = min(100, self.images)
        images = as_saved(self.marked(count, steps))
        classes = self.model.num_classes
        tried = [self.matches(self.way_back(images, torch.full((count,), k)), tried=classes) for k in range(classes)]
        most = [max(each) for each in zip(*(counts for counts, _ in tried), strict=True)]
        right = [tried[i % len(tried)][0][i] for i in range(count)]
        limit = least_matches(tried[0][1], RATE / len(tried))
        return {
            "images": count,
            "tried": len(tried),
            "found": sum(m >= limit for m in most) / count,
            "own class fits best": sum(m == r for m, r in zip(most, right, strict=True)) / count,
        }

    def guidance(self) -> None:
        """Images of classifier-free guidance, found by the flow of the plain model and of the guided one."""
        for steps in (1, 8):
            for scale in (2.0, 4.0):
                self.add(f"guidance/{steps}/{scale:g}", lambda s=steps, w=scale: self._guidance(s, w))

    def _guidance(self, steps: int, scale: float) -> dict:
        count, plain = min(100, self.images), self.model
        labels = torch.arange(count) % plain.num_classes
        try:
            self.model = at_scale(plain, scale)
            images = as_saved(self.marked(count, steps))
            guided = self.rates(self.way_back(images, labels))
        finally:
            self.model = plain
        return {"plain": self.rates(self.way_back(images, labels)), "guided": guided}

    def edits(self) -> None:
        """Marked images, saved and then edited as `ctm edit` does with its usual options: whether their own nonce is still
        found in the saved result."""
        for steps in (1, 8):
            for kind in EDITS:
                self.add(f"edits/{steps}/{kind}", lambda s=steps, k=kind: self._edits(s, k))

    def _edits(self, steps: int, kind: str) -> dict:
        count = min({"digits": 200, "fashion-mnist": 100}[self.name], self.images)
        labels = torch.arange(count) % self.model.num_classes
        edited = self.edited(as_saved(self.marked(count, steps)), labels, kind)
        return self.rates(self.way_back(as_saved(edited), labels))

    def edited(self, images: Tensor, labels: Tensor, kind: str) -> Tensor:
        """Images of these classes after an edit. An interpolation goes from each image to the next one of its class."""
        model, side = self.model, self.model.shape[-1]
        options = {"condition": labels, "seed": SEED + 1}
        if kind.startswith("inpainting"):
            fill = torch.zeros(model.shape, dtype=torch.bool)
            fill[:, side // 4 : side - side // 4, side // 4 : side - side // 4] = True
            if kind.endswith("half"):
                fill[:], fill[:, side // 2 :] = False, True
            return self._solved(images, editing.masking(~fill), options)
        if kind.startswith("enlarging"):
            return self._solved(images, editing.averaging((side, side), (side // 2, side // 2)), options)
        if kind.startswith("stroke"):
            sigma = 0.3 if "0.3" in kind else 1.0
            return editing.stroke(model, images, sigma, steps=8, gamma_share=1.0, **options)
        if kind.startswith("denoising"):
            return editing.denoise(model, images, 0.1, labels)
        return self._along_the_flow(images, labels, kind)

    def _along_the_flow(self, images: Tensor, labels: Tensor, kind: str) -> Tensor:
        """What `editing.variations` and `editing.interpolate` make between pictures of one class, for many images at once."""
        fine = {"rtol": 1e-3, "atol": 1e-3}
        z = encode(self.model, images, labels, **fine)
        if kind.startswith("variation"):
            angle = torch.tensor(0.3 * torch.pi / 2)
            other = torch.randn(z.shape, generator=torch.Generator().manual_seed(SEED + 1))
            return decode(self.model, angle.cos() * z + angle.sin() * other, labels, **fine)
        other = z.roll(-self.model.num_classes, 0)
        return decode(self.model, editing.spherical(z, other, torch.full((len(z),), 0.5)), labels, **fine)

    def _solved(self, images: Tensor, operator: editing.LinearOperator, options: dict) -> Tensor:
        known = operator.A(images)
        made = editing.replace(self.model, operator, known, steps=18, rounds=2, **options)
        return editing.into_range(made, operator, known)

    def levels(self) -> None:
        """The level that pictures are taken to have, and the share of coordinates that are counted."""
        count = min(200, self.images)
        labels = torch.arange(count) % self.model.num_classes
        for steps in (1, 8):
            for change in ("none", "JPEG 75"):
                for level in (self.model.sigma_min, 0.1, 0.3, 1.0):
                    self.add(
                        f"levels/{steps}/{change}/{level:g}",
                        lambda s=steps, c=change, at=level: self._level(
                            self.way_back(changed(self.marked(count, s), c), labels, at)
                        ),
                    )

    def _level(self, z: Tensor) -> dict:
        return {str(share): {**self.rates(z, share), "matches": None} for share in (1.0, 0.5, 0.25, 0.125)}

    def false_positives(self) -> None:
        for kind in ("generated", "real"):
            self.add(f"false/{kind}", lambda k=kind: self._false(k))

    def _false(self, kind: str, keys: int = 1000) -> dict:
        """Each of 500 images compared with 1,000 keys of its own."""
        count = 500
        if kind == "real":
            images = load_images(self.data, split="test")
            chosen = np.random.default_rng(SEED).permutation(len(images))[:count]
            x, labels = to_model_range(torch.from_numpy(images.pixels[chosen])), torch.from_numpy(images.labels[chosen])
        else:
            halves = [self.marked(count // 2, steps, watermark=None, seed=SEED + steps) for steps in (1, 8)]
            x, labels = as_saved(torch.cat(halves)), torch.arange(count // 2).repeat(2) % self.model.num_classes
        z = self.way_back(x, labels)
        first = [hashlib.sha256(f"{self.name} {kind} {i} 0".encode()).digest() for i in range(count)]
        bits = match_counts(z[:1], first[0], [b"0"])[1]
        seen = torch.zeros(bits + 1, dtype=torch.int64)
        for i in range(count):  # as match_counts, but for many keys at once
            own = [hashlib.sha256(f"{self.name} {kind} {i} {j}".encode()).digest() for j in range(keys)]
            largest = z[i].abs().topk(bits).indices
            drawn = torch.stack([signs(key, b"0", z.shape[1]) for key in own])[:, largest]
            counts = (drawn == torch.where(z[i] < 0, -1, 1)[largest]).sum(1)
            assert int(counts[0]) == int(match_counts(z[i, None], first[i], [b"0"])[0])
            seen += counts.bincount(minlength=bits + 1)
        tests, limit = count * keys, least_matches(bits, RATE)
        return {
            "images": count,
            "keys": keys,
            "bits": bits,
            "least": limit,
            "found": int(seen[limit:].sum()),
            "expected": tests * binomial_tail(limit, bits),
            "chi_square_p": chi_square(seen, bits),
            "histogram": seen.tolist(),
        }

    def quality(self) -> None:
        sets = range(10 if self.name == "digits" else 3)
        marks = ("unmarked", "marked", "one nonce")
        cells = [(s, mark, SEED + n) for n in sets for s in (1, 8) for mark in marks if n < 3 or mark != "one nonce"]
        left = [cell for cell in cells if "{}/quality/{}/{}/{}".format(self.name, *cell) not in self.results.entries]
        if not left:
            return
        real = load_images(self.data, split="test")
        chosen = np.sort(np.random.default_rng(SEED).permutation(len(real))[:REAL])
        real = replace(real, pixels=real.pixels[chosen], labels=real.labels[chosen])
        judge = judge_of(real, features=self.features, images=SETS[self.name])
        for cell in left:
            self.add("quality/{}/{}/{}".format(*cell), lambda c=cell: self._quality(judge, *c))

    def _quality(self, judge: object, steps: int, mark: str, seed: int) -> dict:
        labels = labels_of(judge, self.model, seed)
        own = {
            "unmarked": None,
            "marked": (KEY, nonces(judge.images, f"quality {seed}")),
            "one nonce": (KEY, nonces(1, f"quality {seed}")[0]),
        }[mark]
        grid = karras_grid(steps, self.model.sigma_min, self.model.sigma_max)
        options = {"grid": grid, "seed": seed, "batch_size": 250, "watermark": own}
        x = generate(self.model, judge.images, condition=labels, **options)
        images = Images(to_uint8(x).numpy(), labels.numpy(), list(self.model.class_names), f"{mark} {seed}")
        with tempfile.TemporaryDirectory() as place:
            row = evaluate_images(judge, images, mark, Path(place))
        return {name: [number.value, number.error] for name, number in row.numbers.items()} | {"images": judge.images}


def chi_square(seen: Tensor, bits: int) -> float:
    """The p-value of counts against Binomial(bits, ½), bins of fewer than 20 expected joined to the ends."""
    from scipy import stats

    expected = seen.sum().item() * stats.binom.pmf(np.arange(bits + 1), bits, 0.5)
    inner = np.flatnonzero(expected >= 20)
    low, high = inner[0], inner[-1]

    def joined(values: np.ndarray) -> np.ndarray:
        ends = values[: low + 1].sum(), values[high:].sum()
        return np.array([ends[0], *values[low + 1 : high], ends[1]])

    return float(stats.chisquare(joined(seen.numpy()), joined(expected)).pvalue)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("false_positives", "true_positives", "every_condition", "levels", "quality", "guidance", "edits")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench" / "watermark.json")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--images", type=int, default=400, help="marked images of each rate of true positives")
    parser.add_argument("--only", nargs="+", default=parts, choices=parts)
    settings = parser.parse_args()
    results = Results(settings.out, go_on=True)
    if "predicted" not in results.entries:
        results.add("predicted", PREDICTED)
    if "predicted of edits" not in results.entries:
        results.add("predicted of edits", PREDICTED_EDITS)
    for part in settings.only:
        for name in settings.models:
            getattr(Measurement(name, results, settings.images), part)()


if __name__ == "__main__":
    main()
