"""CKConv and FlexConv, convolutions whose kernels are drawn by small networks (Romero et al. 2021,
https://arxiv.org/abs/2102.02611 and https://arxiv.org/abs/2110.08059).

A kernel is a function of continuous position, from 1, the present, to -1, `kernel_length` - 1 steps back.  It is
sampled where the input is (longreach.mixers.kernel_network):

    position_j = 1 - 2 j rate / (kernel_length - 1)
    K_j = rate network(position_j) exp(-(position_j - mean)^2 / (2 width^2))        taps with position_j >= -1
    y = K * x + bias

The Gaussian is FlexConv's: its mean and width are trained, so that the mixer learns how far it sees.  With another
`rate` the same kernel serves an input that is sampled more finely or coarsely; for a finer one its taps are smoothed.

Axes: b batch, l length, d channels (i of the input, o of the output), k taps.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.convolution import Convolution, weigh_neighbours
from longreach.mixers.kernel_network import KernelOptions, Magnet, make_network
from longreach.ops.dense_conv import dense_conv
from longreach.ops.online_conv import OnlineConvState, held_inputs, refuse_late_padding

SMOOTHING = 0.5
"""Deviation, in taps, of the Gaussian that smooths a kernel for a finer input."""


class CKConv(Convolution):
    """Continuous kernel convolution; in parentheses the names in the published code.

    Args:
        d_model: number of channels.
        kernel_length: number of taps at rate 1 (train_length, horizon); what is further away is not seen.
        kernel: the network that draws the kernels.
        dense: a kernel for every pair of input and output channel, as published, instead of one for each channel.
            That is d_model times the work, and a step costs O(d^2 taps).
        bias: a trained constant in the output, and in every layer of the network (bias, conv_bias).
        rate: the interval between inputs in units of the one that the kernel was trained at; 2 for every second sample.
        mask_width: initial width of the Gaussian, in units of position (mask_init_value); None for no Gaussian.
        mask_threshold: taps older than the position at which the Gaussian falls below this are zero, and cost nothing
            (mask_threshold).
        dropout: probability of dropping a tap (weight_dropout).
    """

    skip = None

    def __init__(
        self,
        d_model: int,
        *,
        kernel_length: int = 1024,
        kernel: KernelOptions = KernelOptions(),  # noqa: B008 (immutable)
        dense: bool = False,
        bias: bool = True,
        rate: float = 1.0,
        mask_width: float | None = None,
        mask_threshold: float = 0.1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(d_model, causal=True)
        if kernel_length < 1 or rate <= 0:
            raise InputError(f"{kernel_length=}, {rate=}: there is at least one tap, and the rate is positive")
        if mask_width is not None and (mask_width <= 0 or not 0 < mask_threshold < 1):
            raise InputError(f"{mask_width=} must be positive, {mask_threshold=} between 0 and 1")
        self.kernel_length, self.kernel, self.rate, self.dense = kernel_length, kernel, rate, dense
        self.mask_threshold = mask_threshold
        extent = weight = 1.0  # of the kernel, what is seen, and the square of the Gaussian over it
        if mask_width is not None:
            extent = min(1.0, mask_width * math.sqrt(-math.log(mask_threshold) / 2))
            weight = min(1.0, mask_width * math.sqrt(math.pi) / 4)
        inputs = max(1.0, kernel_length * weight) * (d_model if dense else 1)
        n_kernels = d_model**2 if dense else d_model
        self.network = make_network(n_kernels, kernel, size=inputs**-0.5, bias=bias, extent=extent)
        self.mask = None if mask_width is None else nn.Parameter(torch.tensor([1.0, mask_width]))
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None
        self.dropout = nn.Dropout(dropout)

    @property
    def taps(self) -> int:
        """How many taps each kernel has, or how many the Gaussian leaves of them."""
        if self.mask is None or torch.compiler.is_compiling():  # a number that depends on weights cannot be traced
            return self._samples
        return min(self._samples, math.ceil(self._reach().item()))

    @property
    def _samples(self) -> int:
        """How many positions of the kernel there are at this rate."""
        return math.floor((self.kernel_length - 1) / self.rate + 1e-9) + 1

    def _reach(self) -> Float[Tensor, ""]:
        """The lag from which on the Gaussian is below the threshold; at least 1."""
        assert self.mask is not None
        mean, width = self.mask.detach()
        horizon = mean - width.abs() * math.sqrt(-2 * math.log(self.mask_threshold))
        return ((1 - horizon) * max(self.kernel_length - 1, 1) / (2 * self.rate)).clamp(min=1)

    def kernels(self, count: int) -> Float[Tensor, "1 c {count}"]:
        """The first `count` taps of all kernels, O(count (w^2 + w c)); with a norm, all are drawn."""
        normed = self.kernel.norm != "none"
        half = int(1 / self.rate) if self.rate < 1 else 0
        drawn = self._samples if normed else min(count + half, self._samples)
        parameter = next(self.parameters())
        lag = torch.arange(drawn, dtype=torch.float64, device=parameter.device)
        position = (1 - 2 * self.rate / max(self.kernel_length - 1, 1) * lag).to(parameter.dtype)
        with torch.autocast(parameter.device.type, enabled=False):
            taps = self.network(position)
            if half:
                taps = smooth(taps, half)
            taps = self.rate * taps[:, :count]
            if self.mask is not None:
                mean, width = self.mask
                window = (-0.5 * ((position[:count] - mean) / width).square()).exp()
                taps = taps * window.where(lag[:count] < self._reach(), 0)
        return self.dropout(taps.to(torch.promote_types(taps.dtype, torch.float32)))[None]

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Convolve, O(d l log l); dense, O(d^2 l + d l log l)."""
        if not self.dense:
            return self._with_bias(super().forward(x, mask))
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        return self._with_bias(dense_conv(x.mT, self._dense_kernel(min(x.shape[1], self.taps))).mT)

    def step(self, x: Float[Tensor, "b d"], state: OnlineConvState) -> tuple[Float[Tensor, "b d"], OnlineConvState]:
        """Mix one position, O(d log^2 taps) on average; dense, O(d^2 taps)."""
        if self.dense:
            y, state = self.prefill(x[:, None], state)
            return y[:, 0], state
        y, state = super().step(x, state)
        return self._with_bias(y), state

    def prefill(
        self, x: Float[Tensor, "b l d"], state: OnlineConvState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], OnlineConvState]:
        """Mix a chunk.  A dense kernel keeps the inputs that it still reaches, and sums over them."""
        if not self.dense:
            y, state = super().prefill(x, state, mask)
            return self._with_bias(y), state
        if mask is not None:
            refuse_late_padding(mask, held_inputs(state))
            x = x.masked_fill(~mask[..., None], 0)
        past, u = state.recent, x.mT
        reach = self.taps
        y = dense_conv(u, self._dense_kernel(min(past.shape[-1] + u.shape[-1], reach)), past)
        joined = torch.cat([past, u.to(past.dtype)], dim=-1)
        kept = joined[..., max(0, joined.shape[-1] - (reach - 1)) :].clone()
        return self._with_bias(y.mT), OnlineConvState((), kept)

    def _dense_kernel(self, count: int) -> Float[Tensor, "o i {count}"]:
        return self.kernels(count)[0].unflatten(0, (self.d_model, self.d_model))

    def _with_bias(self, y: Float[Tensor, "b *l d"]) -> Float[Tensor, "b *l d"]:
        return y if self.bias is None else (y + self.bias).to(y.dtype)

    def aliasing(self) -> Float[Tensor, ""]:
        """How far the frequencies of a magnet's factors lie above their share of what the taps can carry, squared.

        FlexConv's regulariser: added to the loss with a small factor, it lets a kernel be sampled more coarsely.
        """
        if not isinstance(self.network, Magnet):
            raise InputError(f"network={self.kernel.network!r}: only the bandwidth of a magnet is known")
        bandwidths = self.network.bandwidths()
        nyquist = (self.kernel_length - 1) / 4  # in periods per unit of position, of which the kernel covers two
        return (bandwidths - nyquist / len(bandwidths)).relu().square().sum()


def smooth(taps: Float[Tensor, "*c n"], half: int) -> Float[Tensor, "*c n"]:
    """Taps averaged with `half` neighbours on either side, all but the first and the last `half`, as published."""
    if taps.shape[-1] <= 2 * half:
        return taps
    scale = SMOOTHING * math.sqrt(2 * math.pi)
    weights = [math.exp(-0.5 * (i / SMOOTHING) ** 2) / scale for i in range(-half, half + 1)]
    inner = weigh_neighbours(taps, weights)[..., half:-half]
    return torch.cat([taps[..., :half], inner, taps[..., -half:]], dim=-1)
