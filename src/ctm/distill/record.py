"""distill.json: what was asked of `ctm distill`, of which teacher, and what it chose, so that the same command goes on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctm.distill.choices import Choice
from ctm.files import write_whole
from ctm.foreign.text import plain, read_json
from ctm.lock import LOCK
from ctm.training.run_directory import RunDirectory

__all__ = ["RECIPE", "RECORD", "Record", "check_out", "file_digest"]

RECORD, RECIPE = "distill.json", "recipe.yaml"


@dataclass
class Record:
    """asked: the options that decide the result. teacher: its name and digest. samples: of the teacher's own, where there are no
    data: num, seed, and once they are whole the file's digest. choices: none before the recipe is written. judged: samples of
    each row of the table."""

    asked: dict[str, Any]
    teacher: dict[str, str]
    samples: dict[str, Any] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    judged: int = 0

    def save(self, out: Path) -> None:
        write_whole(out / RECORD, (json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, out: Path) -> Record | None:
        """The record in a directory, None where there is none. Raises ValueError, naming the file, for one that is damaged."""
        file = out / RECORD
        try:
            kept = read_json(file)
            choices = [
                Choice(**{name: str(each[name]) for name in ("name", "value", "why")}) for each in kept["choices"]
            ]
            parts = {name: dict(kept[name]) for name in ("asked", "teacher", "samples")}
            return cls(**parts, choices=choices, judged=int(kept["judged"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is damaged ({plain(str(error), 100)}): restore it, or use another --out"
            ) from error

    def check(self, asked: dict[str, Any], teacher: dict[str, str], out: Path) -> None:
        """Raises ValueError, naming what differs, where a directory was begun with other options or of another teacher."""
        now = json.loads(json.dumps(asked))
        names = [name for name in sorted({*self.asked, *now}) if self.asked.get(name) != now.get(name)]
        if names:
            shown = "; ".join(f"{n}: {self.asked.get(n)!r} there, {now.get(n)!r} now" for n in names[:4])
            raise ValueError(
                f"{out} was begun with other options ({plain(shown, 300)}): repeat those to go on, or use another --out"
            )
        before = self.teacher.get("digest", "")
        if before != teacher["digest"]:
            raise ValueError(
                f"{out} was begun with another teacher than {teacher['name']} is now (digest {before[:12]} then, "
                f"{teacher['digest'][:12]} now): put that back to go on, or use another --out"
            )


def check_out(out: Path) -> None:
    """Raises ValueError where a directory holds what `ctm distill` did not begin: nothing of it may be written over."""
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    others = [name for name in names if name != LOCK and not name.endswith(".writing")]
    if others and RECORD not in others:
        raise ValueError(
            f"{out} is there and holds {plain(others[0])}, which ctm distill did not write: use another --out, or name the run "
            "that it is to go on with"
        )
    RunDirectory(out).check_free()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
