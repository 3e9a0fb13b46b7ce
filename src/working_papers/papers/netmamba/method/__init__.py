"""NetMamba (https://arxiv.org/abs/2405.11449): flows as bytes, a causal encoder, its pre-training, its classifier."""

from working_papers.papers.netmamba.method.flow_bytes import flow_to_bytes, flows_to_bytes, read_flows
from working_papers.papers.netmamba.method.model import (
    EncoderState,
    MAEOutput,
    MambaLayer,
    NetMambaClassifier,
    NetMambaEncoder,
    NetMambaMAE,
    masked_error,
)
from working_papers.papers.netmamba.method.optimizer import parameter_groups, warm_up_cosine

__all__ = [
    "EncoderState",
    "MAEOutput",
    "MambaLayer",
    "NetMambaClassifier",
    "NetMambaEncoder",
    "NetMambaMAE",
    "flow_to_bytes",
    "flows_to_bytes",
    "masked_error",
    "parameter_groups",
    "read_flows",
    "warm_up_cosine",
]
