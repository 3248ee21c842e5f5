"""The files of an evaluation: result.json, and report.html, which holds everything."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch

from ctm.evaluation import figures
from ctm.evaluation.form import check_result
from ctm.evaluation.frechet import too_few
from ctm.evaluation.measure import METRICS
from ctm.evaluation.plans import title_of
from ctm.evaluation.reference import Reference
from ctm.evaluation.rows import Row
from ctm.files import write_whole
from ctm.foreign.text import JSONObject, read_json

__all__ = ["Frame", "notes_on", "page", "read_result", "write_result"]

_LONGEST = 64 << 20  # bytes of a result.json

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
h1 { line-height: 1.2; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
td { white-space: nowrap; } th, td { padding: .3rem .55rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, .record td { text-align: left; } .record td { white-space: normal; }
figure { margin: 2rem 0; } figcaption { color: #444; } .scroll { overflow-x: auto; }
</style></head><body>
<h1>$title</h1>
<p>$lead</p>
<div class="scroll">$table</div>
<p>$notes</p>
$figures
<h2>Protocol</h2>
<div class="scroll record">$record</div>
</body></html>
""")


@dataclass(frozen=True)
class Frame:
    """What a caller puts around the numbers: the report's title, its first paragraph, notes after those on the numbers, more
    pictures (caption, PNG) behind the evaluation's, and more entries of result.json."""

    title: str
    lead: str
    notes: str = ""
    pictures: Sequence[tuple[str, bytes]] = ()
    entries: Mapping[str, Any] = field(default_factory=dict)


def write_result(
    out: Path,
    protocol: JSONObject,
    environment: Mapping[str, object],
    reference: Reference,
    rows: Sequence[Row],
    frame: Frame | None = None,
) -> dict[str, object]:
    """Write result.json, quality.png, samples.png and report.html to `out`; returns what result.json holds. frame: None for
    the names of what was evaluated and against what."""
    about = {"halves": reference.halves, "classifier_accuracy": reference.accuracy}
    result: JSONObject = {"protocol": protocol, "environment": environment, "reference": about}
    result["warnings"] = too_few(protocol["images"], reference.count, len(reference.gaussian.mean))
    result["rows"] = [row.as_json() for row in rows]
    frame = frame or _plain_frame(result)
    result |= frame.entries
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "result.json", (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    pictures = _pictures(reference, rows)
    for name, _, content in pictures:
        write_whole(out / f"{name}.png", content)
    drawn = [(caption, png) for _, caption, png in pictures]
    write_whole(out / "report.html", _page(result, rows, frame, [*drawn, *frame.pictures]).encode())
    return result


def read_result(path: Path) -> JSONObject:
    """What result.json holds. Raises FileNotFoundError or ValueError for a file that is no result."""
    file = path / "result.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}: give a result.json, or the folder of an evaluation")
    try:
        result: JSONObject = read_json(file, _LONGEST)
        check_result(result)
    except ValueError as error:
        raise ValueError(f"{file} is not a result of ctm evaluate: {str(error).removeprefix(f'{file} ')}") from error
    return result


def _pictures(reference: Reference, rows: Sequence[Row]) -> list[tuple[str, str, bytes]]:
    """(file name, caption, PNG) of every picture that can be drawn."""
    found = []
    if any(row.record["role"] != "samples" for row in rows):
        found.append(
            (
                "quality",
                "Fréchet distance to the data against evaluations of the network and against measured time, both "
                "logarithmic; bars: one standard error.",
                figures.png(figures.quality(rows, "frechet", "Fréchet distance")),
            )
        )
    lines = figures.sample_lines(rows)
    if lines:
        caption = "The first samples; each column starts from the same noise and class. The number: evaluations."
        found.append(("samples", caption, figures.png(figures.image_lines(lines))))
    best = min((row for row in rows if len(row.copies)), key=lambda row: row.numbers["frechet"].value, default=None)
    if best is not None and reference.source is not None:
        data = reference.source
        originals = data.images.pixels[data.numbers[best.originals.numpy()]]
        picture = figures.originals_and_copies(best.pixels[best.copies], torch.from_numpy(np.array(originals)))
        caption = (
            f"{title_of(best.record)}: the samples most like a training image, by feature distance relative to that "
            "image's distance from its own nearest neighbour, and that image below."
        )
        found.append(("nearest", caption, figures.png(picture)))
    return found


def _cells(row: Row, names: Sequence[str]) -> list[str]:
    speed = row.seconds_per_image
    numbers = [str(row.numbers[name]) if name in row.numbers else "–" for name in names]
    return [title_of(row.record), *numbers, "–" if speed is None else f"{1000 * speed:.3g}"]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def notes_on(result: JSONObject) -> str:
    """What a reader must know to read the numbers, as text."""
    about, facts = result["reference"], result["protocol"]
    resized = facts["features"]["resize"]
    size = "images at their own size" if resized == "none" else f"images resized {resized}"
    words = [
        *result.get("warnings", ()),
        f"{facts['images']} samples; ±: one standard error, of the sampling. Fréchet distances are over the features of "
        f"{facts['features']['name']} ({size}) and compare only with others of the same protocol; "
        "Fréchet∞ (if told) is the limit for endlessly many samples. The number after a name: evaluations of the network.",
    ]
    if about["halves"] is not None:
        words.append(f"Two halves of the data are {about['halves']:.4g} apart, which half as many images each raise.")
    if about["classifier_accuracy"] is not None:
        words.append(f"The classifier puts {100 * about['classifier_accuracy']:.1f} % of its training images right.")
    if any("memorised" in row["numbers"] for row in result["rows"]):
        words.append(
            "Closer to training: the share of samples nearer to a training image than any other training image is to it; "
            "expected: the same of training images left out."
        )
    return " ".join(words)


def _plain_frame(result: JSONObject) -> Frame:
    """Of an evaluation with nothing around it."""
    subjects = {f"{row['role']} {row['name']}": None for row in result["rows"]}
    facts = result["protocol"]
    name = facts["reference"]["name"]
    return Frame(
        f"Evaluation against {name}", f"{', '.join(subjects)}: {facts['images']} samples each, against {name}."
    )


def _page(result: JSONObject, rows: Sequence[Row], frame: Frame, pictures: Sequence[tuple[str, bytes]]) -> str:
    names = [name for name in METRICS if any(name in row.numbers for row in rows)]
    head = ["", *(METRICS[name].title for name in names), "ms/image"]
    records = {"protocol": result["protocol"], "environment": result["environment"]}
    records |= {title_of(row.record): row.record for row in rows}
    notes = " ".join(filter(None, (notes_on(result), frame.notes)))
    return page(frame.title, frame.lead, (head, [_cells(row, names) for row in rows]), notes, pictures, records)


def page(
    title: str,
    lead: str,
    table: tuple[Sequence[str], Sequence[Sequence[str]]],
    notes: str,
    pictures: Sequence[tuple[str, bytes]],
    records: Mapping[str, Any],
) -> str:
    """The HTML of a report that holds everything. table: its head and lines. pictures: (caption, PNG). records: what a reader
    needs to repeat it."""
    parts = []
    for caption, image in pictures:
        text, data = html.escape(caption), base64.b64encode(image).decode()
        parts.append(
            f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
        )
    return _PAGE.substitute(
        title=html.escape(title),
        lead=html.escape(lead),
        table=_table(*table),
        notes=html.escape(notes),
        figures="\n".join(parts),
        record=_table(["", ""], [[name, json.dumps(value, ensure_ascii=False)] for name, value in records.items()]),
    )
