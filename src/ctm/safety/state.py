"""The state of a service: one directory with its policy, its keys and its database."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from ctm import __version__
from ctm.keystream import as_key
from ctm.safety.api_keys import ApiKeys
from ctm.safety.policy import DEFAULT_FILE, Policy
from ctm.safety.screening import Metrics, Screen
from ctm.safety.shipped import filters_for
from ctm.safety.signing import Signer, made_once
from ctm.safety.store import Store

__all__ = ["DEFAULT_STATE", "State"]

DEFAULT_STATE = "runs/serve"
_FILE = "service.sqlite3"
_VARIABLE = "CTM_DATABASE"  # not an option, because others see a command's options, and a URL may hold a password


@dataclass(frozen=True)
class State:
    """An open state: `folder` with policy.yaml, service.sqlite3 and keys/ (record.pem, record.pub.pem, api.secret …), which only
    its owner reads."""

    folder: Path
    policy: Policy
    store: Store
    keys: ApiKeys

    def screen(self, metrics: Metrics | None = None) -> Screen:
        """The screen that the policy asks for, with the shipped filters. Raises ValueError for a filter that cannot be had."""
        return Screen(self.policy, filters_for(self.policy, self.folder), metrics)

    def begin(self, what: str, screen: Screen) -> None:
        """Note in the record that something begins to work, e.g. "ctm serve": with which policy and which filters."""
        filters = {each.name: each.checksum for each in screen.filters}
        self.store.note(
            "began", {"what": what, "policy": self.policy.digest, "filters": filters, "version": __version__}
        )

    def watermark_key(self) -> bytes:
        """The secret of the watermark, keys/watermark.key, which is made at first use. Raises ValueError, which names the file,
        for one that is too short."""
        path = self.folder / "keys" / "watermark.key"
        try:
            return as_key(made_once(path, secrets.token_bytes(32)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; put the service's own back from a backup") from error

    @classmethod
    def open(cls, folder: Path, policy: Path | None = None, url: str | None = None) -> State:
        """The state in a directory, which is made at first, with the default policy in policy.yaml.

        policy: another file than the state's policy.yaml. url: of the database; None takes the environment variable CTM_DATABASE,
        else service.sqlite3. Raises ValueError and OSError, with a sentence, for a file that cannot be used."""
        secret_folder(folder / "keys")
        own = folder / "policy.yaml"
        if policy is None:
            made_once(own, DEFAULT_FILE.read_bytes(), 0o644)
        settings = Policy.load(policy or own)
        signer = Signer.load_or_create(folder / "keys")
        secret = made_once(folder / "keys" / "api.secret", secrets.token_bytes(32))
        if len(secret) < 32:
            name = folder / "keys" / "api.secret"
            raise ValueError(f"{name} is shorter than 32 bytes: put the service's own back from a backup")
        head = None if settings.head is None else folder / os.path.expanduser(settings.head)
        url = url or database_url(folder)
        if url == _file_url(folder):
            made_once(
                folder / _FILE, b""
            )  # readable by its owner only; SQLite gives its other files the same permissions
        store = Store(url, signer, head, settings.retention)
        return cls(folder, settings, store, ApiKeys(store, secret))


def database_url(folder: Path) -> str:
    """The URL in the environment variable CTM_DATABASE, else of the SQLite file in a state's directory."""
    return os.environ.get(_VARIABLE) or _file_url(folder)


def is_there(folder: Path) -> bool:
    """Whether a directory holds a state with its database."""
    return (folder / "keys").is_dir() and (database_url(folder) != _file_url(folder) or (folder / _FILE).is_file())


def _file_url(folder: Path) -> str:
    return f"sqlite:///{(folder / _FILE).absolute()}"


def secret_folder(folder: Path) -> Path:
    """The directory, made with its parents so that only its owner enters it."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder
