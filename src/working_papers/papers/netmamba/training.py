"""What the study trains: sizes, the reader of flow images, the rivals, pre-training and fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, Subset, TensorDataset

from working_papers.bench import Scale
from working_papers.data.image_folder import ImageFolder
from working_papers.nn.training import ShuffledBatches, fit
from working_papers.papers.netmamba.method import (
    MambaLayer,
    NetMambaClassifier,
    NetMambaEncoder,
    NetMambaMAE,
    parameter_groups,
    warm_up_cosine,
)

SMOOTHING = 0.1  # of labels in fine-tuning; the paper's
FLOOR = 1e-6  # lowest learning rate of fine-tuning; the paper's
SIDE = 40  # of a flow's image
CHECKPOINT_STEPS = 2000  # between two checkpoints


@dataclass(frozen=True)
class Size:
    """How large networks, data and trainings are.

    Attributes:
        header: bytes of a packet's headers.
        payload: bytes of its payload.
        dim: width of the encoder.
        depth: its layers.
        state: numbers of state a channel.
        decoder_dim: width of the decoder.
        decoder_depth: its layers.
        unlabelled: flows for pre-training.
        test: flows in each of the two test sets.
        labels: labelled flows a class in the two label budgets; none: all.
        draws: how often the labelled flows of each budget are drawn.
        batch: flows of a step of pre-training.
        steps: of pre-training.
        warm_up: steps of its warm-up.
        pre_rate: its highest learning rate.
        transformer_rate: that of the Transformer.
        tuning_batch: flows of a step of fine-tuning.
        tuning_steps: of fine-tuning, for each label budget; at paper scale epochs.
        tuning_warm_up: share of them in the warm-up.
        trees: of the random forest.
        lengths: tokens at which forward passes are timed.
        repeats: how often each is timed.
    """

    header: int = 40
    payload: int = 16
    dim: int = 32
    depth: int = 2
    state: int = 8
    decoder_dim: int = 32
    decoder_depth: int = 1
    unlabelled: int = 1500
    test: int = 1000
    labels: tuple[int, ...] = (4, 16)
    draws: tuple[int, ...] = (3, 1)
    batch: int = 32
    steps: int = 500
    warm_up: int = 50
    pre_rate: float = 8e-3
    transformer_rate: float = 2e-3
    tuning_batch: int = 16
    tuning_steps: tuple[int, ...] = (100, 300)
    tuning_warm_up: float = 0.1
    trees: int = 200
    lengths: tuple[int, ...] = (100, 200, 400, 800, 1600, 3200)
    repeats: int = 7

    @classmethod
    def of(cls, scale: Scale) -> Size:
        """The size for a scale; paper scale is the paper's: network, optimiser and schedule."""
        return scale.choose(
            smoke=cls(
                unlabelled=64,
                test=64,
                labels=(2, 3),
                draws=(1, 1),
                batch=32,
                steps=2,
                warm_up=1,
                tuning_steps=(2, 2),
                trees=10,
                lengths=(50, 100, 200, 400),
                repeats=1,
            ),
            laptop=cls(),
            paper=cls(
                header=80,
                payload=240,
                dim=256,
                depth=4,
                state=16,
                decoder_dim=128,
                decoder_depth=2,
                labels=(16, 0),
                draws=(1, 1),
                batch=128,
                steps=150_000,
                warm_up=9_375,  # 25 of 400 epochs
                pre_rate=1e-3 * 128 / 256,
                transformer_rate=1e-3 * 128 / 256,
                tuning_batch=64,
                tuning_steps=(120, 120),
                tuning_warm_up=20 / 120,
                repeats=20,
            ),
        )


class FlowImages(Dataset[tuple[Tensor, Tensor]]):
    """Flows as grey images below `root/<class>/`, as the paper's data sets are published.

    Args:
        root: folder with a subfolder for each class.
        classes: names of the classes that must be there, in this order; None: all there are.

    Raises:
        ValueError: there is no such folder, or a class without images.
    """

    def __init__(self, root: Path | str, classes: Sequence[str] | None = None) -> None:
        found = ImageFolder(root, size=None, classes=classes)
        self.classes, self.files, self.labels = found.classes, found.files, found.labels

    def __len__(self) -> int:
        """Number of flows."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Bytes (1600,) uint8 and class of a flow; ValueError names a file that is no image of 40 by 40."""
        from PIL import Image

        file = self.files[index]
        try:
            with Image.open(file) as opened:
                image = np.array(opened.convert("L"))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{file} could not be read as an image: {error}") from error
        if image.shape != (SIDE, SIDE):
            raise ValueError(f"{file} is an image of {image.shape[1]} x {image.shape[0]}; expected {SIDE} x {SIDE}")
        return torch.from_numpy(image.reshape(-1)), self.labels[index]


class Columns(Dataset[tuple[Tensor, Tensor]]):
    """Some of the bytes of each flow.

    Args:
        flows: of (bytes, class).
        columns: which bytes are given.
    """

    def __init__(self, flows: Dataset[Any], columns: NDArray[np.int64]) -> None:
        self.flows, self.columns = flows, torch.from_numpy(columns)

    def __len__(self) -> int:
        """Number of flows."""
        return len(self.flows)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Bytes and class of a flow."""
        flow, label = self.flows[index]
        return flow[self.columns], label


def few(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Indices of as many flows of each class, drawn at random; 0: of all flows."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if per_class == 0:
        return order
    return torch.cat([order[labels[order] == each][:per_class] for each in labels.unique()])


class TransformerLayer(nn.Module):
    """What a layer of a Transformer adds to its input: attention of all tokens to all, then two linear layers.

    Args:
        dim: width.
        heads: of the attention.
        hidden: width between the linear layers.
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, K, D) to (N, K, D)."""
        q, k, v = self.qkv(self.norm(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        attended = self.out((weights @ v).transpose(1, 2).flatten(2))
        added: Tensor = attended + self.mlp(self.norm2(tokens + attended))
        return added


def layer_maker(kind: str, state: int, depth: int) -> Callable[[int], nn.Module]:
    """Makes layers of Mamba or of a Transformer with as many parameters.

    Args:
        kind: "mamba" or "transformer".
        state: of Mamba.
        depth: layers of the network.
    """

    def make(dim: int) -> nn.Module:
        mamba = MambaLayer(dim, state, depth=depth)
        if kind == "mamba":
            return mamba
        enough = sum(p.numel() for p in mamba.parameters())
        hidden = round((enough - 4 * dim * dim - 3 * dim) / (2 * dim + 1))
        return TransformerLayer(dim, max(1, dim // 16), hidden)

    return make


def new_encoder(size: Size, n_bytes: int, seed: int, kind: str = "mamba") -> NetMambaEncoder:
    """An encoder with the seed's initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = layer_maker(kind, size.state, size.depth)
        return NetMambaEncoder(n_bytes, dim=size.dim, depth=size.depth, layer=layer)


