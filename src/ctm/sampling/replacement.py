"""Zero-shot restoration by replacement: what is known of an image is put in after each jump, the model fills in the rest.

What is known is a linear projection A of the image (A∘A = A), e.g. the projection of a `ctm.editing.LinearOperator`. After a
jump to data, x ← x − A(x) + A(known), as consistency models (arXiv 2303.01469, algorithm 4) and ctm-cifar10 do in an
orthogonal basis.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ctm.arguments import as_count, as_state
from ctm.conditions import Condition
from ctm.requests import Steps
from ctm.sampling.common import Callback, Noise, check_start, level_values
from ctm.sampling.driving import jump_sampler
from ctm.sampling.jumps import follow, resampling_plan

__all__ = ["Projection", "restore"]

Projection = Callable[[Tensor], Tensor]


@jump_sampler
def restore(
    x: Tensor,
    grid: Tensor,
    known: Tensor,
    projection: Projection,
    *,
    rounds: int = 1,
    clamp: bool = True,
    condition: Condition = None,
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
    return follow(plan, x, condition=condition, noise=noise, callback=callback, correct=put_in)
