"""The page in Chromium: where the browser and axe-core come from, and what the tests of the page do with it."""

from __future__ import annotations

import importlib.util
import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctm.provenance import Claim, text

AXE = "axe-core@4.14.1"


def chromium() -> str:
    """The browser's program. Fails with what to install."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.fail("the tests of the page need Chromium: apt-get install --no-install-recommends chromium")
    if importlib.util.find_spec("playwright") is None:
        pytest.fail('the tests of the page need playwright: pip install "ctm-torch[browser]"')
    return found


def axe(folder: Path) -> str:
    """The script of axe-core, which npm fetches into `folder` once. Fails with what to install."""
    script = folder / "axe.min.js"
    if not script.exists():
        if shutil.which("npm") is None:
            pytest.fail("the tests of the page fetch axe-core by npm, which is missing: apt-get install npm")
        with tempfile.TemporaryDirectory(dir=folder) as own:  # another process may do the same
            fetched = subprocess.run(["npm", "pack", AXE, "--pack-destination", own], capture_output=True, timeout=300)
            if fetched.returncode:
                pytest.fail(f"npm pack {AXE} did not fetch axe-core: {fetched.stderr.decode()[-500:]}")
            with tarfile.open(next(Path(own).glob("axe-core-*.tgz"))) as packed:
                (Path(own) / "axe.min.js").write_bytes(packed.extractfile("package/axe.min.js").read())
            (Path(own) / "axe.min.js").replace(script)
    return script.read_text(encoding="utf-8")


class Page:
    """A tab of the browser on a service's page. What its console complains of is in `complaints`, what it asked of other hosts in
    `outside`. expected: parts of complaints that the test provokes."""

    def __init__(self, browser, base: str, path: str = "", *, expected=(), **options) -> None:
        options = {"viewport": {"width": 1200, "height": 900}, "accept_downloads": True, **options}
        self.context = browser.new_context(**options)
        self.base, self.complaints, self.outside = base, [], []
        self.tab = self.context.new_page()
        self.tab.on("console", lambda said: self._complain(said.type, said.text, expected))
        self.tab.on("pageerror", lambda error: self._complain("error", str(error), expected))
        self.tab.on("request", lambda asked: self._look(asked.url))
        self.tab.goto(f"{base}/page/{path}")

    def _complain(self, kind: str, words: str, expected) -> None:
        if kind in ("error", "warning") and not any(part in words for part in expected):
            self.complaints.append(words)

    def _look(self, url: str) -> None:
        if not url.startswith((self.base, f"blob:{self.base}")):
            self.outside.append(url)

    def ready(self):
        self.tab.wait_for_selector("#main:not([hidden])")
        return self

    def settle(self, timeout: float = 60) -> str:
        """Wait until nothing is asked for any more; what the page then says."""
        self.tab.wait_for_selector("#work[aria-busy=false]", timeout=1000 * timeout)
        assert self.alert == ""
        return self.tab.inner_text("#status")

    @property
    def alert(self) -> str:
        return self.tab.inner_text("#alert")

    def do(self, selector: str, timeout: float = 60) -> str:
        """Click, and wait until it is done."""
        self.tab.click(selector)
        return self.settle(timeout)

    def set(self, selector: str, value) -> None:
        """A slider or number to a value, as a hand does it: input, then change."""
        self.tab.fill(selector, str(value))

    def downloads(self, container: str) -> list[bytes]:
        """The files that the download links of a container's pictures give."""
        found = []
        for summary in self.tab.query_selector_all(f"{container} details:not([open]) summary"):
            summary.click()
        for link in self.tab.query_selector_all(f"{container} a[download]"):
            with self.tab.expect_download() as waiting:
                link.click()
            found.append(Path(waiting.value.path()).read_bytes())
        return found

    def violations(self, script: str) -> list[str]:
        """What axe-core finds wrong with the page as it is."""
        if not self.tab.evaluate("() => 'axe' in window"):
            self.tab.evaluate(script)
        result = self.tab.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
        return [f"{one['id']}: {node['html'][:150]}" for one in result["violations"] for node in one["nodes"]]

    def close(self) -> None:
        self.context.close()
        assert self.complaints == []
        assert self.outside == []


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def claim_of(png: bytes) -> Claim:
    return Claim.from_text(text.read(png))


def near(made: np.ndarray, other: np.ndarray) -> bool:
    """Equal but for pixels that rounding moves to the next value."""
    return np.abs(made.astype(int) - other.astype(int)).max() <= 1
