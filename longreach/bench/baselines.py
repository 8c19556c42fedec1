"""What the operators of this package are measured against: the same in plain torch, as one would write it without them.

Nothing here is slow on purpose: transforms are padded to twice the length and taken of everything at once; recurrences
are loops over `unbind` (indexing would make their gradients quadratic) or the textbook's parallel scan; attention is
torch's own kernel.

Axes: b batch, d or c channels, l length, n modes, h heads, e width of a head, v vocabulary.
"""

import torch
from jaxtyping import Complex, Float, Int, Num
from torch import Tensor
from torch.nn import functional as F


def fft_convolution(u: Float[Tensor, "b d l"], kernel: Float[Tensor, "d l"], skip: Float[Tensor, " d"]) -> Tensor:
    """Causal convolution through a transform of twice the length, plus the input scaled, as in published Hyena."""
    length = u.shape[-1]
    spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    return torch.fft.irfft(spectrum, n=2 * length)[..., :length] + skip[:, None] * u


def gated_fft_convolution(
    u: Float[Tensor, "b d l"],
    kernel: Float[Tensor, "d l"],
    skip: Float[Tensor, " d"],
    before: Float[Tensor, "b d l"],
    after: Float[Tensor, "b d l"],
) -> Tensor:
    """Gate, convolve, gate: the inner step of Hyena."""
    return after * fft_convolution(before * u, kernel, skip)


