"""The model hub: asked within a bounded time, and given a folder; its errors as sentences."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]
from huggingface_hub.utils import logging as hub_logging

from ctm.foreign.text import plain

__all__ = ["asking_hub", "not_given", "push_folder", "pushing"]

_LIBRARIES = ("httpx", "httpcore", "requests", "huggingface_hub", "hf_xet")  # httpx2 and httpcore2 too
_LOG_IN = "log in by `hf auth login`, or set HF_TOKEN"

_SECONDS = 5.0  # for an answer of any kind


@contextmanager
def asking_hub() -> Iterator[None]:
    """Inside the block the hub's libraries ask the hub if it answers, and else their caches alone. Where there is no network
    their own tries take half a minute and print a line each; this takes 5 s at most and prints nothing."""
    hub_logging.set_verbosity_error()
    if constants.HF_HUB_OFFLINE or _answers(_SECONDS):
        yield
        return
    settings = [constants, *(sys.modules[name] for name in ("datasets.config",) if name in sys.modules)]
    before = [module.HF_HUB_OFFLINE for module in settings]
    for module in settings:
        module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, value in zip(settings, before, strict=True):
            module.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]


def _answers(seconds: float) -> bool:
    """Whether the hub answers within that time. A thread asks, because looking up a name has no limit of its own."""
    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=seconds))
        except Exception:  # of several libraries, for a name, a connection or a proxy
            return

    thread = Thread(target=ask, daemon=True, name="ctm-hub")
    thread.start()
    thread.join(seconds)
    return bool(answers)


def not_given(repo_id: str, error: Exception, revision: str | None = None) -> Exception:
    """What is raised where the hub does not give a model: FileNotFoundError in a sentence for what the hub says, and the error
    itself for anything else."""
    if isinstance(error, GatedRepoError | RepositoryNotFoundError):
        reason = f"there is no such repository, or it is private and the token is missing or not of it: {_LOG_IN}"
    elif isinstance(error, RevisionNotFoundError):
        reason = f"it has no revision {plain(str(revision), 80)}: give a branch, a tag or a commit of it"
    elif isinstance(error, LocalEntryNotFoundError):
        reason = "it is not in the cache, and the hub was not asked (offline) or did not answer"
    elif isinstance(error, EntryNotFoundError):
        reason = "it is there and holds no model of ctm-torch: it needs config.json and model.safetensors"
    elif isinstance(error, HFValidationError):
        reason = "that is no name of a repository: give OWNER/NAME, or a directory"
    else:
        return error
    return FileNotFoundError(f"the hub does not give {plain(repo_id, 120)}: {reason}")


@contextmanager
def pushing(repo_id: str) -> Iterator[None]:
    """Inside the block the hub's refusals become sentences: PermissionError without a token or with one that may not write,
    ValueError for a name that is none, ConnectionError where the hub does not answer or fails."""
    name = plain(repo_id, 120)
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{name} is no name of a hub repository: give OWNER/NAME") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status == 401:
            raise PermissionError(
                f"the hub takes nothing for {name} without a token that it knows: {_LOG_IN}"
            ) from error
        if status == 403:
            raise PermissionError(
                f"the hub does not let this token write to {name}: give a token with write access, or a name of your own"
            ) from error
        raise _failed(name, error) from error
    except OSError as error:  # of a connection; a file's error says which file
        if getattr(error, "filename", None) is not None:
            raise
        raise _failed(name, error) from error
    except Exception as error:
        if type(error).__module__.startswith(_LIBRARIES):
            raise _failed(name, error) from error
        raise


def _failed(name: str, error: Exception) -> ConnectionError:
    reason = plain(" ".join(f"{type(error).__name__}: {error}".split()), 200)
    return ConnectionError(
        f"the upload of {name} to {constants.ENDPOINT} failed ({reason}): try again; HF_ENDPOINT names another hub"
    )


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    message: str,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
) -> str:
    """Put the files of a folder into a repository of the hub, which is made where there is none, in one commit. The address of
    the commit. token: None for that of HF_TOKEN or of `hf auth login`. branch: made where there is none. Raises as `pushing`."""
    with pushing(repo_id):
        api = HfApi(token=token)
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if branch is not None:
            api.create_branch(name, branch=branch, exist_ok=True)
        sent = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, revision=branch)
        return str(sent.commit_url)
