"""Maps that act on every position by itself: the other half of a block, shared by all sequence mixers.

    MLP       down(act(up(x)))                      Vaswani et al. 2017, https://arxiv.org/abs/1706.03762
    GatedMLP  down(act(gate(x)) * up(x))            Shazeer 2020, https://arxiv.org/abs/2002.05202; SwiGLU: act = silu
    GLU       a * sigmoid(g), (a, g) = W gelu(x)    the output stage of S4, S4D, DSS and Liquid-S4 (state-spaces/s4)
    S5Gate    GELU and half of such a gate          Smith et al. 2023, https://arxiv.org/abs/2208.04933

Axes: ... any leading axes, d model width.
"""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.mixers.linear import Linear

Activation = Literal["gelu", "gelu_tanh", "identity", "relu", "silu"]
S5Form = Literal["full_glu", "half_glu1", "half_glu2", "gelu"]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "identity": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
}


class MLP(nn.Module):
    """Two linear maps with a nonlinearity between them, as in the Transformer.

    Args:
        d_model: width of input and output.
        expand: width of the inner layer in multiples of `d_model`.
        activation: the nonlinearity; `gelu_tanh` is the approximation that GPT-2, H3 and Hyena were trained with.
        dropout: probability of dropping an inner activation.
    """

    def __init__(
        self, d_model: int, *, expand: float = 4.0, activation: Activation = "gelu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        inner = round(expand * d_model)
        self.up = Linear(d_model, inner)
        self.down = Linear(inner, d_model)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Widen, bend, narrow: 4 d^2 expand operations a position."""
        return self.down(self.dropout(ACTIVATIONS[self.activation](self.up(x))))


class GLU(nn.Module):
    """GELU, then a gated linear map.

    Args:
        d_model: width of input and output.
        dropout: probability of dropping a channel between the GELU and the linear map.
    """

    def __init__(self, d_model: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = Linear(d_model, 2 * d_model)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """First half of the linear map, gated by the sigmoid of the second: 4 d^2 operations a position."""
        return F.glu(self.linear(self.dropout(F.gelu(x))))


class GatedMLP(nn.Module):
    """Two linear maps, one gating the other through a nonlinearity, and a third back; without biases.

    Args:
        d_model: width of input and output.
        expand: width of the inner layer in multiples of `d_model`; 8/3 has as many weights as an MLP with 4.
        activation: the nonlinearity of the gate.
    """

    def __init__(self, d_model: int, *, expand: float = 8 / 3, activation: Activation = "silu") -> None:
        super().__init__()
        inner = round(expand * d_model)
        self.gate = Linear(d_model, inner, bias=False)
        self.up = Linear(d_model, inner, bias=False)
        self.down = Linear(inner, d_model, bias=False)
        self.activation = activation

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Widen twice, gate, narrow: 6 d^2 expand operations a position."""
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


class S5Gate(nn.Module):
    """The output stages of S5, by their published names.

    Args:
        d_model: width of input and output.
        form: how the GELU g of the input x is gated: `full_glu` W1 g * sigmoid(W2 g), `half_glu1` g * sigmoid(W g),
            `half_glu2` x * sigmoid(W g), or not at all, `gelu`.
        dropout: probability of dropping a channel after the GELU.
    """

    def __init__(self, d_model: int, *, form: S5Form = "half_glu1", dropout: float = 0.0) -> None:
        super().__init__()
        self.form = form
        self.dropout = nn.Dropout(dropout)
        self.linear = None if form == "gelu" else Linear(d_model, (2 if form == "full_glu" else 1) * d_model)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Bend and gate: 2 d^2 operations a position, with a full gate 4 d^2."""
        bent = self.dropout(F.gelu(x, approximate="tanh"))
        if self.linear is None:
            return bent
        if self.form == "full_glu":
            return F.glu(self.linear(bent))
        return (bent if self.form == "half_glu1" else x) * self.linear(bent).sigmoid()
