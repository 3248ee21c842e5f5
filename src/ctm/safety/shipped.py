"""The filters that a policy asks for, made ready."""

from __future__ import annotations

import os
from pathlib import Path

from ctm.safety.extra import installed
from ctm.safety.filters import Filter
from ctm.safety.policy import Policy

__all__ = ["filters_for"]


def filters_for(policy: Policy, folder: Path = Path()) -> list[Filter]:
    """The shipped filters for which the policy has thresholds. folder: where a relative path of its block list begins.

    Raises ValueError where a package is missing, where the block list is not named or cannot be read, and where a list is named
    that no threshold uses."""
    filters: list[Filter] = []
    if "open_nsfw" in policy.thresholds:
        from ctm.safety.open_nsfw import OpenNsfw

        with installed():
            filters.append(OpenNsfw())
    if "block_list" not in policy.thresholds and policy.block_list is not None:
        raise ValueError(
            f"the policy names the block list {policy.block_list} but has no thresholds for it: add thresholds, "
            "block_list: {near: {hold: …, block: …}}, or take the list out"
        )
    if "block_list" in policy.thresholds:
        filters.append(_block_list(policy, folder))
    return filters


def _block_list(policy: Policy, folder: Path) -> Filter:
    if policy.block_list is None:
        raise ValueError(
            "the policy has thresholds for block_list but names no list: set block_list: FILE (ctm moderate block makes one)"
        )
    with installed():
        from ctm.safety.block_list import BlockList

        return BlockList.load(folder / os.path.expanduser(policy.block_list))
