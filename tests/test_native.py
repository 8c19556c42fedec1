"""The compiled kernels, for every instruction set: what the definitions say, whatever is thrown at them.

Second derivatives, half precision and errors: test_ops.py, where the kernels are backends among others.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_calls import (
    BUILDS,
    MAKERS,
    SHORT,
    Call,
    assert_derived_twice,
    built_for,
    calls,
    chained,
    expected,
    operator,
    results,
)
from torch import Tensor

from longreach.bench.memory import peak_bytes
from longreach.ops import OPS, AttentionMask, WKVState, native

pytestmark = pytest.mark.skipif(native.MISSING is not None, reason=f"{native.MISSING}")

OF_EVERY_BUILD = pytest.mark.parametrize("build", BUILDS)
OF_EVERY_OPERATOR = pytest.mark.parametrize("op", MAKERS)
FEW = settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
FEWER = settings(FEW, max_examples=8)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """As a user has who sets nothing."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def modes(*shape: int) -> Tensor:
    return torch.complex(-0.1 * randn(*shape).abs(), 3 * randn(*shape))


def typical_calls(b: int = 2, d: int = 5, l: int = 37) -> list[Call]:
    """One call of each operator, with all of its arguments."""
    gates = {"gate_before": randn(b, d, l), "gate_after": randn(b, d, l)}
    long_conv = {"reverse_kernel": randn(d, l), "skip": randn(d)} | gates
    points, k = torch.complex(torch.zeros(l, dtype=torch.float64), 5 * randn(l)), min(l, 40)
    attention = {"softcap": 3.0, "alibi_slopes": randn(d), "dropout": 0.2, "dropout_seed": torch.tensor(7)}
    short = min(l, 400)  # pairs are many
    heads = randn(b, d, short, 3), randn(b, d, short, 3), randn(b, d, short, 7)
    return [
        Call("attention", short, (*heads, AttentionMask(True, 20)), attention),
        Call("linear_cross_entropy", l, (randn(l, d), randn(99, d), torch.arange(l) % 99, randn(99))),
        Call("damped_average", l, (randn(b, l, d), randn(1, d, 6), randn(1, d, 6).sigmoid(), randn(d))),
        Call("linear_scan", l, (randn(b, l, d).tanh(), randn(b, l, d), randn(b, d))),
        Call("linear_scan", l, (modes(b, l, d).exp(), modes(b, l, d), modes(b, d))),
        Call("long_conv", l, (randn(b, d, l), randn(d, l)), long_conv),
        Call("short_conv", l, (randn(b, d, l), randn(d, 4), randn(d), randn(b, d, 3))),
        Call("transposed", l, (randn(b, d, l),)),
        Call("vandermonde", l, (modes(b, d, 3), modes(d, 3), l)),
        Call("vandermonde_adjoint", l, (randn(b, d, l), modes(d, 3))),
        Call("cauchy", l, (modes(b, d, 3), points, modes(d, 3)), constants=(1,)),
        Call("wkv", l, (-randn(d).exp(), randn(d), randn(b, l, d), randn(b, l, d), randn(b, d), randn(b, d).exp(), 4)),
        Call("modal_step", l, (randn(b, d), modes(b, d, l), *modes(3, d, l), randn(d), *modes(2, 2, d, l))),
        Call("modal_step", l, (randn(b, d), randn(b, d, l), *randn(3, d, l), randn(d), *randn(2, 2, d, l))),
        Call("filter_step", l, (randn(b, d), randn(b, d, l), randn(d, 20), l, randn(d), [randn(b, d), randn(b, d)])),
        Call("memory_step", l, (*randn(3, b, d, k), randn(b, d, k, k), *randn(3, b, d, k), randn(d, k))),
    ]


SIGNAL = {"damped_average": (0,), "linear_scan": (1, 2), "wkv": (3, 4)}
"""Operators whose channels are last: which argument is the signal, and which the state that is of its size."""


