"""What mixers with heads have in common: their widths, positions, attention with dropout, projections and back.

    q, k, v = split(x W_in)        y = join(...) W_out        (multi-head attention, https://arxiv.org/abs/1706.03762)

Axes: b batch, l length, d model width, h heads, m keys, e head width.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.ops.attention import attention
from longreach.ops.attention_mask import NO_MASK, AttentionMask


class Heads(nn.Module):
    """Projections into heads and out of them.

    Args:
        d_model: width of the model.
        n_heads: number of heads.
        head_dim: width of a head; None is d_model / n_heads.
        n_projections: how many tensors `split` gives: 3 for query, key and value.
        bias: whether the projections have biases.
        dropout: probability of dropping an attention weight in `attend`, in training.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        head_dim: int | None = None,
        *,
        n_projections: int = 3,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise InputError(f"dropout={dropout} must be at least 0 and below 1")
        self.n_heads, self.head_dim = n_heads, width_of_heads(d_model, n_heads, head_dim)
        self.n_projections, self.dropout = n_projections, dropout
        self.into = nn.Linear(d_model, n_projections * n_heads * self.head_dim, bias=bias)
        self.out = nn.Linear(n_heads * self.head_dim, d_model, bias=bias)

    def split(self, x: Float[Tensor, "b l d"]) -> tuple[Float[Tensor, "b h l e"], ...]:
        """Project the input; the heads of each projection lie next to each other in the weight."""
        heads = self.into(x).unflatten(-1, (self.n_projections, self.n_heads, self.head_dim))
        return heads.transpose(1, 3).unbind(2)

    def attend(
        self,
        query: Float[Tensor, "b h l e"],
        key: Float[Tensor, "b h m e"],
        value: Float[Tensor, "b h m f"],
        mask: AttentionMask = NO_MASK,
        bias: Float[Tensor, "#b #h #l #m"] | None = None,
        *,
        scale: float | None = None,
    ) -> Float[Tensor, "b h l f"]:
        """Softmax attention, with dropout in training; `scale` is e^-1/2 where it is not given."""
        return attend(query, key, value, mask, bias, scale=scale, dropout=self.dropout if self.training else 0.0)

    def join(self, y: Float[Tensor, "b h l e"]) -> Float[Tensor, "b l d"]:
        """Project the heads back to the width of the model."""
        return self.out(join_heads(y))


def width_of_heads(d_model: int, n_heads: int, head_dim: int | None) -> int:
    """`head_dim`, or what is left for each of the heads.  Raises InputError where that is no whole number."""
    if n_heads < 1 or (head_dim is None and d_model % n_heads) or (head_dim is not None and head_dim < 1):
        raise InputError(
            f"n_heads={n_heads} must divide d_model={d_model}, or head_dim={head_dim} must say how wide a head is"
        )
    return d_model // n_heads if head_dim is None else head_dim


def real_positions(x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None) -> Int[Tensor, "#b l"]:
    """How many real positions of its row come before each one; whatever at padding."""
    return torch.arange(x.shape[1], device=x.device)[None] if mask is None else mask.cumsum(1) - 1


def split_heads(x: Float[Tensor, "*b l d"], n_heads: int) -> Float[Tensor, "*b {n_heads} l e"]:
    """Cut the width into heads."""
    return x.view(*x.shape[:-1], n_heads, x.shape[-1] // n_heads).transpose(-2, -3)


def join_heads(y: Float[Tensor, "b h l e"]) -> Float[Tensor, "b l d"]:
    """The heads side by side."""
    return y.transpose(1, 2).flatten(2)


def attend(
    query: Float[Tensor, "b h l e"],
    key: Float[Tensor, "b h m e"],
    value: Float[Tensor, "b h m f"],
    mask: AttentionMask = NO_MASK,
    bias: Float[Tensor, "#b #h #l #m"] | None = None,
    *,
    dropout: float,
    scale: float | None = None,
) -> Float[Tensor, "b h l f"]:
    """Softmax attention, with a new choice of weights to drop in every call."""
    seed = draw_seed(dropout, query.device)
    return attention(query, key, value, mask, scale=scale, bias=bias, dropout=dropout, dropout_seed=seed)


def draw_seed(dropout: float, device: torch.device) -> Int[Tensor, ""] | None:
    """What decides which attention weights are dropped, from torch's random numbers; nothing where none are."""
    return torch.randint(2**31, (), device=device) if dropout else None


def widened(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In float32, unless it is that wide already: features and sums of them are never narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
