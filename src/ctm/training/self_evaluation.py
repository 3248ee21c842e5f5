"""A run that evaluates itself: the averaged weights against the training data every n steps, the best kept."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ctm.data import Dataset, Images, Values
from ctm.files import write_whole
from ctm.foreign.text import JSONObject
from ctm.models import AnyModel
from ctm.models.protocol import can_jump
from ctm.training.rows import read_rows
from ctm.training.run_directory import RunDirectory

__all__ = ["EvaluationSettings", "SelfEvaluation"]

_LOG = logging.getLogger(__name__)
_FILE = "evaluations.jsonl"


@dataclass(kw_only=True)
class EvaluationSettings:
    """How a run evaluates itself.

    Args:
        every: training steps between evaluations; the last step is one, too.
        num: samples of each evaluation; the Fréchet distance of few samples is biased, equally in all of them.
        steps: jumps of each sample; noise levels of Heun's sampler for a diffusion model. Unset: 1, or 18.
        features: feature network: classifier (trained on the data's labels) or efficientnet. Of vectors, sequences and fields
            the distance is that of their standardised numbers.
    """

    every: int = 1000
    num: int = 2000
    steps: int | None = None
    features: str = "efficientnet"

    def __post_init__(self) -> None:
        if self.every < 1 or self.num < 16:
            raise ValueError(
                f"evaluation.every must be at least 1 and evaluation.num at least 16, got {self.every} and {self.num}"
            )


class SelfEvaluation:
    """Evaluations of one run: numbers go to evaluations.jsonl, the weights with the smallest Fréchet distance so far to best/,
    which is a model directory, and which step they are from to best.json."""

    def __init__(
        self, settings: EvaluationSettings, images: Dataset, directory: RunDirectory, step: int, device: torch.device
    ) -> None:
        from ctm.evaluation.frechet import too_few
        from ctm.evaluation.passes import Processes  # here, because few runs evaluate themselves
        from ctm.evaluation.run import judge_of
        from ctm.evaluation.values import ValueJudge, few_values

        self.settings, self._directory, self._device = settings, directory, device
        self._values = ValueJudge(images) if isinstance(images, Values) else None
        if self._values is not None:
            warnings = few_values(self._values, settings.num)
        else:
            assert isinstance(images, Images)
            self._judge = judge_of(
                images, features=settings.features, images=settings.num, processes=Processes(device=device)
            )
            warnings = too_few(settings.num, len(images), self._judge.extractor.features)
        for warning in warnings:
            _LOG.warning("self-evaluation: %s", warning)
        self._file, self._best = directory.path / _FILE, directory.path / "best.json"
        self._rows: list[JSONObject] = [row for row in read_rows(self._file) if row["step"] <= step]

    def __call__(self, model: AnyModel, step: int, card: Callable[[], str | None] = lambda: None) -> dict[str, float]:
        """Evaluate; keep the model if it is the best, with the card that `card` then makes. Returns the numbers."""
        from ctm.evaluation.plans import make_plans, subject_of
        from ctm.evaluation.run import evaluate_plans
        from ctm.evaluation.values import sample_values

        subject = subject_of("model", str(self._directory.path), model)
        steps = self.settings.steps or (1 if can_jump(model) else 18)
        plans, features = make_plans(subject, steps=[steps]), self.settings.features
        if self._values is not None:
            features = "values"
            numbers = {
                "frechet": self._values.distance(
                    sample_values(self._values, plans[0], self.settings.num, self._device)
                ).value
            }
        else:
            with tempfile.TemporaryDirectory() as folder:
                (row,) = evaluate_plans(self._judge, plans, Path(folder), quiet=True)
            numbers = {name: number.value for name, number in row.numbers.items()}
        how = {"num": self.settings.num, "steps": steps, "features": features}
        alike = [known for known in self._rows if known.get("how", how) == how]  # others do not compare
        earlier = [known["frechet"] for known in alike if "frechet" in known]
        self._rows.append({"step": step, **numbers, "how": how})
        write_whole(self._file, "".join(json.dumps(known) + "\n" for known in self._rows).encode())
        if not earlier or numbers["frechet"] < min(earlier):
            self._directory.publish(model, "best", card())
            write_whole(self._best, (json.dumps({"step": step, "frechet": numbers["frechet"]}) + "\n").encode())
        return numbers
