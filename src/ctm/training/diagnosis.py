"""Where a value that is not finite (nan or inf) comes from: one more forward pass with every module watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = ["Observed", "first_bad_value"]


class Observed:
    """A model seen from outside: `seen(name, output)` is called with what its denoise and jump return; everything else is
    the model's. For models that compute without calling a module, such as a mixture."""

    def __init__(self, model: object, name: str, seen: Callable[[str, Tensor], None]) -> None:
        self._model, self._name, self._seen = model, name, seen

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._model, attribute)
        if attribute not in ("denoise", "jump"):
            return found

        def observed(*arguments: Any, **options: Any) -> Tensor:
            output = found(*arguments, **options)
            self._seen(f"{self._name}.{attribute}", output)
            return output

        return observed


def first_bad_value(
    forward: Callable[[Any, Any], Any],
    models: Mapping[str, Any],
    accelerator: Accelerator,
    seed: int,
    learner: str = "student",
) -> str:
    """A sentence on where the first value that is not finite appears in this step.

    forward: computes the step's losses again, given target and teacher. models: student, target, teacher and players; None where
    there is none. Computed without gradient, from `seed`; buffers are as before afterwards. The weights of the learner (the
    student, or a player) are looked at first, and its gradients where every output is finite. Collective: all processes call it
    and get the first finding of all.
    """
    seen: list[str] = []

    def note(name: str, output: object) -> None:
        if not seen and isinstance(output, Tensor) and not _all_finite(output):
            seen.append(f"the first output that is not finite is that of {name}")

    observed = {n: None if m is None else Observed(m, n, note) for n, m in models.items()}
    modules = {name: model for name, model in models.items() if isinstance(model, nn.Module)}
    with torch.no_grad(), torch.random.fork_rng(), _as_before(modules), _watched(modules, note):
        torch.manual_seed(seed)
        forward(observed["target"], observed["teacher"])
    network = models[learner]
    finding = _first_bad_weight(learner, network) or (seen[0] if seen else _first_bad_gradient(learner, network))
    if accelerator.num_processes == 1:
        return finding
    findings = gather_object([finding])
    first = next((rank for rank, found in enumerate(findings) if found), 0)
    return f"{findings[first]} (process {first})" if findings[first] else ""


def _all_finite(tensor: Tensor) -> bool:
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return not own.is_floating_point() or bool(own.isfinite().all())


def _first_bad_weight(learner: str, network: nn.Module) -> str:
    """A weight that is not finite since an earlier step."""
    bad = (name for name, p in network.named_parameters() if not _all_finite(p))
    name = next(bad, None)
    return "" if name is None else f"the weight {learner}.{name} itself is not finite, from an earlier step"


def _first_bad_gradient(learner: str, network: nn.Module) -> str:
    """The parameter nearest to the loss whose gradient is not finite: from there it spread towards the input."""
    bad = [name for name, p in network.named_parameters() if p.grad is not None and not _all_finite(p.grad)]
    if not bad:
        return ""
    others = f", as are those of {len(bad) - 1} parameters before it" if len(bad) > 1 else ""
    return f"every output is finite, but the gradient of {learner}.{bad[-1]} is not{others}"


@contextmanager
def _watched(modules: Mapping[str, nn.Module], note: Callable[[str, object], None]) -> Iterator[None]:
    """Call `note` with the name and output of every module meanwhile, innermost first."""
    hooks = []
    for kind, model in modules.items():
        for name, module in model.named_modules():
            full = f"{kind}.{name}" if name else kind
            hooks.append(module.register_forward_hook(lambda m, i, output, full=full: note(full, output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _as_before(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Give all buffers back the values they had."""
    kept = [(buffer, buffer.clone()) for module in modules.values() for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)
