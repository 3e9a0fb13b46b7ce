"""netFound (https://arxiv.org/abs/2310.17025): pre-training on network traffic, protocol by protocol, burst by burst.

Facts are taken from the released code (https://github.com/SNL-UCSB/netFound, a later version of the model than the
abstract describes); where it differs from the paper or from its own intent, the docstrings say which is followed.
"""

from working_papers.papers.netfound.method.arrow_files import ArrowFlows, read_arrow, write_arrow
from working_papers.papers.netfound.method.bursts import split_bursts
from working_papers.papers.netfound.method.flow_tokens import FlowBatch, FlowTokens
from working_papers.papers.netfound.method.model import (
    AttentivePooling,
    FlatLayer,
    FlowClassifier,
    FlowEmbedding,
    HierarchicalLayer,
    NetFoundEncoder,
    TransformerLayer,
    attention_pairs,
    stable_then_decay,
)
from working_papers.papers.netfound.method.pretraining import CorruptedFlows, FlowPretraining, PretrainingLoss, corrupt
from working_papers.papers.netfound.method.tokenizer import FlowTokenizer

__all__ = [
    "ArrowFlows",
    "AttentivePooling",
    "CorruptedFlows",
    "FlatLayer",
    "FlowBatch",
    "FlowClassifier",
    "FlowEmbedding",
    "FlowPretraining",
    "FlowTokenizer",
    "FlowTokens",
    "HierarchicalLayer",
    "NetFoundEncoder",
    "PretrainingLoss",
    "TransformerLayer",
    "attention_pairs",
    "corrupt",
    "read_arrow",
    "split_bursts",
    "stable_then_decay",
    "write_arrow",
]
