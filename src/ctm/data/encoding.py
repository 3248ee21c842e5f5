"""Pictures encoded once into a directory of latents, with the autoencoder that decodes what is learned from them."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ctm.data.digest import digest_of
from ctm.data.images import Images
from ctm.data.latent_files import FIELD, latents_file
from ctm.data.latents import FILE, Texts, text_arrays
from ctm.files import write_whole
from ctm.foreign.text import read_json
from ctm.lock import place_locked
from ctm.models.pipeline import Pipeline
from ctm.progress import JobBar
from ctm.sampling import starting_noise
from ctm.teachers.diffusers_latents import Autoencoder
from ctm.teachers.pipelines import autoencoder_in

__all__ = ["Encoding"]

_VERSION = 1  # of the numbers: another begins anew
_PROGRESS = "progress.json"
_SECONDS = 5.0  # between two notes of how far it is


@dataclass(frozen=True)
class Encoding:
    """How pictures become a directory of latents.

    pipeline: with the autoencoder, and with the text encoder where there are texts; its folders are copied beside the latents.
    texts: of the pictures, embedded. seed: None: a latent is the mean of the encoder's distribution; else a draw from it, whose
    noise is from (seed, i) for picture i. batch_size: pictures encoded at once. about: what a record says besides."""

    images: Images
    pipeline: Pipeline
    texts: Texts | None = None
    seed: int | None = None
    batch_size: int = 16
    device: torch.device | str = "cpu"
    about: Mapping[str, object] | None = None

    def write(self, out: Path) -> tuple[int, ...]:
        """Write `out`, whole or not at all, and return the latents' shape (N, c, h, w). What is begun is kept in a hidden
        directory beside it, from which the same call goes on.

        Raises ValueError for pictures that the autoencoder does not take and for latents that are not finite, DirectoryInUse
        where another process writes there, OSError where the disk is full."""
        autoencoder = autoencoder_in(self.pipeline)
        shape = (len(self.images), *autoencoder.latent_shape(self.images.shape))
        partial = out.absolute().with_name(f".{out.name}.encoding")
        with place_locked(out):
            key = self._key()
            done = _rows_done(partial, key)
            if done is None:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            try:
                if done is None:
                    self.pipeline.copy_to(partial)
                latents = self._file(partial, shape, autoencoder, go_on=done is not None)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            self._fill(latents, autoencoder.to(self.device), partial / _PROGRESS, key, done or 0)
            (partial / _PROGRESS).unlink()
            if out.is_dir():  # an empty one
                out.rmdir()
            partial.rename(out)
        return shape

    def _key(self) -> str:
        """A digest of all that decides the bytes of the file: the latents, what is beside them, and the record."""
        parts = [self.pipeline.digest(folder) for folder in self.pipeline.components if folder != "tokenizer"]
        texts = [] if self.texts is None else [hashlib.sha256(self.texts.numbers.tobytes()).hexdigest()]
        if self.texts is not None:
            texts.append(hashlib.sha256(np.ascontiguousarray(self.texts.table).data).hexdigest())
        record = [list(self.pipeline.components), self.images.source, dict(self.about or {})]
        of = [_VERSION, parts, digest_of(self.images).value, texts, self.seed, record]
        return hashlib.sha256(json.dumps(of).encode()).hexdigest()

    def _file(self, place: Path, shape: tuple[int, ...], autoencoder: Autoencoder, *, go_on: bool) -> np.memmap:
        images = self.images
        beside = text_arrays(self.texts) | {f"{FIELD}{name}": values for name, values in images.fields.items()}
        if images.labels is not None:
            beside["labels"] = images.labels.astype(np.int64)
        folder = str(self.pipeline.autoencoder)
        about = {
            "made_of": images.source,
            "pictures": list(images.shape),
            "posterior": "mean" if self.seed is None else f"a draw with seed {self.seed}",
            "autoencoder": {
                "sha256": self.pipeline.digest(folder),
                "scaling_factor": autoencoder.scaling,
                "shift_factor": autoencoder.shift,
            },
            **(self.about or {}),
        }
        kept = {"class_names": images.class_names, "about": about, "pipeline": self.pipeline, "go_on": go_on}
        return latents_file(place / FILE, shape, beside, **kept)  # type: ignore[arg-type]

    def _fill(self, latents: np.memmap, autoencoder: Autoencoder, progress: Path, key: str, done: int) -> None:
        count, noted = len(latents), time.monotonic()

        def note() -> None:
            latents.flush()
            write_whole(progress, json.dumps({"key": key, "rows": done}).encode())

        try:
            with JobBar("encoding pictures", count, done, unit="pictures") as bar:
                note()
                while done < count:
                    numbers = np.arange(done, min(done + self.batch_size, count))
                    latents[numbers[0] : numbers[-1] + 1] = self._encoded(autoencoder, numbers, latents.shape[1:])
                    done += len(numbers)
                    bar.reach(done)
                    if time.monotonic() - noted > _SECONDS:
                        note()
                        noted = time.monotonic()
                bar.finish()
        finally:
            with suppress(OSError):  # a disk that refuses has its own error already
                note()

    def _encoded(self, autoencoder: Autoencoder, numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        pictures, _ = self.images.batch(numbers)
        noise = None if self.seed is None else starting_noise(shape, numbers.tolist(), self.seed).to(self.device)
        found = autoencoder.encode(pictures.to(self.device), noise).cpu()
        if not bool(found.isfinite().all()):
            row = int((~found.isfinite().flatten(1).all(1)).nonzero()[0])
            raise ValueError(
                f"the latent of picture {numbers[row]} is not finite: look at the autoencoder's weights and at that picture"
            )
        return found.numpy()


def _rows_done(partial: Path, key: str) -> int | None:
    """How many pictures an earlier call with the same key has encoded, None where there was none."""
    try:
        found = read_json(partial / _PROGRESS)
    except (OSError, ValueError):
        return None
    same = isinstance(found, dict) and found.get("key") == key and isinstance(found.get("rows"), int)
    return int(found["rows"]) if same and (partial / FILE).is_file() else None
