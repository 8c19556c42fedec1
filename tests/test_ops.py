"""Operators of convolution and recurrence: the definitions mean what they say, and every backend computes them.

Values, first and second derivatives, accuracy in low precision, awkward lengths, layouts and errors.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from native_calls import assert_derived_twice, chained
from torch import Tensor

from longreach.errors import InputError
from longreach.ops import (
    OPS,
    BackendError,
    fft_conv,
    linear_scan,
    long_conv,
    low_pass,
    short_conv,
    short_conv_tail,
    use_backend,
    vandermonde,
    vandermonde_adjoint,
)
from longreach.ops.backend import op
from longreach.ops.native import MISSING

TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}
Arguments = tuple[tuple, dict[str, Any]]


def _real(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _complex(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


def _log_ratio(*shape: int) -> Tensor:
    """Logarithms of ratios within the unit circle, with phases of all sizes."""
    return torch.complex(-torch.rand(*shape, dtype=torch.float64), 3 * _real(*shape))


def _gates(l: int) -> dict[str, Tensor]:
    return {"skip": _real(3), "gate_before": _real(2, 3, l), "gate_after": _real(2, 3, l)}


def _averages(l: int, directions: int, n: int) -> Arguments:
    shape = (directions, 3, n)
    return (_real(2, l, 3), _real(*shape), _real(*shape).sigmoid(), _real(3)), {}


CASES: dict[str, dict[str, Callable[[int], Arguments]]] = {
    "damped_average": {
        "past": lambda l: _averages(l, 1, 4),
        "past and future": lambda l: _averages(l, 2, 5),
        "one average": lambda l: _averages(l, 1, 1),
    },
    "linear_scan": {
        "real": lambda l: ((_real(2, l, 3).sigmoid(), _real(2, l, 3), _real(2, 3)), {}),
        "complex": lambda l: ((_log_ratio(2, l, 3).exp(), _complex(2, l, 3), _complex(2, 3)), {}),
        "real coefficients, complex states": lambda l: ((_real(2, l, 3).tanh(), _complex(2, l, 3), _real(2, 3)), {}),
    },
    "long_conv": {
        "causal": lambda l: ((_real(2, 3, l), _real(3, l)), {}),
        "few taps": lambda l: ((_real(2, 3, l), _real(3, 2)), {}),
        "too many taps": lambda l: ((_real(2, 3, l), _real(3, l + 3)), {}),
        "skip": lambda l: ((_real(2, 3, l), _real(3, l)), {"skip": _real(3)}),
        "gates and skip": lambda l: ((_real(2, 3, l), _real(3, l)), _gates(l)),
        "gate before": lambda l: ((_real(2, 3, l), _real(3, l)), {"gate_before": _real(2, 3, l)}),
        "gate after": lambda l: ((_real(2, 3, l), _real(3, l)), {"gate_after": _real(2, 3, l)}),
        "two-sided": lambda l: ((_real(2, 3, l), _real(3, l)), {"reverse_kernel": _real(3, l)}),
        "two-sided, lag 0 twice": lambda l: (
            (_real(2, 3, l), _real(3, l)),
            {"reverse_kernel": _real(3, l), "reverse_lag": 0},
        ),
        "two-sided, uneven": lambda l: ((_real(2, 3, l), _real(3, 2)), {"reverse_kernel": _real(3, l + 4)} | _gates(l)),
        "circular": lambda l: ((_real(2, 3, l), _real(3, l)), {"period": l}),
        "circular, long filter": lambda l: ((_real(2, 3, l), _real(3, 3 * l + 1)), {"period": l + 2}),
        "circular, two-sided": lambda l: (
            (_real(2, 3, l), _real(3, l)),
            {"period": l + 1, "reverse_kernel": _real(3, 2 * l + 5), "reverse_lag": 0} | _gates(l),
        ),
    },
    "short_conv": {
        "plain": lambda l: ((_real(2, 3, l), _real(3, 3)), {}),
        "bias": lambda l: ((_real(2, 3, l), _real(3, 4), _real(3)), {}),
        "tail": lambda l: ((_real(2, 3, l), _real(3, 4), _real(3), _real(2, 3, 3)), {}),
        "one tap": lambda l: ((_real(2, 3, l), _real(3, 1)), {}),
    },
    "vandermonde": {
        "kernel": lambda l: ((_complex(3, 2), _log_ratio(3, 2), l), {}),
        "batched": lambda l: ((_complex(2, 3, 2), _log_ratio(3, 2), l), {}),
        "shared modes": lambda l: ((_complex(2, 3, 2), _log_ratio(1, 2), l), {}),
    },
    "vandermonde_adjoint": {
        "one": lambda l: ((_real(3, l), _log_ratio(3, 2)), {}),
        "batched": lambda l: ((_real(2, 3, l), _log_ratio(3, 2)), {}),
        "shared modes": lambda l: ((_real(2, 3, l), _log_ratio(1, 2)), {}),
    },
}


def takes(op: str, backend: str, case: str) -> bool:
    """Whether a backend runs a case at all."""
    positional, named = CASES[op][case](3)
    return OPS[op].refusal(backend, *positional, **named) is None


BACKENDS = [(o, b, c) for o in CASES for c in CASES[o] for b in OPS[o].backends if takes(o, b, c)]
CONVOLUTIONS = [name for name in OPS["long_conv"].backends if name != "triton"]
"""What convolves on a CPU."""
FASTER = [(o, b, c, l) for o, b, c in BACKENDS if b != "reference" for l in (1, 2, 3, 16, 37)]


def tensors(arguments: Arguments) -> list[Tensor]:
    """All tensors among the arguments."""
    return [x for x in (*arguments[0], *arguments[1].values()) if isinstance(x, Tensor)]


def mapped(arguments: Arguments, function: Callable[[Tensor], Tensor]) -> Arguments:
    """The arguments with `function` applied to every tensor."""

    def apply(x: Any) -> Any:
        return function(x) if isinstance(x, Tensor) else x

    return tuple(apply(x) for x in arguments[0]), {name: apply(x) for name, x in arguments[1].items()}


def run(op: str, backend: str, arguments: Arguments) -> Tensor:
    """One call on one backend."""
    with use_backend(**{op: backend}):
        return OPS[op](*arguments[0], **arguments[1])


def assert_same(op: str, backend: str, arguments: Arguments) -> None:
    """Values and gradients of a backend are those of the reference."""
    arguments = mapped(arguments, lambda x: x.requires_grad_())
    results = [run(op, name, arguments) for name in (backend, "reference")]
    cotangent = torch.randn(results[1].shape, dtype=results[1].dtype)
    gradients = [torch.autograd.grad(y, tensors(arguments), cotangent) for y in results]
    for actual, expected in zip((results[0], *gradients[0]), (results[1], *gradients[1]), strict=True):
        torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize("op", CASES)
def test_backends_share_the_signature(op: str) -> None:
    def parameters(function: Callable) -> list:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    expected = parameters(OPS[op].backends["reference"])
    assert len(OPS[op].backends) > 1
    for name, backend in OPS[op].backends.items():
        assert parameters(backend) == expected, name


@pytest.mark.parametrize(("op", "backend", "case", "length"), FASTER)
def test_value_and_gradient(op: str, backend: str, case: str, length: int) -> None:
    assert_same(op, backend, CASES[op][case](length))


@pytest.mark.parametrize("backend", CONVOLUTIONS)
@pytest.mark.parametrize("case", ["causal", "gates and skip", "two-sided, uneven"])
@pytest.mark.parametrize("length", [3, 2000])
def test_an_empty_batch_convolves_to_an_empty_batch(backend: str, case: str, length: int) -> None:
    """And its filters have gradients, which are zero, however often one differentiates."""
    arguments = mapped(CASES["long_conv"][case](length), lambda x: (x[:0] if x.ndim > 2 else x).requires_grad_())
    y = run("long_conv", backend, arguments)
    assert y.shape == (0, 3, length)
    first = torch.autograd.grad(y.sum(), tensors(arguments), create_graph=True)
    second = torch.autograd.grad(sum(x.sum() for x in first), tensors(arguments), allow_unused=True)
    for given, *grads in zip(tensors(arguments), first, second, strict=True):
        assert all(grad is None or (grad.shape == given.shape and not grad.any()) for grad in grads)


@pytest.mark.parametrize(("op", "backend", "case"), BACKENDS)
def test_first_and_second_derivatives(op: str, backend: str, case: str) -> None:
    positional, named = mapped(CASES[op][case](5), lambda x: x.requires_grad_())
    inputs, names = (*positional, *named.values()), list(named)

    def function(*values: Any) -> Tensor:
        split = len(positional)
        return OPS[op](*values[:split], **dict(zip(names, values[split:], strict=True)))

    with use_backend(**{op: backend}):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True, rtol=1e-5, atol=1e-7)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("op", "backend", "case"), [row for row in BACKENDS if row[1] in ("fft", "groups")])
def test_second_derivatives_where_arguments_are_computed_from_others(op: str, backend: str, case: str) -> None:
    """No way through another argument is followed twice; for compiled kernels see test_native.py."""
    positional, named = mapped(CASES[op][case](5), lambda x: x.requires_grad_())
    inputs, names = (*positional, *named.values()), list(named)

    def function(*values: Any) -> Tensor:
        made = chained(values)
        return OPS[op](*made[: len(positional)], **dict(zip(names, made[len(positional) :], strict=True)))

    with use_backend(**{op: backend}):
        assert_derived_twice(function, inputs)


@pytest.mark.parametrize(("op", "backend", "case"), [row for row in BACKENDS if row[1] != "reference"])
def test_float32_error_is_that_of_the_reference(op: str, backend: str, case: str) -> None:
    """At most four times the reference's own rounding error, for values and for gradients."""
    arguments = CASES[op][case](300)
    low = mapped(arguments, lambda x: x.to(torch.complex64 if x.is_complex() else torch.float32))
    arguments = mapped(low, lambda x: x.to(torch.complex128 if x.is_complex() else torch.float64).requires_grad_())
    low = mapped(low, lambda x: x.requires_grad_())
    exact = run(op, "reference", arguments)
    cotangent = torch.randn(exact.shape, dtype=exact.dtype)
    exact = [exact, *torch.autograd.grad(exact, tensors(arguments), cotangent)]
    found = []
    for name in (backend, "reference"):
        y = run(op, name, low)
        assert y.dtype in (torch.float32, torch.complex64)
        found.append([y, *torch.autograd.grad(y, tensors(low), cotangent.to(y.dtype))])
    for ours, reference, truth in zip(*found, exact, strict=True):
        error, allowed = ((x.to(truth.dtype) - truth).norm() for x in (ours, reference))
        assert allowed < 1e-3 * truth.norm(), "an output of zeros would pass"
        assert error <= 4 * allowed + 1e-6 * truth.norm()  # a matrix product sums in a better order than a transform


