"""What a model takes as its condition, told by its settings and by its network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ctm.conditioner import Arrays, Conditioner, conditioner_from
from ctm.conditions import GUIDANCE
from ctm.networks.base import Network

__all__ = ["conditioner_for"]


def conditioner_for(
    network: nn.Module, conditioner: Conditioner | Mapping[str, object] | None, num_classes: int = 0
) -> Conditioner:
    """The conditioner of a model: the one that is given, else `num_classes` labels and the fields that the network takes. A
    network that embeds the guidance scale adds that field, which is 1 where it is not given.

    Raises ValueError where one of our networks takes other fields than the conditioner has."""
    own = network.fields if isinstance(network, Network) else {}
    scale = Arrays({GUIDANCE: ()}, always={GUIDANCE: 1.0})
    if conditioner is None:
        others = {name: shape for name, shape in own.items() if name != GUIDANCE}
        found = conditioner_from(None, num_classes) | Arrays(others)
    else:
        found = conditioner_from(conditioner, num_classes)
    if GUIDANCE in own and GUIDANCE not in found.fields:
        found = found | scale
    if isinstance(network, Network) and dict(found.fields) != own:
        names = ("the conditioner", found.fields), ("its network", own)
        said = " and ".join(f"{who} has {_shown(fields)}" for who, fields in names)
        raise ValueError(f"{said}: give the network the same fields as `arrays`")
    return found


def _shown(fields: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in fields.items()) or "no fields"
