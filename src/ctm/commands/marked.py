"""Provenance of what a command makes under a policy: the nonces of its watermarks, and the text and manifest of its files."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ctm.conditions import Condition, rows
from ctm.provenance.claim import claimed
from ctm.safety.admission import LOCAL
from ctm.sampling.image_noise import identities
from ctm.serve.nonces import nonces_of
from ctm.serve.signing import Signing

__all__ = ["Marker", "Tells", "composed_claim", "name_of", "sample_claims", "time_of_making"]

Tells = Callable[[int], dict[str, Any]]
_OPTIONS = (
    "churn",
    "churn_max",
    "churn_min",
    "churn_noise",
    "dtype",
    "eta",
    "form",
    "noise_stream",
)  # that a claim has where they are set


class Marker:
    """The keys of a state, as pictures of the command line are marked by them. key: of the watermark; fingerprint: says which key
    it is, and nothing else of it."""

    def __init__(self, signing: Signing, key: bytes) -> None:
        self._signing, self.key = signing, key
        self.fingerprint = hmac.digest(key, b"ctm: which watermark key", hashlib.sha256).hex()[:16]

    def nonces(self, seed: int | Sequence[int], num: int) -> list[bytes]:
        """The nonces of images 0 … num − 1 under a seed, or under one seed each: the same ones whenever they are asked for. They
        come from the key, as a service's do, but are no API key's."""
        if isinstance(seed, int):
            return nonces_of(self.key, LOCAL.id, seed, num)
        return [nonces_of(self.key, LOCAL.id, each, 1)[0] for each in seed]

    def sign(self, png: bytes, claim: Mapping[str, Any], sources: Mapping[str, bytes] | None = None) -> bytes:
        """The PNG file with its text and manifest. sources: of an edit, by title. Raises ValueError for a source that is no
        picture."""
        return self._signing(png, claim, sources)


def sample_claims(
    about: dict[str, Any], model: str, condition: Condition, nonces: Sequence[bytes] | None = None
) -> Tells:
    """How sample i was made, in the words of `ctm.provenance.Claim` and more. about: what sample.json says of all."""
    common = {"kind": "generation", "model": model, "digest": about["weights"], "model_digest": about["weights"]}
    common |= {"sampler": about["sampler"], "steps": about["steps"], "gamma": about["gamma"] or 0.0}
    common |= {"grid": about["grid"], "guidance": about["cfg"], "version": about["version"]}
    common |= {name: about[name] for name in _OPTIONS if _is_set(name, about.get(name))}
    common |= {} if "condition" not in about else {"fields": about["condition"]}

    def tell(number: int) -> dict[str, Any]:
        ((seed, index),) = identities(about["seed"], [number])
        own = rows(condition, slice(number, number + 1))
        said = claimed(own, 1)
        nonce = None if nonces is None else nonces[number].hex()
        asked = {"seed": seed, "index": index, "condition": None if said is None else said[0], "nonce": nonce}
        return {**common, **asked, "created": time_of_making()}

    return tell


def composed_claim(
    first: dict[str, Any], kind: str, numbers: Sequence[int], seed: int | Sequence[int]
) -> dict[str, Any]:
    """The claim of one picture that shows several images. first: the claim of one of them; kind: grid or strip; numbers: which
    images it shows; seed: of all, or one of each."""
    same = ("model", "digest", "model_digest", "sampler", "steps", "gamma", "grid", "guidance", "version", "source")
    common = {name: first[name] for name in same if name in first}
    common |= {"kind": kind, "images": len(numbers), "seed": first["seed"], "index": numbers[0] if numbers else 0}
    common |= {} if isinstance(seed, int) else {"seeds": [seed[number] for number in numbers]}
    return {**common, "condition": None, "nonce": None, "created": time_of_making()}


def time_of_making() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def name_of(place: str) -> str:
    """The name of a model by its directory, of a run by the run's, of a hub id by the repository's."""
    path = Path(place).resolve() if Path(place).exists() else Path(place)
    return (path.parent.name if path.name == "model" else path.name) or path.name or "model"


def _is_set(name: str, value: Any) -> bool:
    return value is not None and (name, value) not in (("form", "paper"), ("dtype", "float32"))
