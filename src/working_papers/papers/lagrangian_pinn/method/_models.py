"""The two models over the user's own networks: u at fixed places, or paths and the state carried along them.

Letters: B = points, T = times and Nx = places of a grid, N = labels; `...` = the members of a stack, if any.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from working_papers.papers.lagrangian_pinn.method._jets import Jet, PeriodicFeatures, differentiate

Initial = Callable[[Tensor], Tensor]
Mode = Literal["forward", "reverse"]


class LagrangianField(NamedTuple):
    """Where the points that start at the labels are, and what they carry.

    Attributes:
        position: X (..., B, 1); beyond the period where a path has gone round, never wrapped.
        state: U (..., B, 1).
    """

    position: Tensor
    state: Tensor


class EulerianPINN(nn.Module):
    """The ordinary physics-informed network u(x, t), with exactly periodic inputs: the baseline.

    Args:
        network: takes features (..., B, F) (cos, sin and t; without a period x and t) and returns (..., B, 1).
        period: length of the line; None for a line that is not periodic.
        initial: u at time 0. If given, u = initial(x) + t · network meets it exactly; it must suit autograd.
        drift: the network is given x - drift · t in place of x, a number or a tensor that broadcasts with (..., B, 1).
            With the true speed this is the moving frame of somebody who knows the answer.
        mode: how derivatives of networks without a method `jet` are computed, see `differentiate`.
    """

    def __init__(
        self,
        network: nn.Module,
        period: float | None = 2 * math.pi,
        initial: Initial | None = None,
        drift: float | Tensor = 0.0,
        mode: Mode = "forward",
    ) -> None:
        super().__init__()
        self.network, self.features = network, PeriodicFeatures(period)
        self.initial, self.mode = initial, mode
        self.drift: Tensor
        self.register_buffer("drift", torch.as_tensor(drift))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The field u.

        Args:
            x: (..., B, 1).
            t: shape of x.

        Returns:
            (..., B, 1).
        """
        place = x - self.drift * t
        output: Tensor = self.network(self.features(place, t.expand_as(place)))
        return output if self.initial is None else self.initial(x) + t * output

    def jet(self, x: Tensor, t: Tensor) -> Jet:
        """The field with its derivatives.

        Args:
            x: (..., B, 1).
            t: shape of x.
        """
        _expect_points(x, t)
        place = x - self.drift * t
        found = _network_jet(self.network, self.features, place, t.expand_as(place), self.mode)
        # In the moving frame the time derivative at a fixed place has a share of the slope.
        found = found._replace(t=found.t - self.drift * found.x)
        return found if self.initial is None else _from_start(_start(self.initial, x, self.mode), found, t)

    @torch.no_grad()
    def evaluate(self, x_grid: Tensor, t_grid: Tensor) -> Tensor:
        """The field on a grid.

        Args:
            x_grid: (Nx,).
            t_grid: (T,).

        Returns:
            (..., T, Nx).
        """
        field: Tensor = self(*_points(x_grid, t_grid))
        return field.reshape(*field.shape[:-2], len(t_grid), len(x_grid))


