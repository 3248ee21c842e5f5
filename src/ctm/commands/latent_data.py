"""What `ctm distill` trains on where the teacher denoises latents, takes a text, or makes pictures that are not square: encoded
once, kept in the run, judged as pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from torch import Tensor

from ctm.commands.prompts import embedded_captions
from ctm.conditions import Condition
from ctm.data import Images, load_images
from ctm.data.arrays import load_npz
from ctm.data.captions import load_captions
from ctm.data.digest import digest_of
from ctm.data.latent_files import latents_file
from ctm.data.latents import Latents, Texts, load_latents, text_arrays, text_fields
from ctm.distill.record import Record, file_digest
from ctm.files import suffix_of, whole_file
from ctm.foreign.prompts import read_prompts
from ctm.models import AnyModel
from ctm.noise import karras_grid, to_zero
from ctm.pictures import check_numbers, to_uint8
from ctm.progress import tracked
from ctm.sampling import heun
from ctm.sampling.generation import stream
from ctm.teachers.pipelines import autoencoder_of, decoded, encoded, picture_shape, takes_text
from ctm.terminal.options import data_options

__all__ = ["LATENTS", "LatentData", "needs_latents"]

LATENTS = Path("data") / "latents.safetensors"
_BATCH, _LEVELS = 64, 18
_JUDGED = 5000  # of the teacher's own samples, as pictures in memory


def needs_latents(teacher: AnyModel) -> bool:
    """Whether a teacher's data are kept as arrays of floats: latents, samples with a text, pictures that are not square."""
    oblong = len(teacher.shape) == 3 and teacher.shape[0] in (1, 3) and teacher.shape[1] != teacher.shape[2]
    return oblong or autoencoder_of(teacher) is not None or takes_text(teacher)


