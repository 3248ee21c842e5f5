"""How a run computes, apart from what: precision, layout and compilation of networks; one step of the optimiser."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = [
    "EngineSettings",
    "ScaledOptimizer",
    "compile_networks",
    "fitting_optimizer",
    "set_checkpointing",
    "set_layout",
    "set_precision",
]

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(kw_only=True)
class EngineSettings:
    """How to compute.

    Args:
        precision: in which the networks compute: fp32, bf16, or fp16 with scaled losses. Weights, averages, the scalings
            around the networks and the losses stay float32.
        accumulate: pieces into which each batch is cut; their gradients are averaged before the optimiser's step.
        clip_gradient_norm: gradients of a larger total norm are scaled down to this one; unset: none are.
        channels_last: whether weights and images are laid out with the channels innermost, which convolutions on GPUs like.
        sharding: fsdp2 divides weights, averages and the optimiser's state among the processes; none keeps them whole in each.
        checkpoint_gradients: whether student and target keep only the inputs of their blocks, and compute what is inside again in
            the backward pass: the same gradients in less memory, for about a quarter more time.
        compile: backend of torch.compile for the networks, as inductor, aot_eager or eager; unset: not compiled.
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = 1
    clip_gradient_norm: float | None = None
    channels_last: bool = False
    sharding: Literal["none", "fsdp2"] = "none"
    checkpoint_gradients: bool = False
    compile: str | None = None

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"engine.accumulate must be at least 1, got {self.accumulate}")
        if self.clip_gradient_norm is not None and not self.clip_gradient_norm > 0:
            raise ValueError(f"engine.clip_gradient_norm must be above 0 or unset, got {self.clip_gradient_norm}")
        if self.sharding == "fsdp2" and (self.precision == "fp16" or self.compile is not None):
            raise ValueError(
                "engine.sharding fsdp2 goes with precision fp32 or bf16 and without compile, got "
                f"precision {self.precision} and compile {self.compile}"
            )
        if self.checkpoint_gradients and (self.sharding == "fsdp2" or self.compile is not None):
            raise ValueError(
                "engine.checkpoint_gradients goes with sharding none and without compile, got "
                f"sharding {self.sharding} and compile {self.compile}"
            )
        if self.compile is not None:
            known = torch.compiler.list_backends(exclude_tags=())
            if self.compile not in known:
                raise ValueError(f"engine.compile must be one of {', '.join(known)}, got {self.compile!r}")


def set_precision(models: Iterable[object], precision: Literal["fp32", "bf16", "fp16"]) -> None:
    """Let the models' networks compute so. A teacher that is no network of ours (a mixture) computes as it always does."""
    for model in models:
        if hasattr(model, "autocast"):
            model.autocast = _AUTOCAST[precision]


def set_checkpointing(network: nn.Module) -> None:
    """Let the network compute its blocks again in the backward pass. Raises ValueError for one that cannot."""
    switch = getattr(network, "checkpoint_gradients", None) or getattr(network, "enable_gradient_checkpointing", None)
    if switch is None:
        raise ValueError(
            f"engine.checkpoint_gradients: {type(network).__name__} has neither checkpoint_gradients() nor "
            "enable_gradient_checkpointing(): leave it out"
        )
    switch()


def set_layout(models: Iterable[nn.Module]) -> None:
    """Bring the weights of convolutions to channels_last; numbers and names stay."""
    for model in models:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_networks(models: Iterable[Any], backend: str, *, eager: nn.Module | None = None) -> None:
    """Compile the models' networks in place, so that no name of a weight changes. A teacher that is no network of ours stays.

    eager: a layer to leave out. The student's last one is: its outputs are taken by a hook, and the gradient of its weight
    must be had without going back through the rest of the compiled graph. Copies of the student are to be made before."""
    if eager is not None:
        eager.forward = torch.compiler.disable(eager.forward)
    for model in models:
        if hasattr(model, "autocast"):
            model.network.compile(backend=backend)


def fitting_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser, where a step of ours can drive it: from dense gradients, and without evaluating the loss again.

    Raises ValueError for any other, before training begins."""
    name = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise ValueError(
            f"the optimizer {name} takes sparse gradients alone, and a network's are dense: give Adam or RAdam"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f"the optimizer {name} evaluates the loss anew within a step, which training does not: give RAdam"
        )
    return optimizer


class ScaledOptimizer:
    """An optimiser, the scale of the losses whose gradients it gets (fp16), and the norm to which it clips them.

    Gradients of `scale` times the loss are brought back to the loss's own before they are measured and clipped. Where they
    overflowed, the step leaves the weights alone and halves the scale. The scale is part of the state that a checkpoint
    keeps, or a continued run would take other steps. A schedule-free optimiser (arXiv 2405.15682) takes gradients at other
    weights than those to be used; `evaluation_weights` puts the latter in place."""

    def __init__(self, optimizer: Any, device: torch.device, settings: EngineSettings) -> None:
        self.optimizer = optimizer
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has the methods for any optimiser
        self._two_weights = hasattr(inner, "train") and hasattr(inner, "eval")
        if self._two_weights:
            optimizer.train()
        self.clip = settings.clip_gradient_norm
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.scaler.scale(torch.ones((), device=device))  # it makes its state at the first use, which is else in a step

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def scale(self) -> float:
        """By what the losses are to be multiplied; 1 but for fp16."""
        return self.scaler.get_scale()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    @property
    def state(self) -> Any:
        """The optimiser's tensors, by parameter."""
        return self.optimizer.state

    def step(self, allows: Callable[[Tensor], bool] = lambda norm: True) -> tuple[Tensor, bool]:
        """Move the weights, where `allows` says so of the gradients' total norm before clipping. Returns that norm, and
        whether the weights moved."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = self.scale
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not allows(norm):
            self.scaler.update()
            return norm, False
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm, self.scale >= before

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Meanwhile the parameters are those to be used; afterwards they have their bits from before."""
        if not self._two_weights:
            yield
            return
        parameters = [p for group in self.param_groups for p in group["params"]]
        kept = [p.detach().clone() for p in parameters]
        self.optimizer.eval()
        try:
            yield
        finally:
            self.optimizer.train()
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=True):  # sharded tensors have no foreach copy
                    parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        return {**state, "scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = dict(state)
        scaler = own.pop("scaler", None)
        self.optimizer.load_state_dict(own)
        if scaler is not None:
            self.scaler.load_state_dict(scaler)
