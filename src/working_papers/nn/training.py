"""One training loop for studies at paper scale: mixed precision, checkpoints that resume exactly, several processes."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

import platformdirs
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

Precision = Literal["float32", "bfloat16", "float16"]
FORMAT = 1
"""Of checkpoints; another number is refused rather than misread."""


class ShuffledBatches:
    """The batches of a data set, shuffled anew each epoch, from any step on, endlessly.

    The order is a function of the seed alone, so that a run which resumes sees the batches that it would have seen.
    In a distributed group each process gets its share of every batch.

    Args:
        dataset: map-style.
        batch_size: samples of a step, over all processes together. The last incomplete batch of an epoch is dropped.
        seed: of the order and of the augmentation.
        augment: applied to each batch with a generator that is seeded for its step.
        workers: processes that load; 0 loads in this one.

    Raises:
        ValueError: the data set has fewer samples than a batch, or a batch cannot be shared out evenly.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        seed: int = 0,
        augment: Callable[[Any, torch.Generator], Any] | None = None,
        workers: int = 0,
    ) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.augment, self.workers = augment, workers
        self.samples = len(dataset)  # type: ignore[arg-type]
        self.rank, self.processes = _place()
        if not 1 <= batch_size <= self.samples:
            raise ValueError(f"batch_size is {batch_size}; expected 1 to the {self.samples} samples of the data set")
        if batch_size % self.processes:
            raise ValueError(f"batch_size is {batch_size}; expected a multiple of the {self.processes} processes")

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self.samples // self.batch_size

    def __call__(self, first: int = 0) -> Iterator[Any]:
        """The batches from step `first` on."""
        # A generator of its own: taking the loader's seed from the global state would change what a resumption draws.
        own = torch.Generator().manual_seed(_mix(self.seed, first, self.rank))
        loader = DataLoader(self.dataset, batch_sampler=_Indices(self, first), num_workers=self.workers, generator=own)
        for step, batch in enumerate(loader, first):
            if self.augment is None:
                yield batch
                continue
            generator = torch.Generator().manual_seed(_mix(self.seed, step, self.rank))
            yield self.augment(batch, generator)


class _Indices:
    """Indices of this process's part of each batch."""

    def __init__(self, batches: ShuffledBatches, first: int) -> None:
        self.batches, self.first = batches, first

    def __iter__(self) -> Iterator[list[int]]:
        b = self.batches
        part = b.batch_size // b.processes
        epoch, inside = divmod(self.first, b.steps_per_epoch)
        while True:
            order = torch.randperm(b.samples, generator=torch.Generator().manual_seed(_mix(b.seed, epoch, -1)))
            for step in range(inside, b.steps_per_epoch):
                start = step * b.batch_size + b.rank * part
                yield order[start : start + part].tolist()
            epoch, inside = epoch + 1, 0


def fit(
    model: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    loss: Callable[[nn.Module, Any], Tensor],
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
    *,
    steps: int,
    precision: Precision = "float32",
    device: torch.device | str | None = None,
    checkpoint: Path | None = None,
    every: int = 1000,
    clip: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Train a model for a number of steps.

    In an initialised `torch.distributed` group the model is wrapped in `DistributedDataParallel`. With a checkpoint
    the training goes on where it was, with the same numbers as if it had never stopped; a checkpoint of a finished
    training gives its result at once.

    Args:
        model: moved to the device, trained in place.
        batches: gives, for a step number, the batches from that step on (`ShuffledBatches`); tensors in tuples, lists
            and dicts are moved to the device.
        loss: of (model, batch), a scalar; it must call the model it is given.
        optimizer: over the model's parameters.
        scheduler: stepped once a step.
        steps: in all, including those before a resumption.
        precision: of autocast; parameters stay in their dtype. "float16" scales the loss.
        device: None: the device of the model's parameters.
        checkpoint: file that is written every `every` steps and at the end, as a whole or not at all.
        every: steps between two checkpoints.
        clip: largest gradient norm.
        progress: called with the fraction done.

    Returns:
        (steps,) float32, the losses of this process's batches.

    Raises:
        ValueError: a bad argument, a checkpoint that is damaged or of another training, or too few batches.
        FloatingPointError: a loss that is not finite; with "float16" the loss scale has been lowered before.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(get_args(Precision))}")
    if min(steps, every) < 1:
        raise ValueError(f"steps and every are {steps} and {every}; expected at least 1")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip is {clip}; expected a positive norm")
    device = torch.device(device) if device is not None else next(model.parameters()).device
    model.to(device).train()
    _follow(optimizer, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    losses = torch.zeros(steps)
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler}
    if scheduler is not None:
        parts["scheduler"] = scheduler
    done = 0
    if checkpoint is not None and checkpoint.exists():
        done = _load(checkpoint, parts, losses, device)
    wrapped = _distributed(model, device)

    for step, batch in enumerate(batches(done) if done < steps else (), done):
        if step == steps:
            break
        optimizer.zero_grad(set_to_none=True)
        with _autocast(precision, device):
            value = loss(wrapped, _moved(batch, device))
        if not torch.isfinite(value):
            raise FloatingPointError(f"the loss of step {step} is {value.item()}")
        scaler.scale(value).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        if scheduler is not None:
            with warnings.catch_warnings():
                # A step that the loss scaler skips counts for the schedule, so that it ends with the training.
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
                scheduler.step()
        losses[step] = value.detach()
        done = step + 1
        if checkpoint is not None and (done % every == 0 or done == steps):
            _save(checkpoint, parts, losses, done)
        if progress is not None:
            progress(done / steps)
    if done < steps:
        raise ValueError(f"batches ended after {done} of {steps} steps; expected as many batches as steps")
    return losses


