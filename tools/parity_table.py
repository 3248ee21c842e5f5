"""Put what the parity tests measured into docs/parity.md.

Usage: CTM_PARITY_REPORT=errors.jsonl pytest tests/parity && python tools/parity_table.py errors.jsonl VECTORS_DIRECTORY
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "parity.md"
BEGIN, END = "<!-- measured -->", "<!-- end -->"


COLUMNS = ("float64 / float64", "float64 / float32", "float32")


def worst(lines: list[str], files: dict) -> dict[str, dict[str, float]]:
    """The largest relative error of each file: ours and the reference in float64, the reference in float32, ours in float32."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row in map(json.loads, lines):
        described = files.get(f"{row['file']}.safetensors")
        if described is None:  # the reader's own tests
            continue
        for label, error in row["errors"].items():
            key, ours = label.rsplit(" in ", 1)
            if ours == "bits":  # no relative error
                continue
            reference = described["tensors"][key]["dtype"]
            column = (
                "float32" if ours == "float32" else f"float64 / {'float64' if reference == 'float64' else 'float32'}"
            )
            found[row["file"]][column] = max(error, found[row["file"]].get(column, 0.0))
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown rows, one for each file."""
    rows = [
        "| file | ours float64, reference float64 | ours float64, reference float32 | ours float32 |",
        "|---|--:|--:|--:|",
    ]
    for name in sorted(found):
        rows.append(
            "| " + " | ".join([name, *(f"{found[name][c]:.1e}" if c in found[name] else "" for c in COLUMNS)]) + " |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    before, rest = PAGE.read_text().split(BEGIN)
    manifest = json.loads((Path(sys.argv[2]) / "manifest.json").read_text())["files"]
    measured = table(worst(Path(sys.argv[1]).read_text().splitlines(), manifest))
    PAGE.write_text(f"{before}{BEGIN}\n\n{measured}\n\n{END}{rest.split(END)[1]}")
