"""What --policy adds to a command that makes pictures: admission before, the filters and the provenance after, and a record of it
all in --state."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jsonargparse import Namespace
from PIL import Image
from torch import Tensor

from ctm.commands.marked import Marker, Tells, composed_claim
from ctm.commands.output import sample_grid, write_record
from ctm.data.files import open_picture
from ctm.data.resize import normal_mode
from ctm.files import suffix_of, whole_file, write_whole
from ctm.foreign.text import JSONObject, read_json
from ctm.models import AnyModel
from ctm.pictures import to_uint8
from ctm.safety.extra import installed
from ctm.serve.signing import Signing
from ctm.terminal.parser import Parser

if TYPE_CHECKING:
    from ctm.safety import Screen, State

__all__ = ["Gate", "add_policy_options", "gate", "png_bytes", "write_screened"]

_WITHHELD = "withheld.json"
_LONGEST = 16 << 20  # bytes of it
_STATE = "runs/serve"


def add_policy_options(parser: Parser) -> None:
    """Add --policy and --state, for `gate`."""
    words = "a policy (YAML): what it forbids is refused, and what its filters hold or block is not written"
    parser.add_argument("--policy", type=str, default=None, help=words)
    words = f"with --policy: directory of the keys, the record and held pictures, for ctm moderate (default: {_STATE})"
    parser.add_argument("--state", type=str, default=None, help=words)


@contextmanager
def gate(settings: Namespace, what: str) -> Iterator[Gate | None]:
    """The gate that --policy asks for, None without it. what: the command, for the record. Raises ValueError for --state alone,
    and for a policy or state that cannot be used."""
    if settings.policy is None:
        if settings.state is not None:
            raise ValueError(
                f"--state {settings.state} belongs to --policy FILE, which is not given: leave it out, or give both"
            )
        yield None
        return
    with installed():
        from ctm.safety import State

    state = State.open(Path(settings.state or _STATE), Path(settings.policy))
    try:
        screen = state.screen()
        marker = Marker(Signing.load_or_create(state.folder / "keys"), state.watermark_key())
        state.begin(what, screen)
        yield Gate(state, screen, marker)
    finally:
        state.store.close()


class Gate:
    """Lets pictures through that the policy passes, and keeps a record of each. marker: of what it lets through. withheld: what
    was held or blocked so far, by the picture's number."""

    def __init__(self, state: State, screen: Screen, marker: Marker) -> None:
        self._state, self._screen, self.marker = state, screen, marker
        self.withheld: dict[int, dict[str, str]] = {}
        self._passed: dict[int, str] = {}
        self._unseen: Counter[str] = Counter()

    @property
    def policy_digest(self) -> str:
        """SHA-256 of the policy's settings."""
        return self._state.policy.digest

    def admit(
        self,
        model: AnyModel,
        name: str,
        num: int,
        labels: Iterable[int],
        conditions: Iterable[str] = (),
        upload: bool = False,
        guidance: float | None = None,
        drawn: bool = False,
    ) -> None:
        """Return if the policy allows what is asked for. name: of the model as it was given; labels: −1 or none for no class;
        drawn: whether nobody named them. Raises `ctm.safety.Refused`, a ValueError, otherwise."""
        from ctm.safety import Ask
        from ctm.safety.admission import LOCAL

        about: dict[str, Any] = {"classes": model.num_classes, "class_names": tuple(model.class_names)}
        about["labels"] = tuple(labels)
        about |= {"conditions": tuple(conditions), "upload": upload, "guidance": guidance, "drawn": drawn}
        self._state.policy.admit(Ask(name, num, key=LOCAL, **about))

    def check_upload(self, file: str) -> None:
        """Return if the filters pass a picture file that is to be edited. Raises ValueError otherwise, and notes it in the
        record, without the picture."""
        picture = normal_mode(open_picture(Path(file)).image, colour=True)
        verdict = self._screen.images([np.asarray(picture)], upload=True)[0]
        if verdict.decision != "pass":
            digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
            self._state.store.note("upload refused", {"sha256": digest, "verdict": asdict(verdict)})
            raise ValueError(f"the policy does not let {file} be used ({verdict.reason}): take another picture")

    def judge(
        self,
        images: Tensor,
        numbers: Sequence[int],
        tell: Tells,
        sources: Mapping[str, bytes] | None = None,
    ) -> list[bytes | None]:
        """PNG files of the images (B, C, H, W) in [−1, 1] that may leave, with text and manifest, None for the others. All of
        them are in the record, and held ones in the queue, before this returns.

        tell: the claim of each number. sources: of an edit, the files of the pictures that it was made from, by title."""
        from ctm.safety import Picture
        from ctm.safety.pictures import new_id

        pixels = to_uint8(images).numpy()
        verdicts = self._screen.images([_colour(each) for each in pixels])
        made = []
        for each, number, verdict in zip(pixels, numbers, verdicts, strict=True):
            id = new_id()
            claim, png = {**tell(number), "record": id}, png_bytes(each)
            if verdict.decision != "block":  # what is blocked never leaves, and is not signed
                png = self.marker.sign(png, claim, sources)
            made.append(Picture(id, png, claim, verdict))
        self._state.store.serve(made)
        for number, picture in zip(numbers, made, strict=True):
            if picture.verdict.unseen and picture.verdict.decision == "pass":
                self._unseen[picture.verdict.reason] += 1
            if picture.verdict.decision == "pass":
                self._passed[number] = picture.id
            else:
                about = {"id": picture.id, "state": picture.state, "reason": picture.verdict.reason}
                self.withheld[number] = about
        return [picture.png if picture.verdict.decision == "pass" else None for picture in made]

    def composed(
        self, picture: Image.Image, claim: dict[str, Any], sources: Mapping[str, bytes] | None = None
    ) -> bytes:
        """The PNG file of one picture that shows what was judged and passed, with text and manifest. The record has its hash
        and the ids of what it shows, before this returns. claim: see `composed_claim`."""
        from ctm.safety.pictures import new_id

        claim = {**claim, "record": new_id()}
        png = self.marker.sign(png_bytes(np.asarray(picture)), claim, sources)
        shows = [self._passed[number] for number in sorted(self._passed)]
        about = {"sha256": hashlib.sha256(png).hexdigest(), "bytes": len(png), "claim": claim, "shows": shows}
        self._state.store.note("composed", about)
        return png

    def recall(self, out: Path) -> None:
        """Take up what an earlier run withheld from a directory. Raises ValueError for a damaged file of it."""
        if suffix_of(out) == ".png" or not (out / _WITHHELD).exists():
            return
        kept = read_json(out / _WITHHELD, _LONGEST)
        fits = isinstance(kept, dict) and all(n.isdecimal() and isinstance(each, dict) for n, each in kept.items())
        if not fits:
            raise ValueError(f"{out / _WITHHELD} does not say what was withheld: use another directory")
        self.withheld = {int(number): each for number, each in kept.items()}

    def lines(self) -> list[str]:
        """What was passed without being judged, and what was withheld, in a line for each state: how many, and which numbers are
        missing."""
        told = [f"{count} {reason}" for reason, count in self._unseen.items()]
        for state, more in (("held", f": ctm moderate list --state {self._state.folder} shows them"), ("blocked", "")):
            numbers = sorted(number for number, each in self.withheld.items() if each.get("state") == state)
            if numbers:
                told.append(f"{len(numbers)} {state} by the policy and not written, {_listed(numbers)}{more}")
        return told

    def keep(self, out: Path) -> None:
        """Write what was withheld into the directory, for `recall`."""
        if self.withheld:
            kept = {str(number): each for number, each in sorted(self.withheld.items())}
            write_whole(out / _WITHHELD, (json.dumps(kept, indent=2) + "\n").encode())


