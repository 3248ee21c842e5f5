"""The provenance that a picture leaves with: text in the PNG file, and around both a signed C2PA manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctm.provenance import Claim, manifest, text

__all__ = ["Signing"]

_OF_KINDS = ("rounds", "amount", "sigma", "shows", "step", "from", "to", "images", "seeds", "source")
_OF_SAMPLERS = ("form", "dtype", "churn", "churn_min", "churn_max", "churn_noise", "eta")
_OWN = ("kind", "preview", *_OF_KINDS, *_OF_SAMPLERS)  # beside the fields of a Claim, where they are not None


class Signing:
    """sign(png, claim) of an `Outbox`: the same fields as PNG text and in the manifest."""

    def __init__(self, signer: manifest.Signer) -> None:
        self.signer = signer

    @classmethod
    def load_or_create(cls, keys: Path) -> Signing:
        """With the certificates in keys/c2pa, made at first use. Raises as `ctm.provenance.manifest.Signer.load_or_create`."""
        return cls(manifest.Signer.load_or_create(keys / "c2pa"))

    def __call__(self, png: bytes, claim: Mapping[str, Any], sources: Mapping[str, bytes] | None = None) -> bytes:
        """The PNG with its text and its manifest. sources: of an edit, see `ctm.provenance.manifest.Signer.sign`. Raises
        ValueError for a claim that is none."""
        own = {name: json.dumps(claim[name]) for name in _OWN if claim.get(name) is not None}
        fields = {**Claim.from_dict(claim).as_text(), **own}
        return self.signer.sign(text.write(png, fields), fields, f"{claim['record']}.png", sources)