@pytest.mark.parametrize("backend", CONVOLUTIONS)
@pytest.mark.parametrize("case", ["causal", "gates and skip", "two-sided, uneven"])
def test_half_precision_convolutions_only_round_their_result(backend: str, case: str) -> None:
    """Inside everything is float32: the result is the exact one to within the one rounding at the end."""
    arguments = mapped(CASES["long_conv"][case](200), lambda x: x.to(torch.bfloat16))
    exact = run("long_conv", "reference", mapped(arguments, torch.Tensor.double))
    y = run("long_conv", backend, arguments)
    assert y.dtype == torch.bfloat16
    assert ((y - exact).abs() <= 2.0**-8 * exact.abs() + 1e-5 * exact.abs().max()).all()


@pytest.mark.parametrize("backend", [name for name in OPS["short_conv"].backends if name != "triton"])
def test_half_precision_short_convolution(backend: str) -> None:
    arguments = mapped(CASES["short_conv"]["tail"](200), lambda x: x.to(torch.bfloat16))
    exact = run("short_conv", "reference", mapped(arguments, torch.Tensor.double))
    y = run("short_conv", backend, arguments)
    assert y.dtype == torch.bfloat16
    assert ((y - exact).abs() <= 2.0**-8 * exact.abs() + 1e-5 * exact.abs().max()).all()


