"""Time every backend of the operators, so that the order in which they are preferred rests on a measurement.

    python benchmarks/bench_ops.py [--lengths 1024 8192] [--ops long_conv ...]

Prints one JSON line for each (operator, case, backend, length): nanoseconds per element of the longest tensor, of the
forward pass and of forward and backward together, one thread, processor time, the best of a few runs.  `baseline` rows
are what one would write in torch without this library.  Online convolution is timed per step, on pasts of two lengths.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from longreach.ops import OPS, init_online_conv, online_conv_prefill, online_conv_step, use_backend

DEFINITION_LIMIT = 2048
"""Longest length at which definitions that take quadratic time, or a graph node per step, are timed."""


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random input that wants its gradient."""
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def decay(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Coefficients below one."""
    return (0.9 * torch.rand(*shape)).to(dtype).requires_grad_()


def log_ratio() -> Tensor:
    """256 channels of 32 slowly decaying modes."""
    return torch.complex(-0.01 * torch.rand(256, 32), torch.randn(256, 32)).requires_grad_()


def plain_fft(u: Tensor, kernel: Tensor, gate_before: Tensor | None = None, gate_after: Tensor | None = None) -> Tensor:
    """The usual convolution by FFT: everything at once, padded to twice the length."""
    n = 2 * u.shape[-1]
    v = u if gate_before is None else u * gate_before
    y = torch.fft.irfft(torch.fft.rfft(v, n=n) * torch.fft.rfft(kernel, n=n), n=n)[..., : u.shape[-1]]
    return y if gate_after is None else y * gate_after


CFLOAT = torch.complex64
CASES: dict[tuple[str, str], Callable[[int], tuple[tuple, dict]]] = {
    ("long_conv", "causal"): lambda l: ((leaf(2, 256, l), leaf(256, l)), {}),
    ("long_conv", "gated"): lambda l: (
        (leaf(2, 256, l), leaf(256, l)),
        {"gate_before": leaf(2, 256, l), "gate_after": leaf(2, 256, l)},
    ),
    ("long_conv", "128 taps"): lambda l: ((leaf(2, 256, l), leaf(256, 128)), {}),
    ("short_conv", "4 taps"): lambda l: ((leaf(2, 256, l), leaf(256, 4), leaf(256)), {}),
    ("linear_attention", "4 heads of 64"): lambda l: ((leaf(1, 4, l, 64), leaf(1, 4, l, 64), leaf(1, 4, l, 64)), {}),
    ("linear_attention", "256 features"): lambda l: ((leaf(1, 4, l, 256), leaf(1, 4, l, 256), leaf(1, 4, l, 64)), {}),
    ("linear_scan", "real"): lambda l: ((decay(4, l, 256), leaf(4, l, 256), leaf(4, 256)), {}),
    ("linear_scan", "complex"): lambda l: (
        (decay(4, l, 64, dtype=CFLOAT), leaf(4, l, 64, dtype=CFLOAT), leaf(4, 64, dtype=CFLOAT)),
        {},
    ),
    ("vandermonde", "32 modes"): lambda l: ((leaf(256, 32, dtype=CFLOAT), log_ratio(), l), {}),
    ("vandermonde_adjoint", "32 modes"): lambda l: ((leaf(2, 256, l), log_ratio()), {}),
}


def best_seconds(call: Callable[[], object], repeats: int = 4) -> float:
    """The least processor time of a few calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def time_call(call: Callable[[], Tensor], inputs: list[Tensor]) -> dict[str, float]:
    """Nanoseconds per element of the longest tensor, forward, and forward and backward."""
    y = call()
    elements = max(x.numel() for x in (y, *inputs))
    cotangent = torch.randn(y.shape, dtype=y.dtype)
    with torch.no_grad():
        forward = best_seconds(call)
    both = best_seconds(lambda: torch.autograd.grad(call(), inputs, cotangent))
    return {"forward_ns": round(1e9 * forward / elements, 2), "both_ns": round(1e9 * both / elements, 2)}


def first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The output of an operator that may also give a state."""
    return result[0] if isinstance(result, tuple) else result


def time_operator(op: str, case: str, length: int) -> None:
    """One row for each backend, and one for the baseline."""
    positional, named = CASES[op, case](length)
    inputs = [x for x in (*positional, *named.values()) if isinstance(x, Tensor)]
    for backend in OPS[op].backends:
        row = {"op": op, "case": case, "length": length, "backend": backend}
        if backend == "reference" and length > DEFINITION_LIMIT and op != "short_conv":
            continue
        with use_backend(**{op: backend}):
            print(json.dumps(row | time_call(lambda: first(OPS[op](*positional, **named)), inputs)), flush=True)
    if op == "long_conv":
        row = {"op": op, "case": case, "length": length, "backend": "baseline"}
        print(json.dumps(row | time_call(lambda: plain_fft(*positional, **named), inputs)), flush=True)


@torch.no_grad()
def time_online_conv(past: int, steps: int = 1024, channels: int = 128) -> None:
    """Mean and median time of a step on top of a past; the mean pays for the merging of blocks, the median does not."""
    kernel = torch.randn(channels, 2 * past + steps)
    arguments = (lambda n: kernel[:, :n]), kernel.shape[-1]
    _, state = online_conv_prefill(torch.randn(1, channels, past), init_online_conv(1, channels), *arguments)
    times = []
    for x in torch.randn(steps, 1, channels):
        start = time.process_time()
        _, state = online_conv_step(x, state, *arguments)
        times.append(1e6 * (time.process_time() - start))
    row = {"op": "online_conv", "past": past, "mean_us": round(sum(times) / steps, 1)}
    print(json.dumps(row | {"median_us": round(sorted(times)[steps // 2], 1), "most_us": round(max(times), 1)}))


def main() -> None:
    """Run what the command line asks for, on one thread."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--ops", nargs="+", default=[*sorted({op for op, _ in CASES}), "online_conv"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for op, case in CASES:
        for length in options.lengths if op in options.ops else ():
            time_operator(op, case, length)
    if "online_conv" in options.ops:
        for past in (1 << 10, 1 << 14):  # just after the merge that the length of the past brings about
            time_online_conv(past)


if __name__ == "__main__":
    main()