def checkpoint_file(room: str, name: str) -> Path:
    """Where a trial keeps the checkpoint of a training that takes hours, so that a killed run goes on.

    A trial removes the file once it is through: what was trained by other code must not be taken up again.

    Args:
        room: slug of the room.
        name: what is trained: arm, seed and everything else that tells two trainings of a room apart.

    Returns:
        A file in the folder of the setting `WORKING_PAPERS_HOME`; it need not exist.
    """
    home = os.environ.get("WORKING_PAPERS_HOME") or platformdirs.user_data_dir("working-papers", appauthor=False)
    return Path(home) / "checkpoints" / room / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}.pt"


def _place() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _mix(seed: int, number: int, part: int) -> int:
    """One 63-bit seed out of three numbers (each part multiplied by a large odd constant)."""
    mixed = seed * 0x9E3779B97F4A7C15 + (number + 1) * 0xBF58476D1CE4E5B9 + (part + 2) * 0x94D049BB133111EB
    return (mixed ^ (mixed >> 31)) & (2**63 - 1)


def _distributed(model: nn.Module, device: torch.device) -> nn.Module:
    if _place()[1] == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, [device] if device.type == "cuda" else None)


def _autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bfloat16" else torch.float16)


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [_moved(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def _follow(optimizer: Optimizer, device: torch.device) -> None:
    """The optimiser's state goes where the parameters went."""
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim():
                state[key] = value.to(device)


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _save(file: Path, parts: dict[str, Any], losses: Tensor, done: int) -> None:
    rank, processes = _place()
    own = {"random": _random_state(), "losses": losses[:done].clone()}
    every: list[Any] = [own]
    if processes > 1:
        every = [None] * processes
        dist.all_gather_object(every, own)
    if rank == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        state = {name: part.state_dict() for name, part in parts.items()}
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            with partial.open("wb") as stream:
                torch.save({"format": FORMAT, "done": done, "parts": state, "processes": every}, stream)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    if processes > 1:
        dist.barrier()


def _load(file: Path, parts: dict[str, Any], losses: Tensor, device: torch.device) -> int:
    rank, processes = _place()
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        form, done, own = state["format"], int(state["done"]), state["processes"]
        saved = state["parts"]
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{file} is no checkpoint that can be read ({error}); delete it to begin anew") from error
    if form != FORMAT:
        raise ValueError(f"{file} is a checkpoint of format {form}; expected {FORMAT}; delete it to begin anew")
    if len(own) != processes:
        raise ValueError(f"{file} was written by {len(own)} processes; expected the {processes} of this training")
    if saved.keys() != parts.keys():
        raise ValueError(f"{file} holds {', '.join(saved)}; expected {', '.join(parts)}")
    if done > len(losses):
        raise ValueError(f"{file} is of step {done}; expected at most the {len(losses)} steps asked for")
    try:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{file} is a checkpoint of another training: {error}") from error
    torch.set_rng_state(own[rank]["random"]["cpu"])
    if device.type == "cuda" and "cuda" in own[rank]["random"]:
        torch.cuda.set_rng_state(own[rank]["random"]["cuda"])
    losses[:done] = own[rank]["losses"]
    return done
