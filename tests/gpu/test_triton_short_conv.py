"""The short convolution in Triton: against the definition, its derivatives, and itself."""

import itertools

import pytest
import torch
from torch import Tensor
from triton_checks import assert_like_torch, repetitions, values_and_gradients

from longreach.errors import InputError
from longreach.ops import short_conv, use_backend
from longreach.ops.triton import short_conv as launcher

BOTH = ("triton", "reference")
LAYOUTS = pytest.mark.parametrize("last", [False, True], ids=["positions", "channels"])
"""What lies side by side."""


def arguments(
    b: int, d: int, l: int, k: int, last: bool, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Signal, taps, bias and tail."""
    x = torch.randn(b, l, d).mT if last else torch.randn(b, d, l)
    x, weight, bias, tail = (
        y.to(device, dtype) for y in (x, torch.randn(d, k), torch.randn(d), torch.randn(b, d, k - 1))
    )
    return x, weight, bias, tail


def with_tail(x: Tensor, weight: Tensor, tail: Tensor) -> Tensor:
    """The operator, without bias."""
    return short_conv(x, weight, None, tail)


@LAYOUTS
@pytest.mark.parametrize(
    ("b", "d", "l", "k"), [(1, 1, 1, 1), (1, 1, 1, 4), (2, 3, 2, 5), (2, 17, 40, 4), (1, 9, 130, 3), (1, 65, 17, 2)]
)
def test_is_the_definition(b: int, d: int, l: int, k: int, last: bool, device: torch.device) -> None:
    """On both sides of the borders between tiles; inputs shorter than the filter."""
    x, weight, bias, tail = arguments(b, d, l, k, last, device, torch.float64)
    cotangent = torch.randn_like(x)
    for inputs, function in (((x, weight), short_conv), ((x, weight, bias, tail), short_conv)):
        found, expected = (values_and_gradients("short_conv", name, function, inputs, cotangent) for name in BOTH)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype(dtype: torch.dtype, last: bool, device: torch.device) -> None:
    assert_like_torch("short_conv", short_conv, arguments(2, 18, 35, 4, last, device, dtype))
    x, weight, _, tail = arguments(2, 18, 35, 4, last, device)
    assert_like_torch("short_conv", with_tail, (x.to(dtype), weight, tail))


@LAYOUTS
def test_as_many_taps_as_there_are_kernels_for(last: bool, device: torch.device) -> None:
    x, weight, bias, tail = arguments(1, 16, 20, launcher.WIDEST, last, device)
    assert_like_torch("short_conv", short_conv, (x, weight, bias, tail))
    longer = torch.cat([weight, weight], 1)
    assert "more than 16 taps" in str(short_conv.refusal("triton", x, longer))


@LAYOUTS
def test_parts_and_tiles_change_nothing(last: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of the adjoint has one tile, or all of a row and the one before it."""
    inputs = arguments(2, 64, 20, 4, last, device) if last else arguments(2, 1, 1100, 4, last, device)
    for enough in (1, 1 << 30):
        monkeypatch.setattr(launcher, "ENOUGH", enough)
        assert_like_torch("short_conv", short_conv, inputs)


def test_strides_of_any_kind(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of projections, in either layout, are read where they are; only those with gaps inside are copied."""
    both = arguments(2, 48, 24, 3, True, device)[0].contiguous(), arguments(2, 48, 24, 3, True, device)[0]
    copies, laid_out = [], launcher.laid_out
    monkeypatch.setattr(launcher, "laid_out", lambda *given: copies.append(given) or laid_out(*given))
    for x in both:
        views = x.chunk(3, dim=1)[1], x[..., 8:], x[..., 1:], x[:, 16:], x[:, 1:], x[:, ::2, ::2]
        for number, view in enumerate(views):
            weight = torch.randn(6, view.shape[1], device=device).mT[:, ::2]
            grad = torch.randn_like(x)[:, : view.shape[1], : view.shape[2]]
            found, expected = (values_and_gradients("short_conv", n, short_conv, (view, weight), grad) for n in BOTH)
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs)
            assert bool(copies) == (number == 5)
            copies.clear()
    expanded = both[0][:1, :1, :1].expand(2, 4, 8)
    with use_backend(short_conv="triton"):
        found = short_conv(expanded, torch.ones(4, 1, device=device))
    assert torch.equal(found, expanded)


@LAYOUTS
def test_the_result_lies_as_the_input_does(last: bool, device: torch.device) -> None:
    x, weight, *_ = arguments(2, 32, 9, 3, last, device)
    with use_backend(short_conv="triton"):
        y = short_conv(x.requires_grad_(), weight)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    for z in (y, gradient):
        assert z.stride() == x.stride()


@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
def test_each_gradient_alone(wanted: int, device: torch.device) -> None:
    inputs = arguments(2, 3, 7, 4, False, device, torch.float64)
    inputs[wanted].requires_grad_()
    gradients = []
    for name in BOTH:
        with use_backend(short_conv=name):
            gradients.append(torch.autograd.grad(short_conv(*inputs).square().sum(), inputs[wanted])[0])
    torch.testing.assert_close(*gradients)


def test_nothing_at_all(device: torch.device) -> None:
    for b, d, l in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        inputs = arguments(b, d, l, 4, False, device)
        found, expected = (values_and_gradients("short_conv", n, short_conv, inputs, inputs[0]) for n in BOTH)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


def test_derivatives_of_derivatives(device: torch.device) -> None:
    inputs = [x.requires_grad_() for x in arguments(1, 2, 4, 3, False, device, torch.float64)]
    with use_backend(short_conv="triton"):
        assert torch.autograd.gradcheck(short_conv, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(short_conv, inputs, fast_mode=True)


@LAYOUTS
def test_is_a_well_behaved_operator_of_torch(last: bool, device: torch.device) -> None:
    x, weight, bias, tail = arguments(1, 17, 4, 3, last, device, torch.float64)
    operator = torch.ops.longreach
    torch.library.opcheck(operator.short_conv_triton, (x.requires_grad_(), weight, bias, tail))
    needed = [True, True, False, True]
    torch.library.opcheck(operator.short_conv_triton_adjoint, (x.detach(), needed, x.detach(), weight, bias, tail))


@LAYOUTS
def test_the_same_bits_every_time_and_neighbours_change_none(last: bool, device: torch.device) -> None:
    inputs = arguments(2, 17, 50, 4, last, device)
    first = values_and_gradients("short_conv", "triton", short_conv, inputs, inputs[0])
    for _ in range(repetitions(device)):
        again = values_and_gradients("short_conv", "triton", short_conv, inputs, inputs[0])
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    x = inputs[0].detach().clone()
    x[0, 4, 40] = torch.nan
    found = values_and_gradients("short_conv", "triton", short_conv, (x, *inputs[1:]), inputs[0])
    assert found[0][0, 4, 40:44].isnan().all()
    assert found[0].isnan().sum() == 4
    assert found[2][4].isnan().all()
    assert found[2].isnan().sum() == 4
    assert not any(y.isnan().any() for y in (found[1], *found[3:]))


def test_a_tail_of_another_length_is_refused(device: torch.device) -> None:
    x, weight, bias, _ = arguments(1, 2, 5, 3, False, device)
    with use_backend(short_conv="triton"), pytest.raises(InputError, match="tail is"):
        short_conv(x, weight, bias, torch.zeros(1, 2, 3, device=device))


def test_no_length_compiles_anew(device: torch.device, idle: None, variants: set[tuple[str, str]]) -> None:
    """Every length, batch and number of channels: 3 tiles of one layout and 2 of the other, each in units of 8 or 1;
    those in units of 1 once more for a signal that is not aligned, such a gradient, and both."""
    for l, last in itertools.product((*range(1, 200), 256, 300, 4096), (False, True)):
        for d in (16 + l % 3, 16, 129 + l % 8):
            b = 1 + l % 3
            x, grad = (torch.empty(b * d * l + 1, device=device)[i : b * d * l + i] for i in (l // 8 % 2, l // 16 % 2))
            x, grad = (y.view(b, l, d).mT if last else y.view(b, d, l) for y in (x, grad))
            launcher._forward(x, weight := torch.empty(d, 4, device=device), None, None)
            launcher._gradients(grad, x, weight, None, torch.empty_like(x), None)
    names = [name for name, _ in variants]
    assert {name: names.count(name) for name in names} == {"forward": 5 * 3, "adjoint": 5 * 5}
