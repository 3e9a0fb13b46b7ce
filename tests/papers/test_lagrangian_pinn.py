"""Lagrangian networks: exact solutions have zero residuals, jets are derivatives, fields return to fixed grids."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from working_papers.data.partial_differential_equations import (
    burgers_by_characteristics,
    periodic_grid,
    solve_convection_diffusion,
)
from working_papers.papers.lagrangian_pinn import (
    EulerianPINN,
    Jet,
    LagrangianPINN,
    PeriodicFeatures,
    TanhNetwork,
    differentiate,
    eulerian_loss,
    eulerian_residual,
    lagrangian_loss,
    lagrangian_residuals,
    singular_value_decay,
    snapshot_rank,
)
from working_papers.testing import assert_gradients_reach_parameters, assert_state_dict_round_trip

# The first forward-mode derivative makes PyTorch script its own formulas, of which it then warns itself.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

SPEED, VISCOSITY = 3.0, 0.05
MODES = ("forward", "reverse")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Closed(nn.Module):
    """A closed form of the features in the place of a trained network."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, features: Tensor) -> Tensor:
        return self.function(features)


class Own(nn.Module):
    """A user's network: layers of another kind, and nothing known of jets."""

    def __init__(self, inputs: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, 8), nn.SiLU(), nn.LayerNorm(8), nn.Linear(8, 1))

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.layers(features)
        return output


