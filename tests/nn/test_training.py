"""The training loop: exact resumption, precision, several processes, bad input."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from working_papers.nn.processes import launch
from working_papers.nn.training import Precision, ShuffledBatches, checkpoint_file, fit


def data_set(samples: int = 40) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 5, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True).tanh(), torch.arange(samples))


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))


def squared_error(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def noisy(batch: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    return [batch[0] + 0.1 * torch.randn(batch[0].shape, generator=generator), *batch[1:]]


def train(steps: int, checkpoint: Path | None = None, precision: Precision = "float32", stop: int | None = None) -> Any:
    model = network(dropout=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    batches = ShuffledBatches(data_set(), 8, seed=5, augment=noisy)

    def until(first: int) -> Iterator[Any]:
        return itertools.islice(batches(first), None if stop is None else stop - first)

    losses = fit(
        model, until, squared_error, optimizer, scheduler,
        steps=steps, precision=precision, checkpoint=checkpoint, every=4, clip=1.0,
    )  # fmt: skip
    return losses, model.state_dict()


def in_group(file: str) -> tuple[list[float], list[Tensor]]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = fit(
        model, ShuffledBatches(data_set(), 8, seed=5), squared_error, optimizer, steps=9, checkpoint=Path(file), every=3
    )
    return losses.tolist(), list(model.state_dict().values())


def own_share(steps: int) -> list[int]:
    batches = ShuffledBatches(data_set(), 8, seed=5)
    return [int(i) for batch in itertools.islice(batches(0), steps) for i in batch[2]]


def fail() -> None:
    raise RuntimeError("this process was meant to fail")


def test_each_epoch_shows_every_sample_once_in_another_order() -> None:
    batches = ShuffledBatches(data_set(), 8, seed=5)
    seen = [batch[2] for batch in itertools.islice(batches(0), 10)]
    first, second = torch.cat(seen[:5]), torch.cat(seen[5:])
    assert batches.steps_per_epoch == 5
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(40))
    assert not torch.equal(first, second)
    later = [batch[2] for batch in itertools.islice(batches(7), 3)]
    assert all(torch.equal(a, b) for a, b in zip(seen[7:], later, strict=True))


def test_loading_in_workers_gives_the_same_batches() -> None:
    here = ShuffledBatches(data_set(), 8, seed=5, augment=noisy)
    there = ShuffledBatches(data_set(), 8, seed=5, augment=noisy, workers=1)
    for a, b in itertools.islice(zip(here(3), there(3), strict=False), 4):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_stopped_training_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    whole, weights = train(14)
    file = tmp_path / "deep" / "checkpoint"
    with pytest.raises(ValueError, match="batches ended after 10 of 14 steps"):
        train(14, file, stop=10)
    torch.manual_seed(99)  # the random state comes out of the checkpoint, not from here
    resumed, again = train(14, file)
    assert torch.equal(whole, resumed)
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    finished, kept = train(14, file)
    assert torch.equal(finished, whole) and torch.equal(kept["0.weight"], weights["0.weight"])
    assert [each.name for each in file.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains_and_keeps_float32_weights(precision: Precision) -> None:
    losses, weights = train(40, precision=precision)
    assert losses[-10:].mean() < losses[:10].mean()
    assert all(value.dtype == torch.float32 for value in weights.values())
    exact, _ = train(40)
    assert not torch.equal(losses, exact)
    # The first loss is of the same weights and dropout; later ones may lag by steps that the loss scaler skipped.
    assert losses[0] == pytest.approx(float(exact[0]), rel=0.02)
    assert float(losses[-10:].mean()) == pytest.approx(float(exact[-10:].mean()), rel=0.3)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    alone, weights = in_group(str(tmp_path / "one"))
    both = launch(in_group, 2, str(tmp_path / "two"))
    for mine, theirs in zip(both[0][1], both[1][1], strict=True):
        assert torch.equal(mine, theirs)
    for mine, one in zip(both[0][1], weights, strict=True):
        torch.testing.assert_close(mine, one)
    mean = [(a + b) / 2 for a, b in zip(both[0][0], both[1][0], strict=True)]
    assert mean == pytest.approx(alone, rel=1e-5)
    assert launch(in_group, 2, str(tmp_path / "two"))[1][0] == both[1][0]  # from the checkpoint
    with pytest.raises(ValueError, match=r"written by 2 processes; expected the 1"):
        in_group(str(tmp_path / "two"))


def test_processes_share_each_batch() -> None:
    shares = launch(own_share, 2, 5)
    assert sorted(shares[0] + shares[1]) == list(range(40))
    assert set(shares[0]) | set(shares[1]) == set(range(40)) and not set(shares[0]) & set(shares[1])


def test_a_failed_process_is_told() -> None:
    with pytest.raises(Exception, match="this process was meant to fail"):
        launch(fail, 2)


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint"
    train(8, file)
    with pytest.raises(ValueError, match=r"of step 8; expected at most the 4"):
        train(4, file)
    other = nn.Linear(5, 1)
    with pytest.raises(ValueError, match=r"expected model, optimizer, scaler$"):
        fit(other, ShuffledBatches(data_set(), 8), squared_error, torch.optim.SGD(other.parameters()), steps=9,
            checkpoint=file)  # fmt: skip
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"no checkpoint that can be read .* delete it to begin anew"):
        train(8, file)


def test_bad_arguments_are_named() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batches = ShuffledBatches(data_set(), 8)
    with pytest.raises(ValueError, match="precision is 'half'"):
        fit(model, batches, squared_error, optimizer, steps=1, precision="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps and every are 0 and 1000"):
        fit(model, batches, squared_error, optimizer, steps=0)
    with pytest.raises(ValueError, match=r"clip is -1\.0"):
        fit(model, batches, squared_error, optimizer, steps=1, clip=-1.0)
    with pytest.raises(ValueError, match=r"batch_size is 41; expected 1 to the 40 samples"):
        ShuffledBatches(data_set(), 41)
    with pytest.raises(ValueError, match="processes is 0"):
        launch(fail, 0)
    with pytest.raises(FloatingPointError, match="the loss of step 0 is nan"):
        fit(model, batches, lambda m, b: squared_error(m, b) * float("nan"), optimizer, steps=1)


def test_checkpoints_lie_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKING_PAPERS_HOME", str(tmp_path))
    assert checkpoint_file("a_room", "arm/7 x") == tmp_path / "checkpoints" / "a_room" / "arm-7-x.pt"
