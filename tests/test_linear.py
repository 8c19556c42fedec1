"""The linear map by oneDNN: torch's results, derivatives of any order, and who gets it."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longreach.mixers.linear import Linear
from longreach.ops import OPS, use_backend
from longreach.ops import linear as operator
from longreach.ops.linear_channels import linear_from_channels, linear_to_channels

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")

LAYOUTS = {
    "dense": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "slice": lambda x: torch.cat([x, x], dim=-1)[..., x.shape[-1] :],
    "every second row": lambda x: x.repeat_interleave(2, dim=-2)[..., ::2, :],
    "unaligned": lambda x: x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x),
    "repeated": lambda x: x[..., :1].expand_as(x),
}


def derived(backend: str, inputs: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    """Value and gradients."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    with use_backend(linear=backend):
        y = operator(*inputs)
        return [y.detach(), *torch.autograd.grad(y, inputs, cotangent)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 7, 3), (33, 64, 130), (300, 17, 40), (1, 1, 1)])
def test_errs_no_more_than_torch(shape: tuple[int, int, int], bias: bool, layout: str) -> None:
    rows, width, out = shape
    inputs = [LAYOUTS[layout](x) for x in (torch.randn(2, rows, width), torch.randn(out, width))]
    inputs += [torch.randn(out, 3)[:, 0]] * bias
    cotangent = LAYOUTS[layout](torch.randn(2, rows, out))
    truth = derived("reference", [x.double() for x in inputs], cotangent.double())
    torchs, ours = (derived(backend, inputs, cotangent) for backend in ("reference", "onednn"))
    for actual, allowed, expected in zip(ours, torchs, truth, strict=True):
        assert actual.shape == expected.shape
        assert (actual - expected).norm() <= 4 * (allowed - expected).norm() + 1e-6 * expected.norm()


def test_second_derivatives() -> None:
    x, weight = torch.randn(6, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    found = []
    for backend in ("reference", "onednn"):
        with use_backend(linear=backend):
            first = torch.autograd.grad(operator(x, weight).square().sum(), (x, weight), create_graph=True)
            found.append(torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (x, weight)))
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-3)


def test_only_gradients_that_are_wanted() -> None:
    x, weight, bias = torch.randn(6, 5), torch.randn(4, 5), torch.randn(4, requires_grad=True)
    with use_backend(linear="onednn"):
        (found,) = torch.autograd.grad(operator(x, weight, bias).sum(), bias)
    assert torch.equal(found, torch.full((4,), 6.0))


@pytest.mark.parametrize("convert", [linear_to_channels, linear_from_channels])
@pytest.mark.parametrize("bias", [None, torch.arange(6.0)])
def test_between_layouts(convert: Callable[..., Tensor], bias: Tensor | None) -> None:
    shape = (2, 9, 5) if convert is linear_to_channels else (2, 5, 9)
    x, weight = torch.randn(*shape), torch.randn(6, 5)
    found = []
    for backend in ("reference", "onednn"):
        with use_backend(linear=backend):
            found.append(convert(x, weight, bias))
    torch.testing.assert_close(*found)


def test_who_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large products of float32 on AMD's processors with AVX-512, outside of autocast."""
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(importlib.import_module("longreach.ops.linear"), "_vendor", lambda: "AuthenticAMD")
    x, weight = torch.randn(1000, 128), torch.randn(128, 128)
    assert operator.choose(x, weight) == "onednn"
    assert operator.choose(x[:1], weight) == "reference"
    with torch.autocast("cpu", torch.bfloat16):
        assert operator.choose(x, weight) == "reference"
        assert operator(x, weight).dtype == torch.bfloat16
    monkeypatch.setattr(importlib.import_module("longreach.ops.linear"), "_vendor", lambda: "GenuineIntel")
    assert operator.choose(x, weight) == "reference"
    for refused in (x.double(), x.bfloat16(), x[:0], x.to("meta")):
        assert operator.refusal("onednn", refused, weight.to(refused)) is not None


def test_the_module_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours = Linear(3, 4)
    torch.manual_seed(0)
    theirs = torch.nn.Linear(3, 4)
    x = torch.randn(2, 3)
    assert torch.equal(ours(x), theirs(x))
    assert isinstance(ours, torch.nn.Linear)
    assert "linear" in OPS
