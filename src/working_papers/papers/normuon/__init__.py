"""NorMuon: Muon with neuron-wise normalisation (arXiv 2510.05491)."""

from working_papers.papers.normuon.method import (
    NorMuon,
    newton_schulz,
    normalize_neurons,
    rescale,
    row_norm_dispersion,
    split_parameters,
)

__all__ = [
    "NorMuon",
    "newton_schulz",
    "normalize_neurons",
    "rescale",
    "row_norm_dispersion",
    "split_parameters",
]
