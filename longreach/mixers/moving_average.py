"""The multi-dimensional damped moving average of Mega (Ma et al. 2022, https://arxiv.org/abs/2209.10655, section 3.1).

Every channel is expanded into n averages, each with its own weight p of the present and its own damping a:

    s_t = (1 - p a) s_{t-1} + p beta x_t         p = sigmoid(delta), a = sigmoid(alpha)
    y_t = sum_n gamma_n s_t,n / sqrt(n)          out_t = silu(y_t + omega x_t)

so y is a convolution with the taps  sum_n gamma_n / sqrt(n) p beta (1 - p a)^l,  of which only the first few may be
used.  A second set of parameters makes it bidirectional: its taps read the present, which thus counts twice, and the
future.

Axes: b batch, l length, d channels, n averages of a channel, r directions, w window.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach import ops
from longreach.errors import InputError
from longreach.mixers.constant_weights import of_weights
from longreach.ops.window import modal_window_prefill, modal_window_step


class MovingAverageState(NamedTuple):
    """All that later outputs depend on."""

    averages: Float[Tensor, "b d n"]
    """The averages of every channel after the last position."""
    window: Float[Tensor, "b d w"]
    """The last inputs, as many as there are taps; none where that is not limited."""


class MovingAverage(nn.Module):
    """Moving averages of every channel: O(d n l) on a sequence, O(d n) on a step.

    Args:
        d_model: number of channels.
        d_state: averages of a channel.
        causal: whether a position sees only itself and what came before it; otherwise what follows too.
        kernel_length: number of taps; what is longer ago is not seen.  None is no limit.
    """

    def __init__(
        self, d_model: int, *, d_state: int = 16, causal: bool = True, kernel_length: int | None = None
    ) -> None:
        super().__init__()
        if d_state < 1:
            raise InputError(f"d_state={d_state}: a channel needs at least one average")
        if kernel_length is not None and kernel_length < 1:
            raise InputError(f"kernel_length={kernel_length} leaves no tap; use None for no limit")
        self.kernel_length = kernel_length
        shape = (1 if causal else 2, d_model, d_state)
        self.delta = nn.Parameter(0.2 * torch.randn(shape))
        self.alpha = nn.Parameter(0.2 * torch.randn(shape))
        self.beta = nn.Parameter((-1.0) ** torch.arange(d_state) + 0.02 * torch.randn(shape))
        self.gamma = nn.Parameter(torch.randn(shape))
        self.omega = nn.Parameter(torch.randn(d_model))

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Average the whole sequence, O(d n l), or convolve it with the taps, O(d l log l), where these end earlier."""
        u = x if mask is None else x.masked_fill(~mask[..., None], 0)
        if self.kernel_length is None or self.kernel_length >= x.shape[1]:
            weight, forgotten = self._coefficients()
            if mask is None:
                return F.silu(ops.damped_average(u, weight, forgotten, self.omega)).to(x.dtype)
            return self._finish(x, ops.damped_average(u, weight, forgotten, torch.zeros_like(self.omega)))
        past, *future = self.kernels(x.shape[1])
        y = ops.long_conv(ops.transposed(u), past, reverse_kernel=future[0] if future else None, reverse_lag=0)
        return self._finish(x, ops.transposed(y))

    def kernels(self, length: int) -> Float[Tensor, "r d k"]:
        """The taps, past first, `length` of them or as many as there are; memory O(d n sqrt(length))."""
        length = length if self.kernel_length is None else min(length, self.kernel_length)
        return ops.modal_kernel(self._system(), length).unflatten(0, self.gamma.shape[:2])

    def init_state(self, batch_size: int) -> MovingAverageState:
        """Nothing has been read."""
        averages = self.omega.new_zeros(batch_size, *self.gamma.shape[1:])
        return MovingAverageState(averages, self.omega.new_zeros(batch_size, len(self.omega), self.kernel_length or 0))

    def step(
        self, x: Float[Tensor, "b d"], state: MovingAverageState
    ) -> tuple[Float[Tensor, "b d"], MovingAverageState]:
        """Advance every average by one position, O(d n)."""
        u = x.to(state.window.dtype)
        if self.kernel_length is None:
            abar, bbar, C = self._recurrence()
            y, averages = ops.modal_step(u, state.averages, abar, bbar, C, self.omega)
            return F.silu(y).to(x.dtype), MovingAverageState(averages, state.window)
        y, averages, window = modal_window_step(u, _complex(state.averages), state.window, self._system())
        return self._finish(x, y), MovingAverageState(averages.real.contiguous(), window)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: MovingAverageState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], MovingAverageState]:
        """The convolution of the chunk and what the state adds to it, O(d (l log l + n l))."""
        u, window = x.mT, state.window
        if self.kernel_length is None:
            y, averages = ops.modal_prefill(u, _complex(state.averages), self._system(), mask)
        else:
            y, averages, window = modal_window_prefill(u, window, self._system(), mask)
        return self._finish(x, y.mT), MovingAverageState(averages.real.contiguous(), window)

    def _finish(self, x: Float[Tensor, "*b d"], y: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return F.silu(y + self.omega * x).to(x.dtype)

    def _coefficients(self) -> tuple[Float[Tensor, "r d n"], Float[Tensor, "r d n"]]:
        """With which weight every average is read, and which part of it is forgotten at each position."""
        present = self.delta.sigmoid()
        return self.gamma * present * self.beta / self.gamma.shape[-1] ** 0.5, present * self.alpha.sigmoid()

    @of_weights
    def _recurrence(self) -> list[Float[Tensor, "d n"]]:
        """abar, bbar and C, which are real."""
        return [part.real.contiguous() for part in self._system().recurrence]

    @of_weights
    def _system(self) -> ops.ModalSystem:
        """The channels of all directions in the form of longreach.ops.modal, which counts every mode twice."""
        present = self.delta.sigmoid()
        forgotten = present * self.alpha.sigmoid()
        log_decay = torch.log1p(-forgotten.clamp(max=1 - torch.finfo(forgotten.dtype).eps))  # finite if both saturate
        output = self.gamma / (2 * self.gamma.shape[-1] ** 0.5)
        return ops.ModalSystem(*(_complex(x).flatten(0, 1) for x in (log_decay, present * self.beta, output)))


def _complex(x: Float[Tensor, "..."]) -> Tensor:
    return torch.complex(x, torch.zeros_like(x))
