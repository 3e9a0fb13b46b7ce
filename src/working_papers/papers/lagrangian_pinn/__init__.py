"""Physics-informed networks on characteristics, and ordinary ones (https://arxiv.org/abs/2205.02902)."""

from working_papers.papers.lagrangian_pinn.method import (
    EulerianPINN,
    Jet,
    LagrangianField,
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

__all__ = [
    "EulerianPINN",
    "Jet",
    "LagrangianField",
    "LagrangianPINN",
    "PeriodicFeatures",
    "TanhNetwork",
    "differentiate",
    "eulerian_loss",
    "eulerian_residual",
    "lagrangian_loss",
    "lagrangian_residuals",
    "singular_value_decay",
    "snapshot_rank",
]
