"""The two operators of the study and the networks that learn them.

The antiderivative on [0, 1] of a Gaussian random field, one query a function; and the solution at time t of a
diffusion-reaction equation whose source is such a field, many queries a function.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from working_papers.bench import Scale
from working_papers.data.random_fields import (
    antiderivative,
    gaussian_random_field,
    interpolate,
    solve_diffusion_reaction,
)
from working_papers.papers.deeponet.method import DeepONet, OperatorData, perceptron

LENGTH_SCALE = 0.2  # of the input functions; paper
SENSORS = 100  # paper
FINE = 1000  # points on which the exact functions are known; paper
DIFFUSION, REACTION = 0.01, 0.01  # paper


@dataclass(frozen=True)
class Size:
    """How many functions and steps.

    Attributes:
        training: pairs of the antiderivative, ascending; the last decides, all together give the order.
        few_sensors: numbers of sensors, ascending, that are tried beside the paper's 100.
        sensor_training: pairs for these.
        tests: test functions of each operator.
        queries: queries of each test function of the antiderivative.
        steps: full-batch steps for the antiderivative.
        sources: training sources of the equation.
        points: queries of each of them.
        batch: sources a step.
        source_steps: steps for the equation.
        every: steps between two looks at the training loss.
    """

    training: tuple[int, ...]
    few_sensors: tuple[int, ...]
    sensor_training: int
    tests: int
    queries: int
    steps: int
    sources: int
    points: int
    batch: int
    source_steps: int
    every: int

    @classmethod
    def of(cls, scale: Scale) -> Size:
        """The size for a scale; at paper scale the paper's numbers of pairs and steps."""
        return scale.choose(
            smoke=cls((50, 100), (2, 20), 100, 50, 5, 30, 10, 20, 5, 30, 10),
            laptop=cls((100, 200, 400, 800), (2, 5, 10, 20), 400, 500, 20, 3000, 100, 100, 10, 2000, 250),
            paper=cls(
                (100, 300, 1000, 3000, 10_000),
                (2, 3, 5, 10, 20, 50),
                10_000,
                5000,
                20,
                50_000,
                500,
                100,
                100,
                50_000,
                1000,
            ),
        )


@dataclass(frozen=True)
class Problems:
    """What the arms of a seed learn, float32.

    Attributes:
        training: antiderivative, "pairs", by number of sensors.
        test: the same of other functions, "per-function", by number of sensors.
        fine: (tests, FINE), antiderivatives of the test functions on an even grid.
        sources: diffusion-reaction equation, "per-function".
        source_test: the same of other sources.
    """

    training: dict[int, OperatorData]
    test: dict[int, OperatorData]
    fine: Tensor
    sources: OperatorData
    source_test: OperatorData


def draw(seed: int, scale: Scale) -> Problems:
    """Draw the functions and solve for the operators' values; queries are standardised, for all arms alike."""
    size = Size.of(scale)
    generator = torch.Generator().manual_seed(seed)
    grid = torch.linspace(0, 1, FINE, dtype=torch.float64)
    functions = gaussian_random_field(size.training[-1] + size.tests, grid, LENGTH_SCALE, generator=generator)
    integrals = antiderivative(functions, grid)

    def sampled(rows: slice, queries: int) -> dict[int, OperatorData]:
        asked = torch.rand(len(functions[rows]), queries, generator=generator, dtype=torch.float64)
        values = interpolate(integrals[rows], grid, asked)
        made = {}
        for sensors in (*size.few_sensors, SENSORS):
            places = torch.linspace(0, 1, sensors, dtype=torch.float64)
            read = interpolate(functions[rows], grid, places)
            data = OperatorData(read, standardised(asked[..., None]), values, "per-function").to(dtype=torch.float32)
            made[sensors] = data.pairs() if queries == 1 else data
        return made

    training, test = sampled(slice(size.training[-1]), 1), sampled(slice(size.training[-1], None), size.queries)
    sources, source_test = (equation(count, size.points, generator) for count in (size.sources, size.tests))
    return Problems(training, test, integrals[size.training[-1] :].float(), sources, source_test)


def equation(count: int, points: int, generator: torch.Generator) -> OperatorData:
    """Solutions of the diffusion-reaction equation at random points of their grid in space and time."""
    grid = torch.linspace(0, 1, SENSORS, dtype=torch.float64)
    source = gaussian_random_field(count, grid, LENGTH_SCALE, generator=generator)
    solution = solve_diffusion_reaction(source, DIFFUSION, REACTION, times=SENSORS)
    chosen = torch.randint(SENSORS**2, (count, points), generator=generator)
    queries = torch.stack([grid[chosen // SENSORS], grid[chosen % SENSORS]], dim=-1)
    values = solution.flatten(1).gather(1, chosen)
    return OperatorData(source, standardised(queries), values, "per-function").to(dtype=torch.float32)


def standardised(queries: Tensor) -> Tensor:
    """Uniform numbers in [0, 1] with mean zero and deviation one."""
    return (queries - 0.5) * 12**0.5


class Concatenated(nn.Module):
    """The baseline: one fully connected network on function and query side by side.

    Args:
        inputs: sensors and coordinates of a query together.
        width: neurons of each hidden layer.
        hidden: number of hidden layers.
        generator: of the initial weights.
    """

    def __init__(self, inputs: int, width: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.network = perceptron([inputs, *[width] * hidden, 1], generator=generator)

    def forward(self, functions: Tensor, queries: Tensor) -> Tensor:  # as DeepONet, without cartesian data
        if queries.ndim == 3:
            functions = functions.unsqueeze(1).expand(-1, queries.shape[1], -1)
        result: Tensor = self.network(torch.cat([functions, queries], dim=-1)).squeeze(-1)
        return result


@dataclass(frozen=True)
class Setting:
    """Of one arm: width of the hidden layers (and number of basis functions p), hidden layers, Adam's learning rate."""

    width: int
    hidden: int
    lr: float
    p: int = 0


def build(arm: str, setting: Setting, sensors: int, dimension: int, generator: torch.Generator) -> nn.Module:
    """The arm's network."""
    if arm == "fnn":
        return Concatenated(sensors + dimension, setting.width, setting.hidden, generator)
    return DeepONet.mlp(
        sensors,
        dimension,
        setting.width,
        setting.hidden + 1,
        setting.p,
        stacked=arm == "stacked",
        generator=generator,
    )
