"""A small image classifier trained on the user's own data. It gives features for Fréchet distances, and label agreement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctm.progress import Progress, silent

__all__ = ["Classifier", "train_classifier"]


class Classifier(nn.Module):
    """Convolutions down to 4×4 or less, of images of size × size or (H, W),
    64 features, linear logits. `features(x)`: (B, C, H, W) in [-1, 1] -> (B, 64)."""

    num_features = 64

    def __init__(self, channels: int, size: int | Sequence[int], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU()]
        width = 32
        height, across = (size, size) if isinstance(size, int) else size
        while max(height, across) > 4:
            layers += [nn.Conv2d(width, 64, 3, stride=2, padding=1), nn.GroupNorm(8, 64), nn.ReLU()]
            width, height, across = 64, (height + 1) // 2, (across + 1) // 2
        self.trunk = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(width * height * across, self.num_features), nn.ReLU()
        )
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.trunk(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> logits (B, num_classes)."""
        return self.head(self.trunk(x))


def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    classes: int | None = None,
    steps: int = 600,
    batch: int = 128,
    seed: int = 0,
    progress: Progress = silent,
) -> Classifier:
    """The classifier, trained on images (N, C, H, W) in [-1, 1] with labels int64 (N,) of `classes` classes; eval mode.

    Images are shifted by up to one pixel and lightly blurred by noise. The same seed gives the same weights on one machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(images.shape[1], images.shape[2:], classes or int(labels.max()) + 1)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in progress(range(steps), "training the classifier"):
        chosen = torch.randint(len(images), (batch,), generator=generator)
        shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
        x = torch.roll(images[chosen], shift, dims=(2, 3))
        x = x + 0.1 * torch.randn(x.shape, generator=generator)
        loss = nn.functional.cross_entropy(model(x), labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()
