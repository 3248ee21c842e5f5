"""Put what the parity tests measured into docs/parity.md.

Usage: CTM_PARITY_REPORT=errors.jsonl pytest tests/parity && python tools/parity_table.py errors.jsonl
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "parity.md"
BEGIN, END = "<!-- measured -->", "<!-- end -->"


def worst(lines: list[str]) -> dict[str, dict[str, float]]:
    """The largest relative error of each file in each precision."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for line in lines:
        row = json.loads(line)
        for label, error in row["errors"].items():
            precision = label.rsplit(" in ", 1)[1]
            found[row["file"]][precision] = max(error, found[row["file"]].get(precision, 0.0))
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown rows, one for each file."""
    rows = ["| file | our float64 | our float32 |", "|---|--:|--:|"]
    for name in sorted(found):
        cells = [f"{found[name][p]:.1e}" if p in found[name] else "" for p in ("float64", "float32")]
        rows.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


if __name__ == "__main__":
    before, rest = PAGE.read_text().split(BEGIN)
    measured = table(worst(Path(sys.argv[1]).read_text().splitlines()))
    PAGE.write_text(f"{before}{BEGIN}\n\n{measured}\n\n{END}{rest.split(END)[1]}")
