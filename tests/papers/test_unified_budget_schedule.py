"""UBA: its closed form and limits, the Chebyshev step sizes inside it, its manners as schedule, and its study."""

import copy
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from working_papers.bench import Scale, Trial
from working_papers.papers.unified_budget_schedule import (
    UBASchedule,
    chebyshev_equivalent_phi,
    estimate_condition_number,
    suggested_phi,
    uba_multiplier,
)
from working_papers.papers.unified_budget_schedule import training as training_module
from working_papers.papers.unified_budget_schedule.study import (
    ACCURACY,
    CONDITION_NUMBERS,
    DECAY,
    DESCENT_STEPS,
    GROWTH,
    best_possible,
    compare,
    descend,
    images,
    study,
    worst_case,
)
from working_papers.papers.unified_budget_schedule.training import (
    Ends,
    Kind,
    VisionTransformer,
    augmented_batches,
    batch_order,
    cifar,
    digits,
    initial_network,
    kinds,
    rates,
    train_apart,
    train_together,
)

Rates = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

PHIS = [0.25, 1.0, 2.0, 5.0, 50.0]
TAUS = torch.linspace(0, 1, 401, dtype=torch.float64)


def sgd(*peaks: float | Tensor, **settings: Any) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr": peak} for peak in peaks]
    return torch.optim.SGD(groups, lr=0.1, **settings)


def run(optimizer: torch.optim.Optimizer, schedule: lr_scheduler.LRScheduler, steps: int) -> Rates:
    """The rates in force at this and the next steps, (steps, groups)."""
    found = []
    for _ in range(steps):
        found.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return np.array(found)


def uba(steps: int, peak: float = 1.0, taken: int | None = None, **settings: Any) -> Rates:
    optimizer = sgd(peak)
    return run(optimizer, UBASchedule(optimizer, steps, **settings), taken or steps)[:, 0]


# The curve


@pytest.mark.parametrize("phi", PHIS)
def test_the_curve_is_the_papers_formula(phi: float) -> None:
    c = 1 + torch.cos(math.pi * TAUS)
    torch.testing.assert_close(uba_multiplier(TAUS, phi), 2 * c / (2 * phi + (2 - phi) * c), atol=1e-14, rtol=1e-9)
    tangent = 1 / (1 + phi / 2 * torch.tan(math.pi * TAUS[:-1] / 2).square())
    torch.testing.assert_close(uba_multiplier(TAUS, phi)[:-1], tangent)


@pytest.mark.parametrize("phi", PHIS)
def test_reciprocals_are_linear_in_phi(phi: float) -> None:
    inner = TAUS[:-1]
    expected = (1 - phi / 2) + phi / 2 / ((1 + torch.cos(math.pi * inner)) / 2)
    torch.testing.assert_close(1 / uba_multiplier(inner, phi), expected, rtol=1e-9, atol=0)


def test_the_curve_falls_with_progress_and_with_phi() -> None:
    curves = torch.stack([uba_multiplier(TAUS, phi) for phi in PHIS])
    assert (curves.diff(dim=1) < 0).all()
    assert (curves[:, 1:-1].diff(dim=0) < 0).all()


def test_ends_are_exact_and_a_phi_of_zero_is_constant() -> None:
    for phi in PHIS:
        assert uba_multiplier(0.0, phi) == 1
        assert uba_multiplier(1.0, phi) == 0
        assert torch.equal(uba_multiplier(TAUS[[0, -1]], phi), torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert torch.equal(uba_multiplier(TAUS, 0.0), torch.ones_like(TAUS))
    assert uba_multiplier(1.0, 0.0) == 1
    assert uba_multiplier(-0.5, 1.0) == 1 and uba_multiplier(1.5, 1.0) == 0  # clamped


@pytest.mark.parametrize("phi", PHIS)
def test_the_mean_over_the_budget_has_a_closed_form(phi: float) -> None:
    mean = torch.trapezoid(uba_multiplier(TAUS, phi), TAUS)
    assert float(mean) == pytest.approx(1 / (1 + math.sqrt(phi / 2)), abs=1e-6)


def test_numbers_and_tensors_agree_and_phi_may_be_a_tensor() -> None:
    phis = torch.tensor([0.0, *PHIS], dtype=torch.float64)
    table = uba_multiplier(TAUS, phis[:, None])
    assert table.shape == (6, 401)
    by_number = [[uba_multiplier(float(tau), float(phi)) for tau in TAUS] for phi in phis]
    torch.testing.assert_close(table, torch.tensor(by_number, dtype=torch.float64), atol=1e-15, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.float32, 1e-6)])
