"""What `longreach bench ops` measures: operators, their inputs, and what they are compared with.

Axes: b batch, d channels, l length, n modes, h heads.
"""

from typing import Any

import torch
from torch import Tensor

from longreach import ops
from longreach.bench import baselines
from longreach.bench.attention_cases import attention_cases
from longreach.bench.mixer_costs import build_mixer, mixer_names
from longreach.bench.operator_case import (
    ALL,
    CHANNELS,
    FEW_CHANNELS,
    LONG,
    MIDDLE,
    MODES,
    OUR_TORCH,
    WIDTH,
    Inputs,
    OperatorCase,
    leaf,
    running_on_torch,
)
from longreach.errors import InputError
from longreach.mixers import SequenceMixer
from longreach.mixers.constant_weights import Kept, constant_weights
from longreach.ops import OPS

TUNED = (1 << 8, 1 << 12, 1 << 16, 1 << 20)


def operator_cases() -> list[OperatorCase]:
    """All of them; those of `step` are made when they are asked for, because each holds a mixer."""
    return [
        *_long_convolutions(),
        *_short_convolutions(),
        *_recurrences(),
        *_state_spaces(),
        *attention_cases(),
        *_losses(),
        *_steps(),
    ]


def _shape(length: int, elements: int, channels: int = CHANNELS) -> tuple[int, int, int]:
    """(b, d, l): about so many elements, in no more than so many channels."""
    elements *= 4 if length > LONG else 1
    channels = max(1, min(channels, elements // (4 * length)))
    return max(1, elements // (channels * length)), channels, length


def _long_convolutions() -> list[OperatorCase]:
    def plain(length: int, elements: int) -> list[Any]:
        b, d, l = _shape(length, elements)
        return [leaf(b, d, l), leaf(d, l), leaf(d)]

    def gated(length: int, elements: int) -> list[Any]:
        inputs = plain(length, elements)
        return [*inputs, leaf(*inputs[0].shape), leaf(*inputs[0].shape)]

    def ours(u: Tensor, kernel: Tensor, skip: Tensor, *gates: Tensor) -> Tensor:
        before, after = gates or (None, None)
        return ops.long_conv(u, kernel, skip=skip, gate_before=before, gate_after=after)

    fft, gated_fft = {"torch.fft": baselines.fft_convolution}, {"torch.fft": baselines.gated_fft_convolution}
    return [
        OperatorCase("long_conv", "powers of two", ALL, plain, ours, fft),
        OperatorCase("long_conv", "other lengths", (1025, 5000, 8191, 36_000), plain, ours, fft),
        OperatorCase("long_conv", "gated", (*MIDDLE, 1 << 16), gated, ours, gated_fft),
        OperatorCase("long_conv", "tuned allocator", TUNED, plain, ours, fft, tuned=True),
    ]


def _short_convolutions() -> list[OperatorCase]:
    def short(length: int, elements: int) -> list[Any]:
        b, d, l = _shape(length, elements)
        return [leaf(b, d, l), leaf(d, 4), leaf(d)]

    def short_last(length: int, elements: int) -> list[Any]:
        b, d, l = _shape(length, elements)
        return [leaf(b, l, d), leaf(d, 4), leaf(d)]

    def short_gated(length: int, elements: int) -> list[Any]:
        inputs = short(length, elements)
        return [*inputs, leaf(*inputs[0].shape)]

    def ours_last(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.short_conv(x.mT, weight, bias).mT

    def conv1d_last(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return baselines.depthwise_convolution(x.mT, weight, bias).mT

    def ours_gated(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
        return gate * ops.short_conv(x, weight, bias)

    def conv1d_gated(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
        return gate * baselines.depthwise_convolution(x, weight, bias)

    conv1d, short_lengths = {"conv1d": baselines.depthwise_convolution}, (1 << 10, 1 << 13)
    return [
        OperatorCase("short_conv", "4 taps", short_lengths, short, ops.short_conv, conv1d),
        OperatorCase("short_conv", "4 taps, last", short_lengths, short_last, ours_last, {"conv1d": conv1d_last}),
        OperatorCase("short_conv", "4 taps, gated", short_lengths, short_gated, ours_gated, {"conv1d": conv1d_gated}),
    ]


def _recurrences() -> list[OperatorCase]:
    def scan(dtype: torch.dtype) -> Inputs:
        def inputs(length: int, elements: int) -> list[Any]:
            b, d, l = _shape(length, elements // (2 if dtype.is_complex else 1))
            decay = (0.9 * torch.rand(b, l, d)).to(dtype) * (torch.randn(b, l, d, dtype=dtype).sgn())
            return [decay.requires_grad_(), leaf(b, l, d, dtype=dtype), leaf(b, d, dtype=dtype)]

        return inputs

    def averages(length: int, elements: int) -> list[Any]:
        b, d, l = _shape(length, elements)
        return [(-torch.rand(d)).requires_grad_(), leaf(d), leaf(b, l, d), leaf(b, l, d)]

    def wkv(log_decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return ops.wkv(log_decay, bonus, key, value, ops.init_wkv(len(key), key[0, 0]))[0]

    scans = {"steps": baselines.scan_by_steps, "parallel scan": baselines.parallel_scan}
    averaged = {
        "steps": baselines.wkv_by_steps,
        "log sums": baselines.wkv_by_log_sums,
        OUR_TORCH: running_on_torch(wkv),
    }
    return [
        OperatorCase("linear_scan", "real", MIDDLE, scan(torch.float32), ops.linear_scan, scans),
        OperatorCase("linear_scan", "complex", MIDDLE, scan(torch.complex64), ops.linear_scan, scans),
        OperatorCase("wkv", "RWKV-4", MIDDLE[:2], averages, wkv, averaged),
    ]


def _modes(channels: int) -> list[Tensor]:
    """Coefficients, and logarithms of ratios that reach over a few thousand positions."""
    log_ratio = torch.complex(-(10 ** -(4 * torch.rand(channels, MODES))), 3 * torch.rand(channels, MODES))
    return [leaf(channels, MODES, dtype=torch.complex64), log_ratio.requires_grad_()]


def _state_spaces() -> list[OperatorCase]:
    def whole(length: int, elements: int) -> list[Any]:
        return [leaf(*_shape(length, elements, FEW_CHANNELS)), *_modes(_shape(length, elements, FEW_CHANNELS)[1])]

    def averages(length: int, elements: int) -> list[Any]:
        b, d, l = _shape(length, elements)
        forgotten = (0.9 * torch.rand(1, d, MODES // 2)).requires_grad_()
        return [leaf(b, l, d), leaf(1, d, MODES // 2), forgotten, leaf(d)]

    def poles(length: int, elements: int) -> list[Any]:
        """Coefficients of rank one; the circle on which S4 evaluates its kernel."""
        channels = max(1, min(FEW_CHANNELS, elements // length))
        angles = torch.linspace(0, torch.pi, length).double()
        w = torch.polar(1 - 0.1 * torch.rand(channels, MODES).double(), 3 * torch.rand(channels, MODES).double())
        v = leaf(4, channels, MODES, dtype=torch.complex128)
        return [v, torch.polar(torch.full_like(angles, 1 + 1 / length), angles), w.requires_grad_()]

    def state_space(u: Tensor, coefficient: Tensor, log_ratio: Tensor) -> Tensor:
        return ops.long_conv(u, ops.vandermonde(coefficient, log_ratio, u.shape[-1]))

    def kernel(channels: int) -> Inputs:
        return lambda length, elements: [*_modes(max(1, min(channels, elements // length))), length]

    spaces, sums, cauchy = baselines.diagonal_state_space, baselines.vandermonde_sum, {"torch": baselines.cauchy_sum}
    averaged = {"torch": baselines.moving_average, OUR_TORCH: running_on_torch(ops.damped_average)}
    blocked = {op: {OUR_TORCH: running_on_torch(OPS[op])} for op in ("vandermonde", "cauchy")}
    few, many, vandermonde = kernel(FEW_CHANNELS), kernel(CHANNELS), ops.vandermonde
    return [
        OperatorCase("S4D", "kernel and convolution", MIDDLE[:2], whole, state_space, {"torch": spaces}),
        OperatorCase("EMA", "Mega", MIDDLE[:2], averages, ops.damped_average, averaged),
        OperatorCase("vandermonde", "64 channels", MIDDLE[:2], few, vandermonde, {"torch": sums}),
        OperatorCase("vandermonde", "256 channels", MIDDLE, many, vandermonde, blocked["vandermonde"]),
        OperatorCase("cauchy", "float64, few points", (256, 1 << 10), poles, ops.cauchy, cauchy),
        OperatorCase("cauchy", "float64, many points", (1 << 14,), poles, ops.cauchy, blocked["cauchy"]),
    ]


def _losses() -> list[OperatorCase]:
    def inputs(length: int, elements: int) -> list[Any]:
        vocabulary = max(2, elements // CHANNELS)
        return [leaf(length, CHANNELS), leaf(vocabulary, CHANNELS), torch.randint(vocabulary, (length,))]

    unfused = {"unfused": baselines.cross_entropy}
    return [OperatorCase("cross_entropy", "16,384 tokens", MIDDLE[:2], inputs, ops.linear_cross_entropy, unfused)]


def _steps() -> list[OperatorCase]:
    """One position of every mixer that has a recurrent view, after a past of `length` positions, as in generation."""

    def inputs(name: str) -> Inputs:
        def build(length: int, elements: int) -> list[Any]:
            width = min(CHANNELS, max(WIDTH, elements >> 14))
            mixer = build_mixer(name, width, 2 * length).eval()
            with torch.no_grad():
                _, state = mixer.prefill(torch.randn(1, length, mixer.d_model), mixer.init_state(1))
            return [mixer, torch.randn(1, mixer.d_model), state, {}]

        return build

    def generating(mixer: SequenceMixer, x: Tensor, state: Any, kept: Kept) -> Tensor:
        with constant_weights(kept):
            return mixer.step(x, state)[0]

    def alone(mixer: SequenceMixer, x: Tensor, state: Any, kept: Kept) -> Tensor:
        return mixer.step(x, state)[0]

    names = [name for name in mixer_names() if _has_steps(name)]
    return [
        OperatorCase("step", name, (1000,), inputs(name), generating, {"nothing kept": running_on_torch(alone)})
        for name in names
    ]


def _has_steps(name: str) -> bool:
    try:
        build_mixer(name, WIDTH, 1).init_state(1)
    except InputError:
        return False
    return True
