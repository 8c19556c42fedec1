"""The Linear Transformer (Katharopoulos et al. 2020, https://arxiv.org/abs/2006.16236): attention without softmax.

    q, k, v = split(x W_in)         phi(x) = elu(x) + 1
    y_t     = phi(q_t) S_t / (phi(q_t) z_t + epsilon)             out = y W_out
    S_t     = sum_s phi(k_s) v_s^T,     z_t = sum_s phi(k_s)      s <= t if causal, else all s

As a recurrence the sums are the state.  There are no positions in it: what was read is a set.

Axes: b batch, l length, d model width, h heads, e head width, f = e + 1: the value and a one, whose sum is z.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.mixers.heads import Heads, widened
from longreach.ops.linear_attention import linear_attention
from longreach.ops.memory_step import memory_step


class LinearTransformerState(NamedTuple):
    """All that later outputs depend on."""

    sums: Float[Tensor, "b h e f"]
    """S and, in its last column, z."""


class LinearTransformer(SequenceMixer[LinearTransformerState]):
    """Attention with the kernel phi(q) . phi(k): O(l d e) on a sequence, O(d e) on a step.

    Args:
        d_model: width of the model.
        n_heads: number of heads.
        head_dim: width of a head; None is d_model / n_heads.
        causal: whether a position sees only itself and what came before it.
        epsilon: added to the sum of the weights.
        bias: whether the projections have biases.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 4,
        head_dim: int | None = None,
        causal: bool = True,
        epsilon: float = 1e-6,
        bias: bool = False,
    ) -> None:
        super().__init__(d_model, causal=causal)
        if epsilon < 0:
            raise InputError(f"epsilon={epsilon} is added to a sum of positive weights; it must not be negative")
        self.epsilon = epsilon
        self.heads = Heads(d_model, n_heads, head_dim, bias=bias)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Attend over the whole sequence, O(l d e)."""
        return self._attend(x, None, mask)[0]

    def init_state(self, batch_size: int) -> LinearTransformerState:
        """Nothing has been read."""
        if not self.causal:
            raise self._no_recurrent_view()
        width, weight = self.heads.head_dim, widened(self.heads.out.weight)
        return LinearTransformerState(weight.new_zeros(batch_size, self.heads.n_heads, width, width + 1))

    def step(
        self, x: Float[Tensor, "b d"], state: LinearTransformerState
    ) -> tuple[Float[Tensor, "b d"], LinearTransformerState]:
        """Mix one position, O(d e)."""
        if not self.causal:
            raise self._no_recurrent_view()
        heads = self.heads
        projected = widened(heads.into(x).view(len(x), 3, heads.n_heads, heads.head_dim))
        query, key = (F.elu(projected[:, :2]) + 1).unbind(1)
        y, sums = memory_step(query, key, F.pad(projected[:, 2], (0, 1), value=1.0), state.sums)
        y = y[..., :-1] / (y[..., -1:] + self.epsilon)
        return heads.out(y.flatten(1).to(x.dtype)), LinearTransformerState(sums)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: LinearTransformerState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], LinearTransformerState]:
        """Mix a chunk, O(l d e)."""
        if not self.causal:
            raise self._no_recurrent_view()
        y, sums = self._attend(x, state.sums, mask)
        return y, LinearTransformerState(sums)

    def _attend(self, x: Tensor, sums: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The outputs, and the sums after them."""
        query, key, value = self.heads.split(x)
        query, key = (F.elu(widened(projected)) + 1 for projected in (query, key))
        if mask is not None:
            key = key.masked_fill(~mask[:, None, :, None], 0)
        y, sums = linear_attention(query, key, F.pad(value, (0, 1), value=1.0), sums, causal=self.causal)
        y = y[..., :-1] / (y[..., -1:] + self.epsilon)
        return self.heads.join(y.to(x.dtype)), sums