def depthwise_convolution(x: Float[Tensor, "b d l"], weight: Float[Tensor, "d k"], bias: Float[Tensor, " d"]) -> Tensor:
    """Causal convolution of every channel with a few taps of its own."""
    return F.conv1d(F.pad(x, (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=len(weight))


def scan_by_steps(a: Num[Tensor, "b l n"], x: Num[Tensor, "b l n"], initial: Num[Tensor, "b n"]) -> Tensor:
    """h_t = a_t h_{t-1} + x_t, one step after the other."""
    h, states = initial, []
    for a_t, x_t in zip(a.unbind(1), x.unbind(1), strict=True):
        h = a_t * h + x_t
        states.append(h)
    return torch.stack(states, dim=1)


def parallel_scan(a: Num[Tensor, "b l n"], x: Num[Tensor, "b l n"], initial: Num[Tensor, "b n"]) -> Tensor:
    """The same by joining neighbours, scanning half as many, and filling in what lies between (Blelloch 1990)."""
    x = torch.cat([x[:, :1] + a[:, :1] * initial[:, None], x[:, 1:]], dim=1)
    return _joined(a, x)[1]


def _joined(a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The map from before the first position to every position: its factors and its sums."""
    length = x.shape[1]
    if length == 1:
        return a, x
    even_a, odd_a, even_x, odd_x = a[:, :-1:2], a[:, 1::2], x[:, :-1:2], x[:, 1::2]
    odd_a, odd_x = _joined(odd_a * even_a, odd_a * even_x + odd_x)  # after positions 1, 3, 5 ...
    before_a, before_x, later_a, later_x = (z[:, : (length - 1) // 2] for z in (odd_a, odd_x, a[:, 2::2], x[:, 2::2]))
    even_a = torch.cat([a[:, :1], later_a * before_a], dim=1)
    even_x = torch.cat([x[:, :1], later_a * before_x + later_x], dim=1)
    return _interleaved(even_a, odd_a), _interleaved(even_x, odd_x)


def _interleaved(even: Tensor, odd: Tensor) -> Tensor:
    pairs = torch.stack([even[:, : odd.shape[1]], odd], dim=2).flatten(1, 2)
    return torch.cat([pairs, even[:, odd.shape[1] :]], dim=1)


def vandermonde_sum(coefficient: Complex[Tensor, "d n"], log_ratio: Complex[Tensor, "d n"], length: int) -> Tensor:
    """2 Re sum_n c_n z_n^l with every power in memory, as published S4D computes its kernel without an extension."""
    powers = torch.exp(log_ratio[..., None] * torch.arange(length))
    return 2 * torch.einsum("dn,dnl->dl", coefficient, powers).real


def cauchy_sum(v: Complex[Tensor, "r d n"], z: Complex[Tensor, " k"], w: Complex[Tensor, "d n"]) -> Tensor:
    """sum_n v_n / (z - w_n) + conj(v_n) / (z - conj(w_n)) with every fraction in memory, as published S4 does."""
    apart, mirrored = z - w[..., None], z - w.conj()[..., None]
    return (v[..., None] / apart + v.conj()[..., None] / mirrored).sum(-2)


def diagonal_state_space(
    u: Float[Tensor, "b d l"], coefficient: Complex[Tensor, "d n"], log_ratio: Complex[Tensor, "d n"]
) -> Tensor:
    """S4D and DSS: the kernel from its modes, then the convolution."""
    kernel = vandermonde_sum(coefficient, log_ratio, u.shape[-1])
    return fft_convolution(u, kernel, kernel.new_zeros(len(kernel)))


def moving_average(
    x: Float[Tensor, "b l d"],
    weight: Float[Tensor, "1 d n"],
    forgotten: Float[Tensor, "1 d n"],
    skip: Float[Tensor, " d"],
) -> Tensor:
    """Mega: the taps sum_n weight_n (1 - forgotten_n)^l, then the convolution."""
    taps = torch.exp(torch.log1p(-forgotten[0])[..., None] * torch.arange(x.shape[1]))
    return fft_convolution(x.mT.contiguous(), torch.einsum("dn,dnl->dl", weight[0], taps), skip).mT.contiguous()


def wkv_by_steps(
    log_decay: Float[Tensor, " c"],
    bonus: Float[Tensor, " c"],
    key: Float[Tensor, "b l c"],
    value: Float[Tensor, "b l c"],
) -> Tensor:
    """RWKV-4: weighted averages of the past, with the largest exponent so far taken out."""
    numerator, denominator = torch.zeros_like(key[:, 0]), torch.zeros_like(key[:, 0])
    exponent, outputs = torch.full_like(numerator, -1e38), []
    for k, v in zip(key.unbind(1), value.unbind(1), strict=True):
        largest = torch.maximum(exponent, bonus + k)
        old, new = torch.exp(exponent - largest), torch.exp(bonus + k - largest)
        outputs.append((old * numerator + new * v) / (old * denominator + new))
        largest = torch.maximum(exponent + log_decay, k)
        old, new = torch.exp(exponent + log_decay - largest), torch.exp(k - largest)
        numerator, denominator, exponent = old * numerator + new * v, old * denominator + new, largest
    return torch.stack(outputs, dim=1)


def wkv_by_log_sums(
    log_decay: Float[Tensor, " c"],
    bonus: Float[Tensor, " c"],
    key: Float[Tensor, "b l c"],
    value: Float[Tensor, "b l c"],
) -> Tensor:
    """RWKV-4 without steps: sums of exponentials in their logarithms, of positive values, of negative ones, of ones."""
    elapsed = log_decay * torch.arange(key.shape[1])[:, None]
    logs = [value.clamp(min=1e-30).log(), (-value).clamp(min=1e-30).log(), torch.zeros_like(value)]
    sums = []
    for log in logs:
        past = torch.logcumsumexp(key - elapsed + log, dim=1)[:, :-1] + elapsed[:-1]
        past = torch.cat([torch.full_like(key[:, :1], -1e38), past], dim=1)
        sums.append(torch.logaddexp(past, bonus + key + log))
    return (sums[0] - sums[2]).exp() - (sums[1] - sums[2]).exp()


def causal_attention(
    query: Float[Tensor, "b h l e"], key: Float[Tensor, "b h l e"], value: Float[Tensor, "b h l e"]
) -> Tensor:
    """torch's own kernel, which needs linear memory."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def window_attention(
    query: Float[Tensor, "b h l e"], key: Float[Tensor, "b h l e"], value: Float[Tensor, "b h l e"], window: int
) -> Tensor:
    """Every position sees itself and the `window` - 1 before it: torch's own kernel, with a mask."""
    distance = torch.arange(query.shape[2])[:, None] - torch.arange(key.shape[2])
    return F.scaled_dot_product_attention(query, key, value, attn_mask=(distance >= 0) & (distance < window))


def packed_attention(
    query: Float[Tensor, "b h l e"],
    key: Float[Tensor, "b h l e"],
    value: Float[Tensor, "b h l e"],
    segment: Int[Tensor, "1 l"],
) -> Tensor:
    """Every position sees what came before it in its own segment: the same kernel, with a mask."""
    allowed = (segment.mT == segment).tril()
    return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)


def biased_attention(
    query: Float[Tensor, "b h l e"],
    key: Float[Tensor, "b h l e"],
    value: Float[Tensor, "b h l e"],
    bias: Float[Tensor, "1 h l l"],
) -> Tensor:
    """Causal, with a bias of every pair: torch adds a mask of numbers, and has no fused gradient for it."""
    future = torch.ones(bias.shape[-2:], dtype=torch.bool).triu(1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.masked_fill(future, -torch.inf))


def quadratic_linear_attention(
    query: Float[Tensor, "b h l e"], key: Float[Tensor, "b h l e"], value: Float[Tensor, "b h l e"]
) -> Tensor:
    """Attention without softmax, from all products of queries and keys."""
    return (query @ key.mT).tril() @ value


def cross_entropy(hidden: Float[Tensor, "n d"], weight: Float[Tensor, "v d"], target: Int[Tensor, " n"]) -> Tensor:
    """The loss of every position, from all logits."""
    return F.cross_entropy(F.linear(hidden, weight), target, reduction="none")