def test_other_dtypes(dtype: torch.dtype, error: float) -> None:
    taus = (torch.arange(9) / 8).to(dtype)  # exact in all of them
    found = uba_multiplier(taus, 5.0)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), uba_multiplier(taus.double(), 5.0), atol=error, rtol=error)
    assert found[-1] == 0


def test_the_curve_has_gradients() -> None:
    taus = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    phi = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(uba_multiplier, (taus, phi))


# The schedule


@pytest.mark.parametrize("eta_min", [0.0, 0.01])
def test_a_phi_of_two_is_torchs_cosine(eta_min: float) -> None:
    optimizer, other = sgd(0.3), sgd(0.3)
    ours = run(optimizer, UBASchedule(optimizer, 57, phi=2.0, eta_min=eta_min), 58)
    cosine = run(other, lr_scheduler.CosineAnnealingLR(other, 57, eta_min=eta_min), 58)
    np.testing.assert_allclose(ours, cosine, atol=1e-12, rtol=0)


def test_a_phi_of_zero_keeps_the_peak_and_others_stay_at_the_end() -> None:
    assert (uba(10, 0.3, phi=0.0, taken=15) == 0.3).all()
    found = uba(10, 0.3, phi=3.0, eta_min=0.02, taken=15)
    assert found[0] == 0.3
    assert (found[10:] == 0.02).all()
    assert found[9] > 0.02


def test_warm_up_is_linear_and_then_the_curve_begins() -> None:
    found = uba(20, 0.4, phi=5.0, warmup_steps=4, warmup_start=0.2, eta_min=0.01, taken=22)
    np.testing.assert_allclose(found[:4], 0.4 * (0.2 + 0.8 * np.arange(4) / 4))
    np.testing.assert_allclose(found[4:], uba(16, 0.4, phi=5.0, eta_min=0.01, taken=18))
    assert uba(20, warmup_steps=4)[0] == 0


def test_cycles_start_again() -> None:
    found = uba(23, 0.4, phi=3.0, warmup_steps=2, cycles=3, eta_min=0.1, taken=25)
    one = uba(7, 0.4, phi=3.0, eta_min=0.1)
    np.testing.assert_allclose(found[2:23], np.tile(one, 3))
    assert (found[23:] == 0.1).all()
    uneven = uba(10, phi=3.0, cycles=3)  # cycles of 10 / 3 steps
    expected = [uba_multiplier((step * 3 % 10) / 10, 3.0) for step in range(10)]
    np.testing.assert_allclose(uneven, expected)


@pytest.mark.parametrize("kappa", [1.0, 10.0, 1000.0])
@pytest.mark.parametrize("steps", [1, 10, 33])
def test_midpoints_and_twice_the_condition_number_are_chebyshevs_steps(kappa: float, steps: int) -> None:
    largest = 3.0
    smallest = largest / kappa
    phi = chebyshev_equivalent_phi(kappa)
    found = uba(steps, 1 / smallest, phi=phi, eta_min=1 / largest, midpoint=True, taken=steps + 1)
    phases = math.pi * (np.arange(steps) + 0.5) / steps
    expected = 2 / ((largest + smallest) - (largest - smallest) * np.cos(phases))
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-12)
    assert found[-1] == 1 / largest