def same_bits(x: list[Tensor], y: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(x, y, strict=True))


def test_every_operator_with_a_kernel_is_tested() -> None:
    assert set(MAKERS) == {name for name, operator in OPS.items() if "native" in operator.backends}
    assert {call.op for call in typical_calls()} == set(MAKERS)
    assert BUILDS[0] == native.INSTRUCTIONS


@OF_EVERY_BUILD
@OF_EVERY_OPERATOR
@FEW
@given(data=st.data())
def test_values_and_gradients_are_those_of_the_definition(op: str, build: str, data: st.DataObject) -> None:
    call = data.draw(calls(op), label="call")
    with built_for(build):
        found = results(call, "native")
    truths = expected(call)
    for actual, truth in zip(found, truths, strict=True):
        largest = max(x.abs().max().item() if x.numel() else 0.0 for x in what_cancels(call, truth, truths))
        torch.testing.assert_close(actual, truth, rtol=1e-9, atol=1e-10 * largest)


@OF_EVERY_BUILD
@OF_EVERY_OPERATOR
@FEW
@given(data=st.data())
def test_single_precision_errs_no_more_than_torch(op: str, build: str, data: st.DataObject) -> None:
    """At most four times as much, where torch errs by more than a few last places."""
    low = data.draw(calls(op), label="call").single()
    with built_for(build):
        found = results(low, "native")
    truths = expected(low.double())
    for ours, torchs, truth in zip(found, expected(low), truths, strict=True):
        error, allowed = ((x.to(truth.dtype) - truth).norm() for x in (ours, torchs))
        assert ours.dtype == torchs.dtype
        assert error <= 4 * allowed + 1e-6 * max(x.norm() for x in what_cancels(low, truth, truths))


def what_cancels(call: Call, truth: Tensor, truths: list[Tensor]) -> list[Tensor]:
    """What errors are relative to: the result, but gradients of a softmax cancel where there is one score."""
    return truths if call.op in ("attention", "linear_cross_entropy") else [truth]


@OF_EVERY_BUILD
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_long_sums_lose_no_digits(build: str, last: bool) -> None:
    """The gradients of taps and bias are sums over all positions; torch adds them pairwise."""
    x = randn(2, 16_384, 16).mT if last else randn(2, 16, 16_384)
    low = Call("short_conv", 16_384, (x, randn(16, 4), randn(16))).single()
    with built_for(build):
        found = results(low, "native")
    assert (found[1].stride(1) == 1) is last  # the layout is the input's
    for ours, torchs, truth in zip(found[2:], results(low, "groups")[2:], expected(low.double())[2:], strict=True):
        assert (ours - truth).norm() <= 1.5 * (torchs - truth).norm()


LINEAR = SIGNAL | {"attention": (2,), "filter_step": (0, 1), "memory_step": (2, 3), "modal_step": (0, 1)}
"""Which arguments an operator is linear in, all at once; the first, where nothing is said."""


def scaled(call: Call, scale: float) -> Call:
    """What the operator is linear in, so much larger."""
    places = LINEAR.get(call.op, (0,))
    return call._replace(positional=tuple(x * scale if i in places else x for i, x in enumerate(call.positional)))


@OF_EVERY_BUILD
@pytest.mark.parametrize("scale", [1e-315, 1e-200, 1e200])
def test_numbers_of_extreme_size(build: str, scale: float) -> None:
    """Denormal numbers are not flushed to zero, and nothing overflows or vanishes on the way."""
    for call in (scaled(call, scale) for call in typical_calls()):
        with built_for(build):
            found = results(call, "native")
        for actual, truth in zip(found, expected(call), strict=True):
            assert truth.isfinite().all()
            assert truth.any()  # not even torch is told to flush
            slack = 5e-320 + 1e-10 * truth.abs().max().item()
            torch.testing.assert_close(actual, truth, rtol=1e-9, atol=slack)