def test_short_conv_takes_float32_weights_for_half_precision_inputs() -> None:
    x, weight, bias = torch.randn(1, 2, 40_000).bfloat16(), torch.randn(2, 3), torch.randn(2)
    y = short_conv(x, weight, bias)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, run("short_conv", "reference", ((x, weight, bias), {})), rtol=2e-2, atol=2e-2)


# What the definitions mean, written out once more with plain numbers.


@pytest.mark.parametrize(("reverse_lag", "period"), [(0, None), (1, None), (0, 7), (1, 9), (1, 20)])
def test_the_definition_of_long_conv(reverse_lag: int, period: int | None) -> None:
    u, kernel, reverse, skip = _real(7), _real(11), _real(9), _real(())
    before, after = _real(7), _real(7)
    expected = torch.zeros(7, dtype=torch.float64)
    v = before * u
    for t in range(7):
        for j in range(7):
            for turn in range(-3, 4) if period else (0,):
                lag = t - j + turn * (period or 0)
                if 0 <= lag < 11:
                    expected[t] += kernel[lag] * v[j]
                if 0 <= -lag - reverse_lag < 9:
                    expected[t] += reverse[-lag - reverse_lag] * v[j]
        expected[t] = after[t] * (expected[t] + skip * v[t])
    with use_backend(long_conv="reference"):
        y = long_conv(
            u.view(1, 1, 7), kernel[None], reverse_kernel=reverse[None], reverse_lag=reverse_lag, skip=skip[None],
            gate_before=before.view(1, 1, 7), gate_after=after.view(1, 1, 7), period=period,
        )  # fmt: skip
    torch.testing.assert_close(y[0, 0], expected, **TOLERANCE)


