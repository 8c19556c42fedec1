"""The compiled kernels, for every instruction set: what the definitions say, whatever is thrown at them.

Second derivatives, half precision and errors: test_ops.py, where the kernels are backends among others.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_calls import BUILDS, MAKERS, Call, built_for, calls, expected, results
from torch import Tensor

from longreach.ops import OPS, native

pytestmark = pytest.mark.skipif(native.MISSING is not None, reason=f"{native.MISSING}")

OF_EVERY_BUILD = pytest.mark.parametrize("build", BUILDS)
OF_EVERY_OPERATOR = pytest.mark.parametrize("op", MAKERS)
FEW = settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


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
    points = torch.complex(torch.zeros(l, dtype=torch.float64), 5 * randn(l))
    return [
        Call("linear_scan", l, (randn(b, l, d).tanh(), randn(b, l, d), randn(b, d))),
        Call("linear_scan", l, (modes(b, l, d).exp(), modes(b, l, d), modes(b, d))),
        Call("long_conv", l, (randn(b, d, l), randn(d, l)), long_conv),
        Call("short_conv", l, (randn(b, d, l), randn(d, 4), randn(d), randn(b, d, 3))),
        Call("transposed", l, (randn(b, d, l),)),
        Call("vandermonde", l, (modes(b, d, 3), modes(d, 3), l)),
        Call("vandermonde_adjoint", l, (randn(b, d, l), modes(d, 3))),
        Call("cauchy", l, (modes(b, d, 3), points, modes(d, 3)), constants=(1,)),
    ]


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
    for actual, truth in zip(found, expected(call), strict=True):
        largest = truth.abs().max().item() if truth.numel() else 0.0
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
    for ours, torchs, truth in zip(found, expected(low), expected(low.double()), strict=True):
        error, allowed = ((x.to(truth.dtype) - truth).norm() for x in (ours, torchs))
        assert ours.dtype == torchs.dtype
        assert error <= 4 * allowed + 1e-6 * truth.norm()


@OF_EVERY_BUILD
@pytest.mark.parametrize("scale", [1e-315, 1e-200, 1e200])
def test_numbers_of_extreme_size(build: str, scale: float) -> None:
    """Denormal numbers are not flushed to zero, and nothing overflows or vanishes on the way."""
    for call in typical_calls():
        scaled = [1, 2] if call.op == "linear_scan" else [0]  # the state begins as small as the input is
        positional = [x * scale if i in scaled else x for i, x in enumerate(call.positional)]
        call = call._replace(positional=tuple(positional))
        with built_for(build):
            found = results(call, "native")
        for actual, truth in zip(found, expected(call), strict=True):
            assert truth.isfinite().all()
            assert truth.any()  # not even torch is told to flush
            slack = 5e-320 + 1e-10 * truth.abs().max().item()
            torch.testing.assert_close(actual, truth, rtol=1e-9, atol=slack)


@OF_EVERY_BUILD
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row_and_channel(build: str, poison: float) -> None:
    """It is not lost, and the bits of all other rows and channels are as without it, in results and in gradients."""
    rows, channels, row, channel = 2, 5, 1, 2
    for call in typical_calls(rows, channels):
        signal = call.positional[1 if call.op == "linear_scan" else 0]
        poisoned = signal.clone()
        poisoned[(row, 1, channel) if call.op == "linear_scan" else (row, channel, 1)] = poison
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
    plain, full = (x, taps, None, None, None, None, 1), (x, taps, taps, skip, x.detach() + 1, x.detach() - 1, 0)
    complex_scan = [z.to(torch.complex128).detach().requires_grad_() for z in (decay, states, initial)]
    frozen = tuple(z.detach() if isinstance(z, Tensor) else z for z in full)
    h = states.detach()
    return {
        "cauchy": [(phases, points, ratios)],
        "cauchy_adjoint": [(modes(2, 3, 9), phases.detach(), points, ratios.detach())],
        "linear_scan": [(decay, states, initial, False), (*complex_scan, True)],
        "linear_scan_adjoint": [(h, decay.detach(), initial.detach(), h, True)],
        "long_conv": [plain, full],
        "long_conv_adjoint": [(grad, [True, False, True, True, False, True], *frozen)],
        "short_conv": [(x, taps, None, None), (x, taps, skip, tail)],
        "short_conv_adjoint": [
            (grad, [True, True, False, True], x.detach(), taps.detach(), skip.detach(), tail.detach())
        ],
        "transposed": [(x,)],
        "vandermonde": [(phases, ratios, 9)],
        "vandermonde_moments": [(x, ratios, False), (x, ratios, True)],
    }


REGISTERED = sorted(
    name.removeprefix("longreach::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("longreach::")
    and "_triton" not in name
    and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
)


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
            assert torch.autograd.gradgradcheck(function, wanted, fast_mode=True, rtol=1e-5, atol=1e-7)


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
work([3000, *range(1, 3000, 150)])
before = resident()
work(range(2, 3000, 40))
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read where Linux tells it")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="sanitizers keep what is freed")
def test_memory_does_not_grow_with_the_calls() -> None:
    """Some 500 calls of 75 lengths, after each size of transform and workspace was seen."""
    found = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 4 << 20