@OF_EVERY_BUILD
@OF_EVERY_OPERATOR
@FEWER
@given(data=st.data())
def test_extreme_sizes_in_any_call(op: str, build: str, data: st.DataObject) -> None:
    call = scaled(data.draw(calls(op, SHORT), label="call"), data.draw(st.sampled_from([1e-315, 1e-200, 1e200])))
    with built_for(build):
        found = results(call, "native")
    truths = expected(call)
    for actual, truth in zip(found, truths, strict=True):
        assert truth.isfinite().all()
        largest = max(x.abs().max().item() if x.numel() else 0.0 for x in scale_of_errors(call, truth, truths))
        torch.testing.assert_close(actual, truth, rtol=1e-9, atol=1e-319 + 1e-10 * largest)


@OF_EVERY_BUILD
@OF_EVERY_OPERATOR
@FEWER
@given(data=st.data())
def test_extreme_sizes_in_single_precision(op: str, build: str, data: st.DataObject) -> None:
    """The same; what is denormal has absolute errors, of which a few hundred add up."""
    low = scaled(data.draw(calls(op, SHORT), label="call").single(), data.draw(st.sampled_from([1e-40, 1e-30, 1e30])))
    with built_for(build):
        found = results(low, "native")
    truths = expected(low.double())
    for ours, torchs, truth in zip(found, expected(low), truths, strict=True):
        error, allowed = ((x.to(truth.dtype) - truth).norm() for x in (ours, torchs))
        slack = 3e-43 * truth.numel() ** 0.5
        assert error <= 4 * allowed + slack + 1e-6 * max(x.norm() for x in scale_of_errors(low, truth, truths))


def scale_of_errors(call: Call, truth: Tensor, truths: list[Tensor]) -> list[Tensor]:
    """As `what_cancels`; but where a softmax is of large scores its gradients are nothing but what is left of ones."""
    cancelled = what_cancels(call, truth, truths)
    return [*cancelled, *call.tensors()] if call.op == "linear_cross_entropy" else cancelled


@OF_EVERY_BUILD
@OF_EVERY_OPERATOR
@FEWER
@given(data=st.data())
def test_what_is_not_finite_reaches_all_that_depends_on_it(op: str, build: str, data: st.DataObject) -> None:
    """NaN in any argument all values and gradients, an infinity the values that the definition has not finite.

    What depends on a number is what another number there changes.  A mode whose logarithm is -inf is simply zero.
    """
    call = data.draw(calls(op, SHORT).filter(lambda call: any(x.numel() for x in call.tensors())), label="call")
    argument = data.draw(st.sampled_from([x for x in call.tensors() if x.numel()]))
    place = data.draw(st.integers(0, argument.numel() - 1), label="place")
    is_mode = op.startswith("vandermonde") and argument is call.positional[1]
    poison = data.draw(st.sampled_from([torch.nan] if is_mode else [torch.nan, torch.inf, -torch.inf]), label="poison")

    def changed(number: Tensor) -> Call:
        new = argument.clone(memory_format=torch.contiguous_format)
        new.view(-1)[place] = number
        return call.mapped(lambda x: new if x is argument else x)

    before = argument.flatten()[place]
    with built_for(build):
        found = results(changed(torch.full_like(before, poison)), "native")
    truths, usual, moved = (expected(changed(x)) for x in (torch.full_like(before, poison), before, before + 1))
    for actual, truth, x, y in list(zip(found, truths, usual, moved, strict=True))[: None if poison != poison else 1]:
        assert not (actual.isfinite() & ~truth.isfinite() & (x != y)).any()


