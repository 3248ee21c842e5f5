"""Manifests: signed, trusted or only valid, changed, and gone."""

import io
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from PIL import Image

from ctm.provenance import certificates, manifest, text
from ctm.provenance.manifest import Signer

from .pictures import CLAIM, pixels, pixels_of, png


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("keys") / "c2pa"


@pytest.fixture(scope="module")
def signer(folder):
    return Signer.load_or_create(folder)


@pytest.fixture(scope="module")
def signed(signer):
    return signer.sign(text.write(png(), CLAIM.as_text()), CLAIM)


def test_a_signed_file_is_valid_and_with_its_authority_trusted(signer, signed):
    plain = manifest.read(signed)
    assert (plain.state, plain.problems) == ("Valid", ("the signer is none that you trust",))
    trusted = manifest.read(signed, trust=signer.authority)
    assert (trusted.state, trusted.problems) == ("Trusted", ())
    assert trusted.issuer == "ctm development, ctm development signer"
    assert trusted.generator.startswith("ctm-torch 0")
    assert trusted.claim() == CLAIM


def test_pixels_and_text_stay(signed):
    assert np.array_equal(pixels_of(signed), pixels())
    assert text.read(signed) == CLAIM.as_text()
    assert len(signed) < len(png()) + 8000  # no thumbnail


def test_a_mapping_is_a_claim_as_well(signer):
    found = manifest.read(signer.sign(png(pixels(8, 3)), {"model": "m", "grid": [80.0, 0.002], "seed": 1}))
    assert found.fields == {"model": "m", "grid": "[80.0, 0.002]", "seed": "1"}


def test_another_authority_is_not_trusted(signed, tmp_path):
    other = Signer.load_or_create(tmp_path / "other")
    assert manifest.read(signed, trust=other.authority).state == "Valid"


def changed_pixel(signed: bytes) -> bytes:
    """The file with one pixel another, all else as it was: its manifest is put into the changed picture's bytes."""
    picture = pixels().copy()
    picture[3, 4] ^= 1
    plain, new = png(), png(picture)
    start = signed.index(plain[plain.index(b"IDAT") - 4 :])  # the end of the file, from the pixels on
    return signed[:start] + new[new.index(b"IDAT") - 4 :]


def flipped(signed: bytes, mark: bytes, offset: int) -> bytes:
    data = bytearray(signed)
    data[data.index(mark) + offset] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (changed_pixel, "the file was changed after it was signed"),
        (lambda signed: signed + b"more", "the file was changed after it was signed"),
        (
            lambda signed: b"digits-CTM".join(signed.rsplit(b"digits-ctm", 1)),
            "the file was changed after it was signed",
        ),
        (lambda signed: signed.replace(b"digits-ctm", b"digits-CTM", 1), "a statement in the manifest was changed"),
        (lambda signed: flipped(signed, b"caBX", 60), "it cannot be read"),
    ],
    ids=["pixel", "appended", "text", "claim", "manifest"],
)
def test_any_change_is_found(signer, signed, change, problem):
    tampered = change(signed)
    assert tampered != signed
    found = manifest.read(tampered, trust=signer.authority)
    assert found.state == "Invalid"
    assert any(problem in sentence for sentence in found.problems)


def test_the_changed_pixel_is_a_picture_with_one_pixel_changed(signed):
    assert (pixels_of(changed_pixel(signed)) != pixels()).sum() == 1


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_saved_again_the_manifest_is_gone(signed, kind):
    again = io.BytesIO()
    Image.open(io.BytesIO(signed)).save(again, kind)
    assert manifest.read(again.getvalue()) is None


def test_what_has_no_manifest():
    assert manifest.read(png()) is None
    assert manifest.read(b"") is None
    assert manifest.read(b"%PDF-1.7") is None
    assert manifest.read(b"\x89PNG\r\n\x1a\n").state == "Invalid"


def test_many_threads_share_a_signer(signer):
    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(lambda side: signer.sign(png(pixels(side)), {"seed": side}), range(4, 24)))
    assert [manifest.read(file).fields["seed"] for file in files] == [str(side) for side in range(4, 24)]


def test_the_certificates_are_kept_and_secret(folder, signer, signed):
    again = Signer.load_or_create(folder)
    assert again.authority == signer.authority
    assert manifest.read(again.sign(png(), CLAIM), trust=signer.authority).state == "Trusted"
    assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def own_certificates(folder, key, days=30):
    """An operator's own authority and leaf, Ed25519."""
    root, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(timezone.utc)
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "An operator")])
    leaf = (
        x509.CertificateBuilder(
            issuer_name=issuer, subject_name=x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Operator")])
        )
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(certificates._usage(x509, digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False)
        .sign(root, hashes.SHA256())
    )
    folder.mkdir()
    (folder / "chain.pem").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    return folder


def test_an_operator_s_own_certificates_are_used(tmp_path):
    own = Signer.load_or_create(own_certificates(tmp_path / "own", ed25519.Ed25519PrivateKey.generate()))
    found = manifest.read(own.sign(png(), CLAIM))
    assert (found.state, found.issuer) == ("Valid", "Operator")
    assert own.authority is None


def test_wrong_certificates_are_sentences(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(ValueError, match=r"expired on .*: put a new one there"):
        Signer.load_or_create(own_certificates(tmp_path / "expired", key, days=-1))
    alone = own_certificates(tmp_path / "alone", key)
    (alone / "key.pem").unlink()
    with pytest.raises(ValueError, match=r"chain.pem is there and key.pem is not: put both there"):
        Signer.load_or_create(alone)
    other = own_certificates(tmp_path / "other", key)
    own_key = own_certificates(tmp_path / "third", ec.generate_private_key(ec.SECP256R1())) / "key.pem"
    (other / "key.pem").write_bytes(own_key.read_bytes())
    with pytest.raises(ValueError, match="is not the key of the first certificate in"):
        Signer.load_or_create(other)
    (other / "chain.pem").write_text("no certificate")
    with pytest.raises(ValueError, match="holds no certificates in PEM"):
        Signer.load_or_create(other)
    curve = own_certificates(tmp_path / "curve", ec.generate_private_key(ec.SECP256K1()))
    with pytest.raises(ValueError, match="a key of kind secp256k1: C2PA signs with P-256"):
        Signer.load_or_create(curve)


def test_wrong_arguments_are_sentences(signer, signed):
    with pytest.raises(ValueError, match="manifests are put into PNG files, and this is none"):
        signer.sign(b"GIF89a", CLAIM)
    with pytest.raises(ValueError, match="this PNG file cannot be signed"):
        signer.sign(png()[:40], CLAIM)
    with pytest.raises(ValueError, match="the trust holds no certificates in PEM"):
        manifest.read(signed, trust="nobody")


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch, signed):
    monkeypatch.setitem(__import__("sys").modules, "c2pa", None)
    with pytest.raises(ValueError, match=r'the package c2pa, which is not installed: pip install "ctm-torch\[serve\]"'):
        manifest.read(signed)
