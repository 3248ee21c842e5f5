"""A signed manifest in a picture file, by the C2PA standard: who signed it, what is claimed, and whether the file is as signed.

The claim stands in an assertion of its own, as texts: readers of C2PA do not give lists of numbers back as they were. Nothing is
fetched from the network, neither to sign nor to read.

An edit says that it opened the picture it was made from (c2pa.opened, with that picture as its ingredient) and was then edited by
a model. Where that picture has a manifest of its own, it goes along."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ctm.foreign.text import plain
from ctm.provenance.certificates import AUTHORITY, check_pem, load_or_make, needs
from ctm.provenance.claim import Claim
from ctm.version import __version__

__all__ = ["ASSERTION", "Manifest", "Signer", "read"]

ASSERTION = "org.ctm-torch.generation"
_GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
_OFFLINE = {"remote_manifest_fetch": False, "ocsp_fetch": False}
_READING: dict[str, Any] = {"verify": {**_OFFLINE, "verify_trust": True}}
_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "image/webp"}
_LONGEST_TITLE, _MOST = 80, 20  # characters of a source's title, and sources that are named
_UNTRUSTED = "signingCredential.untrusted"
_WORDS = {
    "assertion.dataHash.mismatch": "the file was changed after it was signed",
    "assertion.hashedURI.mismatch": "a statement in the manifest was changed after it was signed",
    "claimSignature.mismatch": "the manifest was changed after it was signed",
    "signingCredential.expired": "the certificate that signed it has expired",
    "signingCredential.invalid": "the certificate that signed it is not one that may",
    _UNTRUSTED: "the signer is none that you trust",
}


@dataclass(frozen=True)
class Manifest:
    """A manifest as it was read.

    state: "Trusted" (as signed, by a signer that is trusted), "Valid" (as signed, by anybody) or "Invalid". issuer: the
    organisation and the name in the signer's certificate; generator: the program that made the manifest, as it says; fields:
    those of the claim, empty where another program made it; problems: sentences on what does not fit; sources: titles of the
    pictures that it was made from, as it says."""

    state: str
    issuer: str
    generator: str
    fields: dict[str, str]
    problems: tuple[str, ...]
    sources: tuple[str, ...] = ()

    def claim(self) -> Claim | None:
        """The claim, None where there are no fields. Raises ValueError for fields that are none."""
        return Claim.from_text(self.fields) if self.fields else None


class Signer:
    """Signs PNG files with the certificates of one folder. One signer serves many threads."""

    def __init__(self, algorithm: str, chain: str, key: str, authority: str | None = None) -> None:
        """authority: the PEM that readers trust, where it is known."""
        c2pa = needs("c2pa")
        algorithms = c2pa.C2paSigningAlg
        info = c2pa.C2paSignerInfo(
            alg=getattr(algorithms, algorithm.upper()), sign_cert=chain.encode(), private_key=key.encode(), ta_url=None
        )
        self.authority, self._c2pa = authority, c2pa
        try:
            self._signer = c2pa.Signer.from_info(info)
        except c2pa.C2paError as error:
            raise ValueError(f"these certificates cannot sign manifests ({plain(str(error), 200)})") from error

    @classmethod
    def load_or_create(cls, folder: str | Path) -> Signer:
        """The signer of a folder: chain.pem and key.pem, made at first use (`ctm.provenance.certificates`). Raises ValueError or
        OSError as `load_or_make`, and where the extra `serve` is not installed."""
        folder = Path(folder)
        algorithm, chain, key = load_or_make(folder)
        authority = folder / AUTHORITY
        return cls(algorithm, chain, key, authority.read_text(encoding="utf-8") if authority.is_file() else None)

    def sign(
        self,
        png: bytes,
        claim: Claim | Mapping[str, Any],
        title: str = "image.png",
        sources: Mapping[str, bytes] | None = None,
    ) -> bytes:
        """The PNG file with a manifest that holds the claim. Any later change of the file makes the manifest invalid, so text is
        written before.

        sources: for an edit, the picture files that it was made from, by the titles to give them; the first one is what was
        opened, and may be in any form that Pillow reads. Raises ValueError for what is no PNG, a source that is no picture, or
        what c2pa refuses."""
        if png[:8] != b"\x89PNG\r\n\x1a\n":
            raise ValueError("manifests are put into PNG files, and this is none")
        try:
            return self._signed(png, _definition(claim, title, list(sources or ())), sources or {})
        except self._c2pa.C2paError as error:
            raise ValueError(f"this PNG file cannot be signed ({plain(str(error), 200)})") from error

    def _signed(self, png: bytes, definition: dict[str, Any], sources: Mapping[str, bytes]) -> bytes:
        c2pa, signed = self._c2pa, io.BytesIO()
        settings = {"verify": _OFFLINE, "builder": {"thumbnail": {"enabled": False}}}
        with c2pa.Builder(definition, c2pa.Context.from_dict(settings)) as builder:
            for number, (name, content) in enumerate(sources.items()):
                about = {"title": name, "relationship": "inputTo" if number else "parentOf", "instance_id": _id(number)}
                kind, content = self._readable(content)
                builder.add_ingredient(json.dumps(about), kind, io.BytesIO(content))
            builder.sign(self._signer, "image/png", io.BytesIO(png), signed)
        return signed.getvalue()

    def _readable(self, picture: bytes) -> tuple[str, bytes]:
        """(kind, content) of a source. One of another form, or whose own manifest cannot be read, is taken as a plain PNG."""
        kind = _kind(picture)
        try:
            if kind is not None:
                with self._c2pa.Reader(kind, io.BytesIO(picture), context=self._c2pa.Context.from_dict(_READING)):
                    pass
                return kind, picture
        except self._c2pa.C2paError as error:
            if "ManifestNotFound" in str(error):
                return kind, picture  # type: ignore[return-value, unused-ignore]
        return "image/png", _plain_png(picture)


def _id(number: int) -> str:
    return f"source {number}"


def _kind(picture: bytes) -> str | None:
    return next((kind for start, kind in _KINDS.items() if picture.startswith(start)), None)


def _plain_png(picture: bytes) -> bytes:
    """The pixels alone. Raises ValueError for what is no picture."""
    file = io.BytesIO()
    try:
        with Image.open(io.BytesIO(picture)) as opened:
            opened.convert("RGBA" if "A" in opened.getbands() else "RGB").save(file, "png")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"a picture that an edit was made from cannot be read ({plain(str(error))})") from error
    return file.getvalue()


def _definition(claim: Claim | Mapping[str, Any], title: str, sources: Sequence[str]) -> dict[str, Any]:
    """The manifest before it is signed. Without sources a model made the image, in C2PA's words it was created as trained
    algorithmic media; with them, the first was opened, and edited by a model."""
    fields = claim.as_text() if isinstance(claim, Claim) else claim
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    program = {"name": "ctm-torch", "version": __version__}
    actions: list[dict[str, Any]] = [
        {"action": "c2pa.created", "digitalSourceType": _GENERATED, "softwareAgent": program}
    ]
    if sources:
        edited: dict[str, Any] = {"action": "c2pa.edited", "digitalSourceType": _EDITED, "softwareAgent": program}
        if len(sources) > 1:
            edited["parameters"] = {"ingredientIds": [_id(number) for number in range(1, len(sources))]}
        actions = [{"action": "c2pa.opened", "parameters": {"ingredientIds": [_id(0)]}}, edited]
    return {
        "claim_generator_info": [program],
        "format": "image/png",
        "title": title,
        "assertions": [
            {"label": "c2pa.actions", "data": {"actions": actions}},
            {"label": ASSERTION, "data": texts},
        ],
    }


def read(picture: bytes, trust: str | None = None) -> Manifest | None:
    """The manifest in a picture file (PNG, JPEG, GIF or WebP); None where there is none.

    trust: certificates in PEM, whose signatures are trusted. Raises ValueError where the extra `serve` is not installed, and for
    a trust that holds no certificate. A manifest that cannot be read is "Invalid"."""
    c2pa = needs("c2pa")
    kind = _kind(picture)
    if kind is None:
        return None
    settings = dict(_READING)
    if trust is not None:
        settings["trust"] = {"trust_anchors": check_pem(trust, "the trust")}
    try:
        with c2pa.Reader(kind, io.BytesIO(picture), context=c2pa.Context.from_dict(settings)) as reader:
            return _manifest(str(reader.get_validation_state()), json.loads(reader.json()))
    except c2pa.C2paError as error:
        if "ManifestNotFound" in str(error):
            return None
        return Manifest("Invalid", "", "", {}, (f"it cannot be read ({plain(str(error), 200)})",))


def _manifest(state: str, report: Mapping[str, Any]) -> Manifest:
    """The manifest in the report of a reader, whose content is a stranger's."""
    active = report.get("manifests", {}).get(report.get("active_manifest"), {})
    signature, programs = active.get("signature_info") or {}, active.get("claim_generator_info") or [{}]
    issuer = ", ".join(plain(signature[name]) for name in ("issuer", "common_name") if signature.get(name))
    ours = [one.get("data") for one in active.get("assertions", []) if one.get("label") == ASSERTION]
    fields = ours[0] if ours and isinstance(ours[0], Mapping) else {}
    failures = (report.get("validation_results") or {}).get("activeManifest", {}).get("failure", [])
    codes = dict.fromkeys(str(failure.get("code")) for failure in failures)
    return Manifest(
        state,
        issuer,
        " ".join(plain(programs[0].get(name, "")) for name in ("name", "version")).strip(),
        {str(name): str(value) for name, value in fields.items()},
        tuple(_WORDS.get(code, f"C2PA: {plain(code)}") for code in codes),
        tuple(plain(one.get("title") or "no title", _LONGEST_TITLE) for one in active.get("ingredients") or [])[:_MOST],
    )
