"""The reference vectors: a directory of safetensors files and the manifest that describes them.

    @vectors.each("name", vectors.names("edm_song_*"))     # a test for each that the manifest lists; for none, no test
    with vectors.open_file(name) as file:                  # leaving the block fails on disagreement and on unread tensors
        x = file["in/x"]                                   # reading marks a tensor as read
        file.compare("out/F", network(x.double()))         # so does comparing; the tolerance follows from both dtypes

The error measure is max|a − b| / max|b|. Bounds (`VectorFile.tolerance`):

    our float64, reference float64                      max(1e-9, the manifest's rtol)
    our float64, reference stored or noted as float32   max(1e-6, the manifest's float32 hint or rtol)
    our float32                                         max(4 × the same hint, 2e-6 for tensors, 5e-6 for single numbers)
    our float64, reference from float32 code            as our float32 (`float32_code`: the rounding is the reference's)
    whole numbers and truth values                      equal

CTM_VECTORS names the directory; without it the one beside the repository is used, else the part kept in tests/data.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
FALLBACKS = (ROOT.parent / "shared" / "vectors" / "public", ROOT / "tests" / "data" / "vectors")


def directory() -> Path:
    """CTM_VECTORS, else the first of the fallbacks that has a manifest, else the last of them."""
    named = os.environ.get("CTM_VECTORS")
    if named:
        return Path(named)
    return next((place for place in FALLBACKS if (place / "manifest.json").is_file()), FALLBACKS[-1])


def manifest() -> dict[str, dict[str, Any]]:
    """File name (with its ending) to the manifest's entry; empty where there is no fallback directory.

    Raises FileNotFoundError where CTM_VECTORS names a directory without a manifest."""
    path = directory() / "manifest.json"
    if not path.is_file() and not os.environ.get("CTM_VECTORS"):
        return {}
    return _entries(path)


@lru_cache
def _entries(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text())["files"]


def names(*patterns: str) -> list[str]:
    """The names (without .safetensors) in the manifest that fit one of the fnmatch patterns."""
    stems = sorted(name.removesuffix(".safetensors") for name in manifest())
    return [stem for stem in stems if any(fnmatch(stem, pattern) for pattern in patterns)]


def each(
    argument: str, values: list[str], *, fast: Collection[str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None] | None]:
    """The outermost decorator of a test: pytest.mark.parametrize, or where the directory has nothing of the kind no test at
    all, rather than one that is skipped. fast: the files that `make test` reads too, where that is not all."""
    cases = [
        value if fast is None or value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values
    ]
    return pytest.mark.parametrize(argument, cases) if values else lambda test: None


def each_precision(
    values: list[str], *, double: Collection[str] = (), single: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None] | None]:
    """As `each`, for the arguments name and precision. The files of `double` are in the fast tests in float64, those of `single`
    in float32, which takes half as long: a kind need not be there twice."""
    fast = {("f64", name) for name in double} | {("f32", name) for name in single}
    cases = [
        pytest.param(
            name, precision, id=f"{precision}-{name}", marks=() if (precision, name) in fast else pytest.mark.slow
        )
        for name in values
        for precision in ("f32", "f64")
    ]
    return pytest.mark.parametrize(("name", "precision"), cases) if values else lambda test: None


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """max|a − b| / max|b| in float64; 0 for equal tensors, inf where one has NaN that the other has not."""
    a, b = ours.detach().double(), reference.double()
    if torch.equal(a, b) or a.numel() == 0:
        return 0.0
    difference = torch.where(a == b, 0.0, (a - b).abs())  # so that equal infinities agree
    finite = b[b.isfinite()]
    scale = finite.abs().max() if finite.numel() else torch.tensor(0.0)
    error = float(difference.max() / scale)
    return float("inf") if error != error else error


class VectorFile:
    """One file: its tensors, its manifest entry (`config`, `notes`, `tensor_notes`, `tolerances`), and what was read."""

    def __init__(self, name: str) -> None:
        self.name = name
        entry = manifest()[f"{name}.safetensors"]
        self.entry = entry
        self.config: dict[str, Any] = entry["config"]
        self.notes: str = f"{entry.get('description', '')} {entry.get('notes') or ''}"
        self.tensor_notes: dict[str, str] = entry.get("tensor_notes", {})
        self.tolerances: dict[str, Any] = entry.get("tolerance", {})
        path = directory() / f"{name}.safetensors"
        if "sha256" in entry:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"], (
                f"{path} is not the manifest's file"
            )
        self.tensors = load_file(path)
        self.read: set[str] = set()
        self.errors: dict[str, float] = {}
        self.failures: list[str] = []

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(key)
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def get(self, key: str) -> Tensor | None:
        """The tensor, or None where the file has none of that name."""
        return self[key] if key in self.tensors else None

    def keys(self, prefix: str = "") -> list[str]:
        """The tensors' names with this beginning; asking does not mark them as read."""
        return sorted(key for key in self.tensors if key.startswith(prefix))

    def params(self, dtype: torch.dtype = torch.float32, prefix: str = "param/") -> dict[str, Tensor]:
        """The tensors under `prefix` by their official names, in this precision (they are exact in float16)."""
        found = {key.removeprefix(prefix): self[key] for key in self.keys(prefix)}
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in found.items()}

    def stated(self, name: str, default: float) -> list[float]:
        """The setting of this name: what the file's configuration says, else every value that another file's says, and the
        default. Where there are several, the tensors themselves must tell which it was. A sigma_min above the file's own
        levels is none of them."""
        if name in self.config:
            return [float(self.config[name])]
        elsewhere = {float(entry["config"][name]) for entry in manifest().values() if name in entry["config"]}
        if name == "sigma_min":
            levels = [self.tensors[f"in/{key}"] for key in ("t", "s", "sigma") if f"in/{key}" in self.tensors]
            lowest = min((float(level.min()) for level in levels), default=float("inf"))
            elsewhere = {value for value in elsewhere if value <= lowest}
        return sorted(elsewhere | {default})

    def hint(self, key: str) -> float:
        """The manifest's relative tolerance for float32 of this tensor: the entry of `fp32_vs_f64_max_rel` or of
        `<what>_fp32_vs_f64_max_rel` whose name the key contains, else the largest such, else `f32_rtol` or `rtol`, else 0."""
        named: dict[str, float] = {}
        for name, value in self.tolerances.items():
            if name.endswith("fp32_vs_f64_max_rel"):
                what = name.removesuffix("fp32_vs_f64_max_rel").rstrip("_")
                named |= value if isinstance(value, dict) else {what: value}
        if named:
            parts = key.split("/", 1)[-1]
            fitting = [what for what in named if what and (parts == what or parts.startswith((f"{what}/", f"{what}_")))]
            return named[max(fitting, key=len)] if fitting else max(named.values())
        return max((self.tolerances.get(name, 0.0) for name in ("f32_rtol", "rtol")), default=0.0)

    def noted_as_float32(self, key: str) -> bool:
        """Whether the tensor is stored as float32, or a note of the manifest says fp32 of it or of the whole file."""
        return self.tensors[key].dtype == torch.float32 or "fp32" in self.tensor_notes.get(key, "") + self.notes

    def tolerance(
        self, key: str, dtype: torch.dtype, hint: float | None = None, *, float32_code: bool = False
    ) -> float:
        """The bound on the relative error of our result of this dtype (the module's docstring). hint replaces the manifest's."""
        own = self.hint(key) if hint is None else hint
        if dtype != torch.float64 or float32_code:
            return max(4 * own, 5e-6 if self.tensors[key].numel() == 1 else 2e-6)
        if self.noted_as_float32(key):
            return max(1e-6, own)
        return max(1e-9, self.tolerances.get("rtol", 0.0) if hint is None else hint)

    def compare(self, key: str, ours: Tensor, *, hint: float | None = None, float32_code: bool = False) -> None:
        """Hold our result against the tensor; a disagreement is collected and raised at the end of the block."""
        reference = self[key]
        if tuple(ours.shape) != tuple(reference.shape):
            self.failures.append(f"{key}: ours has shape {tuple(ours.shape)}, the reference {tuple(reference.shape)}")
            return
        error = relative_error(ours, reference)
        label = f"{key} in {str(ours.dtype).removeprefix('torch.')}"
        self.errors[label] = max(error, self.errors.get(label, 0.0))
        bound = (
            self.tolerance(key, ours.dtype, hint, float32_code=float32_code) if reference.is_floating_point() else 0.0
        )
        if not error <= bound:
            self.failures.append(f"{label}: relative error {error:.2e}, allowed {bound:.2e}")

    def compare_both(
        self,
        key: str,
        compute: Callable[[torch.dtype], Tensor],
        *,
        hint: float | None = None,
        float32_code: bool = False,
    ) -> None:
        """`compare` with what `compute` gives in float32 and in float64."""
        for dtype in (torch.float32, torch.float64):
            self.compare(key, compute(dtype), hint=hint, float32_code=float32_code)

    def finish(self, ignore: tuple[str, ...] = ()) -> None:
        """AssertionError for every disagreement and for tensors that nothing read (but those fitting `ignore`)."""
        unread = [key for key in self.keys() if key not in self.read and not any(fnmatch(key, p) for p in ignore)]
        report = os.environ.get("CTM_PARITY_REPORT")
        if report:
            with Path(report).open("a") as lines:
                lines.write(json.dumps({"file": self.name, "errors": self.errors}) + "\n")
        problems = [*self.failures, *(f"{key}: no test reads it" for key in unread)]
        assert not problems, f"{self.name}:\n  " + "\n  ".join(problems)


@contextmanager
def open_file(name: str, *, ignore: tuple[str, ...] = ()) -> Iterator[VectorFile]:
    """The file of that name; at the end of the block everything in it must agree and have been read."""
    file = VectorFile(name)
    yield file
    file.finish(ignore)
