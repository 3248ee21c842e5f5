"""A service in a process of its own, on a free port of this machine."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2

from ..processes import Command

MODEL = str(Path(__file__).parents[2] / "models" / "digits-ctm")
RATES = "rates: {anonymous: {per_minute: 1000000, per_day: 1000000}}"
OPEN = f"thresholds: {{}}\nmax_images: 256\n{RATES}\n"  # without a filter it starts sooner


class Server:
    """`ctm serve` on a state; policy: its text; models: directories; environment: more of it."""

    def __init__(
        self, state: Path, *options: str, policy: str = OPEN, models: Sequence[str] = (MODEL,), **environment: str
    ) -> None:
        state.parent.mkdir(parents=True, exist_ok=True)
        file = state.parent / "policy.yaml"
        file.write_text(policy)
        arguments = ["serve", *models, "--port", "0", "--state", str(state), "--policy", str(file), *options]
        self.process = Command(arguments, own=True, **{"OMP_NUM_THREADS": "1", **environment})
        self.url = self._url()
        self.client = httpx2.Client(base_url=self.url, timeout=60)

    def _url(self) -> str:
        for _ in range(2400):
            found = re.search(
                r"^address: (\S+)$", (self.process.output / "out").read_text() if self.started else "", re.M
            )
            if found:
                return found[1]
            if self.process.poll() is not None:
                raise AssertionError(self.process.communicate())
            time.sleep(0.05)
        raise AssertionError("the service did not start")

    @property
    def started(self) -> bool:
        return (self.process.output / "out").exists()

    def generate(self, **body) -> httpx2.Response:
        return self.client.post("/images/generations", json=body)

    def metric(self, name: str) -> float:
        """The value of a meter without labels but the model's."""
        text = self.client.get(self.url.removesuffix("/v1") + "/metrics").text
        return float(re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M)[1])

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self.client.close()
