"""Consistency Trajectory Models: one network that jumps anywhere along the probability-flow ODE."""

from ctm.version import __version__ as __version__

TYPE_CHECKING = False  # typing's, which would be imported before the command can heed Ctrl-C
if TYPE_CHECKING:
    from typing import Any

    from ctm import editing, guidance, likelihood, objectives, sampling, teachers
    from ctm.conditioner import Arrays, Labels
    from ctm.models import ConsistencyModel, DiffusionModel, TrajectoryModel, load_model
    from ctm.noise import karras_grid
    from ctm.sampling import Cancelled, generate, tune_grid
    from ctm.teachers import load_teacher

__all__ = [
    "Arrays",
    "Cancelled",
    "ConsistencyModel",
    "DiffusionModel",
    "Labels",
    "TrajectoryModel",
    "editing",
    "generate",
    "guidance",
    "karras_grid",
    "likelihood",
    "load_model",
    "load_teacher",
    "objectives",
    "sampling",
    "teachers",
    "tune_grid",
]

_HOME = {  # the module of each name that is not a module itself
    "Arrays": "conditioner",
    "Cancelled": "sampling",
    "ConsistencyModel": "models",
    "DiffusionModel": "models",
    "Labels": "conditioner",
    "TrajectoryModel": "models",
    "generate": "sampling",
    "karras_grid": "noise",
    "load_model": "models",
    "load_teacher": "teachers",
    "tune_grid": "sampling",
}


def __getattr__(name: str) -> "Any":
    """A public name, imported when it is first asked for: torch takes seconds, and `ctm --help` needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    home = importlib.import_module(f"ctm.{_HOME.get(name, name)}")
    value = getattr(home, name) if name in _HOME else home
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All public names, imported yet or not."""
    return sorted({*globals(), *__all__})
