"""report.html: one file with the table and the pictures inside."""

from __future__ import annotations

import base64
import html
from string import Template

from ctm.demo.measure import Row

__all__ = ["html_table", "report"]

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>ctm demo: digits in one step</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
h1 { line-height: 1.2; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td { white-space: nowrap; } th, td { padding: .3rem .55rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 2rem 0; } figcaption { color: #444; } .scroll { overflow-x: auto; }
</style></head><body>
<h1>Digits in one step</h1>
<p>$lead</p>
<div class="scroll">$table</div>
<p>$notes</p>
$figures
</body></html>
""")


def html_table(rows: list[Row]) -> str:
    """The rows at γ = 0 and the teacher's, ratios against the teacher's distance."""
    head = "".join(
        f"<th>{name}</th>"
        for name in (
            "model",
            "steps",
            "evaluations",
            "Fréchet distance",
            "× teacher",
            "pooled",
            "× teacher",
            "label agreement",
            "MSE to teacher",
            "ms/image",
        )
    )
    lines = []
    for row in rows:
        if row.gamma:
            continue
        cells = [
            html.escape(row.model),
            str(row.steps),
            str(row.evaluations),
            f"{row.frechet:.2f} ± {row.frechet_spread:.2f}",
            f"{row.frechet / rows[0].frechet:.2f}",
            f"{row.frechet_pooled:.2f}",
            f"{row.frechet_pooled / rows[0].frechet_pooled:.2f}",
            f"{100 * row.label_agreement:.1f} %",
            "–" if row is rows[0] else f"{row.mse_to_teacher:.4f}",
            f"{row.ms_per_image:.3f}",
        ]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def report(lead: str, rows: list[Row], notes: str, figures: list[tuple[str, bytes]]) -> str:
    """The page. figures: (caption, PNG bytes) in order."""
    parts = []
    for caption, image in figures:
        data = base64.b64encode(image).decode()
        text = html.escape(caption)
        parts.append(
            f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
        )
    return _PAGE.substitute(
        lead=html.escape(lead), table=html_table(rows), notes=html.escape(notes), figures="\n".join(parts)
    )
