"""Block-diagonal products in Triton: against the definition, their derivatives, and themselves."""

import pytest
import torch
from torch import Tensor
from triton_checks import assert_like_torch, repetitions, values_and_gradients

from longreach.errors import InputError
from longreach.models import BlockDiagonalMLP
from longreach.ops import block_diagonal, use_backend
from longreach.ops.backend import BackendError
from longreach.ops.triton import block_diagonal as launcher

FLOATS = [torch.float32, torch.bfloat16]
EVERY = [*FLOATS, torch.float16, torch.complex64]
SHAPES = [((1, 1, 1), FLOATS), ((9, 3, 5), EVERY), ((8, 16, 24), EVERY), ((2, 200, 72), FLOATS), ((3, 7, 70), FLOATS)]


def arguments(rows: int, weight: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    wide = torch.complex64 if dtype.is_complex else torch.float32
    shapes = (rows, weight[0] * weight[2]), weight
    return [torch.randn(shape, dtype=wide).to(device, dtype) for shape in shapes]


@pytest.mark.parametrize(("shape", "dtype"), [(shape, dtype) for shape, dtypes in SHAPES for dtype in dtypes])
def test_is_the_definition(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    assert_like_torch("block_diagonal", block_diagonal, arguments(21, shape, dtype, device))


def test_rows_in_several_parts_and_of_any_number(device: torch.device) -> None:
    for rows in (0, 1, 32, 200):
        assert_like_torch("block_diagonal", block_diagonal, arguments(rows, (3, 4, 5), torch.float32, device))


def test_takes_views(device: torch.device) -> None:
    """Gaps between rows, rows that are the same, rows backwards, every third entry, and transposed weights."""
    weight, wide = torch.randn(8, 16, 8, device=device), torch.randn(3, 5, 192, device=device)
    for x in (wide[..., :64], wide[:, :1, 64:128].expand(3, 5, 64), wide.flip(-1)[..., 1:65], wide[..., ::3]):
        for matrices in (weight, weight.view(8, 8, 16).mT):
            with use_backend(block_diagonal="triton"):
                found = block_diagonal(x, matrices)
            with use_backend(block_diagonal="reference"):
                torch.testing.assert_close(found, block_diagonal(x, matrices))


def test_derivatives_of_derivatives(device: torch.device) -> None:
    inputs, results = arguments(7, (3, 4, 5), torch.complex64, device), []
    for backend in ("triton", "reference"):
        leaves = [x.clone().requires_grad_() for x in inputs]
        with use_backend(block_diagonal=backend):
            y = block_diagonal(*leaves)
            gradients = torch.autograd.grad(y.abs().square().sum(), leaves, create_graph=True)
            further = torch.autograd.grad(sum(g.abs().square().sum() for g in gradients), leaves)
        results.append([x.detach() for x in (y, *gradients, *further)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_says_what_it_cannot(device: torch.device) -> None:
    x, weight = arguments(4, (3, 4, 5), torch.float32, device)
    with use_backend(block_diagonal="triton"):
        with pytest.raises(BackendError, match="no kernel for"):
            block_diagonal(x.double(), weight.double())
        with pytest.raises(BackendError, match="of one dtype"):
            block_diagonal(x, weight.half())
        with pytest.raises(InputError, match="x has 14 features"):
            block_diagonal(x[:, :14], weight)
    assert "4 rows" in block_diagonal.explain(x, weight)["triton"]


def test_autocast_rounds(device: torch.device) -> None:
    layer, results = BlockDiagonalMLP(32, n_blocks=2).to(device), []
    x = torch.randn(2, 9, 32, device=device)
    for backend in ("triton", "reference"):
        with torch.autocast(device.type, dtype=torch.bfloat16), use_backend(block_diagonal=backend):
            y = layer(x)
        results.append([y.detach(), *torch.autograd.grad(y.float().square().sum(), list(layer.parameters()))])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05 * float(theirs.abs().max()))


def test_is_a_well_behaved_operator_of_torch(device: torch.device) -> None:
    x, weight = (t.requires_grad_() for t in arguments(5, (3, 4, 5), torch.float32, device))
    torch.library.opcheck(torch.ops.longreach.block_diagonal_triton, (x, weight, False))
    grad = torch.randn(5, 12, device=device)
    torch.library.opcheck(torch.ops.longreach.block_diagonal_triton_gradient, (grad, x, weight))


def test_the_same_bits_every_time_and_neighbours_change_none(device: torch.device) -> None:
    inputs, cotangent = arguments(70, (9, 4, 5), torch.float32, device), torch.ones(70, 36, device=device)
    first = values_and_gradients("block_diagonal", "triton", block_diagonal, inputs, cotangent)
    for _ in range(repetitions(device)):
        again = values_and_gradients("block_diagonal", "triton", block_diagonal, inputs, cotangent)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    inputs[0][33, 7] = torch.nan
    found, of_x, of_weight = values_and_gradients("block_diagonal", "triton", block_diagonal, inputs, cotangent)
    assert found[33, 4:8].isnan().all()
    assert found.isnan().sum() == of_weight.isnan().sum() == 4
    assert torch.equal(of_x, first[1])


def test_few_variants(device: torch.device, idle: None, variants: set[tuple[str, str]]) -> None:
    """Of every shape: small blocks or not, in multiples of 8 or not; the product also transposed."""
    for rows in (*range(1, 40), 4096):
        for n, o, i in ((4, 8, 8), (9, 7, 5), (2, 64, 256), (3, 100, 11), (64, 32, 16)):
            x, weight = (t.requires_grad_() for t in arguments(rows, (n, o, i), torch.float32, device))
            launcher.triton_block_diagonal(x, weight).sum().backward()
    names = [name for name, _ in variants]
    assert {name: names.count(name) for name in names} == {"multiply": 8, "gradient": 4}