@OF_EVERY_BUILD
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row_and_channel(build: str, poison: float) -> None:
    """It is not lost, and the bits of all other rows and channels are as without it, in results and in gradients."""
    rows, channels, row, channel = 2, 5, 1, 2
    for call in typical_calls(rows, channels):
        if call.op == "linear_cross_entropy":
            continue  # where every position meets all weights
        signal = call.positional[SIGNAL.get(call.op, (0,))[0]]
        poisoned = signal.clone()
        poisoned[(row, 1, channel) if call.op in SIGNAL else (row, channel, 1)[: signal.ndim]] = poison
        with built_for(build):
            clean = results(call, "native")
            found = results(call.mapped(lambda x, old=signal, new=poisoned: new if x is old else x), "native")
        assert not found[0].isfinite().all()
        for x, y in zip(clean, found, strict=True):
            assert same_bits(elsewhere(x, row, rows), elsewhere(y, row, rows))
            assert same_bits(elsewhere(x, channel, channels), elsewhere(y, channel, channels))


def elsewhere(x: Tensor, index: int, size: int) -> list[Tensor]:
    """All of `x` but what is at an index of the axis of this size; nothing where it has no such axis."""
    axes = [axis for axis, n in enumerate(x.shape) if n == size]
    return [part for axis in axes[:1] for i, part in enumerate(x.unbind(axis)) if i != index]


@OF_EVERY_BUILD
def test_threads_change_no_bit(build: str, two_threads: None) -> None:
    for call in (*typical_calls(3, 21, 300), *typical_calls(1, 1, 100), *typical_calls(5, 2, 50)):
        with built_for(build):
            both = results(call, "native")
            torch.set_num_threads(1)
            one = results(call, "native")
            torch.set_num_threads(2)
        assert same_bits(both, one)


def test_calls_at_the_same_time_change_no_bit(two_threads: None) -> None:
    """Whatever is shared is made by one and waited for by the others, such as the plans of sizes that are new."""
    new = [Call("long_conv", l, (randn(1, 1, l), randn(1, 8))) for l in (20_000, 30_000, 50_000, 70_000)]
    many = [call for call in new for _ in range(4)]
    many += [call for l in (3, 37, 257, 700, 1500) for b in (1, 2) for call in typical_calls(b, 3, l)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda call: results(call, "native"), many))
    for call, found in zip(many, together, strict=True):
        assert same_bits(found, results(call, "native"))


