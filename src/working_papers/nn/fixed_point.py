"""Fixed points of maps: damped iteration of many problems at once, with residuals that say which have settled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FixedPoint:
    """Where an iteration ended.

    Attributes:
        state: u, the shape of the start.
        residual: ‖g(u) − u‖ at that very state, one number a problem (shape of the batch axes). Not finite where the
            iteration diverged.
        steps: how many were taken.
    """

    state: Tensor
    residual: Tensor
    steps: int

    def settled(self, tolerance: float) -> Tensor:
        """Which problems have a residual of at most `tolerance`; False where the iteration diverged.

        Args:
            tolerance: of the residual.
        """
        return self.residual <= tolerance  # NaN compares as False


def iterate_fixed_point(
    function: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    steps: int,
    relaxation: float = 1.0,
    tolerance: float | None = None,
    check_every: int = 10,
    batch_axes: int = 1,
) -> FixedPoint:
    """Iterate u ← u + γ (g(u) − u) from a start.

    A relaxation factor γ below 1 leaves the fixed points where they are and turns a multiplier m of g into
    1 − γ + γ m: negative ones, which make the plain iteration oscillate, come back inside the unit circle.
    The iteration is written with operations that autograd, forward-mode differentiation and vmap can follow; complex
    states are welcome. With a tolerance it looks at numbers, so leave it out under vmap and torch.compile.

    Args:
        function: g, keeps shape and dtype.
        start: u_0, (*batch, *features).
        steps: the largest number of steps; 0 returns the start with its residual.
        relaxation: γ, above 0 and at most 1.
        tolerance: stop as soon as every problem's residual is at most this; None takes all steps.
        check_every: number of steps between two looks at the residual, if there is a tolerance.
        batch_axes: how many leading axes count problems; the others belong to one problem's state.

    Returns:
        State, residual of each problem and number of steps. The residual costs one more evaluation of g, and carries no
        gradient.

    Raises:
        ValueError: an argument out of its range, or a function that changes the shape.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; expected 0 or more")
    if not 0 < relaxation <= 1:
        raise ValueError(f"relaxation is {relaxation}; expected a number above 0 and at most 1")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; expected a number above 0, or None")
    if check_every < 1:
        raise ValueError(f"check_every is {check_every}; expected 1 or more")
    if not 0 <= batch_axes <= start.ndim:
        raise ValueError(f"batch_axes is {batch_axes}; expected 0 to {start.ndim}, the number of axes of start")

    state, taken = start, 0
    while taken < steps:
        following = function(state)
        if taken == 0 and following.shape != start.shape:
            raise ValueError(
                f"function returns shape {tuple(following.shape)}; expected {tuple(start.shape)}, that of start"
            )
        if tolerance is not None and taken % check_every == 0:
            residual = _norm(following - state, batch_axes)
            if bool((residual <= tolerance).all()):
                return FixedPoint(state, residual, taken)
        state = following if relaxation == 1 else torch.lerp(state, following, relaxation)
        taken += 1
    with torch.no_grad():
        residual = _norm(function(state) - state, batch_axes)
    return FixedPoint(state, residual, taken)


def _norm(difference: Tensor, batch_axes: int) -> Tensor:
    flat = (
        difference.detach().flatten(batch_axes) if difference.ndim > batch_axes else difference.detach().unsqueeze(-1)
    )
    norm: Tensor = torch.linalg.vector_norm(flat, dim=-1)
    return norm
