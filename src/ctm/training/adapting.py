"""Low-rank adapters on a teacher's own weights, as a recipe's `lora` asks for them."""

from __future__ import annotations

from ctm.models import AnyModel
from ctm.networks.adapters import add_adapters, own_tensors
from ctm.training.recipe import LoraSettings, Recipe

__all__ = ["adapt", "check_lora"]


def check_lora(recipe: Recipe) -> None:
    """Raises ValueError where adapters are asked for on other weights than a teacher's, or with an engine not built for them."""
    if recipe.lora is None:
        return
    if recipe.student is not None or recipe.start_from != "teacher":
        raise ValueError("lora adapts the teacher's own weights: leave student out, and start_from at teacher")
    if recipe.engine.sharding != "none" or recipe.engine.compile is not None:
        raise ValueError(
            "lora goes with engine.sharding none and without compile, got "
            f"sharding {recipe.engine.sharding} and compile {recipe.engine.compile}"
        )


def adapt(settings: LoraSettings, student: AnyModel, teacher: AnyModel | None) -> str:
    """Put the student on the teacher's own weights, with adapters. Returns a line that says so. Raises ValueError without a
    teacher."""
    if teacher is None:
        raise ValueError("lora adapts a teacher's weights, and this recipe names none: give --teacher MODEL")
    layers = add_adapters(student.network, teacher.network, rank=settings.rank, alpha=settings.alpha)
    own = sum(tensor.numel() for tensor in own_tensors(student).values())
    whole = sum(tensor.numel() for tensor in student.network.parameters())
    return (
        f"lora: {len(layers)} layers of the teacher's have adapters of rank {settings.rank}; {own:,} numbers are trained, and "
        f"{whole - own:,} are the teacher's, once in memory"
    )
