"""WKV, the weighted average of RWKV-4 (Peng et al. 2023, https://arxiv.org/abs/2305.13048).

Every channel averages the values so far; a weight shrinks by e^w with each step, and the present has its own bonus:

    y_t = (sum_{i<t} e^{(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (the same with v = 1)        w < 0

Keys can be in the thousands, so neither sum is ever formed: a state holds both divided by e^p,

    p_t = max(p_{t-1} + w, k_t)
    numerator_t   = e^{p_{t-1} + w - p_t} numerator_{t-1}   + e^{k_t - p_t} v_t
    denominator_t = e^{p_{t-1} + w - p_t} denominator_{t-1} + e^{k_t - p_t}

where no exponent is positive.  All p_t follow at once from a running maximum, p_t = t w + max_i (k_i - i w), and then
the rest is linear (longreach.ops.linear_scan).  The scale p cancels in y, so no derivative passes through it.

Axes: b batch, l length, c channels.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.differentiable_once import differentiable_once
from longreach.ops.linear_scan import linear_scan
from longreach.ops.native import refusal
from longreach.ops.triton import available
from longreach.ops.triton.wkv import DTYPES as TRITON_DTYPES
from longreach.ops.triton.wkv import triton_wkv
from longreach.ops.wkv_native import DTYPES as NATIVE_DTYPES
from longreach.ops.wkv_native import native_wkv
from longreach.ops.wkv_state import EMPTY, WKVState


@op
def wkv(
    log_decay: Float[Tensor, " c"],
    bonus: Float[Tensor, " c"],
    key: Float[Tensor, "b l c"],
    value: Float[Tensor, "b l c"],
    state: WKVState,
    mask: Bool[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b l c"], WKVState]:
    """The averages after `state`, and the state after them; w is `log_decay`, u is `bonus`.

    Both results have the dtype of the state.  Where `mask` is False there is padding: it leaves the state as if it
    had not been there, and the output there is undefined.  Time and memory O(b l c), in l steps one after the other.
    """
    log_decay, bonus, key, value = _common(log_decay, bonus, key, value, state)
    outputs = []
    for t in range(key.shape[1]):
        k, v = key[:, t], value[:, t]
        y, after = _step(log_decay, bonus, k, v, state)
        outputs.append(y)
        if mask is not None:
            after = WKVState(*(torch.where(mask[:, t, None], a, b) for a, b in zip(after, state, strict=True)))
        state = after
    return torch.stack(outputs, dim=1), state


def wkv_step(
    log_decay: Float[Tensor, " c"],
    bonus: Float[Tensor, " c"],
    key: Float[Tensor, "b c"],
    value: Float[Tensor, "b c"],
    state: WKVState,
) -> tuple[Float[Tensor, "b c"], WKVState]:
    """One position, O(b c): the average in the dtype of the state, and the state after it."""
    dtype = state.numerator.dtype
    return _step(log_decay.to(dtype), bonus.to(dtype), key.to(dtype), value.to(dtype), state)


def _step(log_decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, state: WKVState) -> tuple[Tensor, WKVState]:
    faded = state.exponent + log_decay
    exponent = torch.maximum(faded, key).detach()
    decay, weight = torch.exp(faded - exponent), torch.exp(key - exponent)
    numerator = torch.addcmul(weight * value, decay, state.numerator)
    after = WKVState(numerator, torch.addcmul(weight, decay, state.denominator), exponent)
    return _average(state, bonus + key, value), after


def _scan_yields(
    log_decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, state: WKVState, mask: Tensor | None = None
) -> str | None:
    return "one position is one step" if key.shape[1] == 1 else None


@wkv.backend("scan", yields=_scan_yields)
def _scan(
    log_decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, state: WKVState, mask: Tensor | None = None
) -> tuple[Tensor, WKVState]:
    """All exponents from a running maximum, both sums from one linear scan: O(sqrt(l)) steps."""
    log_decay, bonus, key, value = _common(log_decay, bonus, key, value, state)
    if mask is None:
        decays = log_decay.expand_as(key)
    else:
        decays = log_decay * mask[..., None]
        key = key.masked_fill(~mask[..., None], EMPTY)
    exponents = _exponents(decays, key, state.exponent)  # (b, l + 1, c), before the first position and after each
    before, after = exponents[:, :-1], exponents[:, 1:]
    decay, weight = torch.exp(before + decays - after), torch.exp(key - after)
    if mask is not None:
        weight = weight.masked_fill(~mask[..., None], 0)
    initial = torch.cat([state.numerator, state.denominator], dim=-1)
    inputs = torch.cat([weight * value, weight], dim=-1)
    sums = torch.cat([initial[:, None], linear_scan(torch.cat([decay, decay], dim=-1), inputs, initial)], dim=1)
    numerator, denominator = sums.chunk(2, dim=-1)
    past = WKVState(numerator[:, :-1], denominator[:, :-1], before)
    # copies, because a view would keep all positions
    final = WKVState(numerator[:, -1].clone(), denominator[:, -1].clone(), after[:, -1].clone())
    return _average(past, bonus + key, value), final


def _native_refuses(
    log_decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, state: WKVState, mask: Tensor | None = None
) -> str | None:
    return refusal(key.device, state.numerator.dtype, NATIVE_DTYPES)


@wkv.backend("native", refuses=_native_refuses)
def _native(
    log_decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, state: WKVState, mask: Tensor | None = None
) -> tuple[Tensor, WKVState]:
    """Step by step in compiled code, with the states of some channels in registers."""
    log_decay, bonus, key, value = _common(log_decay, bonus, key, value, state)
    return native_wkv(log_decay, bonus, key, value, state, mask)


def _triton_refuses(
    log_decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, state: WKVState, mask: Tensor | None = None
) -> str | None:
    return available.refusal(key.device, state.numerator.dtype, TRITON_DTYPES)


def _triton_yields(
    log_decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, state: WKVState, mask: Tensor | None = None
) -> str | None:
    return available.interpretation(key.device)


@wkv.backend("triton", refuses=_triton_refuses, yields=_triton_yields)
def _triton(
    log_decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, state: WKVState, mask: Tensor | None = None
) -> tuple[Tensor, WKVState]:
    """Chunks of time side by side on a GPU; keys and values are read as they are, and derived once."""
    _check(log_decay, bonus, key, value, state)
    dtype = torch.promote_types(key.dtype, value.dtype)
    wide = state.numerator.dtype
    given = log_decay.to(wide), bonus.to(wide), key.to(dtype), value.to(dtype), torch.stack(state)
    log_decay, bonus, key, value, sums = (differentiable_once(x, "wkv") for x in given)
    y, final = triton_wkv(log_decay, bonus, key, value, sums, mask)
    return y, WKVState(*final.unbind())


@torch.no_grad()
def _exponents(decays: Tensor, key: Tensor, initial: Tensor) -> Tensor:
    """p before the first position and after each."""
    elapsed = torch.nn.functional.pad(decays.cumsum(dim=1), (0, 0, 1, 0))
    return elapsed + (torch.cat([initial[:, None], key], dim=1) - elapsed).cummax(dim=1).values


def _average(past: WKVState, present: Tensor, value: Tensor) -> Tensor:
    """The sums of the past joined with the value of the present, which has the log weight `present`."""
    largest = torch.maximum(past.exponent, present).detach()
    old, new = torch.exp(past.exponent - largest), torch.exp(present - largest)
    return torch.addcmul(new * value, old, past.numerator) / torch.addcmul(new, old, past.denominator)


def _common(log_decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, state: WKVState) -> tuple[Tensor, ...]:
    """The arguments in the dtype of the state, after a look at their shapes."""
    _check(log_decay, bonus, key, value, state)
    return tuple(x.to(state.numerator.dtype) for x in (log_decay, bonus, key, value))


def _check(log_decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, state: WKVState) -> None:
    batch, length, channels = key.shape
    if length == 0 or value.shape != key.shape or any(x.shape != (channels,) for x in (log_decay, bonus)):
        raise InputError(
            f"wkv: key {tuple(key.shape)} and value {tuple(value.shape)} must both be (batch, length >= 1, channels), "
            f"log_decay {tuple(log_decay.shape)} and bonus {tuple(bonus.shape)} (channels,)"
        )
    if any(x.shape != (batch, channels) for x in state):
        raise InputError(f"wkv: the state is {[tuple(x.shape) for x in state]}, where {(batch, channels)} is needed")