def write_screened(
    gate: Gate,
    out: Path,
    batches: Iterable[Tensor],
    about: JSONObject,
    tell: Tells,
    start: int,
    columns: int | Literal["class"] | None,
) -> None:
    """Write the samples from number `start` on as `write_samples` does, into a directory or one picture, without those that are
    withheld: their numbers are missing, and their cells empty. tell: the claim of each."""
    if suffix_of(out) == ".png":
        _write_one(gate, out, batches, about, tell, columns)
        return
    write_record(out, about)
    for batch in batches:
        _write_batch(gate, out, batch, tell, start)
        start += len(batch)


def _write_one(
    gate: Gate,
    out: Path,
    batches: Iterable[Tensor],
    about: JSONObject,
    tell: Tells,
    columns: int | Literal["class"] | None,
) -> None:
    """Write one picture of all samples that pass; nothing where none does."""
    images: list[Tensor] = []
    count = 0
    for batch in batches:
        gate.judge(batch, range(count, count + len(batch)), tell)
        images.append(batch)
        count += len(batch)
    shown = [number for number in range(count) if number not in gate.withheld]
    if shown:
        picture = sample_grid(torch.cat(images), about["labels"] or [], columns, gate.withheld)
        claim = composed_claim(tell(shown[0]), "grid", shown, about["seed"])
        write_whole(out, gate.composed(picture, claim))


def _write_batch(gate: Gate, out: Path, batch: Tensor, tell: Tells, start: int) -> None:
    """Write the files of one batch. A picture that is there, and one that an earlier run withheld, is not judged again."""
    numbers = range(start, start + len(batch))
    new = [number for number in numbers if number not in gate.withheld and not _is_there(_path(out, number))]
    files = gate.judge(batch[[number - start for number in new]], new, tell) if new else []
    gate.keep(out)
    for number, content in zip(new, files, strict=True):
        if content is not None:
            with whole_file(_path(out, number)) as temporary:
                temporary.write_bytes(content)


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG file of a picture uint8 (H, W), or (H, W, 1 or 3): the same bytes that `save_picture` writes."""
    file = io.BytesIO()
    flat = pixels.squeeze(-1) if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    Image.fromarray(flat).save(file, format="png")
    return file.getvalue()


def _colour(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _path(out: Path, number: int) -> Path:
    return out / f"{number:06d}.png"


def _is_there(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _listed(numbers: list[int], most: int = 12) -> str:
    shown = ("number " if len(numbers) == 1 else "numbers ") + ", ".join(map(str, numbers[:most]))
    return shown if len(numbers) <= most else f"{shown} and {len(numbers) - most} more"