@pytest.mark.parametrize(("kappa", "steps"), [(10.0, 5), (10.0, 30), (100.0, 20)])
def test_chebyshevs_steps_reach_the_bound_and_other_phis_do_not(kappa: float, steps: int) -> None:
    spectrum = torch.logspace(-math.log10(kappa), 0, 4001, dtype=torch.float64)
    middles = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    peak = torch.tensor([kappa], dtype=torch.float64)
    bound = best_possible(kappa, steps)
    assert bound == pytest.approx(-math.log(math.cosh(steps * math.acosh((kappa + 1) / (kappa - 1)))))
    assert float(worst_case(uba_multiplier(middles, 2 * kappa), peak, spectrum)) == pytest.approx(bound, abs=1e-6)
    for phi in (0.5, 2.0, 1.5 * kappa, 3 * kappa):
        assert float(worst_case(uba_multiplier(middles, phi), peak, spectrum)) > bound + 0.1


def test_gradient_descent_on_a_quadratic_has_the_predicted_error() -> None:
    spectrum = torch.tensor([0.1, 0.3, 1.0], dtype=torch.float64)
    x = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.SGD([x], lr=10.0)
    schedule = UBASchedule(optimizer, 12, chebyshev_equivalent_phi(10), eta_min=1.0, midpoint=True)
    for _ in range(12):
        optimizer.zero_grad()
        (0.5 * spectrum * x.square()).sum().backward()
        optimizer.step()
        schedule.step()
    assert float(x.detach().abs().max()) == pytest.approx(math.exp(best_possible(10.0, 12)), rel=1e-6)


@pytest.mark.parametrize("phi", [0.25, 1.0, 2.0, 5.0, 50.0])
def test_gradient_descent_converges_for_every_phi(phi: float) -> None:
    """With a peak of 1 / L the error falls to any level, at the rate that the mean of the curve sets."""
    spectrum = torch.tensor([0.1, 1.0], dtype=torch.float64)
    errors = []
    for steps in (100, 1000):
        curve = uba_multiplier(torch.arange(steps, dtype=torch.float64) / steps, phi)
        errors.append(float((1 - curve[:, None] * spectrum).abs().prod(dim=0).max()))
        assert errors[-1] < math.exp(-0.1 * steps / (1 + math.sqrt(phi / 2)))
    assert errors[1] < errors[0] ** 9


def test_noisy_gradient_descent_forgets_its_noise_where_a_constant_rate_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, 200, generator=generator, dtype=torch.float64)
    ends = []
    for phi in (0.0, 1.0, 5.0):
        x = torch.ones(200, dtype=torch.float64)
        for step, kick in enumerate(noise):
            x = x - 0.2 * uba_multiplier(step / 2000, phi) * (x + kick)
        ends.append(float(x.square().mean()))
    assert ends[0] == pytest.approx(0.2 / (2 - 0.2), rel=0.3)  # the stationary variance of a constant rate
    assert max(ends[1:]) < 0.2 * ends[0]


def test_groups_keep_their_ratio_and_may_have_their_own_floors() -> None:
    optimizer = sgd(0.3, 0.6)
    found = run(optimizer, UBASchedule(optimizer, 20, phi=5.0, warmup_steps=3), 20)
    np.testing.assert_allclose(found[:, 1], 2 * found[:, 0])
    optimizer = sgd(0.3, 0.6)
    found = run(optimizer, UBASchedule(optimizer, 20, phi=5.0, eta_min=(0.1, 0.0)), 21)
    np.testing.assert_array_equal(found[-1], [0.1, 0.0])