def points(count: int = 40, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = 2 * math.pi * torch.rand(count, 1, generator=generator(1), dtype=dtype)
    return x, torch.rand(count, 1, generator=generator(2), dtype=dtype)


def network(inputs: int = 3, **options: object) -> TanhNetwork:
    return TanhNetwork(inputs, 12, 2, generator=generator(), dtype=torch.float64, **options)  # type: ignore[arg-type]


def convection() -> LagrangianPINN:
    """The exact pair of convection-diffusion from sin."""
    state = Closed(lambda f: torch.exp(-VISCOSITY * f[..., 2:]) * f[..., 1:2])
    return LagrangianPINN(state, Closed(lambda f: SPEED + 0 * f[..., 2:]))


def assert_jets_agree(found: Jet, expected: Jet) -> None:
    for name, got, wanted in zip(Jet._fields, found, expected, strict=True):
        assert torch.allclose(got, wanted, atol=1e-10, rtol=1e-9), f"{name}: {got} is not {wanted}"


# Derivatives


def test_jets_of_closed_forms() -> None:
    x, t = points()
    expected = Jet(
        torch.sin(2 * x) * t**3, 2 * torch.cos(2 * x) * t**3, 3 * torch.sin(2 * x) * t**2, -4 * torch.sin(2 * x) * t**3
    )
    for mode in MODES:
        assert_jets_agree(differentiate(lambda x, t: torch.sin(2 * x) * t**3, x, t, mode), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("period", [2 * math.pi, 1.5, None])
def test_own_jets_of_networks_are_their_derivatives(period: float | None) -> None:
    x, t = points()
    features, net = PeriodicFeatures(period), network(2 if period is None else 3)
    found = net.jet(features.jet(x, t))
    for mode in MODES:
        assert_jets_agree(found, differentiate(lambda x, t: net(features(x, t)), x, t, mode))  # type: ignore[arg-type]


def test_parameters_get_the_same_gradient_whichever_way_derivatives_are_computed() -> None:
    x, t = points()
    gradients = []
    for kind in ("own", *MODES):
        net = network()
        user = net if kind == "own" else Closed(net)
        mode = "forward" if kind == "own" else kind
        model = EulerianPINN(user, mode=mode)  # type: ignore[arg-type]
        eulerian_residual(model, x, t, lambda u, x, t: u, 0.1).square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("drift", [0.0, 7.0])
@pytest.mark.parametrize("start", [None, torch.cos], ids=["free", "exact start"])
def test_jets_of_the_models_are_derivatives_of_what_they_return(
    drift: float, start: Callable[[Tensor], Tensor] | None
) -> None:
    x, t = points()
    eulerian = EulerianPINN(network(), initial=start, drift=drift)
    assert_jets_agree(eulerian.jet(x, t), differentiate(eulerian, x, t))
    lagrangian = LagrangianPINN(network(), network(), initial=start)
    position, state = lagrangian.jets(x, t)
    assert_jets_agree(position, differentiate(lambda xi, t: lagrangian(xi, t).position, x, t))
    assert_jets_agree(state, differentiate(lambda xi, t: lagrangian(xi, t).state, x, t))


# Residuals


@pytest.mark.parametrize("metric", ["exact", "label"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_the_exact_pair_of_convection_diffusion_has_no_residual(metric: str, dtype: torch.dtype) -> None:
    path, state = lagrangian_residuals(convection(), *points(dtype=dtype), SPEED, VISCOSITY, metric)  # type: ignore[arg-type]
    assert path.dtype == state.dtype == dtype
    for residual in (path, state):
        torch.testing.assert_close(residual, torch.zeros_like(residual), atol=1e-6, rtol=0)


def test_a_wrong_speed_or_viscosity_leaves_a_residual() -> None:
    xi, t = points()
    path, state = lagrangian_residuals(convection(), xi, t, SPEED + 1, 2 * VISCOSITY)
    torch.testing.assert_close(path, torch.full_like(path, -1.0))
    torch.testing.assert_close(state, VISCOSITY * torch.exp(-VISCOSITY * t) * torch.sin(xi))


def test_the_exact_field_has_no_residual() -> None:
    x, t = points()
    closed = Closed(lambda f: torch.exp(-VISCOSITY * f[..., 1:]) * torch.sin(f[..., :1] - SPEED * f[..., 1:]))
    residual = eulerian_residual(EulerianPINN(closed, period=None), x, t, SPEED, VISCOSITY)
    torch.testing.assert_close(residual, torch.zeros_like(residual), atol=1e-12, rtol=0)
    # Whoever is given the moving frame needs a field that only decays.
    moving = EulerianPINN(Closed(lambda f: torch.exp(-VISCOSITY * f[..., 2:]) * f[..., 1:2]), drift=SPEED)
    residual = eulerian_residual(moving, x, t, SPEED, VISCOSITY)
    torch.testing.assert_close(residual, torch.zeros_like(residual), atol=1e-12, rtol=0)


def test_metrics_agree_without_stretching_and_differ_with_it() -> None:
    xi, t = points()
    state = network(2)
    moved = LagrangianPINN(state, Closed(lambda f: 2 + 0 * f[..., :1]), period=None)
    exact, label = (lagrangian_residuals(moved, xi, t, 2.0, 1.0, metric)[1] for metric in ("exact", "label"))
    torch.testing.assert_close(exact, label, atol=1e-12, rtol=0)

    stretched = LagrangianPINN(
        Closed(lambda f: f[..., :1] ** 2 + 0 * f[..., 1:]), Closed(lambda f: f[..., :1] + 0 * f[..., 1:]), period=None
    )
    _, exact = lagrangian_residuals(stretched, xi, t, 0.0, 1.0)
    _, label = lagrangian_residuals(stretched, xi, t, 0.0, 1.0, "label")
    torch.testing.assert_close(exact, -2 / (1 + t) ** 2)
    torch.testing.assert_close(label, torch.full_like(label, -2.0))


def test_second_derivatives_pass_through_bent_paths() -> None:
    """u = sin x and X = xi + t sin(xi) / 2: the chain rule must give -sin X, whatever the labels."""
    xi, t = points()

    def bend(f: Tensor) -> Tensor:
        return torch.sin(f[..., :1]) / 2 + 0 * f[..., 1:]

    state = Closed(lambda f: torch.sin(f[..., :1] + f[..., 1:] * bend(f)))
    model = LagrangianPINN(state, Closed(bend), period=None)
    with_diffusion = lagrangian_residuals(model, xi, t, 0.0, 1.0)[1]
    curvature = lagrangian_residuals(model, xi, t, 0.0, 0.0)[1] - with_diffusion
    torch.testing.assert_close(curvature, -torch.sin(xi + t * torch.sin(xi) / 2), atol=1e-10, rtol=0)


def test_inviscid_burgers_before_the_shock_has_no_residual() -> None:
    xi, t = points()
    model = LagrangianPINN(Closed(lambda f: f[..., 1:2]), Closed(lambda f: f[..., 1:2]))
    for residual in lagrangian_residuals(model, xi, 0.9 * t, lambda u, x, t: u, 0.0):
        torch.testing.assert_close(residual, torch.zeros_like(residual), atol=1e-12, rtol=0)


def test_velocity_may_depend_on_place_and_time() -> None:
    """x' = 2 x t has the paths X = xi exp(t²)."""
    xi, t = points()
    growth = Closed(lambda f: f[..., :1] * torch.expm1(f[..., 1:] ** 2) / f[..., 1:])
    model = LagrangianPINN(Closed(lambda f: f[..., :1] + 0 * f[..., 1:]), growth, period=None)
    path, _ = lagrangian_residuals(model, xi, t + 0.1, lambda u, x, t: 2 * x * t, 0.0)
    torch.testing.assert_close(path, torch.zeros_like(path), atol=1e-9, rtol=0)


def test_paths_that_meet_do_not_make_the_residual_infinite() -> None:
    xi = periodic_grid(64)[:, None]
    model = LagrangianPINN(Closed(lambda f: f[..., 1:2]), Closed(lambda f: f[..., 1:2]))
    _, state = lagrangian_residuals(model, xi, torch.ones_like(xi), lambda u, x, t: u, 0.1)
    assert bool(torch.isfinite(state).all())
    times = torch.tensor([0.0, 0.9, 2.0], dtype=torch.float64)
    crossed = model.crossings(periodic_grid(600), times)
    # Where 1 + 2 cos xi is negative: a third of the circle.
    torch.testing.assert_close(crossed, torch.tensor([0, 0, 1 / 3], dtype=torch.float64), atol=3e-3, rtol=0)


# Models


def test_paths_start_at_their_labels_and_go_round_with_the_period() -> None:
    model = LagrangianPINN(network(), network(), period=1.5)
    xi, t = points()
    first, there, again = model(xi, 0 * t), model(xi, t), model(xi + 1.5, t)
    assert torch.equal(first.position, xi)
    torch.testing.assert_close(again.position, there.position + 1.5, atol=1e-12, rtol=0)
    torch.testing.assert_close(again.state, there.state, atol=1e-12, rtol=0)
    eulerian = EulerianPINN(network(), period=1.5, drift=4.0)
    torch.testing.assert_close(eulerian(xi + 1.5, t), eulerian(xi, t), atol=1e-12, rtol=0)


def test_an_initial_state_is_met_exactly() -> None:
    xi, t = points()
    assert torch.equal(LagrangianPINN(network(), network(), initial=torch.cos)(xi, 0 * t).state, torch.cos(xi))
    assert torch.equal(EulerianPINN(network(), initial=torch.cos, drift=2.0)(xi, 0 * t), torch.cos(xi))


@pytest.mark.parametrize("labels", [64, 128])
def test_the_field_returns_to_a_fixed_grid(labels: int) -> None:
    x, t = torch.linspace(-4, 9, 57, dtype=torch.float64), torch.linspace(0, 3, 11, dtype=torch.float64)
    expected = solve_convection_diffusion(torch.sin(periodic_grid(16)), t, SPEED, VISCOSITY, points=x)
    error = (convection().evaluate(x, t, labels) - expected).abs().max()
    assert float(error) < 1.01 * (2 * math.pi / labels) ** 2 / 8  # the bound of linear interpolation


def test_uneven_paths_return_to_the_grid_of_the_characteristic_solution() -> None:
    model = LagrangianPINN(Closed(lambda f: f[..., 1:2]), Closed(lambda f: 5 + f[..., 1:2]))
    x, t = periodic_grid(100), torch.tensor([0.0, 0.4, 0.8], dtype=torch.float64)
    expected = burgers_by_characteristics(torch.sin, x, t, drift=5.0)
    torch.testing.assert_close(model.evaluate(x, t, 4096), expected, atol=2e-5, rtol=0)


def test_without_a_period_places_that_no_path_reaches_are_unknown() -> None:
    model = LagrangianPINN(Closed(lambda f: f[..., :1]), Closed(lambda f: 1 + 0 * f[..., :1]), period=None)
    labels, t = torch.linspace(0, 1, 11), torch.tensor([0.0, 1.0])
    found = model.evaluate(torch.tensor([0.25, 1.25]), t, labels)
    torch.testing.assert_close(found, torch.tensor([[0.25, math.nan], [math.nan, 0.25]]), equal_nan=True)
    with pytest.raises(ValueError, match="expected the labels themselves"):
        model.evaluate(labels, t)


def test_states_that_do_not_change_keep_the_bounds_of_the_start() -> None:
    """The maximum principle, whatever the paths: without diffusion nothing new appears."""
    model = LagrangianPINN(Closed(lambda f: f[..., 1:2]), network())
    _, residual = lagrangian_residuals(model, *points(), 1.0, 0.0)
    torch.testing.assert_close(residual, torch.zeros_like(residual), atol=1e-12, rtol=0)
    field = model.evaluate(periodic_grid(50), torch.linspace(0, 2, 9, dtype=torch.float64))
    assert bool((field.abs() <= 1 + 1e-12).all())


@pytest.mark.parametrize("hidden", [1, 3])
def test_a_stack_is_its_members_side_by_side(hidden: int) -> None:
    stack = TanhNetwork(3, 6, hidden, members=(2, 3), generator=generator(), dtype=torch.float64)
    single = TanhNetwork(3, 6, hidden, dtype=torch.float64)
    single.load_state_dict({name: value[1, 2] for name, value in stack.state_dict().items()})
    x, t = points()
    assert_jets_agree(
        Jet(*(each[1, 2] for each in stack.jet(PeriodicFeatures().jet(x, t)))), single.jet(PeriodicFeatures().jet(x, t))
    )
    grid, times = periodic_grid(20), torch.linspace(0, 1, 5, dtype=torch.float64)
    speeds = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)[:, None, None]
    models = LagrangianPINN(stack, stack), LagrangianPINN(single, single)
    fields = [model.evaluate(grid, times) for model in models]
    assert fields[0].shape == (2, 3, 5, 20)
    torch.testing.assert_close(fields[0][1, 2], fields[1])
    start, initial = grid[:, None], torch.sin(grid)[:, None]
    both: tuple[Tensor | float, Tensor | float] = speeds, 3.0
    losses = [
        lagrangian_loss(model, x, t, start, initial, speed, 0.1) for model, speed in zip(models, both, strict=True)
    ]
    assert losses[0].shape == (2, 3)
    torch.testing.assert_close(losses[0][1, 2], losses[1])
    drifting = EulerianPINN(stack, drift=speeds).evaluate(grid, times)
    torch.testing.assert_close(drifting[1, 2], EulerianPINN(single, drift=3.0).evaluate(grid, times))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["64", "32", "b16"])
def test_gradients_reach_users_networks_in_their_dtype(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = LagrangianPINN(Own(), Own()).to(dtype)
    x, t = points(dtype=dtype)
    assert_gradients_reach_parameters(model, x, t)
    model.zero_grad()
    loss = lagrangian_loss(model, x, t, x, torch.sin(x), lambda u, x, t: u, 0.1, reduction="mean")
    assert loss.dtype == dtype
    loss.backward()
    # The shift of the layer before the last does not reach a derivative: all others must move.
    for parameter in model.parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())
        assert float(parameter.grad.abs().max()) > 0


def test_state_goes_with_the_model() -> None:
    x, t = points()
    torch.manual_seed(0)
    first, second = LagrangianPINN(Own(), Own()), LagrangianPINN(Own(), Own())
    assert not torch.equal(first(x.float(), t.float()).state, second(x.float(), t.float()).state)
    second.load_state_dict(first.state_dict())
    for mine, theirs in zip(first(x.float(), t.float()), second(x.float(), t.float()), strict=True):
        assert torch.equal(mine, theirs)
    drifting, still = EulerianPINN(network(), drift=5.0), EulerianPINN(network())
    assert_state_dict_round_trip(drifting, still, x, t)


# Losses


def test_losses_are_weighted_norms_or_means_of_squares() -> None:
    x, t = points()
    start, initial = x[:7], torch.cos(x[:7])
    model, fixed = LagrangianPINN(network(), network()), EulerianPINN(network())
    path, state = lagrangian_residuals(model, x, t, 2.0, 0.1)
    first = model(start, 0 * start).state - initial
    residual, begun = eulerian_residual(fixed, x, t, 2.0, 0.1), fixed(start, 0 * start) - initial
    norm, weights = torch.linalg.norm, {"path": 2.0, "state": 3.0, "initial": 5.0}

    torch.testing.assert_close(
        lagrangian_loss(model, x, t, start, initial, 2.0, 0.1), 10 * norm(path) + norm(state) + 1000 * norm(first)
    )
    torch.testing.assert_close(
        lagrangian_loss(model, x, t, start, initial, 2.0, 0.1, weights=weights, reduction="mean"),
        2 * path.square().mean() + 3 * state.square().mean() + 5 * first.square().mean(),
    )
    torch.testing.assert_close(
        eulerian_loss(fixed, x, t, start, initial, 2.0, 0.1), norm(residual) + 1000 * norm(begun)
    )
    torch.testing.assert_close(
        eulerian_loss(fixed, x, t, start, initial, 2.0, 0.1, reduction="mean"),
        residual.square().mean() + 1000 * begun.square().mean(),
    )


def test_a_few_steps_of_training_follow_a_fast_stream() -> None:
    """An untrained state net but for the start: within a few hundred steps the paths have the speed."""
    model = LagrangianPINN(network(), network(zero_output=True), initial=torch.sin)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    x, t = points(60)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for _ in range(300):
        optimizer.zero_grad()
        lagrangian_loss(model, x, t, x, torch.sin(x), 20.0, 0.01, reduction="mean").backward()
        optimizer.step()
        schedule.step()
    grid, times = periodic_grid(64), torch.linspace(0, 1, 9, dtype=torch.float64)
    exact = solve_convection_diffusion(torch.sin(grid), times, 20.0, 0.01)
    assert float((model.evaluate(grid, times) - exact).norm() / exact.norm()) < 0.05


# Snapshots


def test_a_wave_needs_two_shapes_where_it_passes_and_one_where_it_is_carried() -> None:
    x, t = periodic_grid(64), torch.linspace(0, 1, 40, dtype=torch.float64)
    assert int(snapshot_rank(solve_convection_diffusion(torch.sin(x), t, 30.0, 0.01))) == 2
    assert int(snapshot_rank(solve_convection_diffusion(torch.sin(x), t, 0.0, 0.01))) == 1


def test_rank_counts_singular_values_up_to_the_energy() -> None:
    left, right = (torch.linalg.qr(torch.randn(9, 9, generator=generator(k), dtype=torch.float64)).Q for k in (1, 2))
    values = torch.tensor([3.0, 2.0, 1.0, 0.1], dtype=torch.float64)
    field = torch.stack([left[:, :4] * values @ right[:4], torch.zeros(9, 9, dtype=torch.float64)])
    decay = singular_value_decay(field)
    torch.testing.assert_close(decay[0, :4], values / 3, atol=1e-12, rtol=0)
    assert float(decay[1].abs().max()) == 0
    assert [int(snapshot_rank(field[0], energy)) for energy in (0.6, 0.9, 0.999, 0.9999)] == [1, 2, 3, 4]
    assert snapshot_rank(field).tolist() == [3, 1]
    assert singular_value_decay(field.half()).dtype == torch.float32


# Wrong input


def test_wrong_input_is_named() -> None:
    x, t = points()
    model = LagrangianPINN(network(), network())
    with pytest.raises(ValueError, match=r"period is -1\.0"):
        PeriodicFeatures(-1.0)
    with pytest.raises(ValueError, match="width is 0; expected at least 1"):
        TanhNetwork(3, 0)
    with pytest.raises(ValueError, match=r"members is \(0,\)"):
        TanhNetwork(3, members=(0,))
    with pytest.raises(ValueError, match=r"features has shape \(40, 1\); expected 3"):
        network()(x)
    with pytest.raises(ValueError, match=r"t has shape \(3, 1\)"):
        differentiate(lambda x, t: x * t, x, t[:3])
    with pytest.raises(ValueError, match="mode is 'backward'"):
        differentiate(lambda x, t: x * t, x, t, "backward")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"points have shapes \(40,\)"):
        lagrangian_residuals(model, x[:, 0], t[:, 0], 1.0, 0.1)
    with pytest.raises(ValueError, match="metric is 'chart'"):
        lagrangian_residuals(model, x, t, 1.0, 0.1, "chart")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction is 'sum'"):
        lagrangian_loss(model, x, t, x, x, 1.0, 0.1, reduction="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weights names \['path'\]"):
        lagrangian_loss(model, x, t, x, x, 1.0, 0.1, weights={"path": 1.0})
    with pytest.raises(ValueError, match=r"grids have shapes \(40, 1\)"):
        model.evaluate(x, t[:, 0])
    with pytest.raises(ValueError, match="labels has shape"):
        model.evaluate(x[:, 0], t[:, 0], 1)
    with pytest.raises(ValueError, match=r"field has shape \(40,\)"):
        singular_value_decay(x[:, 0])
    with pytest.raises(ValueError, match="energy is 1"):
        snapshot_rank(x, 1.0)
