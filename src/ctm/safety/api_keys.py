"""API keys: shown once, kept as HMAC-SHA-256 under a secret of the state, with the role and the limits of each."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import insert, select, update

from ctm.foreign.text import plain
from ctm.safety.admission import KeyInfo, Role
from ctm.safety.policy import Rate
from ctm.safety.record import as_text, canonical, now
from ctm.safety.schema import api_keys
from ctm.safety.store import Store

__all__ = ["ApiKeys"]

_BEGINNING = "ctm"
_LONGEST = 200  # characters of a key's name


class ApiKeys:
    """The keys of a service, in its store. secret: the bytes under which their digests are made; without it a stolen database
    tells nothing of the keys."""

    def __init__(self, store: Store, secret: bytes) -> None:
        self._store, self._secret = store, secret

    def create(self, name: str, role: Role = "user", limits: Rate | None = None) -> str:
        """Make a key and return its text, which is shown this once. name: of its holder; limits: None takes the policy's for the
        role. Raises ValueError for an empty name or an unknown role."""
        name = name.strip()
        if not name or len(name) > _LONGEST or not name.isprintable():
            raise ValueError(f"a key's name is its holder's, 1 to {_LONGEST} printable characters, got {plain(name)!r}")
        if role not in get_args(Role):
            raise ValueError(f"a key's role must be {' or '.join(get_args(Role))}, got {plain(role)!r}")
        id = secrets.token_hex(6)
        text = f"{_BEGINNING}_{id}_{secrets.token_urlsafe(32)}"
        rate = None if limits is None else limits.model_dump()
        row = {"id": id, "name": name, "role": role, "digest": self._digest(text), "rate": canonical(rate)}
        about = {"key": id, "name": name, "role": role, "rate": rate, "digest": row["digest"]}
        with self._store.writing() as writing:
            time = as_text(now())
            writing.connection.execute(insert(api_keys).values(**row, created=time, revoked=None))
            writing.note("key created", about, time=time)
        return text

    def find(self, text: str) -> KeyInfo | None:
        """Whose key it is; None for a text that is no key, and for a revoked one. Digests are compared in constant time."""
        parts = text.split("_", 2)
        id = parts[1] if len(parts) == 3 and parts[0] == _BEGINNING and len(parts[1]) <= 64 else ""
        with self._store.database.reading() as connection:
            row = connection.execute(select(api_keys).where(api_keys.c.id == id)).first() if id.isalnum() else None
        digest = self._digest(text)
        if not hmac.compare_digest(digest, row.digest if row is not None else "0" * 64):
            return None
        return None if row is None or row.revoked is not None else _info(row)

    def list(self) -> list[KeyInfo]:
        """All keys, revoked ones too, oldest first."""
        with self._store.database.reading() as connection:
            rows = connection.execute(select(api_keys).order_by(api_keys.c.created, api_keys.c.id)).all()
        return [_info(row) for row in rows]

    def revoke(self, id: str, by: str = "") -> None:
        """End a key from now on. Raises ValueError for an unknown or revoked one."""
        with self._store.writing() as writing:
            row = writing.connection.execute(select(api_keys).where(api_keys.c.id == id)).first()
            if row is None:
                raise ValueError(f"there is no key {plain(id)!r}: ctm moderate keys list shows their ids")
            if row.revoked is not None:
                raise ValueError(f"the key {id} was revoked at {row.revoked} already")
            time = as_text(now())
            writing.connection.execute(update(api_keys).where(api_keys.c.id == id).values(revoked=time))
            writing.note("key revoked", {"key": id, "by": by}, time=time)

    def _digest(self, text: str) -> str:
        return hmac.new(self._secret, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _info(row: Any) -> KeyInfo:
    rate = json.loads(row.rate)
    times = [
        None if time is None else datetime.fromisoformat(time.replace("Z", "+00:00"))
        for time in (row.created, row.revoked)
    ]
    return KeyInfo(row.id, row.name, row.role, None if rate is None else Rate(**rate), *times)