@pytest.mark.parametrize("at", [0, 1, 3, 4, 11, 19, 25])
def test_a_run_resumes_anywhere(at: int) -> None:
    settings: dict[str, Any] = {"phi": 5.0, "eta_min": 0.01, "warmup_steps": 3, "cycles": 2}
    optimizer = sgd(0.3, 0.6)
    schedule = UBASchedule(optimizer, 21, **settings)
    run(optimizer, schedule, at)
    saved = pickle.loads(pickle.dumps((optimizer.state_dict(), schedule.state_dict())))
    expected = run(optimizer, schedule, 25 - at) if at < 25 else None

    resumed = sgd(1.0, 1.0)
    another = UBASchedule(resumed, 5, phi=0.1)
    resumed.load_state_dict(saved[0])
    another.load_state_dict(saved[1])
    again = sgd(0.3, 0.6)
    again.load_state_dict(copy.deepcopy(saved[0]))
    by_number = UBASchedule(again, 21, **settings, last_epoch=at - 1) if at else None
    if expected is None:
        assert [group["lr"] for group in resumed.param_groups] == [0.01, 0.01]
        return
    np.testing.assert_array_equal(run(resumed, another, 25 - at), expected)
    if by_number is not None:
        np.testing.assert_array_equal(run(again, by_number, 25 - at), expected)


def test_learning_rates_may_be_tensors() -> None:
    peak = torch.tensor(0.3)
    optimizer = sgd(peak)
    found = run(optimizer, UBASchedule(optimizer, 10, phi=5.0, eta_min=0.1, warmup_steps=2), 12)
    assert optimizer.param_groups[0]["lr"] is peak  # written to, as capturable optimisers need it
    np.testing.assert_allclose(found[:, 0], uba(10, 0.3, phi=5.0, eta_min=0.1, warmup_steps=2, taken=12), rtol=1e-6)


def test_it_works_inside_torchs_own_combinations() -> None:
    optimizer = sgd(0.3)
    first = lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=5)
    both = lr_scheduler.SequentialLR(optimizer, [first, UBASchedule(optimizer, 10, phi=5.0)], [5])
    found = run(optimizer, both, 15)[:, 0]
    np.testing.assert_allclose(found, np.concatenate([np.full(5, 0.3), uba(10, 0.3, phi=5.0)]))


