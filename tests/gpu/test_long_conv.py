"""The long convolution in Triton against its definition: every level of the transform, dtype, option and gradient."""

import pytest
import torch
from torch import Tensor
from triton_checks import assert_as_exact, assert_like_torch, repetitions, values_and_gradients

from longreach.ops import long_conv, use_backend
from longreach.ops.long_conv import low_pass
from longreach.ops.triton import available, long_conv_launches
from longreach.ops.triton import long_conv as launches
from longreach.ops.triton.long_conv_plan import Plan, make_plan

NAMES = ("u", "kernel", "reverse_kernel", "skip", "gate_before", "gate_after")


def arguments(batch: int, channels: int, length: int, taps: int, future: int = 0, gates: str = "") -> dict[str, Tensor]:
    """Random ones; `gates` names those that there are."""
    found = {"u": torch.randn(batch, channels, length), "kernel": torch.randn(channels, taps) / taps**0.5}
    if future:
        found["reverse_kernel"] = torch.randn(channels, future) / future**0.5
    if gates:
        found["skip"] = torch.randn(channels)
    for name in gates.split():
        found[f"gate_{name}"] = torch.randn(batch, channels, length)
    return found


def check(given: dict[str, Tensor], device: torch.device, dtype: torch.dtype = torch.float32, **options: int) -> None:
    """Value and every gradient, judged by torch's own transforms."""

    def function(*tensors: Tensor) -> Tensor:
        named = dict(zip(given, tensors, strict=True))
        return long_conv(named.pop("u"), named.pop("kernel"), **named, **options)

    inputs = [x.to(device, dtype) for x in given.values()]
    assert_like_torch("long_conv", function, inputs, judge="fft")


def forced(*args: Tensor | None, **options: Tensor | int | None) -> Tensor:
    with use_backend(long_conv="triton"):
        return long_conv(*args, **options)


@pytest.fixture(params=[1, 2], ids=["one level", "two levels"])
def leveled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> int:
    """How many samples a transform with so many outer levels has, when factors are as small as can be.

    Tensor cores take 16; the interpreter, which is slow, takes anything.
    """
    outer, inner = (16, (16, 16)) if device.type == "cuda" else (2, (4, 4))
    plan = Plan((outer,) * request.param, inner)
    monkeypatch.setattr(launches, "make_plan", lambda length: plan)
    monkeypatch.setattr(long_conv_launches, "TILE", 512 if device.type == "cuda" else 32)
    return plan.size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 2, 255, 256, 257, 1025])
def test_rows_that_one_program_holds(length: int, dtype: torch.dtype, device: torch.device) -> None:
    check(arguments(2, 4, length, length, length, "before after"), device, dtype)


@pytest.mark.parametrize("gates", ["", "before", "after"])
@pytest.mark.parametrize("batch", [1, 17])
def test_batches_that_fill_no_tile(batch: int, gates: str, device: torch.device) -> None:
    check(arguments(batch, 5, 61, 61, gates=gates), device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_outer_levels(leveled: int, dtype: torch.dtype, device: torch.device) -> None:
    """Where the definition would take too much memory, transforms in float64 are the truth."""
    length = leveled - 7
    given = arguments(2, 4, length, length, 7, "before after")
    inputs = [x.to(device, dtype) for x in given.values()]

    def function(*tensors: Tensor) -> Tensor:
        named = dict(zip(given, tensors, strict=True))
        return long_conv(named.pop("u"), named.pop("kernel"), **named)

    cotangent = torch.randn(2, 4, length, device=device, dtype=dtype)
    ours, judge = (values_and_gradients("long_conv", name, function, inputs, cotangent) for name in ("triton", "fft"))
    truth = values_and_gradients("long_conv", "fft", function, [x.double() for x in inputs], cotangent.double())
    assert_as_exact(ours, judge, truth)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize(("taps", "future"), [(5, 3), (300, 1), (1, 300)])
def test_filters_shorter_and_longer_than_the_input(taps: int, future: int, lag: int, device: torch.device) -> None:
    check(arguments(2, 3, 70, taps, future, "before after"), device, reverse_lag=lag)


@pytest.mark.parametrize("period", [50, 51, 64, 99, 300])
@pytest.mark.parametrize("future", [0, 130])
def test_circles_of_any_period(period: int, future: int, device: torch.device) -> None:
    check(arguments(2, 8, 50, 130, future, "after"), device, period=period, reverse_lag=future // 130)


def test_frequency_sparse_filters(device: torch.device) -> None:
    given = arguments(2, 3, 40, 40)
    given["kernel"] = low_pass(given["kernel"], 40, keep=9)
    check(given, device, period=80)


def test_inputs_may_lie_anywhere(device: torch.device) -> None:
    together = torch.randn(2, 9, 131)
    before, after, u = together.chunk(3, dim=1)  # as Hyena cuts them from one projection
    check({"u": u, "kernel": torch.randn(3, 131) / 12, "gate_before": before, "gate_after": after}, device)
    rows = torch.randn(2, 64, 3).mT
    check({"u": rows, "kernel": torch.randn(64, 3).T, "gate_after": torch.randn(2, 3, 65)[..., 1:]}, device)


def test_a_filter_in_float32_of_an_input_in_bfloat16(device: torch.device) -> None:
    u, kernel = torch.randn(2, 3, 40, device=device, dtype=torch.bfloat16), torch.randn(3, 40, device=device)
    kernel.requires_grad_()
    y = forced(u, kernel)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert kernel.grad is not None
    assert kernel.grad.dtype == torch.float32


def test_only_what_is_needed_is_returned(device: torch.device) -> None:
    given = {name: x.to(device) for name, x in arguments(2, 3, 40, 40, 40, "before after").items()}
    for name in given:
        leaf = given[name].clone().requires_grad_()
        named = given | {name: leaf}
        y = forced(named["u"], named["kernel"], **{n: named[n] for n in NAMES[2:]})
        with use_backend(long_conv="fft"):
            expected = long_conv(named["u"], named["kernel"], **{n: named[n] for n in NAMES[2:]})
        (ours,), (theirs,) = torch.autograd.grad(y.sum(), leaf), torch.autograd.grad(expected.sum(), leaf)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_same_bits_every_time(device: torch.device) -> None:
    leaves = {name: x.to(device).requires_grad_() for name, x in arguments(3, 2, 300, 300, 9, "before after").items()}
    first: list[Tensor] = []
    for _ in range(repetitions(device)):
        y = forced(leaves["u"], leaves["kernel"], **{n: leaves[n] for n in NAMES[2:]})
        found = [y, *torch.autograd.grad(y.square().sum(), list(leaves.values()))]
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True))


