"""Nystromformer (Xiong et al. 2021, https://arxiv.org/abs/2102.03902): softmax attention through a few landmarks.

    q, k, v = split(x W_in)                  Q, K landmarks: the means of q and k over m segments of the sequence
    y       = softmax(q K^T) pinv(softmax(Q K^T)) softmax(Q k^T) v + depthwise_conv(v)             each scaled by e^-1/2
    pinv(A) by iteration:  Z <- Z (13 - A Z (15 - A Z (7 - A Z))) / 4,      Z_0 = A^T / (|A|_1 |A|_inf)

The inverse ties every position to all others, so there is no causal form.  Segments divide the real positions of each
row as evenly as possible: position i of l is in segment floor(i m / l).  A row of at most m positions has a landmark at
each of them, and then y is softmax attention, as far as the iteration has converged.

Axes: b batch, l length, d model width, h heads, e head width, m landmarks, w width of the convolution.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer, State
from longreach.mixers.heads import Heads, widened
from longreach.ops.attention import attention
from longreach.ops.attention_mask import AttentionMask
from longreach.ops.compaction import compact, restore


class Nystromformer(SequenceMixer[State]):
    """Attention in O(l m d) time and O(l d) memory; bidirectional only.

    Args:
        d_model: width of the model.
        n_landmarks: number of segments.
        n_heads: number of heads.
        head_dim: width of a head; None is d_model / n_heads.
        n_iterations: steps of the pseudo-inverse; each about triples the correct digits, once there are any.
        conv_width: width of the convolution over the values, an odd number; None leaves it out.
        bias: whether the projections have biases.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_landmarks: int = 64,
        n_heads: int = 4,
        head_dim: int | None = None,
        n_iterations: int = 6,
        conv_width: int | None = 33,
        bias: bool = False,
    ) -> None:
        super().__init__(d_model, causal=False)
        if n_landmarks < 1 or n_iterations < 0:
            raise InputError(f"{n_landmarks=} must be at least 1, and {n_iterations=} at least 0")
        if conv_width is not None and (conv_width < 1 or conv_width % 2 == 0):
            raise InputError(f"conv_width={conv_width} must be odd, to have a middle, or None for no convolution")
        self.n_landmarks, self.n_iterations = n_landmarks, n_iterations
        self.heads = Heads(d_model, n_heads, head_dim, bias=bias)
        bound = 0.0 if conv_width is None else conv_width**-0.5  # as torch initialises a depthwise convolution
        weight = None if conv_width is None else torch.empty(n_heads, 1, conv_width, 1).uniform_(-bound, bound)
        self.conv = None if weight is None else nn.Parameter(weight)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Attend through the landmarks, O(l m d)."""
        if mask is None:
            query, key, value = self.heads.split(x)
            return self.heads.join(self.attend(query, key, value).to(x.dtype))
        packed = compact(x, mask)
        query, key, value = self.heads.split(packed.x)
        return restore(self.heads.join(self.attend(query, key, value, packed.mask).to(x.dtype)), packed)

    def attend(
        self,
        query: Float[Tensor, "b h l e"],
        key: Float[Tensor, "b h l e"],
        value: Float[Tensor, "b h l e"],
        mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b h l e"]:
        """Everything between the projections, where padding comes last."""
        query, key, value = widened(query), widened(key), widened(value)
        with torch.autocast(query.device.type, enabled=False):
            if mask is None:
                mask = torch.ones(query.shape[0], query.shape[2], dtype=torch.bool, device=query.device)
            else:
                value = value.masked_fill(~mask[:, None, :, None], 0.0)
            means, used = segment_means(mask, self.n_landmarks, query.dtype)
            queries, keys = means[:, None] @ query, means[:, None] @ key  # the landmarks (b, h, m, e)
            kernel = (queries @ keys.mT * query.shape[-1] ** -0.5).masked_fill(~used[:, None, None], -torch.inf)
            kernel = kernel.softmax(-1).masked_fill(~used[:, None, :, None], 0.0)
            seen = pseudo_inverse(kernel, self.n_iterations) @ attention(
                queries, key, value, AttentionMask(key_mask=mask)
            )
            y = attention(query, keys, seen, AttentionMask(key_mask=used))
            if self.conv is None:
                return y
            weight = self.conv.to(value.dtype)
            return y + F.conv2d(value, weight, padding=(weight.shape[2] // 2, 0), groups=len(weight))


def segment_means(
    mask: Bool[Tensor, "b l"], n_segments: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "b {n_segments} l"], Bool[Tensor, "b {n_segments}"]]:
    """The matrix of means over segments of the real positions, which come first; and which segments are not empty."""
    length = mask.sum(1, keepdim=True).clamp(min=1)  # a row of padding has one segment, with the mean zero
    count = length.clamp(max=n_segments)
    segment = torch.arange(mask.shape[1], device=mask.device) * count // length
    number = torch.arange(n_segments, device=mask.device)
    member = (segment[:, None] == number[:, None]) & mask[:, None]
    return member / member.sum(-1, keepdim=True).clamp(min=1).to(dtype), number < count


def pseudo_inverse(A: Float[Tensor, "*axes m m"], n_iterations: int) -> Float[Tensor, "*axes m m"]:
    """The iteration of third order of Razavi et al., which needs nothing but products; O(m^3) a step."""
    columns, rows = A.abs().sum(-2).amax(-1), A.abs().sum(-1).amax(-1)
    Z, one = A.mT / (columns * rows)[..., None, None], torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    for _ in range(n_iterations):
        AZ = A @ Z
        Z = Z @ (13 * one - AZ @ (15 * one - AZ @ (7 * one - AZ))) / 4
    return Z
