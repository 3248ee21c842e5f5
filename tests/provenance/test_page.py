"""docs/provenance.md has the tables of the results that were measured."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("watermark_tables", ROOT / "tools" / "watermark_tables.py")
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


def test_the_tables_are_those_of_the_results():
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.filled(page, json.loads(tables.RESULTS.read_text(encoding="utf-8"))) == page
    assert page.count("| Fashion-MNIST, 28×28 |") > 10
