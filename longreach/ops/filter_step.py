"""One position of a causal filter with a few taps for every channel: the step of all short convolutions.

    y_t = bias + sum_j taps_j x_{t-j} + sum_i added_i

What was read lately is the window; the taps count backwards in time, so that those of a long filter are its first ones.

Axes: b batch, d channels, w window, t taps.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.native import refusal
from longreach.ops.steps_native import native_filter_step, step_yields

DTYPES = (torch.float32, torch.float64)


@op
def filter_step(
    x: Float[Tensor, "b d"],
    window: Float[Tensor, "b d w"],
    taps: Float[Tensor, "d t"],
    kept: int,
    bias: Float[Tensor, " d"] | None = None,
    added: Sequence[Float[Tensor, "b d"]] = (),
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d {kept}"]]:
    """The output at the input `x` behind those in `window`, and the `kept` newest inputs of all, `x` included.

    Inputs before the window count as zeros.  O(b d min(w + 1, t)); sums are in float32 or wider, the inputs that are
    kept have the dtype of the window.
    """
    _check(x, window, taps, kept)
    past = torch.cat([window, x[..., None].to(window.dtype)], dim=-1)
    seen = min(past.shape[-1], taps.shape[-1])
    wide = torch.promote_types(torch.promote_types(x.dtype, taps.dtype), torch.float32)
    y = (past[..., past.shape[-1] - seen :].to(wide) * taps[:, :seen].flip(-1)).sum(-1)
    for other in (*added, *(() if bias is None else (bias,))):
        y = y + other
    return y, past[..., past.shape[-1] - kept :].clone()


def _check(x: Tensor, window: Tensor, taps: Tensor, kept: int) -> None:
    """Raise InputError for shapes that do not fit."""
    if window.shape[:2] != x.shape or taps.shape[0] != x.shape[1] or not taps.shape[1] or kept > window.shape[2] + 1:
        raise InputError(
            f"filter_step: x is {tuple(x.shape)}, the window behind it {tuple(window.shape)} and the taps, at least "
            f"one for each channel, {tuple(taps.shape)}; {kept} inputs are to be kept"
        )


def _native_refuses(
    x: Tensor,
    window: Tensor,
    taps: Tensor,
    kept: int,
    bias: Tensor | None = None,
    added: Sequence[Tensor] = (),
) -> str | None:
    dtype = x.dtype
    if window.dtype != dtype or taps.dtype != dtype or (bias is not None and bias.dtype != dtype):
        return "needs tensors of one dtype"
    if any(other.dtype != dtype for other in added):
        return "needs tensors of one dtype"
    return refusal(x.device, dtype, DTYPES)


@filter_step.backend("native", refuses=_native_refuses, yields=step_yields)
def _native(
    x: Tensor,
    window: Tensor,
    taps: Tensor,
    kept: int,
    bias: Tensor | None = None,
    added: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """In compiled code, without temporary tensors."""
    _check(x, window, taps, kept)
    return native_filter_step(x, window, taps, kept, bias, added)
