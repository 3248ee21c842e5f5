"""Zero-shot restoration by replacement: what is known of an image is put in after each jump, the model fills in the rest.

What is known is a linear projection A of the image (A∘A = A): its patches' means, its luma. After a jump to data,
x ← x − A(x) + A(known), as consistency models (arXiv 2303.01469, algorithm 4) and ctm-cifar10 do in an orthogonal basis.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ctm.arguments import as_count, as_state
from ctm.requests import Steps
from ctm.sampling.common import Callback, Noise, check_start, level_values
from ctm.sampling.driving import jump_sampler
from ctm.sampling.jumps import follow, resampling_plan

__all__ = ["LUMA", "Projection", "luma", "patch_means", "restore"]

Projection = Callable[[Tensor], Tensor]
LUMA = (0.2989, 0.5870, 0.1140)


def patch_means(size: int = 8) -> Projection:
    """The projection on images that are constant in each size × size patch: super-resolution by that factor.

    It raises ValueError for images whose sides are not multiples of size."""

    size = as_count(size, "the patch size")

    def project(x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[-1] % size or x.shape[-2] % size:
            raise ValueError(f"image sides must be multiples of the patch size {size}, got {tuple(x.shape[-2:])}")
        means = avg_pool2d(x, size)
        return means.repeat_interleave(size, dim=-2).repeat_interleave(size, dim=-1)

    return project


def luma(x: Tensor) -> Tensor:
    """The projection of each pixel's colour on the direction of LUMA: what a grey image tells. x (B, 3, H, W)."""
    direction = torch.tensor(LUMA, dtype=x.dtype, device=x.device)
    direction = direction / direction.norm()
    return torch.einsum("c,bchw->bhw", direction, x)[:, None] * direction[:, None, None]


@jump_sampler
def restore(
    x: Tensor,
    grid: Tensor,
    known: Tensor,
    projection: Projection,
    *,
    rounds: int = 1,
    clamp: bool = True,
    labels: Tensor | None = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Steps:
    """Consistency multistep with replacement: jump to grid[-1], clamp to [−1, 1], put in projection(known), add noise up to
    the next level, again. The result has the projection of `known` exactly.

    x (B, C, H, W) at level grid[0], e.g. the degraded image with noise; grid (N + 1,) decreasing, its end sigma_min; known
    (B, C, H, W) in [−1, 1], of which only projection(known) counts; rounds: jumps from each level, each with new noise up to that
    level in between; clamp: to [−1, 1], for pictures; other arguments as in `ctm.sampling.gamma`.
    Raises ValueError where known is not shaped like x, for rounds < 1, or for an unfitting grid.
    """
    if as_state(known, "known").shape != as_state(x).shape:
        raise ValueError(f"known must be shaped like x, got {tuple(known.shape)} and {tuple(x.shape)}")
    rounds = as_count(rounds, "rounds")
    check_start(x, grid, zero_end=False)
    given = projection(known.to(x))

    def put_in(image: Tensor) -> Tensor:
        image = image.clamp(-1, 1) if clamp else image
        return image - projection(image) + given

    plan = resampling_plan(level_values(x, grid), rounds)
    return follow(plan, x, labels=labels, noise=noise, callback=callback, correct=put_in)
