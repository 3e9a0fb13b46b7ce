"""Lagrangian physics-informed networks: one network for the paths, one for the state carried along them.

Paper: https://arxiv.org/abs/2205.02902 (Mojgani, Balajewicz, Hassanzadeh). The equation is
u_t + a(u, x, t) u_x = viscosity · u_xx on a line, with u given at time 0. An ordinary ("Eulerian") physics-informed
network gives u(x, t). A Lagrangian one follows the points that start at the labels xi: position X(xi, t) with
X_t = a and state U(xi, t) with U_t = viscosity · u_xx, both smooth however fast the flow.

    network = LagrangianPINN(TanhNetwork(3, 50, 5), TanhNetwork(3, 50, 2))
    loss = lagrangian_loss(network, labels, time, start, torch.sin(start), velocity=30.0, viscosity=0.01)
    field = network.evaluate(x_grid, t_grid)  # u on a fixed grid
"""

from working_papers.papers.lagrangian_pinn.method._jets import Jet, PeriodicFeatures, TanhNetwork, differentiate
from working_papers.papers.lagrangian_pinn.method._models import EulerianPINN, LagrangianField, LagrangianPINN
from working_papers.papers.lagrangian_pinn.method._residuals import (
    eulerian_loss,
    eulerian_residual,
    lagrangian_loss,
    lagrangian_residuals,
)
from working_papers.papers.lagrangian_pinn.method._snapshots import singular_value_decay, snapshot_rank

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
