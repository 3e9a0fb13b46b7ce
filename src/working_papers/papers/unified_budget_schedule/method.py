"""Stepsize anything: the Unified Budget-Aware (UBA) schedule. https://arxiv.org/abs/2505.24452

With a budget of T steps, a share tau = t / T of it spent and c = 1 + cos(pi tau), the learning rate is

    eta(t) = eta_min + (eta_max - eta_min) u,    u = 2 c / (2 phi + (2 - phi) c) = 1 / (1 + phi/2 tan^2(pi tau / 2)).

phi = 0 is a constant rate, phi = 2 cosine annealing; below 2 a plateau that drops late, above 2 an early decay with a
long tail of small steps. Over the budget u has the mean 1 / (1 + sqrt(phi / 2)).

What phi means can be said exactly for gradient descent on a quadratic with curvatures in [mu, L]: with kappa = L / mu,
eta_max = 1 / mu, eta_min = 1 / L, phi = 2 kappa and the phases taken in the middle of the steps, the rates are the
Chebyshev step sizes, which are the best that any schedule of T steps can do in the worst case:
eta_t = 2 / ((L + mu) - (L - mu) cos(pi (t + 1/2) / T)).

The formula was checked against an independent implementation, as no official code was found. The factor in
phi = 2 kappa was derived for this room: the paper ties phi to the condition number by an argument of its own, and that
argument, its tested values of phi and its advice on them stand here from memory.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

LARGE_PHI = 50.0  # above this the rate falls below half of its peak in the first eighth of the budget
ADAPTIVE = ("adam", "adamw", "adamax", "nadam", "radam", "adagrad", "adadelta", "rmsprop", "adafactor", "sparseadam")
GRADIENT = ("sgd", "asgd")


@overload
def uba_multiplier(progress: float, phi: float) -> float: ...


@overload
def uba_multiplier(progress: Tensor, phi: float | Tensor) -> Tensor: ...


def uba_multiplier(progress: float | Tensor, phi: float | Tensor) -> float | Tensor:
    """The curve: by what factor the learning rate is multiplied when a share of the budget is spent.

    Args:
        progress: share of the budget that is spent, a number or a tensor of any shape; clamped to [0, 1].
        phi: shape of the curve, 0 or more; for a tensor of progress also a tensor that broadcasts with it (not
            checked then).

    Returns:
        A number, or a tensor of the broadcast shape in the dtype of `progress` (computed in float32 at least): 1 at the
        start, and for phi > 0 exactly 0 at the end.

    Raises:
        ValueError: `phi` is negative or not finite.

    Source: the closed form of the paper's schedule with eta_max = 1 and eta_min = 0. It is evaluated as
    cos^2 / (cos^2 + phi/2 sin^2) of half the phase, which does not cancel towards the end and is defined at it.
    """
    if not isinstance(phi, Tensor):
        _check_phi(phi)
    if not isinstance(progress, Tensor):
        if isinstance(phi, Tensor):
            raise ValueError("phi is a tensor and progress is not; expected numbers, or a tensor of progress")
        return _curve(min(max(progress, 0.0), 1.0), phi)
    dtype = torch.promote_types(progress.dtype, torch.float32)
    half_phases = progress.to(dtype).clamp(0, 1) * (math.pi / 2)
    near_start, near_end = half_phases.cos().square(), half_phases.sin().square()
    curve = near_start / (near_start + phi / 2 * near_end)
    if isinstance(phi, Tensor):
        ended = (progress >= 1) & (phi > 0)
    else:
        ended = (progress >= 1) if phi > 0 else torch.zeros_like(progress, dtype=torch.bool)
    curve = curve.masked_fill(ended, 0)
    return curve.to(progress.dtype) if progress.is_floating_point() else curve


class UBASchedule(LRScheduler):
    """Learning rates for a budget of steps that is known in advance: UBA, with optional warm-up and restarts.

    Call `step()` once after each step of the optimiser, not once an epoch. Each parameter group falls from the
    learning rate it had when the schedule was made. The rate is a function of the step number alone, so a run that is
    resumed at any step goes on with the same rates, and works within `SequentialLR` and `ChainedScheduler`.

    Args:
        optimizer: whose learning rates are set; those it has now are the peaks eta_max, one a group (floats or tensors
            of one element).
        total_steps: the budget T, warm-up included.
        phi: shape of the curve, 0 or more; 0 keeps the peak, 2 is cosine annealing. See `suggested_phi`.
        eta_min: the rate at the end, from 0 to the peak; one for all groups or a sequence with one for each.
        warmup_steps: the first W steps rise linearly from `warmup_start` times the peak; the curve takes the other
            T - W. With the default start the very first step has rate 0.
        warmup_start: fraction of the peak, from 0 to 1.
        cycles: how many times the curve is run through, in equal parts of the T - W steps.
        midpoint: take the phase in the middle of each step instead of its start. The last step's rate is then above
            eta_min by a little, and with phi = 2 kappa the rates are the Chebyshev step sizes.
        last_epoch: number of the last step taken, to resume without a saved state; -1 starts.

    Raises:
        ValueError: an argument is out of range; the message names it.

    Warns:
        UserWarning: phi is above 50, with which nearly all of the budget is spent close to eta_min (not with
            `midpoint`, where a large phi is what a badly conditioned quadratic asks for).

    Source: the paper's schedule; evaluated for each step as there. `midpoint` is this room's, see the module.

    Example:
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> schedule = UBASchedule(optimizer, total_steps=len(loader) * epochs, phi=suggested_phi("sgd"))
        >>> for _ in range(epochs):
        ...     for x, y in loader:
        ...         optimizer.zero_grad()
        ...         loss_function(model(x), y).backward()
        ...         optimizer.step()
        ...         schedule.step()
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        phi: float = 1.0,
        eta_min: float | Sequence[float] = 0.0,
        warmup_steps: int = 0,
        warmup_start: float = 0.0,
        cycles: int = 1,
        midpoint: bool = False,
        last_epoch: int = -1,
    ) -> None:
        _check_count("total_steps", total_steps, 1)
        _check_count("warmup_steps", warmup_steps, 0)
        _check_count("cycles", cycles, 1)
        _check_phi(phi)
        if warmup_steps >= total_steps:
            raise ValueError(f"warmup_steps is {warmup_steps}; expected fewer than total_steps ({total_steps})")
        if cycles > total_steps - warmup_steps:
            raise ValueError(f"cycles is {cycles}; expected at most total_steps - warmup_steps, a step for each cycle")
        if not 0 <= warmup_start <= 1:
            raise ValueError(f"warmup_start is {warmup_start}; expected a fraction from 0 to 1")
        if phi > LARGE_PHI and not midpoint:
            warnings.warn(
                f"phi is {phi:g}: nearly all of the {total_steps} steps will have rates close to eta_min",
                UserWarning,
                stacklevel=2,
            )
        self.total_steps = total_steps
        self.phi = float(phi)
        self.warmup_steps = warmup_steps
        self.warmup_start = float(warmup_start)
        self.cycles = cycles
        self.midpoint = midpoint
        self.eta_mins = _floors(eta_min, optimizer)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each group at step `last_epoch`; use `get_last_lr()` to read what is in force."""
        if self.last_epoch < self.warmup_steps:
            rise = self.warmup_start + (1 - self.warmup_start) * self.last_epoch / self.warmup_steps
            return [rise * peak for peak in self.base_lrs]
        u = _curve(self.progress(), self.phi)
        return [floor + (peak - floor) * u for peak, floor in zip(self.base_lrs, self.eta_mins, strict=True)]

    def progress(self) -> float:
        """Share of the current cycle that is spent at step `last_epoch`: 0 during warm-up, 1 once the budget is."""
        if self.last_epoch >= self.total_steps:
            return 1.0
        # In half steps and whole numbers, so that a cycle starts exactly where it should.
        budget = 2 * (self.total_steps - self.warmup_steps)
        spent = 2 * max(0, self.last_epoch - self.warmup_steps) + int(self.midpoint)
        return (spent * self.cycles) % budget / budget


def chebyshev_equivalent_phi(condition_number: float) -> float:
    """The phi with which UBA is the optimal schedule for quadratics of a condition number: twice that number.

    It holds with a peak of 1 / mu, eta_min = 1 / L and `midpoint=True`, where mu and L are the smallest and the largest
    curvature. Large steps come first and blow up the stiff directions for a while, by up to the product of the
    condition number over those steps: use float64, and few steps for large numbers.

    Args:
        condition_number: kappa = L / mu, 1 or more.

    Returns:
        2 kappa.

    Raises:
        ValueError: the number is below 1 or not finite.

    Source: derived for this room, see the module; the paper's theory links phi and the condition number.
    """
    if not (math.isfinite(condition_number) and condition_number >= 1):
        raise ValueError(f"condition_number is {condition_number}; expected a finite number, 1 or more")
    return 2.0 * condition_number


def suggested_phi(optimizer_name: str) -> float:
    """A rule of thumb for phi where nothing else is known: 5 for SGD, 1 for Adam and its relatives.

    Args:
        optimizer_name: name of an optimiser of `torch.optim`, in any case, such as "sgd" or "AdamW".

    Returns:
        phi.

    Raises:
        ValueError: the rule says nothing about that optimiser.

    Source: the paper's choices for image and for language models, from memory. Harder, worse conditioned tasks want a
    larger phi.
    """
    name = optimizer_name.lower()
    if name in GRADIENT:
        return 5.0
    if name in ADAPTIVE:
        return 1.0
    raise ValueError(f"optimizer_name is {optimizer_name!r}; expected one of {', '.join(GRADIENT + ADAPTIVE)}")


def estimate_condition_number(
    loss_fn: Callable[[], Tensor],
    params: Iterable[Tensor],
    k: int = 20,
    *,
    quantile: float = 0.0,
    floor: float = 1e-4,
    seed: int = 0,
) -> float:
    """Largest over small curvature of a loss at the current parameters, by Lanczos on Hessian-vector products.

    Where the loss is convex and `quantile` is 0 this is a lower bound, exact once `k` reaches the number of distinct
    curvatures. The Hessian of a network has many curvatures near zero and some below it: magnitudes are compared, and
    the estimate says how far the curvatures lie apart among those that k products resolve.

    Args:
        loss_fn: evaluates the loss, a differentiable tensor of one element, always on the same data and without
            dropout. It is called once; k Hessian-vector products follow, and k + 1 vectors of the size of all
            parameters are held.
        params: the parameters; those that need no gradient are left out.
        k: number of products.
        quantile: which magnitude counts as the small one, from 0 (the smallest found) to 1, weighted by how much of a
            random direction lies at each.
        floor: the small one counts as at least this fraction of the largest, so the result is at most 1 / floor.
        seed: of the random direction.

    Returns:
        The estimate, from 1 to 1 / floor.

    Raises:
        ValueError: an argument is out of range, no parameter needs a gradient, or the loss is not one finite number.

    Source: this room's, to choose a phi with; full reorthogonalisation keeps the values from repeating.
    """
    _check_count("k", k, 1)
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}; expected a number from 0 to 1")
    if not 0 < floor <= 1:
        raise ValueError(f"floor is {floor}; expected a fraction above 0, at most 1")
    trained = [p for p in params if p.requires_grad]
    if not trained:
        raise ValueError("params holds no tensor that needs a gradient; expected at least one")
    loss = loss_fn()
    if loss.numel() != 1 or not bool(torch.isfinite(loss.detach()).all()):
        raise ValueError(f"loss_fn returned a tensor of shape {tuple(loss.shape)}; expected one finite number")
    gradients = torch.autograd.grad(loss.sum(), trained, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.flatten() for g in gradients])
    curved = flat.requires_grad  # a linear loss has no second derivative at all

    def product(vector: Tensor) -> Tensor:
        if not curved:
            return torch.zeros_like(vector)
        second = torch.autograd.grad(flat, trained, vector, retain_graph=True, materialize_grads=True)
        return torch.cat([s.flatten() for s in second])

    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(flat.numel(), generator=generator).to(flat)
    basis = (start / start.norm()).unsqueeze(0)
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for step in range(min(k, flat.numel())):
        image = product(basis[-1]).detach()
        diagonal.append(float(image @ basis[-1]))
        scale = float(image.norm())
        for _ in range(2):  # once leaves rounding errors behind that bring old directions back
            image = image - basis.T @ (basis @ image)
        rest = float(image.norm())
        if step + 1 == min(k, flat.numel()) or rest <= 10 * torch.finfo(flat.dtype).eps * max(scale, 1e-300):
            break
        off_diagonal.append(rest)
        basis = torch.cat([basis, (image / rest).unsqueeze(0)])
    beside = torch.tensor(off_diagonal[: len(diagonal) - 1], dtype=torch.float64)
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    tridiagonal = tridiagonal + torch.diag(beside, 1) + torch.diag(beside, -1)
    values, vectors = torch.linalg.eigh(tridiagonal)
    magnitudes, order = values.abs().sort()
    largest = float(magnitudes[-1])
    if largest == 0:
        return 1.0
    weight = vectors[0].square()[order].cumsum(0)
    at = int(torch.searchsorted(weight / weight[-1], torch.tensor(quantile, dtype=torch.float64)))
    small = max(float(magnitudes[min(at, len(magnitudes) - 1)]), floor * largest)
    return largest / small


def _curve(progress: float, phi: float) -> float:
    """The curve for numbers within their ranges: a schedule asks for it at every step."""
    if progress == 1 and phi > 0:
        return 0.0
    near_start = math.cos(math.pi / 2 * progress) ** 2
    return near_start / (near_start + phi / 2 * (1 - near_start))


def _floors(eta_min: float | Sequence[float], optimizer: Optimizer) -> list[float]:
    """One eta_min for each group, checked against the group's peak."""
    groups = optimizer.param_groups
    floors = [float(eta_min)] * len(groups) if isinstance(eta_min, int | float) else [float(each) for each in eta_min]
    if len(floors) != len(groups):
        raise ValueError(f"eta_min has {len(floors)} values; expected one for each of the {len(groups)} groups")
    for floor, group in zip(floors, groups, strict=True):
        peak = float(group.get("initial_lr", group["lr"]))
        if not 0 <= floor <= peak:
            raise ValueError(f"eta_min is {floor}; expected a number from 0 to the group's learning rate, {peak:g}")
    return floors


def _check_phi(phi: float) -> None:
    if not (math.isfinite(phi) and phi >= 0):
        raise ValueError(f"phi is {phi}; expected a finite number, 0 or more")


def _check_count(name: str, value: int, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} is {value!r}; expected a whole number, {low} or more")