def test_the_definition_of_short_conv() -> None:
    x, weight, bias, tail = _real(1, 1, 4), _real(1, 3), _real(1), _real(1, 1, 2)
    past = [*tail[0, 0], *x[0, 0]]
    expected = [bias[0] + sum(weight[0, 2 - j] * past[t + 2 - j] for j in range(3)) for t in range(4)]
    with use_backend(short_conv="reference"):
        torch.testing.assert_close(short_conv(x, weight, bias, tail)[0, 0], torch.stack(expected), **TOLERANCE)


def test_the_definitions_of_the_vandermonde_products() -> None:
    c, log_ratio, u = _complex(1, 2), _log_ratio(1, 2), _real(1, 5)
    z = log_ratio.exp()[0]
    y = torch.stack([2 * (c[0] * z**l).sum().real for l in range(5)])
    s = sum(z ** (4 - l) * u[0, l] for l in range(5))
    with use_backend(vandermonde="reference", vandermonde_adjoint="reference"):
        torch.testing.assert_close(vandermonde(c, log_ratio, 5)[0], y, **TOLERANCE)
        torch.testing.assert_close(vandermonde_adjoint(u, log_ratio)[0], s, **TOLERANCE)


def test_vandermonde_adjoint_is_the_state_of_the_recurrence() -> None:
    u, log_ratio = _real(2, 3, 20), _log_ratio(3, 2)
    ratio = log_ratio.exp().expand(2, 20, 3, 2).flatten(2)
    inputs = u.mT[..., None].expand(2, 20, 3, 2).flatten(2).to(ratio.dtype)
    states = linear_scan(ratio, inputs, torch.zeros_like(inputs[:, 0]))
    torch.testing.assert_close(vandermonde_adjoint(u, log_ratio), states[:, -1].view(2, 3, 2), **TOLERANCE)


def test_late_powers_keep_their_phase_in_float32() -> None:
    """2^-20 radians of rounding in a phase of 3 l would be visible: powers are computed in float64."""
    log_ratio = torch.complex(torch.zeros(1, 2), torch.tensor([[3.0, -2.9]]))
    y = vandermonde(torch.ones(1, 2, dtype=torch.complex64), log_ratio, 100_000)
    t = torch.arange(100_000, dtype=torch.float64)
    exact = 2 * (torch.cos(log_ratio[0, 0].imag.double() * t) + torch.cos(log_ratio[0, 1].imag.double() * t))
    assert (y[0] - exact).abs().max() < 2e-6


