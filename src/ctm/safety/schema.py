"""The tables of a service's database. Their versions are in migrations/versions."""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, LargeBinary, MetaData, String, Table, Text

__all__ = ["api_keys", "metadata", "nonces", "pictures", "record", "reports"]

metadata = MetaData()

# times are text, ISO 8601 in UTC with microseconds, so that their order is the order of the text
record = Table(
    "record",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("entry", Text, nullable=False),  # canonical JSON, the bytes that are hashed and signed
    Column("hash", String(64), nullable=False),
    Column("signature", String(128), nullable=False),
    Column("picture", String(64), nullable=True),
    Index("record_picture", "picture"),
)

pictures = Table(
    "pictures",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("png", LargeBinary, nullable=True),
    Column("sha256", String(64), nullable=False),
    Column("claim", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("key_id", String(64), nullable=True),
    Column("made", String(32), nullable=False),
    Column("changed", String(32), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Index("pictures_state", "state", "changed"),
)

nonces = Table(
    "nonces",
    metadata,
    Column("picture", String(64), primary_key=True),
    Column("nonce", String(128), nullable=False),
    Column("model", String(64), nullable=False),
    Column("condition", Text, nullable=False),
    Index("nonces_model", "model"),
)

reports = Table(
    "reports",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("picture", String(64), nullable=False),
    Column("words", Text, nullable=False),
    Column("key_id", String(64), nullable=True),
    Column("made", String(32), nullable=False),
    Column("closed", String(32), nullable=True),
    Column("answer", Text, nullable=False, default=""),
    Index("reports_picture", "picture"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("rate", Text, nullable=False),
    Column("created", String(32), nullable=False),
    Column("revoked", String(32), nullable=True),
)
