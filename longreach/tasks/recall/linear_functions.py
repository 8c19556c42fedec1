"""Linear functions, learnt in context  (Garg et al. 2022, https://arxiv.org/abs/2208.01066; Poli et al. 2023).

    x_1  w.x_1   x_2  w.x_2   ...   x_p            w.x_p

Each example has a function of its own, w and x_i are normal.  A position is a vector of n numbers, a value is the first
of them.  The value is taught behind every point and asked behind the last one, where more than n others determine it.

A model is judged by the share of the variance that it explains, 1 - mean (y - w.x_p)^2 / mean (w.x_p)^2: 0 for one who
always says zero, 1 for one who solves for w.

Axes: b examples, p points, n numbers of a point, l positions, d model width.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.tasks.base import Batch, Evaluation, ModelFactory
from longreach.tasks.recall.draws import Draws
from longreach.tasks.recall.synthetic import IGNORED, SyntheticTask


class LinearFunctions(SyntheticTask):
    """Tell the value of a linear function at a new point.

    Args:
        length: Positions, two for each point, rounded down to whole points.
        dimension: Numbers of a point; more points than that are needed.
        batch_size: Examples per step, over all processes.
        seed: Another seed, other examples.
        n_held_out: Examples that models are judged by.
    """

    objective = "explained"
    maximise = True

    def __init__(
        self, length: int = 64, dimension: int = 5, *, batch_size: int = 32, seed: int = 0, n_held_out: int = 500
    ) -> None:
        super().__init__(length=length, batch_size=batch_size, seed=seed, n_held_out=n_held_out)
        self.dimension, self.n_points = dimension, length // 2
        if dimension < 1 or self.n_points <= dimension:
            raise InputError(
                f"length = {length} has {self.n_points} points, which do not determine a function of {dimension=} "
                f"(at least 1); use at least {2 * dimension + 2}"
            )

    @property
    def n_positions(self) -> int:
        """Points and values, without the last value."""
        return 2 * self.n_points - 1

    def make(self, draws: Draws, rows: int) -> Batch:
        """Examples in O(b l n)."""
        function = draws.normal(rows, 1, self.dimension)
        points = draws.normal(rows, self.n_points, self.dimension)
        values = (function * points).sum(2)
        inputs = np.zeros((rows, 2 * self.n_points, self.dimension))
        inputs[:, 0::2], inputs[:, 1::2, 0] = points, values
        targets = np.full((rows, self.n_positions), float(IGNORED))
        targets[:, 0::2] = values
        return Batch(torch.from_numpy(inputs[:, :-1]).float(), torch.from_numpy(targets).float())

    def solve(self, inputs: Tensor) -> Tensor:
        """The values at the last points (b,), by least squares."""
        points, values = inputs[:, 0:-1:2].double(), inputs[:, 1::2, :1].double()
        function = torch.linalg.lstsq(points, values).solution
        return (inputs[:, -1:].double() @ function).flatten()

    def build(self, model: ModelFactory) -> nn.Module:
        """The backbone of the model that the factory makes, between linear maps; InputError unless it is causal."""
        built = model(1)
        self.require(built)
        return FunctionModel(self.dimension, built.backbone)  # type: ignore[arg-type]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the squared errors."""
        error = (model(batch.inputs).float() - batch.targets).square()
        return error.masked_fill(batch.targets == IGNORED, 0).sum()

    def describe_loss(self, loss: float) -> dict[str, float]:
        """A squared error is what it is."""
        return {}

    def evaluate(self, model: nn.Module) -> Evaluation:
        """The explained share of the variance at the last points of the held-out examples."""
        wrong = total = 0.0
        device = next(model.parameters()).device
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for batch in self.held_out():
                value = batch.targets[:, -1]
                wrong += float((model(batch.inputs.to(device))[:, -1].float().cpu() - value).square().sum())
                total += float(value.square().sum())
        model.train(was_training)
        return Evaluation({"explained": 1 - wrong / total, "loss": wrong / self.n_held_out, "chance": 0.0}, {})

    def record(self) -> dict[str, object]:
        """The arguments that say which examples there are."""
        return {**super().record(), "dimension": self.dimension}


class FunctionModel(nn.Module):
    """A number at every position, from vectors.

    Args:
        dimension: numbers of a vector.
        backbone: what mixes the positions.
    """

    def __init__(self, dimension: int, backbone: SequenceMixer) -> None:
        super().__init__()
        self.backbone = backbone
        self.read = nn.Linear(dimension, backbone.d_model)
        self.output = nn.Linear(backbone.d_model, 1)

    def forward(self, points: Float[Tensor, "b l n"]) -> Float[Tensor, "b l"]:
        """What the function is believed to be at every position."""
        return self.output(self.backbone(self.read(points)))[..., 0]
