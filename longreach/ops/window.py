"""Filters that end: what a convolution with finitely many taps remembers is a window, its last inputs.

    window_prefill         any causal convolution of at most w + 1 taps, continued behind the last w inputs
    modal_window_step      a diagonal system whose response is cut after w taps: what leaves the window is taken out
    modal_window_prefill   the same for a chunk

A cut system is S4D or H3 with a kernel of stated length (https://arxiv.org/abs/2206.11893; l_max in published code):

    s_t = abar s_{t-1} + bbar (u_t - abar^w u_{t-w})          y_t = 2 Re sum_n C_n s_t,n

Axes: b batch, d channels, n modes per channel, l length, w window.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from longreach.ops.long_conv import long_conv
from longreach.ops.modal import ModalSystem, modal_kernel, modal_step, padding_first
from longreach.ops.vandermonde import vandermonde_adjoint


def window_prefill(
    convolve: Callable[[Tensor], Tensor],
    u: Float[Tensor, "b d l"],
    window: Float[Tensor, "b d w"],
    mask: Bool[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d w"]]:
    """A chunk behind `window` through `convolve`, causal, (b, d, any) -> (b, d, any); and the window after it.

    The result has the wider dtype of `u` and `window`, if `convolve` keeps it.  Where `mask` is False there is no time:
    what `u` holds there does not matter, and the output there is undefined.
    """
    width, length = window.shape[-1], u.shape[-1]
    order = None
    if mask is not None:
        order = padding_first(mask)
        u = u.masked_fill(~mask[:, None], 0).gather(-1, order[:, None].expand_as(u))
    inputs = torch.cat([window, u.to(torch.promote_types(u.dtype, window.dtype))], dim=-1)
    if mask is not None:  # the window moves behind the padding, and what is repeated before it is out of reach
        padding = (~mask).sum(1)[:, None]
        position = torch.arange(width + length, device=u.device).expand(len(u), -1)
        source = torch.where(position < padding + width, position - padding, position)
        inputs = inputs.gather(-1, source.clamp(min=0)[:, None].expand_as(inputs))
    y = convolve(inputs)[..., width:]
    if order is not None:
        y = y.gather(-1, order.argsort(dim=1)[:, None].expand_as(y))
    return y, inputs[..., length:].clone()  # not a view, which would keep all that was read


def modal_window_step(
    u: Float[Tensor, "b d"], modes: Complex[Tensor, "b d n"], window: Float[Tensor, "b d w"], system: ModalSystem
) -> tuple[Float[Tensor, "b d"], Complex[Tensor, "b d n"], Float[Tensor, "b d w"]]:
    """One position of a system that is cut after w taps, O(b d (n + w))."""
    y, modes = modal_step(u, modes, *system.recurrence)
    leaving = (system.log_abar * window.shape[-1]).exp() * system.bbar * window[..., :1]
    y = y - 2 * (system.C * leaving).real.sum(-1)
    return y, modes - leaving, torch.cat([window[..., 1:], u[..., None].to(window.dtype)], dim=-1)


def modal_window_prefill(
    u: Float[Tensor, "b d l"],
    window: Float[Tensor, "b d w"],
    system: ModalSystem,
    mask: Bool[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b d l"], Complex[Tensor, "b d n"], Float[Tensor, "b d w"]]:
    """A chunk, O(b d ((w + l) log w + n w)); the modes follow from the window alone.  `mask` as in window_prefill."""
    kernel = modal_kernel(system, window.shape[-1])
    y, window = window_prefill(lambda inputs: long_conv(inputs, kernel), u, window, mask)
    return y, system.bbar * vandermonde_adjoint(window, system.log_abar), window
