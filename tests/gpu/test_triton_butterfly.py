"""Butterfly products in Triton: every block of factors as a Monarch matrix, whose own tests are beside this file."""

from functools import partial

import pytest
import torch
from torch import Tensor
from triton_checks import assert_like_torch, repetitions, values_and_gradients

from longreach.models import ButterflyLinear
from longreach.ops import apply_transform, butterfly_multiply, fourier_transform, use_backend
from longreach.ops.backend import BackendError

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.complex64]


def arguments(n: int, stacks: int, blocks: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    wide, levels = torch.complex64 if dtype.is_complex else torch.float32, n.bit_length() - 1
    twiddle = torch.randn(stacks, blocks, levels, n // 2, 2, 2, dtype=wide) / 2**0.5
    return [torch.randn(3, 5, stacks, n, dtype=wide).to(device, dtype), twiddle.to(device, dtype)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize(("n", "blocks"), [(4, 2), (32, 3), (256, 1)])
def test_is_the_definition(n: int, blocks: int, increasing: bool, dtype: torch.dtype, device: torch.device) -> None:
    inputs = arguments(n, 2, blocks, dtype, device)
    assert_like_torch("butterfly_multiply", partial(butterfly_multiply, increasing=increasing), inputs)


def test_numbers_of_other_kinds_than_the_factors(device: torch.device) -> None:
    """Real inputs to a complex matrix, and half the digits to one in float32."""
    x, twiddle = arguments(16, 1, 2, torch.float32, device)
    assert_like_torch("butterfly_multiply", butterfly_multiply, [x, torch.complex(twiddle, twiddle.flip(2))])
    assert_like_torch("butterfly_multiply", butterfly_multiply, [x.half(), twiddle])
    with use_backend(butterfly_multiply="triton"), torch.autocast(device.type, dtype=torch.bfloat16):
        y = butterfly_multiply(x, twiddle)
    torch.testing.assert_close(y, butterfly_multiply.backends["reference"](x, twiddle))


def test_stacks_share_an_expanded_input(device: torch.device) -> None:
    layer, x = ButterflyLinear(16, 50, n_blocks=2).to(device), torch.randn(20, 16, device=device)
    results = []
    for backend in ("triton", "reference"):
        with use_backend(butterfly_multiply=backend):
            y = layer(x)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), list(layer.parameters()))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_fourier_transforms(device: torch.device) -> None:
    x = torch.randn(3, 64, dtype=torch.complex64, device=device)
    for decimation in ("time", "frequency"):
        transform = fourier_transform(64, decimation=decimation)
        transform = transform._replace(twiddle=transform.twiddle.to(x))
        with use_backend(butterfly_multiply="triton"):
            torch.testing.assert_close(apply_transform(x, transform), torch.fft.fft(x), rtol=1e-5, atol=1e-4)


def test_says_what_it_cannot(device: torch.device) -> None:
    x, twiddle = arguments(2, 1, 1, torch.float32, device)
    with use_backend(butterfly_multiply="triton"), pytest.raises(BackendError, match="there is one factor"):
        butterfly_multiply(x, twiddle)
    x, twiddle = arguments(8, 1, 1, torch.float32, device)
    with use_backend(butterfly_multiply="triton"), pytest.raises(BackendError, match="no kernel for"):
        butterfly_multiply(x, twiddle.double())
    assert "15 rows" in butterfly_multiply.explain(x, twiddle)["triton"]
    assert "128 entries" in butterfly_multiply.explain(x, twiddle.new_zeros(1, 1, 15, 4, 2, 2))["triton"]


def test_derivatives_of_derivatives(device: torch.device) -> None:
    x, twiddle = arguments(8, 1, 2, torch.complex64, device)
    results = []
    for backend in ("triton", "reference"):
        leaves = x.clone().requires_grad_(), twiddle.clone().requires_grad_()
        with use_backend(butterfly_multiply=backend):
            y = butterfly_multiply(*leaves)
        gradients = torch.autograd.grad(y.abs().square().sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.abs().square().sum() for g in gradients), leaves))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def test_the_same_bits_every_time(device: torch.device) -> None:
    inputs = arguments(64, 2, 2, torch.float32, device)
    cotangent = torch.randn_like(inputs[0])
    first = values_and_gradients("butterfly_multiply", "triton", butterfly_multiply, inputs, cotangent)
    for _ in range(repetitions(device)):
        again = values_and_gradients("butterfly_multiply", "triton", butterfly_multiply, inputs, cotangent)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_sizes_share_few_tiles(device: torch.device, idle: None, variants: set[tuple[str, str]]) -> None:
    """All sizes, directions and numbers of rows: tiles of 32 entries, in multiples of 8 or not, and of 64."""
    for rows in (1, 7, 64):
        for levels in range(2, 14):
            for blocks in (1, 2):
                x = torch.zeros(rows, 1, 2**levels, device=device, requires_grad=True)
                twiddle = torch.zeros(1, blocks, levels, 2 ** (levels - 1), 2, 2, device=device, requires_grad=True)
                with use_backend(butterfly_multiply="triton"):
                    butterfly_multiply(x, twiddle).sum().backward()
    names = [name for name, _ in variants]
    assert {name: names.count(name) for name in names} == {"multiply": 6, "gradient": 6}