class LagrangianPINN(nn.Module):
    """Two networks on the labels xi: the path X(xi, t) = xi + t · D and the state U(xi, t) carried along it.

    Args:
        state_net: the state; takes features (..., B, F) of the labels (cos, sin and t; without a period xi and t) and
            returns (..., B, 1).
        displacement_net: mean velocity D of the path since time 0, takes and returns the same.
        period: length of the line; None for a line that is not periodic.
        initial: u at time 0. If given, U = initial(xi) + t · state_net meets it exactly; it must suit autograd.
        velocity_scale: order of magnitude of the flow, a number or a tensor that broadcasts with (..., B, 1). The
            displacement network is multiplied by it: without, its layers must grow to the size of the flow, which
            leaves little of them for the shape of the paths. The paper has no such factor.
        mode: how derivatives of networks without a method `jet` are computed, see `differentiate`.

    Source: the paper's parallel architecture of two branches. There the second network gives X itself; in the official
    code it has periodic inputs and cannot meet X(xi, 0) = xi all around the circle. The displacement meets it, and
    X(xi + period, t) = X(xi, t) + period, exactly.
    """

    def __init__(
        self,
        state_net: nn.Module,
        displacement_net: nn.Module,
        period: float | None = 2 * math.pi,
        initial: Initial | None = None,
        velocity_scale: float | Tensor = 1.0,
        mode: Mode = "forward",
    ) -> None:
        super().__init__()
        self.state_net, self.displacement_net = state_net, displacement_net
        self.features = PeriodicFeatures(period)
        self.initial, self.mode = initial, mode
        self.velocity_scale: Tensor
        self.register_buffer("velocity_scale", torch.as_tensor(velocity_scale))

    def forward(self, xi: Tensor, t: Tensor) -> LagrangianField:
        """Positions and states.

        Args:
            xi: labels, the positions at time 0, (..., B, 1).
            t: shape of xi.

        Returns:
            Both of (..., B, 1).
        """
        features = self.features(xi, t)
        state: Tensor = self.state_net(features)
        position = xi + t * (self.velocity_scale * self.displacement_net(features))
        return LagrangianField(position, state if self.initial is None else self.initial(xi) + t * state)

    def jets(self, xi: Tensor, t: Tensor) -> tuple[Jet, Jet]:
        """Positions and states with their derivatives in the label (the jets' `x`) and time.

        Args:
            xi: labels, (..., B, 1).
            t: shape of xi.

        Returns:
            Jet of the position and jet of the state.
        """
        _expect_points(xi, t)
        state = _network_jet(self.state_net, self.features, xi, t, self.mode)
        displacement = _network_jet(self.displacement_net, self.features, xi, t, self.mode)
        displacement = Jet(*(self.velocity_scale * each for each in displacement))
        start = Jet(xi, torch.ones_like(xi), torch.zeros_like(xi), torch.zeros_like(xi))
        position = _from_start(start, displacement, t)
        return position, state if self.initial is None else _from_start(_start(self.initial, xi, self.mode), state, t)

    @torch.no_grad()
    def paths(self, labels: Tensor, t_grid: Tensor) -> LagrangianField:
        """Positions and states of some labels over time.

        Args:
            labels: (N,).
            t_grid: (T,).

        Returns:
            Both of (..., T, N).
        """
        found = self(*_points(labels, t_grid))
        return LagrangianField(*(each.reshape(*each.shape[:-2], len(t_grid), len(labels)) for each in found))

    @torch.no_grad()
    def evaluate(self, x_grid: Tensor, t_grid: Tensor, labels: int | Tensor = 1024) -> Tensor:
        """The field u(x, t) on a fixed grid, interpolated linearly between the points that the paths have reached.

        Args:
            x_grid: (Nx,).
            t_grid: (T,).
            labels: number of evenly spaced labels on one period, or the labels themselves (N,), which without a period
                must be given and with one must lie within a period. Where paths have crossed, the order of the
                positions decides.

        Returns:
            (..., T, Nx); nan where no path passes on both sides.

        Raises:
            ValueError: a number of labels without a period, or fewer than two labels.

        Source: the official code interpolates so, too, but leaves out the ends of the line, where this wraps around.
        """
        _expect_grids(x_grid, t_grid)
        period = self.features.period
        if not isinstance(labels, Tensor):
            if period is None:
                raise ValueError(f"labels is {labels}; expected the labels themselves, for the line has no period")
            count = torch.arange(labels, dtype=torch.float64, device=x_grid.device)
            labels = (count * (period / max(labels, 1))).to(x_grid.dtype)
        if labels.ndim != 1 or len(labels) < 2:
            raise ValueError(f"labels has shape {tuple(labels.shape)}; expected at least two labels (N,)")
        _points(x_grid, t_grid)  # refuses grids of another shape
        found = self.paths(labels, t_grid)
        position, state = torch.broadcast_tensors(*found)
        if period is not None:
            position, x_grid = position.remainder(period), x_grid.remainder(period)
        position, order = position.sort(dim=-1)
        state = state.gather(-1, order)
        if period is not None:
            position = torch.cat([position[..., -1:] - period, position, position[..., :1] + period], dim=-1)
            state = torch.cat([state[..., -1:], state, state[..., :1]], dim=-1)
        return _interpolate(position, state, x_grid)

    @torch.no_grad()
    def crossings(self, labels: Tensor, t_grid: Tensor) -> Tensor:
        """Share of labels whose path is overtaken by a neighbour's (X_xi <= 0), where u would have several values.

        Args:
            labels: (N,).
            t_grid: (T,).

        Returns:
            (..., T), between 0 and 1.
        """
        position, _ = self.jets(*_points(labels, t_grid))
        folded = (position.x <= 0).reshape(*position.x.shape[:-2], len(t_grid), len(labels))
        return folded.to(labels.dtype).mean(dim=-1)


def _points(places: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of a grid, as columns (T · Nx, 1), places fastest."""
    _expect_grids(places, times)
    time, place = torch.meshgrid(times, places, indexing="ij")
    return place.reshape(-1, 1), time.reshape(-1, 1)


def _expect_grids(places: Tensor, times: Tensor) -> None:
    if places.ndim != 1 or times.ndim != 1:
        raise ValueError(f"grids have shapes {tuple(places.shape)} and {tuple(times.shape)}; expected one axis each")


def _expect_points(x: Tensor, t: Tensor) -> None:
    if x.ndim < 2 or x.shape[-1] != 1 or t.shape != x.shape:
        raise ValueError(f"points have shapes {tuple(x.shape)} and {tuple(t.shape)}; expected (..., B, 1) twice")


def _network_jet(network: nn.Module, features: PeriodicFeatures, x: Tensor, t: Tensor, mode: Mode) -> Jet:
    """The jet of a network of the features: its own, where it has one."""
    own: Callable[[Jet], Jet] | None = getattr(network, "jet", None)
    if own is not None:
        return own(features.jet(x, t))
    return differentiate(lambda place, time: network(features(place, time)), x, t, mode)


def _start(initial: Initial, x: Tensor, mode: Mode) -> Jet:
    """The jet of the state at time 0, which does not depend on t."""
    return differentiate(lambda place, time: initial(place) + 0 * time, x, torch.zeros_like(x), mode)


def _from_start(start: Jet, change: Jet, t: Tensor) -> Jet:
    """The jet of start + t · change."""
    return Jet(
        start.value + t * change.value,
        start.x + t * change.x,
        change.value + t * change.t,
        start.xx + t * change.xx,
    )


def _interpolate(position: Tensor, state: Tensor, places: Tensor) -> Tensor:
    """Linear interpolation of (..., T, N), ascending positions, at places (Nx,); nan outside the positions."""
    query = places.to(position).expand(*position.shape[:-1], -1).contiguous()
    right = torch.searchsorted(position.contiguous(), query).clamp(1, position.shape[-1] - 1)
    before, after = position.gather(-1, right - 1), position.gather(-1, right)
    gap = after - before
    share = torch.where(gap > 0, (query - before) / gap.clamp(min=torch.finfo(gap.dtype).tiny), 0.0)
    found = torch.lerp(state.gather(-1, right - 1), state.gather(-1, right), share.to(state.dtype))
    return found.masked_fill((query < position[..., :1]) | (query > position[..., -1:]), math.nan)
