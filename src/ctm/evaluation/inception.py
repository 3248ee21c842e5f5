"""Inception-v3 as the Fréchet inception distance uses it (arXiv 1706.08500): the network of 2015-12-05 with 2,048 features.

It differs from later Inception-v3 networks. Average pools leave padding out of the mean. The last block pools by the
maximum. Pictures are resized by TensorFlow's first bilinear rule. The classifier has 1,008 outputs. Module names are the
names in the public PyTorch weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from ctm.teachers.torch_files import read_torch

__all__ = ["InceptionV3", "load_inception", "resize_bilinear"]

SIDE = 299
FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILES[0]}"


def resize_bilinear(images: Tensor, side: int = SIDE) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side) by TensorFlow 1's rule: new pixel j lies at j·(old/new), without a half-pixel
    offset, between the two pixels around it. The last pixel is repeated."""
    rows, columns = (_interpolation(old, side).to(images) for old in images.shape[-2:])
    return rows @ images @ columns.T


def _interpolation(old: int, new: int) -> Tensor:
    """(new, old): the share of each old pixel in each new pixel."""
    places = torch.arange(new, dtype=torch.float64) * (old / new)
    low = places.floor().long().clamp(max=old - 1)
    share = places - low
    matrix = torch.zeros(new, old, dtype=torch.float64)
    each = torch.arange(new)
    matrix[each, low] += 1 - share
    matrix[each, (low + 1).clamp(max=old - 1)] += share
    return matrix


class _Convolution(nn.Module):
    """Convolution without bias, batch normalisation (ε = 10⁻³), ReLU."""

    def __init__(self, channels: int, out: int, kernel: Any, stride: int = 1, padding: Any = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


def _mean_pool(x: Tensor) -> Tensor:
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _BlockA(nn.Module):
    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(channels, 64, 1)
        self.branch5x5_1 = _Convolution(channels, 48, 1)
        self.branch5x5_2 = _Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, padding=1)
        self.branch_pool = _Convolution(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        parts = [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_mean_pool(x))]
        return torch.cat(parts, 1)


class _BlockB(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = _Convolution(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, max_pool2d(x, 3, stride=2)], 1)


_WIDE: dict[str, Any] = {"kernel": (1, 7), "padding": (0, 3)}
_TALL: dict[str, Any] = {"kernel": (7, 1), "padding": (3, 0)}


class _BlockC(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(channels, 192, 1)
        self.branch7x7_1 = _Convolution(channels, inner, 1)
        self.branch7x7_2 = _Convolution(inner, inner, **_WIDE)
        self.branch7x7_3 = _Convolution(inner, 192, **_TALL)
        self.branch7x7dbl_1 = _Convolution(channels, inner, 1)
        self.branch7x7dbl_2 = _Convolution(inner, inner, **_TALL)
        self.branch7x7dbl_3 = _Convolution(inner, inner, **_WIDE)
        self.branch7x7dbl_4 = _Convolution(inner, inner, **_TALL)
        self.branch7x7dbl_5 = _Convolution(inner, 192, **_WIDE)
        self.branch_pool = _Convolution(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_mean_pool(x))], 1)


class _BlockD(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Convolution(channels, 192, 1)
        self.branch3x3_2 = _Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Convolution(channels, 192, 1)
        self.branch7x7x3_2 = _Convolution(192, 192, **_WIDE)
        self.branch7x7x3_3 = _Convolution(192, 192, **_TALL)
        self.branch7x7x3_4 = _Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), long, max_pool2d(x, 3, stride=2)], 1)


class _BlockE(nn.Module):
    """A block of Inception-v3. last: pools by the maximum, in the block before the features."""

    def __init__(self, channels: int, last: bool) -> None:
        super().__init__()
        wide: dict[str, Any] = {"kernel": (1, 3), "padding": (0, 1)}
        tall: dict[str, Any] = {"kernel": (3, 1), "padding": (1, 0)}
        self.last = last
        self.branch1x1 = _Convolution(channels, 320, 1)
        self.branch3x3_1 = _Convolution(channels, 384, 1)
        self.branch3x3_2a = _Convolution(384, 384, **wide)
        self.branch3x3_2b = _Convolution(384, 384, **tall)
        self.branch3x3dbl_1 = _Convolution(channels, 448, 1)
        self.branch3x3dbl_2 = _Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Convolution(384, 384, **wide)
        self.branch3x3dbl_3b = _Convolution(384, 384, **tall)
        self.branch_pool = _Convolution(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = max_pool2d(x, 3, stride=1, padding=1) if self.last else _mean_pool(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class InceptionV3(nn.Module):
    """(features (B, 2048), a map (B, 192, 17, 17)) of images (B, 1 or 3, H, W) in [−1, 1].

    The map is the first branch of Mixed_6d, `mixed_6/conv` of the original graph (a node after normalisation and ReLU).
    ADM's spatial distance takes seven of its channels."""

    num_features = 2048

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _BlockA(192, 32), _BlockA(256, 64), _BlockA(288, 64)
        self.Mixed_6a = _BlockB(288)
        self.Mixed_6b, self.Mixed_6c = _BlockC(768, 128), _BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = _BlockC(768, 160), _BlockC(768, 192)
        self.Mixed_7a = _BlockD(768)
        self.Mixed_7b, self.Mixed_7c = _BlockE(1280, last=False), _BlockE(2048, last=True)
        self.fc = nn.Linear(2048, 1008)

    @staticmethod
    def prepare(images: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) in [−1, 1] as (v − 128)/128 of 256 grey values v, with three channels, 299 × 299."""
        pixels = ((images.float() + 1) * 127.5).expand(-1, 3, -1, -1)
        return (resize_bilinear(pixels) - 128) / 128

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(self.prepare(images))))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        spatial = self.Mixed_6d.branch1x1(x)
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))
        return self.Mixed_7c(self.Mixed_7b(x)).mean(dim=(2, 3)), spatial

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load the public weights. Raises ValueError where names or shapes differ."""
        own = self.state_dict()
        counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
        try:
            self.load_state_dict({**counters, **state})
        except RuntimeError as error:
            raise ValueError(f"these are not the weights of the FID's Inception-v3: {str(error)[:300]}") from error


def load_inception(file: Path | None = None) -> tuple[InceptionV3, Path]:
    """(the network with the public weights, their file). The file is the given one, one of FILES in torch.hub's directory of
    checkpoints, or fetched there. Its name holds the start of its SHA-256, which is checked.

    Raises FileNotFoundError where the weights are not there and cannot be fetched, ValueError for other weights."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = file or next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is None:
        found = folder / FILES[0]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL, str(found), hash_prefix="6726825d", progress=False)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"the weights of Inception-v3 are not in {folder} and cannot be fetched ({error}): put {FILES[0]} there "
                f"(from {URL}), or use --features efficientnet"
            ) from error
    network = InceptionV3().eval()
    network.load_weights(read_torch(found))
    return network, found
