"""EOLO (https://arxiv.org/abs/2309.09297): detection by day and night from an image and events that gate each other."""

from working_papers.papers.eolo.method.darknet import CSPDarknetTiny
from working_papers.papers.eolo.method.detection import (
    CentreHead,
    CentreOutput,
    Detections,
    mean_average_precision,
)
from working_papers.papers.eolo.method.energy import synaptic_operations
from working_papers.papers.eolo.method.events import expose, random_flow, sensor_noise, synthesize_events
from working_papers.papers.eolo.method.fusion import (
    AllDayBackbone,
    ContextPooling,
    EventTemporalAttention,
    SymmetricFusion,
)
from working_papers.papers.eolo.method.spiking import (
    IFNeuron,
    SpikingEncoder,
    atan_spike,
    load_resnet18_weights,
    spiking_resnet18,
)

__all__ = [
    "AllDayBackbone",
    "CSPDarknetTiny",
    "CentreHead",
    "CentreOutput",
    "ContextPooling",
    "Detections",
    "EventTemporalAttention",
    "IFNeuron",
    "SpikingEncoder",
    "SymmetricFusion",
    "atan_spike",
    "expose",
    "load_resnet18_weights",
    "mean_average_precision",
    "random_flow",
    "sensor_noise",
    "spiking_resnet18",
    "synaptic_operations",
    "synthesize_events",
]