# The inside of the transform backend: groups of channels, blocks of time, sizes, memory.


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two channels at a time, so that seven channels end in an incomplete group."""
    monkeypatch.setattr(fft_conv, "CACHE", 1)
    monkeypatch.setattr(fft_conv, "FEWEST_CHANNELS", 2)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("reverse", [False, True])
def test_groups_of_channels(reverse: bool) -> None:
    named = {"skip": _real(7), "gate_before": _real(2, 7, 9), "gate_after": _real(2, 7, 9)}
    if reverse:
        named["reverse_kernel"] = _real(7, 5)
    assert_same("long_conv", "fft", ((_real(2, 7, 9), _real(7, 9)), named))


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("taps", [1, 3, 64, 130])
@pytest.mark.parametrize("length", [1280, 1281, 1500])
def test_short_filters_are_applied_in_blocks(length: int, taps: int) -> None:
    u, kernel = _real(1, 3, length), _real(3, taps)
    assert fft_conv.linear_plan(length, taps, 0).stride < length
    named = {"skip": _real(3), "gate_before": _real(1, 3, length), "gate_after": _real(1, 3, length)}
    assert_same("long_conv", "fft", ((u, kernel), {}))
    assert_same("long_conv", "fft", ((u, kernel), named))


def test_second_derivatives_in_blocks() -> None:
    u, kernel = _real(1, 1, 1100).requires_grad_(), _real(1, 3).requires_grad_()
    assert fft_conv.linear_plan(1100, 3, 0).stride < 1100
    assert torch.autograd.gradgradcheck(long_conv, (u, kernel), fast_mode=True, rtol=1e-5, atol=1e-7)


def test_blocks_overlap_at_most_once() -> None:
    for length in (1024, 5000, 100_000):
        for taps in (1, 2, 100, 127, 128, 129, 1000, 20_000):
            plan = fft_conv.linear_plan(length, taps, 0)
            assert plan.stride >= length or plan.size - plan.stride == taps - 1 <= plan.stride


def test_transform_sizes_are_fast_and_not_wasteful() -> None:
    for least in range(1, 5000):
        size = fft_conv.fast_size(least)
        odd = size // (size & -size)
        assert least <= size < max(1.34 * least, least + 8)
        assert odd in (1, 3, 5, 9)
        assert size == 1 or size % 2 == 0


@pytest.mark.parametrize("case", ["causal", "gates and skip"])
def test_only_the_arguments_are_kept_for_the_backward_pass(case: str) -> None:
    """No spectrum, no padded copy, no product with a gate."""
    arguments = mapped(CASES["long_conv"][case](64), lambda x: x.requires_grad_())
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        long_conv(*arguments[0], **arguments[1])
    storages = {x.untyped_storage().data_ptr() for x in tensors(arguments)}
    assert kept
    assert all(x.untyped_storage().data_ptr() in storages for x in kept)


@pytest.mark.parametrize("wanted", [0, 1, 2, 3, 4])
def test_each_gradient_alone(wanted: int) -> None:
    """Only what is asked for is computed, and it is the same as when everything is."""
    arguments = CASES["long_conv"]["gates and skip"](12)
    chosen = tensors(arguments)[wanted].requires_grad_()
    gradients = [torch.autograd.grad(run("long_conv", b, arguments).sum(), chosen)[0] for b in ("fft", "reference")]
    torch.testing.assert_close(*gradients, **TOLERANCE)


@pytest.mark.parametrize("op", ["long_conv", "short_conv"])
def test_transposed_inputs(op: str) -> None:
    """Mixers hand over views of (b, l, d)."""
    for backend in OPS[op].backends.keys() - {"triton"}:
        x, weight = _real(2, 9, 3).mT, _real(4, 3).mT
        expected = run(op, "reference", ((x.contiguous(), weight.contiguous()), {}))
        torch.testing.assert_close(run(op, backend, ((x, weight), {})), expected, **TOLERANCE)


def test_scan_of_expanded_inputs() -> None:
    """Time-invariant coefficients come as a view that repeats one row."""
    a, x = _real(1, 1, 3).sigmoid().expand(2, 10, 3), _real(2, 3, 10).mT
    for backend in OPS["linear_scan"].backends.keys() - {"triton"}:
        y = run("linear_scan", backend, ((a, x, _real(2, 3) * 0), {}))
        expected = run("linear_scan", "reference", ((a.contiguous(), x.contiguous(), _real(2, 3) * 0), {}))
        torch.testing.assert_close(y, expected, **TOLERANCE)


# Filters with few frequencies, the tail of a short convolution.


def test_low_pass_keeps_the_low_bins_and_nothing_else() -> None:
    kernel = _real(2, 10)
    filtered = torch.fft.rfft(low_pass(kernel, 12, keep=5))
    torch.testing.assert_close(filtered[:, :5], torch.fft.rfft(kernel, n=24)[:, :5], **TOLERANCE)
    torch.testing.assert_close(filtered[:, 5:], torch.zeros_like(filtered[:, 5:]), **TOLERANCE)
    torch.testing.assert_close(low_pass(kernel, 12, keep=13), torch.nn.functional.pad(kernel, (0, 14)), **TOLERANCE)


@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
def test_short_convolution_in_groups_of_one_channel(wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the channels are grouped, the result and each derivative, asked for alone, are the same."""
    monkeypatch.setattr("longreach.ops.short_conv_groups.CACHE", 1)
    arguments = CASES["short_conv"]["tail"](9)
    chosen = tensors(arguments)[wanted].requires_grad_()
    y, expected = (run("short_conv", backend, arguments) for backend in ("groups", "reference"))
    torch.testing.assert_close(y, expected, **TOLERANCE)
    gradients = [torch.autograd.grad(z.square().sum(), chosen)[0] for z in (y, expected)]
    torch.testing.assert_close(*gradients, **TOLERANCE)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_short_convolution_in_chunks(width: int) -> None:
    """Any cut, with the tail carried over, gives what one call gives; also chunks shorter than the filter."""
    x, weight, bias = _real(2, 3, 12), _real(3, width), _real(3)
    expected = short_conv(x, weight, bias)
    for cut in ((12,), (1,) * 12, (2, 1, 5, 4), (7, 5)):
        tail, outputs = torch.zeros(2, 3, width - 1, dtype=torch.float64), []
        for chunk in x.split(cut, dim=-1):
            outputs.append(short_conv(chunk, weight, bias, tail))
            tail = short_conv_tail(chunk, tail, width)
        torch.testing.assert_close(torch.cat(outputs, dim=-1), expected, **TOLERANCE)
        torch.testing.assert_close(tail, short_conv_tail(x, None, width), **TOLERANCE)


