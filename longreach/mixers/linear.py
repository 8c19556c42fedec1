"""torch's linear map, on the products that are fastest here (longreach/ops/linear.py)."""

from jaxtyping import Float
from torch import Tensor, nn

from longreach.ops.linear import linear


class Linear(nn.Linear):
    """nn.Linear in parameters, initialisation and result."""

    def forward(self, input: Float[Tensor, "... k"]) -> Float[Tensor, "... n"]:
        """x W^T + b at every position."""
        return linear(input, self.weight, self.bias)
