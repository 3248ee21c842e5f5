"""The packages of the extra `serve`: their absence as a sentence."""

from __future__ import annotations

import importlib.util

__all__ = ["check_installed"]

NEEDED = (
    "fastapi",
    "uvicorn",
    "python_multipart",
    "limits",
    "prometheus_client",
)  # ctm.safety and ctm.provenance name theirs


def check_installed(command: str) -> None:
    """Raises ValueError, which says what to install, where a package of the service is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f'{command} needs {", ".join(missing)}, which is not installed: pip install "ctm-torch[serve]"'
        )