def test_a_tail_keeps_its_dtype_and_shares_no_memory() -> None:
    x, tail = torch.randn(1, 2, 5).bfloat16(), torch.zeros(1, 2, 3)
    after = short_conv_tail(x, tail, 4)
    assert after.dtype == torch.float32
    assert short_conv_tail(x, None, 4).untyped_storage().nbytes() == 2 * 3 * 2


# Choosing between backends.


def test_which_backend_runs() -> None:
    compiled = MISSING is None
    assert long_conv.choose(torch.zeros(1, 2, 8), torch.zeros(2, 8)) == ("native" if compiled else "fft")
    assert long_conv.choose(torch.zeros(1, 2, 8), torch.zeros(2, 8), period=8) == "fft"
    assert linear_scan.choose(*CASES["linear_scan"]["real"](4)[0]) == ("native" if compiled else "blocked")
    on_accelerator = [x.to("meta") for x in CASES["linear_scan"]["real"](4)[0]]
    assert linear_scan.choose(*on_accelerator) == "doubling"
    assert short_conv.choose(torch.zeros(1, 2, 8), torch.zeros(2, 3)) == ("native" if compiled else "reference")
    assert short_conv.choose(torch.zeros(1, 2, 1 << 16), torch.zeros(2, 3)) == ("native" if compiled else "groups")
    on_accelerator = torch.zeros(1, 2, 1 << 16, device="meta")
    assert short_conv.choose(on_accelerator, torch.zeros(2, 3, device="meta")) == "conv1d"


@pytest.fixture
def halve() -> Iterator[Callable]:
    """An operation with a backend that refuses odd numbers and one that yields for small ones."""

    @op
    def halve(x: float) -> str:
        return f"reference {x / 2}"

    @halve.backend("even", refuses=lambda x: "odd" if x % 2 else None)
    def even(x: float) -> str:
        return f"even {x / 2}"

    @halve.backend("large", yields=lambda x: "small" if x < 10 else None)
    def large(x: float) -> str:
        return f"large {x / 2}"

    yield halve
    del OPS["halve"]


