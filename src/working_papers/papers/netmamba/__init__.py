"""NetMamba: traffic is classified from a flow's bytes by a pre-trained causal state-space model (arXiv 2405.11449)."""

from working_papers.papers.netmamba.method import (
    EncoderState,
    MAEOutput,
    MambaLayer,
    NetMambaClassifier,
    NetMambaEncoder,
    NetMambaMAE,
    flow_to_bytes,
    flows_to_bytes,
    masked_error,
    parameter_groups,
    read_flows,
    warm_up_cosine,
)

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