class LatentData:
    """The data of one call of `ctm distill`. settings: of the command. out: the run's directory.

    Raises ValueError for a teacher whose samples are no pictures of 1 or 3 channels once they are decoded, for prompts and data
    given together, and for a text that nobody gives."""

    def __init__(self, settings: Namespace, teacher: AnyModel, out: Path) -> None:
        self.settings, self.teacher, self.file = settings, teacher, out / LATENTS
        self.shape = picture_shape(teacher)
        if len(self.shape) != 3 or self.shape[0] not in (1, 3):
            raise ValueError(
                f"the teacher's samples are {tuple(teacher.shape)} and no pictures of 1 or 3 channels, and no AutoencoderKL is "
                "beside it that decodes them: give the whole pipeline's directory"
            )
        self.prompts: list[str] = []
        text, file = takes_text(teacher), settings["prompts"]
        if file is not None:
            if not text:
                raise ValueError(f"--prompts {file}: the teacher takes no text, leave it out")
            if settings.data is not None:
                raise ValueError("--prompts is for the teacher's own samples, and --data gives pictures with captions")
            self.prompts = read_prompts(Path(file))
        if text and settings.data is None and not self.prompts:
            raise ValueError(
                "the teacher takes a text: give --data with captions, or --prompts FILE with a prompt in each line, for which it "
                "then makes its own samples"
            )
        if not text and settings["caption"] is not None:
            raise ValueError(f"--caption {settings['caption']}: the teacher takes no text, leave it out")

    @property
    def given(self) -> bool:
        """Whether the data are the user's."""
        return self.settings.data is not None

    @cached_property
    def loaded(self) -> Images:
        """The user's pictures in the size of what the teacher's samples stand for, with their labels."""
        options, name = data_options(self.settings) | {"condition": None}, self.settings.data
        channels, height, width = self.shape
        if height == width:
            return load_images(name, height, channels, self.settings.split, **options)
        if suffix_of(Path(name)) != ".npz":
            raise ValueError(
                f"the teacher's pictures are {height}×{width}, and {name} is no .npz: pictures that are not square are "
                "taken from an .npz that has them in that size"
            )
        found = load_npz(Path(name), options["image"], options["label"], options["max_gb"])
        if found.shape != self.shape:
            raise ValueError(
                f"the teacher's pictures are {self.shape}, {name} has {found.shape}: bring them to that size"
            )
        return found

    @cached_property
    def captions(self) -> list[str] | None:
        """The captions of the user's pictures, None without them and for a teacher without a text."""
        if not self.given or not takes_text(self.teacher):
            return None
        return load_captions(self.settings.data, self.loaded, self.settings["caption"], self.settings.split)

    def images(self) -> Latents:
        """What the training takes: the kept file."""
        return load_latents(self.file)

    def pictures(self) -> Images:
        """What the table compares with: the user's pictures, or the teacher's samples decoded, with their texts."""
        kept = self.images()
        if self.given:
            return replace(self.loaded, fields=kept.fields)
        count = min(len(kept), _JUDGED)
        starts = range(0, count, _BATCH)
        chosen = (torch.from_numpy(kept.pixels[start : min(start + _BATCH, count)]) for start in starts)
        parts = [to_uint8(decoded(self.teacher, part)).numpy() for part in tracked(chosen, "decoding", len(starts))]
        labels = None if kept.labels is None else kept.labels[:count]
        source = "the teacher's samples"
        fields = {name: values[:count] for name, values in kept.fields.items()}
        return Images(np.concatenate(parts), labels, kept.class_names, source, source, (), fields)

    def few(self, ends: Tensor) -> Latents:
        """Some of the data in memory, for a dry run: the first pictures, or `ends`, samples of the teacher."""
        count = len(ends)
        if not self.given:
            return Latents(ends.numpy(), self._cycled_labels(count), [], "samples", "", (), self._fields(count))
        numbers = np.arange(count) % len(self.loaded)
        x = encoded(self.teacher, self.loaded.batch(numbers)[0]) if self._encodes else self.loaded.batch(numbers)[0]
        labels = None if self._labels is None else self._labels[numbers]
        fields = self._fields(count, numbers)
        return Latents(x.numpy(), labels, self._class_names, self.loaded.name, "", (), fields)

    def condition(self, count: int) -> Condition:
        """The condition of `count` samples that measure the teacher: of the first data, or the prompts and classes in turn."""
        numbers = np.arange(count) % len(self.loaded) if self.given else None
        fields: dict[str, Any] = self._fields(count, numbers)
        labels = self._cycled_labels(count) if numbers is None or self._labels is None else self._labels[numbers]
        return _condition(fields, labels)

    def keep(self, record: Record, num: int) -> None:
        """Make the file, or check that it and the data are still those that the record knows. num: of the teacher's own samples,
        where there are no data. Raises ValueError where they are others."""
        source = digest_of(self.loaded).value if self.given else None
        if "digest" in record.samples:
            self.check(record)
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if self.given:
            self._encode()
        else:
            self._sample(num, record.samples["seed"])
        record.samples |= {"digest": file_digest(self.file)} | ({} if source is None else {"of": source})

    def check(self, record: Record) -> None:
        """Raises ValueError where the kept file is gone or another one, or the user's data have changed."""
        if not self.file.is_file():
            raise ValueError(
                f"{self.file}, on which this run trains, is gone: put it back to go on, or use another --out"
            )
        of = record.samples.get("of")
        for what, then, now in (
            (str(self.file), record.samples.get("digest"), file_digest(self.file)),
            (str(self.settings.data), of, None if of is None else digest_of(self.loaded).value),
        ):
            if then != now:
                raise ValueError(
                    f"{what} has changed (digest {str(then)[:12]} then, {str(now)[:12]} now): put it back to go on, or use "
                    "another --out"
                )

    @property
    def _encodes(self) -> bool:
        return autoencoder_of(self.teacher) is not None

    @property
    def _labels(self) -> np.ndarray | None:
        return self.loaded.labels if self.teacher.num_classes else None

    @property
    def _class_names(self) -> list[str]:
        return self.loaded.class_names if self._labels is not None else []

    def _cycled_labels(self, count: int) -> np.ndarray | None:
        return np.arange(count) % self.teacher.num_classes if self.teacher.num_classes else None

    @cached_property
    def _texts(self) -> Texts | None:
        """The texts of all pictures, or of the prompts."""
        if not takes_text(self.teacher):
            return None
        return embedded_captions(self.teacher, self.prompts if self.captions is None else self.captions)

    def _rows_of_texts(self, count: int, numbers: np.ndarray | None = None) -> Texts | None:
        """The texts of `count` samples, of the pictures of those numbers, or of the prompts in turn."""
        texts = self._texts
        if texts is None:
            return None
        chosen = np.arange(count) % len(texts.numbers) if numbers is None else numbers
        return Texts(texts.table, texts.numbers[chosen])

    def _fields(self, count: int, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        texts = self._rows_of_texts(count, numbers)
        return {} if texts is None else text_fields(texts)

    def _encode(self) -> None:
        count, batches = len(self.loaded), range(0, len(self.loaded), _BATCH)

        def made() -> Iterator[Tensor]:
            for start in batches:
                x, _ = self.loaded.batch(np.arange(start, min(start + _BATCH, count)))
                yield encoded(self.teacher, x) if self._encodes else x

        about: dict[str, object] = {"made_of": self.loaded.source}
        texts = self._rows_of_texts(count, np.arange(count))
        self._write(tracked(made(), "encoding", len(batches)), count, texts, self._labels, self._class_names, about)

    def _sample(self, num: int, seed: int) -> None:
        """Samples by Heun's method with 35 evaluations, under the prompts and classes in turn."""
        labels, texts = self._cycled_labels(num), self._rows_of_texts(num)
        condition = _condition({} if texts is None else text_fields(texts), labels)
        grid = to_zero(karras_grid(_LEVELS - 1, self.teacher.sigma_min, self.teacher.sigma_max))

        def made() -> Iterator[Tensor]:
            options: dict[str, Any] = {"sampler": heun, "grid": grid, "seed": seed, "batch_size": _BATCH}
            yield from stream(self.teacher, num, condition=condition, **options)

        about: dict[str, object] = {"made_of": "samples of the teacher", "seed": seed, "prompts": self.prompts[:1000]}
        names = list(getattr(self.teacher, "class_names", []))
        self._write(tracked(made(), "samples of the teacher", -(-num // _BATCH)), num, texts, labels, names, about)

    def _write(
        self,
        batches: Iterable[Tensor],
        count: int,
        texts: Texts | None,
        labels: np.ndarray | None,
        names: list[str],
        about: dict[str, object],
    ) -> None:
        """Write the file batch by batch, whole or not at all."""
        beside, start = text_arrays(texts) | ({} if labels is None else {"labels": labels.astype(np.int64)}), 0
        with whole_file(self.file) as new:
            made = latents_file(new, (count, *self.teacher.shape), beside, class_names=names, about=about)
            for batch in batches:
                check_numbers(batch, range(start, start + len(batch)))
                made[start : start + len(batch)] = batch.numpy()
                start += len(batch)
            made.flush()


def _condition(fields: dict[str, Any], labels: np.ndarray | None) -> Condition:
    """A condition of fields (N, …), in memory, and labels (N,)."""
    given = {name: torch.from_numpy(np.ascontiguousarray(np.asarray(values))) for name, values in fields.items()}
    known = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    if not given:
        return known
    return given if known is None else {**given, "labels": known}
