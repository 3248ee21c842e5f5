"""Responsible use: what may be made and by whom, what may leave, who decides in doubt, and a record of it all.

Needs the extra `serve`. A public name is imported when it is first used, so `import ctm.safety` needs nothing."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctm.safety.admission import Ask, KeyInfo, Refused
    from ctm.safety.api_keys import ApiKeys
    from ctm.safety.filters import Filter
    from ctm.safety.pictures import Picture
    from ctm.safety.policy import Policy
    from ctm.safety.record import Record
    from ctm.safety.screening import Screen, Verdict
    from ctm.safety.state import State
    from ctm.safety.store import Store
    from ctm.safety.verification import Findings, verify

_HOME = {
    "ApiKeys": "api_keys",
    "Ask": "admission",
    "Filter": "filters",
    "Findings": "verification",
    "KeyInfo": "admission",
    "Picture": "pictures",
    "Policy": "policy",
    "Record": "record",
    "Refused": "admission",
    "Screen": "screening",
    "State": "state",
    "Store": "store",
    "Verdict": "screening",
    "verify": "verification",
}

__all__ = [
    "ApiKeys",
    "Ask",
    "Filter",
    "Findings",
    "KeyInfo",
    "Picture",
    "Policy",
    "Record",
    "Refused",
    "Screen",
    "State",
    "Store",
    "Verdict",
    "verify",
]


def __getattr__(name: str) -> Any:
    """A public name from its module. Raises ValueError with what to install where a package is missing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ctm.safety.extra import installed

    with installed():
        value = getattr(importlib.import_module(f"ctm.safety.{_HOME[name]}"), name)
    globals()[name] = value
    return value