def test_the_workspace_is_filled_group_by_group(
    leveled: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {name: x.to(device) for name, x in arguments(1, 3, leveled, 9, 4, "before after").items()}
    leaves = {name: x.requires_grad_() for name, x in given.items()}

    def found() -> list[Tensor]:
        y = forced(leaves["u"], leaves["kernel"], **{n: leaves[n] for n in NAMES[2:]})
        return [y, *torch.autograd.grad(y.square().sum(), list(leaves.values()))]

    together = found()
    monkeypatch.setattr(launches, "WORKSPACE", 2 * 8 * leveled)
    assert all(torch.equal(a, b) for a, b in zip(together, found(), strict=True))


def test_one_program_takes_several_rows(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they say of the filters is added up, there and between programs."""
    monkeypatch.setattr(launches, "PROGRAMS", 4)
    check(arguments(40, 2, 30, 30, 30, "before"), device)


def test_numbers_that_float16_cannot_add_up(device: torch.device) -> None:
    u = torch.full((1, 1, 500), 300.0, dtype=torch.float16, device=device)
    kernel = torch.full((1, 500), 1e-3, dtype=torch.float16, device=device)
    y = forced(u, kernel)
    expected = 300 * kernel[0, 0].double() * torch.arange(1, 501, device=device)
    torch.testing.assert_close(y[0, 0].double(), expected, rtol=2**-10, atol=2**-10)


def test_first_derivatives_only(device: torch.device) -> None:
    u, kernel = torch.randn(1, 1, 9, device=device, requires_grad=True), torch.randn(1, 9, device=device)
    (grad,) = torch.autograd.grad(forced(u, kernel).square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()


def test_it_is_traced_as_two_operators(device: torch.device) -> None:
    given = [torch.randn(2, 3, 20, device=device, requires_grad=True), torch.randn(1, 3, 20, device=device)]
    given += [torch.randn(3, device=device), torch.randn(2, 3, 20, device=device), torch.randn(2, 3, 20, device=device)]
    torch.library.opcheck(torch.ops.longreach.long_conv_triton.default, tuple(given))


def test_few_variants_for_many_lengths(device: torch.device, variants: set[tuple[str, str]]) -> None:
    """At most, for one dtype and one choice of gates: see docs/gpu.md.  Nothing is computed, so lengths may be long."""
    from triton.runtime.interpreter import GridExecutor

    lengths = [*range(1, 5000, 41), *range(5003, 200_000, 7919), 300_000, 600_000, 1 << 20]
    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            patch.setattr(GridExecutor, "__call__", lambda *args, **kwargs: None)
        for length in lengths:
            u = torch.zeros(1 + length % 2, 1, length, device=device)
            forced(u, torch.ones(1, 5, device=device), gate_after=u)
    counts = {kernel: sum(name == kernel for name, _ in variants) for kernel, _ in variants}
    assert counts["convolve"] <= 25, counts
    assert counts["spectrum"] <= 14, counts
    assert counts["enter"] <= 12, counts
    assert counts["leave"] <= 12, counts


@pytest.mark.parametrize("length", [1, 256, 257, 4096, 4097, 65536, 1 << 19, (1 << 19) + 1, 1 << 22, 1 << 26])
def test_every_length_has_factors_for_tensor_cores(length: int) -> None:
    plan = make_plan(length)
    assert plan.size >= length
    assert plan.size < 2 * max(length, 256)
    assert all(16 <= factor <= 128 for factor in (*plan.outer, *plan.inner))
    assert len(plan.outer) <= 2


def test_what_is_refused_and_left_to_others(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    u, kernel = torch.zeros(1, 1, 4, device=device), torch.zeros(1, 4, device=device)
    assert long_conv.refusal("triton", u, kernel) is None
    assert "float64" in (long_conv.refusal("triton", u.double(), kernel) or "")
    assert "samples" in (long_conv.refusal("triton", u.expand(1, 1, 4)[..., :1].expand(1, 1, 1 << 27), kernel) or "")
    if device.type == "cpu":
        assert long_conv.choose(u, kernel) != "triton"
        monkeypatch.setattr(available, "INTERPRETED", False)
        assert "GPU" in (long_conv.refusal("triton", u, kernel) or "")
