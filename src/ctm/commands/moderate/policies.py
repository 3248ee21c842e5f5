"""The policy: checked and shown; and the block list that it may name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import Namespace

from ctm.commands.moderate.common import work_parser
from ctm.terminal.parser import Parser
from ctm.terminal.paths import check_place

if TYPE_CHECKING:
    from ctm.safety import Policy

__all__ = ["block", "block_parser", "policy", "policy_parser"]

_BATCH = 64


def policy_parser() -> Parser:
    result = work_parser(
        "policy",
        "Check a policy file, or show every setting of it, also those that it leaves out.",
        "policy.yaml --check",
    )
    result.add_argument(
        "file", type=str, nargs="?", default=None, help="a policy file (default: the state's policy.yaml)"
    )
    result.add_argument("--check", action="store_true", help="say only whether it is a policy whose filters can be had")
    return result


def block_parser() -> Parser:
    result = work_parser(
        "block",
        "Make a block list of pictures. With thresholds for block_list in the policy, pictures near them are held or blocked.",
        "my-pictures/ --out runs/serve/block.list",
    )
    result.add_argument("data", type=str, nargs="+", help="folders of pictures, .npz files or data sets by name")
    result.add_argument("--out", type=str, required=True, help="the file to write; FILE.json beside it says what it is")
    return result


def policy(settings: Namespace) -> None:
    """Check or show a policy. Raises ValueError with what is wrong in it."""
    from ctm.safety import Policy, Screen
    from ctm.safety.policy import DEFAULT_FILE
    from ctm.safety.shipped import filters_for

    own = Path(settings.state) / "policy.yaml"
    file = Path(settings.file) if settings.file is not None else own
    if settings.file is None and not own.exists():
        print(f"# {own} is not there: these are the defaults, which a new state gets")
        file = DEFAULT_FILE
    chosen = Policy.load(file)
    if not settings.check:
        print(yaml.safe_dump(_plain(chosen), sort_keys=False, allow_unicode=True), end="")
        return
    filters = Screen(chosen, filters_for(chosen, Path(settings.state))).filters
    print(
        f"{file} is a policy (digest {chosen.digest[:16]}); its filters: {', '.join(each.name for each in filters) or 'none'}"
    )


def block(settings: Namespace) -> None:
    """Make a block list."""
    from ctm.data import load_images, tell
    from ctm.safety.block_list import BlockList

    out = Path(settings.out)
    check_place(out)
    sets = [load_images(name) for name in settings.data]
    for name, images in zip(settings.data, sets, strict=True):
        tell(images.notes, name)
    made = BlockList.of(
        images.pixels[start : start + _BATCH] for images in sets for start in range(0, len(images), _BATCH)
    )
    made.save(out)
    print(
        f"{len(made)} pictures in {out}. In the policy: block_list: FILE, and thresholds: {{block_list: {{near: {{block: …}}}}}}"
    )


def _plain(chosen: Policy) -> dict[str, Any]:
    """The settings as a file writes them."""
    values = chosen.model_dump(mode="json")
    for name in ("classes", "conditions"):
        values[name]["allowed"] = "all" if values[name]["allowed"] is None else values[name]["allowed"]
    values["retention"] = {name: "forever" if days is None else days for name, days in values["retention"].items()}
    return values
