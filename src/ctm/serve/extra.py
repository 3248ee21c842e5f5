"""The packages of the extras `serve` and `ray`: their absence as a sentence."""

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


def check_installed(command: str, ray: bool = False) -> None:
    """Raises ValueError, which says what to install, where a package of the service is missing. ray: also of its replicas."""
    needed = (*NEEDED, "ray", "psycopg") if ray else NEEDED
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        extra = "ray" if ray else "serve"
        raise ValueError(
            f'{command} needs {", ".join(missing)}, which is not installed: pip install "ctm-torch[{extra}]"'
        )
