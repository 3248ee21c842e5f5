"""The tables of docs/provenance.md from docs/bench/watermark.json.

python tools/watermark_tables.py        writes them into the page
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "provenance.md", ROOT / "docs" / "bench" / "watermark.json"
MODELS = {"digits": "digits, 8×8", "fashion-mnist": "Fashion-MNIST, 28×28"}
CHANGES = ("none", "JPEG 90", "JPEG 75", "noise 0.05", "half the size and back", "crop to 90 %")
OTHERS = ("none, no condition given", "none, γ = 0.5", "none, γ = 1")
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
METRICS = {
    "frechet": "Fréchet distance",
    "diversity": "diversity in a class",
    "recall": "recall",
    "precision": "precision",
}


def false_positives(results: dict) -> list[str]:
    rows = [
        "| images | comparisons | signs counted | needed | found | expected | chi-square p |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, words in MODELS.items():
        for kind in ("generated", "real"):
            r = results.get(f"{name}/false/{kind}")
            if r:
                tests = r["images"] * r["keys"]
                rows.append(
                    f"| {words}, {kind} | {tests:,} | {r['bits']} | {r['least']} | {r['found']} | {r['expected']:.1f} | "
                    f"{r['chi_square_p']:.2f} |"
                )
    return rows


def percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share in (0, 1) else f"{100 * share:.1f} %"


def true_positives(results: dict) -> list[str]:
    rows = [
        "| images | jumps | change | signs that match | found | predicted | of 1,000 | of 10⁶ |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    predicted = results["predicted"]["true positives"]
    order = ("none", "JPEG 90", "JPEG 75", "half the size and back", "crop to 90 %", "noise 0.05")
    for name, words in MODELS.items():
        for steps in (1, 8):
            for change in (*CHANGES, *OTHERS):
                r = results.get(f"{name}/true/{steps}/{change}")
                if r:
                    said = predicted[f"{name}/{steps}"][order.index(change)] if change in order else None
                    found = [percent(r["found"][tried]) for tried in ("1", "1000", "1000000")]
                    expected = "" if said is None else percent(said)
                    rows.append(
                        f"| {words} | {steps} | {change} | {percent(r['matching'])} of {r['bits']} | {found[0]} | {expected} | "
                        f"{found[1]} | {found[2]} |"
                    )
    return rows


def conditions(results: dict) -> list[str]:
    rows = ["| images | jumps | found | own class fits best |", "|---|--:|--:|--:|"]
    for name, words in MODELS.items():
        for steps in (1, 8):
            r = results.get(f"{name}/conditions/{steps}")
            if r:
                rows.append(f"| {words} | {steps} | {percent(r['found'])} | {percent(r['own class fits best'])} |")
    return rows


def levels(results: dict) -> list[str]:
    shares = {"1.0": "all", "0.5": "½", "0.25": "¼", "0.125": "⅛"}
    rows = [f"| images | jumps | change | level | {' | '.join(shares.values())} |", "|---|--:|---|--:|--:|--:|--:|--:|"]
    for name, words in MODELS.items():
        for key, r in results.items():
            if key.startswith(f"{name}/levels/"):
                _, _, steps, change, level = key.split("/")
                found = " | ".join(percent(r[share]["found"]["1"]) for share in shares)
                rows.append(f"| {words} | {steps} | {change} | {level} | {found} |")
    return rows


def quality(results: dict) -> list[str]:
    rows = [f"| images | jumps | noise | sets | {' | '.join(METRICS.values())} |", "|---|--:|---|--:|--:|--:|--:|--:|"]
    for name, words in MODELS.items():
        for steps in (1, 8):
            for mark in ("unmarked", "marked", "one nonce"):
                found = [r for key, r in results.items() if key.startswith(f"{name}/quality/{steps}/{mark}/")]
                if found:
                    cells = " | ".join(mean(found, metric) for metric in METRICS)
                    rows.append(f"| {words} | {steps} | {mark} | {len(found)} | {cells} |")
    return rows


def mean(found: list[dict], metric: str) -> str:
    """The mean over sets, ± the standard error: of the sets where there are three, else the mean error of one."""
    values = [r[metric][0] for r in found if metric in r]
    if not values:
        return ""
    errors = [r[metric][1] for r in found if r[metric][1] is not None]
    if len(values) > 1:
        return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"
    return f"{values[0]:.3f}" + (f" ± {errors[0]:.3f}" if errors else "")


def guidance(results: dict) -> list[str]:
    rows = ["| images | jumps | guidance | found by the plain model | by the guided model |", "|---|--:|--:|--:|--:|"]
    for name, words in MODELS.items():
        for key, r in results.items():
            if key.startswith(f"{name}/guidance/"):
                _, _, steps, scale = key.split("/")
                found = " | ".join(percent(r[way]["found"]["1"]) for way in ("plain", "guided"))
                rows.append(f"| {words} | {steps} | {scale} | {found} |")
    return rows


def edits(results: dict) -> list[str]:
    rows = [
        "| images | jumps | edit | images a row | signs that match | found | predicted |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    predicted = results["predicted of edits"]
    for name, words in MODELS.items():
        for steps in (1, 8):
            for kind, said in zip(EDITS, predicted[f"{name}/{steps}"], strict=True):
                r = results.get(f"{name}/edits/{steps}/{kind}")
                if r:
                    rows.append(
                        f"| {words} | {steps} | {kind} | {r['images']} | {percent(r['matching'])} of {r['bits']} | "
                        f"{percent(r['found']['1'])} | {percent(said)} |"
                    )
    return rows


TABLES = {
    "false positives": false_positives,
    "true positives": true_positives,
    "conditions": conditions,
    "levels": levels,
    "guidance": guidance,
    "edits": edits,
    "quality": quality,
}


def filled(page: str, results: dict) -> str:
    """The page with its tables made anew, each between <!-- NAME --> and <!-- end -->."""
    for name, table in TABLES.items():
        before, rest = page.split(f"<!-- {name} -->")
        after = rest.split("<!-- end -->", 1)[1]
        page = f"{before}<!-- {name} -->\n" + "\n".join(table(results)) + f"\n<!-- end -->{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(
        filled(PAGE.read_text(encoding="utf-8"), json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8"
    )
