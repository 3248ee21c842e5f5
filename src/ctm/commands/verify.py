"""Say where a picture came from: its signed manifest, its text, and the watermark of the noise that it was made from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jsonargparse import Namespace

from ctm.commands.edit.inputs import for_model, read
from ctm.evaluation.extractors import checksum_of
from ctm.foreign.text import plain, read_text
from ctm.keystream import as_key, as_nonce
from ctm.models import AnyModel, load_model
from ctm.provenance import Candidate, Claim, Detection, find, manifest, text
from ctm.provenance.certificates import trusted_of
from ctm.provenance.manifest import Manifest
from ctm.provenance.nonces import read_nonces
from ctm.safety.extra import installed
from ctm.sampling.generation import conditions_for
from ctm.terminal.options import add_device_option, usable_device
from ctm.terminal.parser import Parser, command_parser

__all__ = ["parser", "run"]

_KINDS = ("manifest", "text", "watermark")
_MOST_BYTES = 64 << 20
_LONGEST_KEY = 4096
_LIMITS = {
    "Trusted": "The manifest shows that the file is, byte by byte, what the holder of that certificate signed. What it says of "
    "the picture, and when, is the signer's word.",
    "Valid": "The manifest shows that the file is as it was signed, but not by whom: anybody can make such a certificate. "
    "--trust FILE.pem names the ones to trust.",
    "text": "Text in a PNG file shows nothing by itself: anybody can write and change it.",
    "watermark": "The watermark shows that the picture goes back to noise of this key. It does not show that nothing was changed "
    "since, and who has the model and a marked picture can copy its mark into another picture.",
    "missed": "That the watermark was not found does not show that it was never there: a change of the picture, and sometimes "
    "making it in few jumps, hides it.",
    "nothing": "That nothing was found does not show that the picture is no model's: all three can be removed.",
}


def parser() -> Parser:
    result = command_parser(
        "verify",
        "Say which marks of origin a picture file has (manifest, text, watermark), what was altered, and what that does not "
        "prove. Exit code 0 if the file could be examined, whatever was found; --expect makes it 2 if something is missing, or "
        "signed by none of --trust.",
        "ctm verify picture.png --model models/digits-ctm --key watermark.key --nonces nonces.jsonl --trust ca.pem",
    )
    add = result.add_argument
    add("file", type=str, help="a picture file: PNG; JPEG, WebP and others have no text of ctm")
    add("--model", type=str, default=None, help="model directory, run directory or hub id: looks for its watermark")
    add("--key", type=str, default=None, help="file with the watermark's secret key, as bytes")
    add(
        "--nonces",
        type=str,
        default=None,
        help='file of JSON lines with the nonces to try: {"nonce": "00ff…", "condition": 4} (default: what the picture claims)',
    )
    add("--trust", type=str, default=None, help="PEM file of the certificates whose manifests are trusted")
    add(
        "--state",
        type=str,
        default=None,
        help="a service's directory: its keys/watermark.key, and keys/c2pa/ca.pem or the root in its chain.pem, where --key and "
        "--trust are not given",
    )
    add(
        "--rate",
        type=float,
        default=1e-4,
        help="allowed rate of false watermarks, over all nonces and conditions tried",
    )
    add("--expect", type=str, default=None, help="what must be found, or the exit code is 2: manifest,text,watermark")
    add_device_option(result)
    return result


@dataclass(frozen=True)
class Findings:
    """What was found in a file. notes: sentences on each kind, in order; altered: sentences on what does not fit together; trust:
    whether it was said which signers are trusted."""

    signed: Manifest | None
    texts: dict[str, str]
    detection: Detection | None
    notes: dict[str, str]
    altered: tuple[str, ...] = ()
    trust: bool = False

    def found(self, kind: str) -> bool:
        """Whether a kind was found and is what it says. Where some signers are trusted, a manifest of another is none."""
        if kind == "manifest":
            return self.signed is not None and self.signed.state in (
                ("Trusted",) if self.trust else ("Trusted", "Valid")
            )
        if kind == "text":
            return _claim_in(self.texts) is not None and not self.altered
        return self.detection is not None and self.detection.found


def run(settings: Namespace) -> None:
    """Examine the file and print what was found."""
    expected = _expected(settings.expect)
    key, trust = _secrets(settings)
    path = Path(settings.file)
    findings = _notes_in_file(_content(path), trust)
    if settings.model is not None and key is not None:
        findings = _with_watermark(settings, findings, key)
    elif settings.model is not None or settings.key is not None or settings.nonces is not None:
        raise ValueError("a watermark is found with the model and the key: give both --model DIR and --key FILE")
    else:
        findings.notes["watermark"] = "not looked for: --model DIR and --key FILE do that"
    for kind in _KINDS:
        print(f"{kind:<11}{findings.notes[kind]}")
    for sentence in findings.altered:
        print(f"altered    {sentence}")
    print("What this does not prove:")
    for sentence in _limits(findings):
        print(f"  {sentence}")
    missing = [_said(kind, findings) for kind in expected if not findings.found(kind)]
    if missing:
        raise ValueError(f"{path}: no {' and no '.join(missing)}, which --expect asks for")


def _said(kind: str, findings: Findings) -> str:
    """A kind as it was expected."""
    return f"{'trusted' if kind == 'manifest' and findings.trust else 'valid'} {kind}"


def _expected(asked: str | None) -> list[str]:
    kinds = [] if asked is None else [kind.strip() for kind in asked.split(",")]
    if any(kind not in _KINDS for kind in kinds):
        raise ValueError(f"--expect takes {', '.join(_KINDS)}, with commas, got {asked!r}")
    return kinds


def _secrets(settings: Namespace) -> tuple[bytes | None, str | None]:
    """(the watermark's key, certificates to trust), from the options or from the service's directory. Raises ValueError for a
    directory that does not say whom to trust: any signer would be."""
    key, trust = settings.key, None if settings.trust is None else read_text(Path(settings.trust))
    if settings.state is not None:
        keys = Path(settings.state) / "keys"
        if not keys.is_dir():
            raise FileNotFoundError(f"--state {settings.state} has no folder keys: it is no service's directory")
        of_state = keys / "watermark.key"
        key = key or (str(of_state) if of_state.is_file() and settings.model is not None else None)
        trust = trusted_of(keys / "c2pa") if trust is None else trust
    read_key = None
    if key is not None:
        try:
            with Path(key).open("rb") as file:
                read_key = as_key(file.read(_LONGEST_KEY))
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    return read_key, trust


def _content(path: Path) -> bytes:
    """The bytes of the file. Raises ValueError for more than 64 MB, of which none or little is read."""
    parts: list[bytes] = []
    with path.open("rb") as file:
        left = _MOST_BYTES - os.fstat(file.fileno()).st_size
        while left >= 0 and (part := file.read(1 << 20)):
            parts.append(part)
            left = _MOST_BYTES - sum(map(len, parts))
    if left < 0:
        raise ValueError(f"{path} is larger than {_MOST_BYTES >> 20} MB: reduce it")
    return b"".join(parts)


def _notes_in_file(content: bytes, trust: str | None) -> Findings:
    """What stands in the file beside the pixels."""
    notes, texts = {}, {}
    try:
        signed = manifest.read(content, trust)
        notes["manifest"] = "none" if signed is None else _of_manifest(signed)
    except ValueError as error:
        if trust is not None:
            raise
        signed, notes["manifest"] = None, f"not examined: {error}"
    if content.startswith(b"\x89PNG"):
        texts = text.read(content)
        notes["text"] = _in_words(texts) if texts else "none"
    else:
        notes["text"] = "none: it is kept in PNG files only"
    return Findings(signed, texts, None, notes, tuple(_altered(signed, texts)), trust is not None)


def _of_manifest(signed: Manifest) -> str:
    kind = {"Trusted": "trusted", "Valid": "valid", "Invalid": "NOT VALID"}.get(signed.state, plain(signed.state))
    parts = [kind, *([f"signed by {signed.issuer}"] if signed.issuer else []), *signed.problems]
    said = f"; it says: {_in_words(signed.fields)}" if signed.fields else f", made by {signed.generator}"
    opened = f"; made from other pictures: {', '.join(signed.sources)}" if signed.sources else ""
    return ", ".join(parts) + said + opened


def _in_words(texts: dict[str, str]) -> str:
    """The claim in a line, or why it is none."""
    try:
        claim = Claim.from_text(texts)
    except ValueError as error:
        return f"no claim of ctm ({plain(str(error), 200)})"
    condition = "no condition" if claim.condition is None else f"condition {plain(str(claim.condition))}"
    mark = "no watermark" if claim.nonce is None else f"watermark {plain(claim.nonce)}"
    record = "" if claim.record is None else f", record {plain(claim.record)}"
    jumps = f"{claim.steps} {'jump' if claim.steps == 1 else 'jumps'}, γ = {claim.gamma:g}"
    jumps = jumps if claim.sampler == "gamma" else f"{plain(claim.sampler)} on {claim.steps + 1} levels"
    jumps += "" if claim.guidance is None else f", guidance {claim.guidance:g}"
    which, condition = _which(claim, texts), condition if "images" not in texts else "conditions in the record"
    kind = texts.get("kind", '"generation"').strip('"')
    kind = "" if kind == "generation" else f"{plain(kind)}, "
    return (
        f"{kind}model {plain(claim.model)} ({plain(claim.digest)}), {which}, {jumps}, {condition}, {mark}, "
        f"made {plain(claim.created)}{record}"
    )


def _which(claim: Claim, texts: Mapping[str, str]) -> str:
    """Which image it is; of one picture that shows several, how many and from which on."""
    if "images" not in texts:
        return f"image {claim.index} of seed {claim.seed}"
    many = plain(texts["images"], 20)
    if "seeds" in texts:
        return f"{many} images of seeds {plain(texts['seeds'].strip('[]'))}"
    return f"{many} images of seed {claim.seed}, from number {claim.index} on"


def _altered(signed: Manifest | None, texts: dict[str, str]) -> Iterable[str]:
    if signed is not None and signed.state == "Invalid":
        yield from (f"manifest: {problem}" for problem in signed.problems)
    if signed is not None and signed.fields and texts:
        names = sorted(name for name in {*signed.fields, *texts} if signed.fields.get(name) != texts.get(name))
        if names:
            yield f"text and manifest do not say the same of {', '.join(plain(name) for name in names)}"


def _claim_in(fields: Mapping[str, str]) -> Claim | None:
    """The claim in fields of a file; None where there is none that is readable."""
    try:
        return Claim.from_text(fields)
    except ValueError:
        return None


def _with_watermark(settings: Namespace, findings: Findings, key: bytes) -> Findings:
    """The findings with the watermark that was looked for."""
    model = load_model(settings.model)
    if len(model.shape) != 3 or model.shape[0] not in (1, 3) or model.shape[1] != model.shape[2]:
        raise ValueError(f"{settings.model} is a model of shape {model.shape}: ctm verify reads square pictures")
    digest = checksum_of(model)
    claimed = _claimed(model, findings)
    stored = [] if settings.state is None else _stored(Path(settings.state), digest)
    listed = [] if settings.nonces is None else list(read_nonces(Path(settings.nonces)))
    every = [*stored, *listed, *_more_of_claim(claimed, stored, listed, digest)]
    fitting = [candidate for candidate in every if candidate.model in (None, digest)]
    if len(fitting) < len(every):
        print(f"left out are {len(every) - len(fitting)} nonces of another model than {settings.model} ({digest})")
    if not fitting:
        findings.notes["watermark"] = (
            "not looked for: there is no nonce to try (--nonces FILE, or a claim in the picture)"
        )
        return findings
    picture = for_model(read(settings.file), settings.file, model)[None]
    model = model.to(usable_device(settings.device))
    detection = find(model, picture.to(next(iter(model.parameters()))), key, fitting, rate=settings.rate)[0]
    findings.notes["watermark"] = _of_detection(detection)
    altered = findings.altered
    if detection.found and claimed is not None and detection.nonce != claimed.nonce:
        altered = (*altered, f"the watermark found is not the one that the file claims, {claimed.nonce.hex()}")
    if detection.found and claimed is not None and claimed.model != digest:
        other = plain(str(claimed.model), 80)
        altered = (*altered, f"the watermark found is of the model {digest}, and the file claims another, {other}")
    return replace(findings, detection=detection, altered=altered)


def _more_of_claim(
    claimed: Candidate | None, stored: list[Candidate], listed: list[Candidate], digest: str
) -> list[Candidate]:
    """What the file's claim adds to the nonces of the database and of --nonces. A nonce that is there already is tried as it is
    there, because anybody can write a claim; only where --nonces gives it without a condition, the claimed one is tried too."""
    if claimed is None:
        return []
    same = [one for one in (*stored, *listed) if one.nonce == claimed.nonce and one.model in (None, digest)]
    if not same:
        return [claimed]
    bare = claimed.condition is not None and all(one.condition is None for one in same)
    known = any(one.nonce == claimed.nonce for one in stored)
    return [replace(same[0], condition=claimed.condition)] if bare and not known else []


def _stored(folder: Path, digest: str) -> list[Candidate]:
    """The nonces in a service's database of pictures that this model made, each with its condition once; none without a
    database.

    A condition whose long fields are kept as digests cannot be tried; a line says so."""
    with installed():
        from ctm.safety.state import State, is_there

        if not is_there(folder):
            return []
        state = State.open(folder)
    try:
        stored = state.store.nonces(digest)
    finally:
        state.store.close()
    known = [one for one in stored if not _shortened(one.condition)]
    if len(known) < len(stored):
        print(f"left out are {len(stored) - len(known)} nonces whose conditions have fields too long for the database")
    once = {(one.nonce, json.dumps(one.condition, sort_keys=True)): one for one in known}
    return [Candidate(as_nonce(one.nonce), one.condition, digest, one.picture) for one in once.values()]


def _shortened(condition: object) -> bool:
    """Whether a field of a stored condition is there as its digest only."""
    return isinstance(condition, dict) and any(isinstance(value, dict) for value in condition.values())


def _claimed(model: AnyModel, findings: Findings) -> Candidate | None:
    """The watermark that the file claims, the manifest before the text; None where it claims none that this model could have."""
    signed = {} if findings.signed is None else findings.signed.fields
    claim = _claim_in(signed) or _claim_in(findings.texts)
    nonce = None if claim is None else claim.nonce_bytes()
    if claim is None or nonce is None:
        return None
    try:
        conditions_for(model, 1, claim.condition)
        return Candidate(as_nonce(nonce), claim.condition, claim.digest, claim.record)
    except ValueError as error:
        print(f"the watermark that the file claims is not tried: {plain(str(error), 200)}")
        return None


def _of_detection(detection: Detection) -> str:
    candidate = detection.candidate
    condition = "" if candidate.condition is None else f", condition {plain(str(candidate.condition))}"
    record = "" if candidate.record is None else f", record {plain(candidate.record)}"
    counted = (
        f"{detection.matches} of {detection.bits} signs fit nonce {candidate.nonce.hex()}{condition}{record}; by chance "
        f"{detection.p_value:.2g}, allowed {detection.threshold:.2g} for each of {detection.tried} tried"
    )
    return f"found: {counted}" if detection.found else f"not found; the best: {counted}"


def _limits(findings: Findings) -> list[str]:
    found = []
    if findings.signed is not None and findings.signed.state in _LIMITS:
        found.append(_LIMITS[findings.signed.state])
    if findings.texts:
        found.append(_LIMITS["text"])
    if findings.detection is not None:
        found.append(_LIMITS["watermark" if findings.detection.found else "missed"])
    return found or [_LIMITS["nothing"]]