def test_adamw_trains_with_it() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1), torch.randn(64, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = UBASchedule(optimizer, 200, suggested_phi("adamw"), warmup_steps=10)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert float(loss.detach()) < 1e-3
    assert schedule.get_last_lr() == [0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 0}, "total_steps is 0; expected a whole number, 1 or more"),
        ({"total_steps": 10.0}, "total_steps is 10.0; expected a whole number"),
        ({"phi": -1.0}, "phi is -1.0; expected a finite number, 0 or more"),
        ({"phi": math.inf}, "phi is inf"),
        ({"phi": math.nan}, "phi is nan"),
        ({"eta_min": 0.5}, r"eta_min is 0.5; expected a number from 0 to the group's learning rate, 0.3"),
        ({"eta_min": -0.1}, "eta_min is -0.1"),
        ({"eta_min": (0.1, 0.1)}, "eta_min has 2 values; expected one for each of the 1 groups"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"warmup_steps": 10}, r"warmup_steps is 10; expected fewer than total_steps \(10\)"),
        ({"warmup_start": 1.5}, "warmup_start is 1.5; expected a fraction from 0 to 1"),
        ({"cycles": 0}, "cycles is 0"),
        ({"cycles": 9, "warmup_steps": 2}, "cycles is 9; expected at most total_steps - warmup_steps"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UBASchedule(sgd(0.3), **{"total_steps": 10, **settings})


def test_a_large_phi_warns_except_with_midpoints() -> None:
    with pytest.warns(UserWarning, match="phi is 60: nearly all of the 10 steps"):
        UBASchedule(sgd(0.3), 10, phi=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        UBASchedule(sgd(0.3), 10, phi=60, midpoint=True)
        UBASchedule(sgd(0.3), 10, phi=50)


def test_bad_arguments_of_the_functions_are_named() -> None:
    with pytest.raises(ValueError, match=r"phi is -0.1; expected a finite number"):
        uba_multiplier(0.5, -0.1)
    with pytest.raises(ValueError, match="phi is a tensor and progress is not"):
        uba_multiplier(0.5, torch.tensor(1.0))  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"condition_number is 0.5; expected a finite number, 1 or more"):
        chebyshev_equivalent_phi(0.5)
    with pytest.raises(ValueError, match=r"optimizer_name is 'lbfgs'; expected one of sgd, "):
        suggested_phi("lbfgs")
    x = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="params holds no tensor that needs a gradient"):
        estimate_condition_number(lambda: x.sum(), [x.detach()])
    with pytest.raises(ValueError, match=r"loss_fn returned a tensor of shape \(2,\); expected one finite number"):
        estimate_condition_number(lambda: 2 * x, [x])
    for settings, message in (
        ({"k": 0}, "k is 0"),
        ({"quantile": 2.0}, "quantile is 2.0"),
        ({"floor": 0.0}, "floor is 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            estimate_condition_number(lambda: x.sum(), [x], **settings)


def test_suggestions() -> None:
    assert suggested_phi("SGD") == 5.0
    assert suggested_phi("AdamW") == 1.0


# The condition number


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_condition_number_of_a_quadratic_is_found(dtype: torch.dtype) -> None:
    spectrum = torch.logspace(0, 2, 12, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    hessian = (turn @ torch.diag(spectrum) @ turn.T).to(dtype)
    a, b, frozen = (nn.Parameter(torch.ones(size, dtype=dtype)) for size in (5, 7, 2))
    frozen.requires_grad_(False)

    def loss() -> Tensor:
        x = torch.cat([a, b])
        energy: Tensor = 0.5 * x @ hessian @ x
        return energy

    assert estimate_condition_number(loss, [a, b, frozen]) == pytest.approx(100, rel=1e-3)
    fewer = [estimate_condition_number(loss, [a, b], k) for k in (2, 4, 8)]
    assert fewer == sorted(fewer) and fewer[-1] <= 100 * (1 + 1e-4)  # from below
    assert estimate_condition_number(loss, [a, b], floor=0.1) == pytest.approx(10)
    assert estimate_condition_number(loss, [a, b], quantile=1.0) == pytest.approx(1)
    middle = estimate_condition_number(loss, [a, b], quantile=0.5)
    assert 1 < middle < 100


def test_the_condition_number_of_flat_and_of_equal_curvature_is_one() -> None:
    x = nn.Parameter(torch.ones(6))
    assert estimate_condition_number(lambda: x.sum(), [x]) == 1
    assert estimate_condition_number(lambda: 3 * x.square().sum(), [x]) == pytest.approx(1, abs=1e-5)


def test_the_condition_number_of_a_network_is_above_one() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(32, 4), torch.arange(32) % 3
    before = [p.detach().clone() for p in model.parameters()]
    found = estimate_condition_number(lambda: nn.functional.cross_entropy(model(x), y), model.parameters(), 30)
    assert 10 < found <= 1e4
    assert all(torch.equal(p, old) and p.grad is None for p, old in zip(model.parameters(), before, strict=True))


# The study


@pytest.mark.parametrize("warm_up", [0, 6])
@pytest.mark.parametrize("arm", list(study.arms))
def test_schedules_reach_their_peak_and_end_low(arm: str, warm_up: int) -> None:
    found = rates(arm, 60, 1.0, warm_up)
    assert float(found.max()) == pytest.approx(1)
    top = int(found.argmax())
    assert top == (17 if arm == "one-cycle" else warm_up)
    assert (found[top:].diff() <= 1e-12).all()
    assert float(found[-1]) < 0.05


def test_baselines_by_hand() -> None:
    at = torch.arange(40, dtype=torch.float64) / 40
    torch.testing.assert_close(rates("linear", 40), 1 - at)
    torch.testing.assert_close(rates("cosine", 40), (1 + torch.cos(math.pi * at)) / 2)
    torch.testing.assert_close(rates("rex", 40), (1 - at) / (0.5 + 0.5 * (1 - at)))
    step = torch.tensor([1.0] * 20 + [0.1] * 10 + [0.01] * 10, dtype=torch.float64)
    torch.testing.assert_close(rates("step", 40), step)
    with pytest.raises(ValueError, match="arm is 'wsd'"):
        rates("wsd", 40)


def test_digits_have_a_fifth_of_wrong_labels_and_disjoint_parts() -> None:
    data = digits(3, 32, 50)
    from working_papers.data.digits import load_digits

    known, _ = load_digits()
    rows = {row.numpy().tobytes(): int(label) for row, label in zip(known.flat(), known.labels, strict=True)}
    truth = torch.tensor([rows[row.numpy().tobytes()] for row in data.training.flatten(1)])
    assert float((truth != data.training_labels).double().mean()) == pytest.approx(0.2)
    assert len(data.training) == 900 and len(data.validation) == 300
    assert data.order.shape == (50, 32)
    assert len(data.order[:28].unique()) == 28 * 32  # a pass sees nothing twice
    assert torch.equal(data.order, digits(3, 32, 50).order)
    assert not torch.equal(data.order, digits(4, 32, 50).order)


def test_a_batch_order_makes_whole_passes() -> None:
    order = batch_order(10, 4, 5, torch.Generator().manual_seed(0))
    assert order.shape == (5, 4)
    assert len(order[:2].unique()) == 8 and len(order[2:4].unique()) == 8


@pytest.mark.parametrize("name", ["convolutional", "transformer"])
@pytest.mark.parametrize("arm", ["uba", "one-cycle", "cosine"])
def test_networks_trained_together_are_those_trained_alone(name: str, arm: str) -> None:
    kind, data, steps = kinds(Scale.LAPTOP)[name], digits(3, 16, 20), 20
    together = train_together(kind, arm, steps, data, 7)
    for candidate in (0, 2):
        network = initial_network(kind, 10, 7)
        optimizer = kind.optimize([{"params": list(network.parameters()), "lr": kind.peaks[candidate]}])
        schedule = training_module.schedule(arm, optimizer, steps, kind.phi, kind.warm_up(steps))
        for rows in data.order[:steps]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(data.training[rows]), data.training_labels[rows]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            loss = nn.functional.cross_entropy(network(data.training), data.training_labels)
            right = (network(data.test).argmax(dim=1) == data.test_labels).double().mean()
        assert float(together.training_loss[candidate]) == pytest.approx(float(loss), rel=1e-3)
        assert float(together.test[candidate]) == pytest.approx(float(right), abs=0.01)


def test_the_best_candidate_is_chosen_without_the_test_images() -> None:
    ends = Ends(torch.tensor([0.5, 0.9, 0.9, 0.8]), torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.1, 0.5, 0.4, 0.2]))
    assert ends.best() == 2
    lost = Ends(torch.tensor([0.1, 0.1]), torch.zeros(2), torch.tensor([math.nan, 2.3]))
    assert lost.best() == 1


def test_phi_was_fixed_by_the_rule_of_thumb() -> None:
    for scale in Scale:
        assert {name: kind.phi for name, kind in kinds(scale).items()} == {"convolutional": 5.0, "transformer": 1.0}


def test_the_best_phi_grows_with_the_condition_number_and_cosine_has_none() -> None:
    ours, cosine = descend("uba", 3), descend("cosine", 3)
    assert ours.best_phis.shape == (len(DESCENT_STEPS), len(CONDITION_NUMBERS))
    assert (np.diff(ours.best_phis, axis=1) > 0).all()
    assert cosine.growth() == 0
    assert 0 < cosine.share < ours.share < 1.1


def test_growth_is_an_exponent() -> None:
    from working_papers.papers.unified_budget_schedule.study import Descents

    phis = 3 * np.array([CONDITION_NUMBERS, CONDITION_NUMBERS, CONDITION_NUMBERS]) ** np.array([[0.5], [1.0], [0.9]])
    assert Descents(0.5, phis).growth() == pytest.approx(0.8)


@pytest.mark.parametrize("arm", ["uba", "one-cycle"])
def test_a_trial_is_pure_and_complete(arm: str) -> None:
    trial = Trial(arm=arm, seed=5, scale=Scale.SMOKE)
    first, second = (compare(trial, images(5, Scale.SMOKE)) for _ in range(2))
    assert set(study.measures) <= set(first)
    for name, value in first.items():
        assert np.array_equal(value, second[name])
        assert np.isfinite(value).all()
    assert 0 < float(first[ACCURACY]) <= 100
    assert (float(first[GROWTH]) > 0) == (arm == "uba")
    assert float(first[DECAY]) < 1.1


# Paper scale, on a tiny file in CIFAR's format


@pytest.fixture
def tiny_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, count in (("train", 24), ("test", 8)):
        content = {
            b"data": random.integers(0, 256, (count, 3072), dtype=np.uint8),
            b"fine_labels": [int(label) for label in random.integers(0, 100, count)],
            b"coarse_labels": [int(label) for label in random.integers(0, 20, count)],
        }
        (folder / name).write_bytes(pickle.dumps(content))
    monkeypatch.setenv("WORKING_PAPERS_DATA", str(tmp_path))
    return folder


def test_paper_scale_reads_cifar_and_trains_both_networks(tiny_cifar: Path) -> None:
    data = cifar(3, batch=4, steps=3, held_out=8)
    assert data.training.shape == (16, 3, 32, 32) and len(data.validation) == 8 and len(data.test) == 8
    everything = torch.cat([data.training, data.validation])
    torch.testing.assert_close(everything.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(everything.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    small = Kind(
        lambda classes: VisionTransformer(classes, channels=3, size=32, patch=8, pooled=True), "adamw", (0.01,)
    )
    residual = Kind(kinds(Scale.PAPER)["convolutional"].make, "sgd", (0.1,))
    for kind in (small, residual):
        ends = train_apart(kind, "uba", 3, data, 5, "cpu")
        again = train_apart(kind, "uba", 3, data, 5, "cpu")
        assert math.isfinite(float(ends.training_loss[0])) and float(ends.training_loss[0]) > 0
        assert torch.equal(ends.training_loss, again.training_loss)
    diverging = Kind(residual.make, "sgd", (1e30, 0.1))
    ends = train_apart(diverging, "uba", 3, data, 5, "cpu")
    assert float(ends.training_loss[0]) == math.inf and ends.best() == 1
    large = kinds(Scale.PAPER)["transformer"].make(100)
    assert 10e6 < sum(p.numel() for p in large.parameters()) < 12e6
    with torch.no_grad():
        assert large(data.test[:1]).shape == (1, 100)


def test_paper_scale_names_missing_and_small_data(tiny_cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="CIFAR-100 has 24 training images; expected at least 5128"):
        images(3, Scale.PAPER)
    (tiny_cifar / "test").unlink()
    with pytest.raises(ValueError, match="test missing"):
        images(3, Scale.PAPER)
    monkeypatch.delenv("WORKING_PAPERS_DATA")
    with pytest.raises(ValueError, match="WORKING_PAPERS_DATA"):
        images(3, Scale.PAPER)


def test_augmentation_shifts_and_mirrors_only(tiny_cifar: Path) -> None:
    data = cifar(3, batch=8, steps=6, held_out=8)
    seen = 0
    for (x, y), rows in zip(augmented_batches(data, 6, 5), data.order, strict=True):
        assert torch.equal(y, data.training_labels[rows])
        for image, original in zip(x, data.training[rows], strict=True):
            padded = nn.functional.pad(original, (4, 4, 4, 4))
            windows = padded.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 9, 9, 32, 32)
            alike = [(windows == each[:, None, None]).all(dim=(0, 3, 4)).any() for each in (image, image.flip(2))]
            assert any(alike)
            seen += int(bool(alike[1]))
    later = next(augmented_batches(data, 6, 5, first=5))
    assert torch.equal(later[0], x)
    assert 0 < seen < 48
