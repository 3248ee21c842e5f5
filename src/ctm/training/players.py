"""Players in training: the networks of objectives' own, their optimisers and their steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from ctm.arguments import inside
from ctm.objectives import Lesson, Networks, Objective, Player
from ctm.objectives.player import players_of
from ctm.training.engine import EngineSettings, ScaledOptimizer, fitting_optimizer, set_layout, set_precision
from ctm.training.reading import read_back
from ctm.training.step import Batch

__all__ = ["OptimizerBuilder", "PlayerInTraining", "players_in_training"]

_LOG = logging.getLogger(__name__)

OptimizerBuilder = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def players_in_training(
    objectives: Sequence[Objective],
    networks: Networks,
    accelerator: Accelerator,
    engine: EngineSettings,
    optimizers: Mapping[str, OptimizerBuilder | None],
) -> dict[str, PlayerInTraining]:
    """The players of the objectives by name. Their weights come from torch's global generator, in the order of the objectives.

    networks: student, target and teacher, on their device. optimizers: by the name of a player, where the recipe has another than
    the player's own. Raises ValueError as `players_of`."""
    return {
        player.name: PlayerInTraining(player, index, networks, accelerator, engine, optimizers.get(player.name))
        for index, player in players_of(objectives).items()
    }


class PlayerInTraining:
    """A player with its network and optimiser. A step is `begin`, `learn` for each piece of the batch, and `move`.

    The network is whole in every process. It is in eval mode but for its own loss, which sees the mode that `Player.begin` chose.
    One that is a model of ours computes in the engine's precision and layout, any other in float32."""

    def __init__(
        self,
        player: Player,
        index: int,
        networks: Networks,
        accelerator: Accelerator,
        engine: EngineSettings,
        optimizer: OptimizerBuilder | None = None,
    ) -> None:
        self.player, self.index, self.accelerator = player, index, accelerator
        self.network: nn.Module = player.build(networks).to(accelerator.device).eval()
        ours = hasattr(self.network, "autocast")
        set_precision([self.network], engine.precision)
        if ours and engine.channels_last:
            set_layout([self.network])
        settings = EngineSettings(
            precision=engine.precision if ours else "fp32", clip_gradient_norm=player.clip_gradient_norm
        )
        build = optimizer or player.optimizer
        self.optimizer = ScaledOptimizer(
            fitting_optimizer(build(self.network.parameters())), accelerator.device, settings
        )
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.watch = player.watch()
        self._mode = False
        self._numbers: list[dict[str, Tensor]] = []
        self._share(self.network.state_dict().values())

    @property
    def name(self) -> str:
        return self.player.name

    def learns(self, step: int) -> bool:
        """Whether it learns in this step (from 0)."""
        return self.player.rhythm.player_learns(step)

    def begin(self, rate_factor: float = 1.0) -> None:
        """Before the pieces of a step. rate_factor: the multiple of the student's learning rate in this step, which is the
        player's too where it follows the schedule."""
        for group in self.optimizer.param_groups:
            highest = group.setdefault("initial_lr", group["lr"])  # checkpoints of earlier versions lack it
            group["lr"] = highest * (rate_factor if self.player.follows_schedule else 1.0)
        self.player.begin(self.network)
        self._mode = self.network.training
        self.network.eval()
        self.optimizer.zero_grad()
        self._numbers = []

    def loss(
        self, batch: Batch, made: Mapping[str, Tensor], networks: Networks, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on a piece of the batch, and numbers for the log. made: what objectives made of the piece, without gradient.
        Raises ValueError where the loss has no gradient, or something that it needs was not made."""
        missing = [name for name in self.player.learns_from if name not in made]
        if missing:
            raise ValueError(
                f"the player {self.name} learns from the {missing[0]!r} of a step, which was not made (there is: "
                f"{', '.join(made) or 'nothing'}): `make` and the call of the objective must leave it in `networks.made`"
            )
        lesson = Lesson(batch.x0, batch.condition, made, batch.draws[self.index], step)
        self.network.train(self._mode)
        with inside():
            loss, numbers = self.player.loss(networks, lesson)
        self.network.eval()
        if not loss.requires_grad:
            raise ValueError(f"the loss of the player {self.name} has no gradient: it must come from its own network")
        return loss, {"loss": loss.detach(), **numbers}

    def learn(
        self, batch: Batch, made: Mapping[str, Tensor], networks: Networks, step: int, *, pieces: int = 1
    ) -> None:
        """Add the gradients of one of the step's pieces."""
        loss, numbers = self.loss(batch, made, networks, step)
        (loss * self.optimizer.scale / pieces if self.optimizer.scale != 1 else loss / pieces).backward()
        self._numbers.append(numbers)

    def move(self, allows: Callable[[Tensor, Tensor], bool] = lambda loss, norm: True) -> dict[str, Tensor]:
        """Average the gradients over all processes and move the weights, where `allows` says so of the loss and the gradient's
        norm. Returns the step's numbers, of all processes, under the player's name."""
        self._average([p.grad for p in self.network.parameters() if p.grad is not None])
        names = list(self._numbers[0])
        means = torch.stack([torch.stack([n[name] for n in self._numbers]).mean() for name in names])
        self._average([means])
        numbers = dict(zip(names, means, strict=True))
        scale = self.optimizer.scale
        norm, moved = self.optimizer.step(lambda norm: allows(numbers["loss"], norm))
        if moved:
            if self._mode:
                self._share(self.network.buffers())
            self._tell(numbers)
        numbers["gradient_norm"] = norm
        if scale != 1:
            numbers["loss_scale"] = means.new_tensor(scale)
        return {f"{self.name}/{name}": value for name, value in numbers.items()}

    def _tell(self, numbers: Mapping[str, Tensor]) -> None:
        if self.watch is None:
            return
        sentence = self.watch.tell(*read_back([numbers[name] for name in self.watch.reads]))
        if sentence and self.accelerator.is_main_process:
            _LOG.warning(sentence)

    def _average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each by its mean over processes, in one exchange."""
        if self.accelerator.num_processes == 1 or not tensors:
            return
        flat = self.accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), "mean")
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.reshape_as(tensor))

    @torch.no_grad()
    def _share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the main process's values: at the start, and of buffers that a loss in train mode may have moved."""
        if self.accelerator.num_processes > 1:
            for tensor in tensors:
                tensor.copy_(broadcast(tensor.clone()))