class ConvolutionalNetwork(nn.Module):
    """Three convolutions over the bytes and a linear classifier.

    Args:
        n_bytes: of a flow.
        classes: number of classes.
        width: channels of the first convolution.
    """

    def __init__(self, n_bytes: int, classes: int, width: int = 32) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for before, behind in ((1, width), (width, 2 * width), (2 * width, 2 * width)):
            parts += [nn.Conv1d(before, behind, 5, 2, 2), nn.BatchNorm1d(behind), nn.ReLU()]
        length = -(-n_bytes // 8)
        self.layers = nn.Sequential(*parts, nn.Flatten(), nn.Dropout(0.2), nn.Linear(2 * width * length, classes))

    def forward(self, flows: Tensor) -> Tensor:
        """Logits of flows (N, n_bytes) of uint8."""
        logits: Tensor = self.layers((flows.float() / 127.5 - 1).unsqueeze(1))
        return logits


def pretrain(
    encoder: NetMambaEncoder,
    flows: Dataset[Any],
    size: Size,
    seed: int,
    *,
    kind: str = "mamba",
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Train an encoder as a masked autoencoder, in place, with the paper's optimiser, and return the losses.

    Args:
        encoder: to train.
        flows: of (bytes, anything).
        size: of the training.
        seed: of batches, masks and the decoder.
        kind: of the decoder's layers, that of the encoder.
        device: where to train.
        checkpoint: where the training is kept.
        progress: called with the fraction done.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = layer_maker(kind, size.state, size.decoder_depth)
        model = NetMambaMAE(encoder, size.decoder_dim, size.decoder_depth, layer=layer)
    rate = size.transformer_rate if kind == "transformer" else size.pre_rate
    optimizer = torch.optim.AdamW(parameter_groups(model.to(device), rate), lr=rate, betas=(0.9, 0.95), fused=True)
    schedule = LambdaLR(optimizer, lambda step: warm_up_cosine(step + 1, size.warm_up, size.steps + 1))
    torch.manual_seed(seed)  # of masks and dropped branches
    return fit(
        model,
        ShuffledBatches(flows, size.batch, seed, workers=workers(device)),
        lambda network, batch: network(batch[0]).loss,
        optimizer,
        schedule,
        steps=size.steps,
        device=device,
        checkpoint=checkpoint,
        every=CHECKPOINT_STEPS,
        progress=progress,
    )


def fine_tune(
    model: nn.Module,
    flows: Dataset[Any],
    batch: int,
    steps: int,
    warm_up: int,
    rate: float,
    seed: int,
    *,
    layer_decay: float | None = None,
    device: str = "cpu",
    checkpoint: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Train a classifier in place with AdamW, a warm-up, half a cosine and smoothed labels.

    Args:
        model: of uint8 bytes to logits.
        flows: of (bytes, class).
        batch: flows of a step.
        steps: of the training.
        warm_up: steps of the warm-up.
        rate: the highest learning rate.
        seed: of batches and dropped branches.
        layer_decay: of learning rates from layer to layer.
        device: where to train.
        checkpoint: where the training is kept.
        progress: called with the fraction done.
    """
    groups = parameter_groups(model.to(device), rate, layer_decay=layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
    schedule = LambdaLR(optimizer, lambda step: warm_up_cosine(step + 1, warm_up, steps + 1, min(1.0, FLOOR / rate)))
    torch.manual_seed(seed)
    fit(
        model,
        ShuffledBatches(flows, batch, seed, workers=workers(device)),
        lambda network, each: F.cross_entropy(network(each[0]), each[1], label_smoothing=SMOOTHING),
        optimizer,
        schedule,
        steps=steps,
        device=device,
        checkpoint=checkpoint,
        every=CHECKPOINT_STEPS,
        progress=progress,
    )


def workers(device: str) -> int:
    """Processes that load batches."""
    return 0 if device == "cpu" else 4


@torch.no_grad()
def accuracy(model: nn.Module, flows: Dataset[Any], device: str = "cpu") -> float:
    """Share of flows whose class a classifier names."""
    model.eval()
    loader = torch.utils.data.DataLoader(flows, 250, num_workers=workers(device))
    right = sum(int((model(batch.to(device)).argmax(1).cpu() == labels).sum()) for batch, labels in loader)
    return right / len(flows)  # type: ignore[arg-type]


def as_arrays(flows: Dataset[Any]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All bytes and classes of a data set."""
    if isinstance(flows, TensorDataset):
        bytes_, labels = flows.tensors
        return bytes_.numpy(), labels.numpy()
    if isinstance(flows, Subset) and isinstance(flows.dataset, TensorDataset):
        bytes_, labels = (each[torch.as_tensor(flows.indices)] for each in flows.dataset.tensors)
        return bytes_.numpy(), labels.numpy()
    pairs = [flows[index] for index in range(len(flows))]  # type: ignore[arg-type]
    return np.stack([pair[0].numpy() for pair in pairs]), np.array([int(pair[1]) for pair in pairs])


@torch.no_grad()
def forward_times(make: Callable[[int], Callable[[Tensor], Any]], lengths: Sequence[int], repeats: int) -> list[float]:
    """Least wall time of a forward pass of one flow, by its length.

    Args:
        make: a classifier of so many bytes.
        lengths: in tokens of 4 bytes.
        repeats: of which the least counts: what disturbs a measurement only adds to it.

    Returns:
        Seconds for each length.
    """
    found = []
    for length in lengths:
        model = make(4 * length)
        if isinstance(model, nn.Module):
            model.eval()
        flows = torch.zeros(1, 4 * length, dtype=torch.uint8)
        model(flows)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            model(flows)
            times.append(time.perf_counter() - start)
        found.append(min(times))
    return found


def exponent(lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of the logarithm of time over that of length, in the upper half of the lengths."""
    half = len(lengths) // 2
    return float(np.polyfit(np.log(lengths[half:]), np.log(seconds[half:]), 1)[0])


def new_classifier(encoder: NetMambaEncoder, classes: int, seed: int) -> NetMambaClassifier:
    """A classifier whose head starts near zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NetMambaClassifier(encoder, classes)