def samples() -> dict[str, list[tuple]]:
    """Operator of torch -> arguments, which want gradients where these exist."""
    x, taps, states = randn(2, 3, 9).requires_grad_(), randn(3, 9).requires_grad_(), randn(2, 9, 3).requires_grad_()
    decay, initial = randn(2, 9, 3).tanh().requires_grad_(), randn(2, 3).requires_grad_()
    phases, ratios = modes(2, 3, 4).requires_grad_(), modes(3, 4).requires_grad_()
    points = torch.complex(torch.zeros(9, dtype=torch.float64), 5 * randn(9))
    grad, skip, tail = randn(2, 3, 9), randn(3).requires_grad_(), randn(2, 3, 8).requires_grad_()
    u, memory = randn(2, 3).requires_grad_(), randn(2, 3, 4, 4).requires_grad_()
    plain, full = (x, taps, None, None, None, None, 1), (x, taps, taps, skip, x.detach() + 1, x.detach() - 1, 0)
    complex_scan = [z.to(torch.complex128).detach().requires_grad_() for z in (decay, states, initial)]
    frozen = tuple(z.detach() if isinstance(z, Tensor) else z for z in full)
    h = states.detach()
    constant = -randn(3).exp(), randn(3), randn(2, 9, 3), randn(2, 9, 3), randn(2, 3), randn(2, 3).exp()
    averages = *(z.clone().requires_grad_() for z in constant), randn(2, 3)
    mask = torch.arange(9).expand(2, 9) % 3 != 1
    averaged = (states, randn(2, 3, 5).requires_grad_(), randn(2, 3, 5).sigmoid().requires_grad_(), skip)
    predicted, target = (randn(9, 3).requires_grad_(), randn(8, 3).requires_grad_()), torch.arange(9) % 8
    attention = [randn(1, 4, 9, 3).requires_grad_() for _ in range(3)], randn(4).requires_grad_()
    options = (*AttentionMask(True, 5).located(9, 9, x.device), 0.9, 2.0, 0.2, torch.tensor(7))
    attended = (*attention[0], attention[1], None, *options)
    y, softmax = torch.ops.longreach.attention(*attended)
    result = randn(1, 4, 9, 3), y.detach(), softmax.detach(), [True, False, True, True, False]
    return {
        "attention": [attended],
        "attention_adjoint": [(*result, *(z.detach() if isinstance(z, Tensor) else z for z in attended))],
        "cauchy": [(phases, points, ratios)],
        "cauchy_adjoint": [(modes(2, 3, 9), phases.detach(), points, ratios.detach())],
        "damped_average": [averaged],
        "damped_average_adjoint": [(h, h.new_empty(2, 2, 0, 8, 3), *(z.detach() for z in averaged))],
        "linear_cross_entropy": [(*predicted, target, torch.float64)],
        "linear_cross_entropy_adjoint": [
            (randn(9), torch.rand(9, 2).double(), *(z.detach() for z in predicted), target, torch.float64)
        ],
        "linear_scan": [(decay, states, initial, False), (*complex_scan, True)],
        "linear_scan_adjoint": [(h, decay.detach(), initial.detach(), h, True)],
        "long_conv": [plain, full],
        "long_conv_adjoint": [(grad, [True, False, True, True, False, True], *frozen)],
        "short_conv": [(x, taps, None, None), (x, taps, skip, tail)],
        "short_conv_adjoint": [
            (grad, [True, True, False, True], x.detach(), taps.detach(), skip.detach(), tail.detach())
        ],
        "filter_step": [(u, x, taps, 3, skip, [randn(2, 3), randn(2, 3)]), (u, x, taps, 0, None, [])],
        "memory_step": [
            (*[z.requires_grad_() for z in randn(3, 2, 3, 4)], memory, *randn(3, 2, 3, 4).unbind(), randn(3, 4)),
            (*randn(3, 2, 3, 4).unbind(), memory, None, None, None, None),
        ],
        "modal_step": [
            (u, phases, ratios, ratios, ratios, skip, *modes(2, 1, 3, 4).unbind()),
            (u, phases.detach().real, *randn(3, 3, 4).unbind(), None, None, None),
        ],
        "transposed": [(x,)],
        "vandermonde": [(phases, ratios, 9)],
        "vandermonde_moments": [(x, ratios, False), (x, ratios, True)],
        "wkv": [(*averages, None), (*averages, mask)],
        "wkv_adjoint": [(h, constant[4], constant[5], h.new_empty(2, 0, 3, 3), *constant, randn(2, 3), mask)],
    }


REGISTERED = sorted(
    name.removeprefix("longreach::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("longreach::")
    and "_triton" not in name
    and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
)

ONCE = ("attention", "linear_cross_entropy")
"""Operators that refuse to be differentiated twice."""


@pytest.mark.parametrize("name", REGISTERED)
def test_registered_as_torch_wants_it(name: str) -> None:
    """Schema, shapes without data, gradients, and tracing."""
    for arguments in samples()[name]:
        torch.library.opcheck(getattr(torch.ops.longreach, name), arguments)


@OF_EVERY_BUILD
@pytest.mark.parametrize("name", [name for name in REGISTERED if not name.endswith("_adjoint")])
def test_first_and_second_derivatives(name: str, build: str) -> None:
    for arguments in samples()[name]:
        wanted = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]

        def function(*values: Tensor, name: str = name, arguments: tuple = arguments) -> Tensor:
            rest = iter(values)
            given = [next(rest) if isinstance(x, Tensor) and x.requires_grad else x for x in arguments]
            y = getattr(torch.ops.longreach, name)(*given)
            return y[0] if isinstance(y, tuple) else y  # of the moments; the others are for their derivative

        with built_for(build):
            assert torch.autograd.gradcheck(function, wanted, fast_mode=True, rtol=1e-5, atol=1e-7)
            if name not in ONCE:
                assert torch.autograd.gradgradcheck(function, wanted, fast_mode=True, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [x for x in REGISTERED if not x.endswith("_adjoint") and x not in ONCE])