def test_the_last_willing_backend_runs(halve: Callable) -> None:
    assert (halve(3), halve(4), halve(11)) == ("reference 1.5", "even 2.0", "large 5.5")
    assert halve.explain(3) == {"reference": None, "even": "odd", "large": "small"}


def test_a_forced_backend_never_falls_back(halve: Callable) -> None:
    with use_backend(halve="even"):
        assert halve(4) == halve(20).replace("10", "2") == "even 2.0"
        with pytest.raises(BackendError, match="'even' refused: odd"):
            halve(3)
    with use_backend(halve="large"):
        assert halve(3) == "large 1.5"  # to yield is a preference, not a refusal


def test_forcing_ends_with_its_block(halve: Callable) -> None:
    with pytest.raises(ZeroDivisionError), use_backend(halve="reference"):  # noqa: PT012
        with use_backend(halve="even"):
            assert halve(20) == "even 10.0"
        assert halve(20) == "reference 10.0"
        raise ZeroDivisionError
    assert halve(20) == "large 10.0"


def test_forcing_what_does_not_exist() -> None:
    with pytest.raises(KeyError, match="no backend 'gpu'"), use_backend(linear_scan="gpu"):
        pass
    with pytest.raises(KeyError, match="no operation 'scan'"), use_backend(scan="reference"):
        pass


# Mistakes.


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (r"u is \(1, 2, 4\); kernels must be \(2, taps\)", ((_real(1, 2, 4), _real(3, 4)), {})),
        (r"got \[\(2, 4\), \(3, 4\)\]", ((_real(1, 2, 4), _real(2, 4)), {"reverse_kernel": _real(3, 4)})),
        (r"got \[\(2, 4\), \(1,\)\]", ((_real(1, 2, 4), _real(2, 4)), {"skip": _real(1)})),
        ("gates like u", ((_real(1, 2, 4), _real(2, 4)), {"gate_before": _real(1, 2, 1)})),
        ("gates like u", ((_real(1, 2, 4), _real(2, 4)), {"gate_after": _real(1, 1, 4)})),
        ("none of them empty", ((_real(1, 2, 0), _real(2, 4)), {})),
        ("none of them empty", ((_real(1, 2, 4), _real(2, 0)), {})),
        ("reverse_lag=2", ((_real(1, 2, 4), _real(2, 4)), {"reverse_kernel": _real(2, 4), "reverse_lag": 2})),
        ("period=3 is less than the length 4", ((_real(1, 2, 4), _real(2, 4)), {"period": 3})),
    ],
)
def test_long_conv_says_what_does_not_fit(message: str, arguments: Arguments) -> None:
    with pytest.raises(InputError, match=message):
        run("long_conv", "fft", arguments)


def test_the_others_say_what_does_not_fit() -> None:
    x = _real(1, 4, 2)
    with use_backend(linear_scan="blocked", vandermonde="blocked", vandermonde_adjoint="blocked", short_conv="conv1d"):
        with pytest.raises(InputError, match=r"initial \(1, 3\) must be"):
            linear_scan(x, x, _real(1, 3))
        with pytest.raises(InputError, match=r"a \(1, 4, 2\) and x \(1, 3, 2\)"):
            linear_scan(x, x[:, 1:], _real(1, 2))
        with pytest.raises(InputError, match="length, 0, at least 1"):
            vandermonde(_complex(1, 2), _log_ratio(1, 2), 0)
        with pytest.raises(InputError, match=r"\(2, 2\) in one argument and \(3, 2\)"):
            vandermonde(_complex(2, 2), _log_ratio(3, 2), 3)
        with pytest.raises(InputError, match=r"\(3,\) in one argument"):
            vandermonde_adjoint(_real(3, 4), _log_ratio(2, 2))
        with pytest.raises(InputError, match=r"tail is \(1, 2, 3\)"):
            short_conv(x.mT, _real(2, 3), None, _real(1, 2, 3))