@pytest.mark.parametrize("direction", [1, -1], ids=["from the one before", "from the one after"])
def test_derivatives_where_arguments_are_computed_from_others(name: str, direction: int) -> None:
    """No way through another argument is followed twice."""
    operator = getattr(torch.ops.longreach, name)
    for arguments in samples()[name]:
        places = [i for i, x in enumerate(arguments) if isinstance(x, Tensor) and x.requires_grad][::direction]

        def function(*values: Tensor, places: list = places, arguments: tuple = arguments) -> Tensor:
            given = dict(zip(places, chained(values), strict=True))
            y = operator(*[given.get(i, x) for i, x in enumerate(arguments)])
            return y[0] if isinstance(y, tuple) else y

        assert_derived_twice(function, [arguments[i] for i in places])


SHORTAGE = """
import resource, sys, torch
from pathlib import Path
from longreach.ops import AttentionMask, attention, cauchy, long_conv, use_backend, vandermonde, vandermonde_adjoint
from native_calls import built_for

def long():
    return long_conv(torch.ones(1, 2, 1 << 22), torch.ones(2, 8))

def long_gradient():
    u = torch.ones(1, 1, 1 << 22, requires_grad=True)
    return torch.autograd.grad(long_conv(u, torch.ones(1, 8)).sum(), u)[0]

def pairs(value, *shape):
    return torch.full(shape, value, dtype=torch.complex64)

def exponentials():
    return vandermonde(pairs(1, 1, 1 << 20), pairs(-1, 1, 1 << 20), 8)

def moments():
    return vandermonde_adjoint(torch.ones(1, 1, 8), pairs(-1, 1, 1 << 20))

def poles():
    return cauchy(pairs(1, 1, 1, 1 << 22), pairs(1j, 8), pairs(-1, 1, 1 << 22))

def wide():
    with use_backend(attention="native"):
        return attention(*torch.ones(3, 1, 2, 1, 1 << 18).unbind(), AttentionMask())

def address_space():
    return int(Path("/proc/self/statm").read_text().split()[0]) * 4096

torch.set_num_threads(2)
tiny = torch.ones(1, 1, 8)
long_conv(tiny.expand(1, 4, 8).contiguous(), torch.ones(4, 8))  # starts the threads
with built_for(sys.argv[1]):
    for work in (long, long_gradient, exponentials, moments, poles, wide):
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + (100 << 20), -1))
        try:
            work()
            print(work.__name__, "had enough memory")
        except MemoryError as error:
            assert "bytes of workspace" in str(error), error
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        assert work().isfinite().all(), work.__name__
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does it")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="sanitizers need more address space than a limit leaves")
@pytest.mark.parametrize("build", BUILDS[:1])
def test_memory_that_is_not_there_is_an_error_and_not_the_end(build: str) -> None:
    """Of a thread or of several; afterwards the same call succeeds."""
    command = [sys.executable, "-c", SHORTAGE, build]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert (found.returncode, found.stdout) == (0, ""), found.stdout + found.stderr


BOUND = 6 << 20
"""Bytes of workspace, and of what malloc keeps at hand."""


def large_calls() -> list[Call]:
    """Calls whose results have 8 MiB or more."""
    x, last, heads = randn(2, 128, 1 << 13), randn(2, 1 << 13, 128), randn(1, 64, 512, 64)
    points = torch.complex(torch.zeros(1 << 13, dtype=torch.float64), 5 * randn(1 << 13))
    filters = {"reverse_kernel": randn(128, 1 << 13), "skip": randn(128), "gate_before": x + 1, "gate_after": x - 1}
    sums = -randn(128).exp(), randn(128), last, last + 1, randn(2, 128), randn(2, 128).exp(), None
    words = torch.arange(1 << 13) % 99
    return [
        Call("attention", 512, (heads, heads + 1, heads - 1, AttentionMask(True, 100)), {"softcap": 3.0}),
        Call("cauchy", 1 << 13, (modes(1, 128, 4), points, modes(128, 4)), constants=(1,)),
        Call("damped_average", 1 << 13, (last, randn(1, 128, 8), randn(1, 128, 8).sigmoid(), randn(128))),
        Call("linear_cross_entropy", 1 << 13, (randn(1 << 13, 256), randn(99, 256), words, None)),
        Call("linear_scan", 1 << 13, (last.tanh(), last, randn(2, 128))),
        Call("long_conv", 1 << 13, (x, randn(128, 1 << 13)), filters),
        Call("short_conv", 1 << 13, (x, randn(128, 4), randn(128))),
        Call("transposed", 1 << 13, (x,)),
        Call("vandermonde", 1 << 13, (modes(2, 128, 4), modes(128, 4), 1 << 13)),
        Call("vandermonde_adjoint", 1 << 13, (x, modes(128, 4))),
        Call("wkv", 1 << 13, sums),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read where Linux tells it")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="sanitizers keep what is freed")
def test_memory_is_that_of_the_results_and_a_bounded_workspace() -> None:
    calls = large_calls()
    assert {call.op for call in calls} == {op for op in MAKERS if not op.endswith("_step")}
    for call in calls:
        assert_bounded(call.single().mapped(lambda x: x.detach().requires_grad_()))


def assert_bounded(call: Call) -> None:
    """Forward needs its result and what it keeps for the gradient; the gradient needs what it gives."""
    function = first_result_of_wkv if call.op == "wkv" else operator(call.op, "native")
    kept: list[Tensor] = []
    made: list[Tensor] = []
    found: list[Tensor] = []

    def forward() -> None:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            made.append(function(*call.positional, **call.named))

    def backward() -> None:
        found.extend(torch.autograd.grad(made[0], call.tensors(), cotangent))

    forward()
    cotangent = torch.randn_like(made[0])
    backward()
    for tensors in (kept, made, found):  # the first call is not the one that counts
        tensors.clear()
    needed = peak_bytes(forward, "cpu") or 0
    assert needed <= distinct_bytes([*made, *kept], call.tensors()) + BOUND, f"forward of {call}"
    needed = peak_bytes(backward, "cpu") or 0
    turned = found if call.op == "vandermonde_adjoint" else []  # once more in the other direction
    assert needed <= distinct_bytes(found, []) + distinct_bytes(turned, []) + BOUND, f"gradient of {call}"


def first_result_of_wkv(*arguments: Any) -> Tensor:
    """The averages alone, as `OPS` computes them."""
    *tensors, numerator, denominator, mask = arguments
    state = WKVState(numerator, denominator, torch.zeros_like(numerator))
    return OPS["wkv"].backends["native"](*tensors, state, mask)[0]


def distinct_bytes(tensors: list[Tensor], without: list[Tensor]) -> int:
    """Of the memory of some tensors that is not that of others."""
    known = {x.untyped_storage().data_ptr() for x in without}
    sizes = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(size for place, size in sizes.items() if place not in known)


GROWTH = """
import sys, torch
from pathlib import Path
from test_native import results, typical_calls

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def work(lengths):
    for length in lengths:
        for call in typical_calls(2, 3, length):
            results(call, "native")

torch.manual_seed(0)
torch.set_num_threads(1)
lengths = [3000, *range(1, 3000, 80)]
work(lengths)
before = resident()
work(lengths)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read where Linux tells it")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="sanitizers keep what is freed")
def test_memory_does_not_grow_with_the_calls() -> None:
    """Some 600 calls of 39 lengths, made for the second time."""
    found = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 4 << 20
