"""Monarch products in Triton: against the definition, their derivatives, and themselves."""

import pytest
import torch
from torch import Tensor
from triton_checks import assert_like_torch, repetitions, values_and_gradients

from longreach.models import MonarchLinear
from longreach.ops import monarch, use_backend
from longreach.ops.backend import BackendError
from longreach.ops.triton import monarch as launcher

FLOATS = [torch.float32, torch.bfloat16]
EVERY = [*FLOATS, torch.float16, torch.complex64]
SMALL, ALIGNED = ((3, 4, 5), (4, 2, 3)), ((8, 16, 40), (16, 8, 8))
"""Both of rank 1; the second is in multiples of 8."""
CALLS = [
    (((1, 1, 1), (1, 1, 1)), [torch.float32]),
    (SMALL, EVERY),
    (ALIGNED, EVERY),
    (((10, 20, 5), (10, 6, 20)), EVERY),  # rank 2, more than one chunk of blocks on both sides
    (((2, 12, 3), (3, 5, 8)), EVERY),  # rank 4
    (((3, 21, 5), (3, 4, 21)), FLOATS),  # rank 7
    (((2, 140, 40), (2, 50, 140)), FLOATS),  # rank 70: more than are taken at a time
    (((16, 16, 70), (16, 70, 16)), FLOATS),  # blocks of more entries than a program takes
    (((1, 8, 300), (1, 300, 8)), FLOATS),
]


def both(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return monarch(x, [first, second])


def arguments(rows: int, first: tuple[int, ...], second: tuple[int, ...], dtype: torch.dtype, device) -> list[Tensor]:
    wide = torch.complex64 if dtype.is_complex else torch.float32
    shapes = (rows, first[0] * first[2]), first, second
    return [torch.randn(shape, dtype=wide).to(device, dtype) for shape in shapes]


@pytest.mark.parametrize(("shapes", "dtype"), [(shapes, dtype) for shapes, dtypes in CALLS for dtype in dtypes])
def test_is_the_definition(shapes: tuple, dtype: torch.dtype, device: torch.device) -> None:
    assert_like_torch("monarch", both, arguments(19, *shapes, dtype, device))


def test_rows_in_several_parts_and_of_any_number(device: torch.device) -> None:
    for rows in (0, 1, 32, 129):
        assert_like_torch("monarch", both, arguments(rows, *SMALL, torch.float32, device))


def test_takes_views(device: torch.device) -> None:
    """Gaps between rows, rows that are the same, rows backwards, and factors that lie transposed or conjugated."""
    first, second = torch.randn(8, 8, 8, device=device), torch.randn(8, 8, 8, device=device)
    wide = torch.randn(3, 5, 192, device=device)
    for x in (wide[..., :64], wide[:, :1, 64:128].expand(3, 5, 64), wide.flip(-1)[..., 1:65], wide[..., ::3]):
        with use_backend(monarch="triton"):
            found = both(x, first.mT, second.flip(0))
        torch.testing.assert_close(found, both(x, first.mT, second.flip(0)))
    z = torch.randn(4, 64, dtype=torch.complex64, device=device)
    numbers = first + 1j * second
    with use_backend(monarch="triton"):
        found = both(z.conj(), numbers.conj(), numbers.mH)
    torch.testing.assert_close(found, both(z.conj(), numbers.conj(), numbers.mH))


def test_says_what_it_cannot(device: torch.device) -> None:
    x = torch.zeros(20, 12, device=device)
    uneven = [torch.zeros(2, 4, 6, device=device), torch.zeros(8, 2, 1, device=device)]
    even = [torch.zeros(2, 4, 6, device=device), torch.zeros(4, 2, 2, device=device)]
    for factors, widths, words in (
        (even[:1], None, "two factors"),
        (even, [1, 2], "one entry at a time"),
        (uneven, None, "as many numbers to every block"),
        ([even[0].double(), even[1]], None, "of one dtype"),
    ):
        with use_backend(monarch="triton"), pytest.raises(BackendError, match=words):
            monarch(x, factors, widths)
    with use_backend(monarch="triton"), pytest.raises(BackendError, match="no kernel for"):
        monarch(x.double(), [factor.double() for factor in even])
    assert "1 rows" in monarch.explain(x[0], even)["triton"]


def test_autocast_rounds_the_factors(device: torch.device) -> None:
    layer = MonarchLinear(64, 64, n_blocks=8).to(device)
    x, results = torch.randn(20, 64, device=device), []
    for backend in ("triton", "reference"):
        with torch.autocast(device.type, dtype=torch.bfloat16), use_backend(monarch=backend):
            y = layer(x)
        gradients = torch.autograd.grad(y.float().square().sum(), list(layer.parameters()))
        results.append([y.detach(), *gradients])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05 * float(theirs.abs().max()))


def test_derivatives_of_derivatives(device: torch.device) -> None:
    """They run on torch, for both directions and widths."""
    shapes = (5, 2, 12), (2, 2, 8, 6), (2, 4, 6, 4)
    for width in (1, 2):
        for adjoint in (False, True):
            x, first, second = (torch.randn(shape, device=device, requires_grad=True) for shape in shapes)
            if adjoint:
                x = torch.randn(5, 2, 24, device=device, requires_grad=True)
            leaves = x, first, second
            found = []
            for function in (torch.ops.longreach.monarch_triton, launcher._by_definition):
                y = function(*leaves, width, adjoint)
                gradients = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
                further = torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves)
                found.append([y, *gradients, *further])
            for ours, theirs in zip(*found, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.detach().abs().max()))


def test_only_what_is_needed_is_computed(device: torch.device) -> None:
    for i in range(3):
        inputs = arguments(3, *SMALL, torch.float32, device)
        inputs[i].requires_grad_()
        with use_backend(monarch="triton"):
            (found,) = torch.autograd.grad(both(*inputs).sum(), inputs[i])
        with use_backend(monarch="reference"):
            torch.testing.assert_close(found, torch.autograd.grad(both(*inputs).sum(), inputs[i])[0])


def test_is_a_well_behaved_operator_of_torch(device: torch.device) -> None:
    shapes = (5, 2, 12), (2, 2, 8, 6), (2, 4, 6, 4)
    x, first, second = (torch.randn(shape, device=device, requires_grad=True) for shape in shapes)
    for width, adjoint in ((1, False), (2, True)):
        x = torch.randn(5, 2, 24 if adjoint else 12, device=device, requires_grad=True)
        torch.library.opcheck(torch.ops.longreach.monarch_triton, (x, first, second, width, adjoint))


def test_the_same_bits_every_time_and_neighbours_change_none(device: torch.device) -> None:
    inputs = arguments(70, *ALIGNED, torch.float32, device)
    cotangent = torch.ones(70, 128, device=device)
    first = values_and_gradients("monarch", "triton", both, inputs, cotangent)
    for _ in range(repetitions(device)):
        again = values_and_gradients("monarch", "triton", both, inputs, cotangent)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    inputs[0][33, 7] = torch.nan
    found, of_x, *_ = values_and_gradients("monarch", "triton", both, inputs, cotangent)
    assert found[33].isnan().all()
    assert torch.equal(found[:33], first[0][:33])
    assert torch.equal(found[34:], first[0][34:])
    assert torch.equal(of_x, first[1])


def test_numbers_of_rows_compile_nothing_anew(device: torch.device, idle: None, variants: set[tuple[str, str]]) -> None:
    """A layer has four: two directions of the product, and the gradients of its factors."""
    first, second = (torch.randn(32, 32, 32, device=device, requires_grad=True) for _ in range(2))
    for rows in (*range(1, 200), 1000, 4096):
        x = torch.randn(rows, 1, 1024, device=device, requires_grad=True)
        launcher.triton_monarch(x, first[None], second[None], False).sum().backward()
    names = [name for name, _ in variants]
    assert {name: names.count(name) for name in names} == {"multiply": 2, "gradient": 2}


def test_sizes_share_few_tiles(device: torch.device, idle: None, variants: set[tuple[str, str]]) -> None:
    """Of all square layers up to 2048 features with 1 to 64 blocks, in one dtype."""
    for features in range(32, 2049, 96):
        for n_blocks in (1, 4, 16, 64):
            layer = MonarchLinear(features, features, n_blocks=n_blocks).to(device)
            x = torch.zeros(32, 1, n_blocks * layer.first.shape[2], device=device)
            if layer.first.shape[1] % n_blocks == 0:
                with torch.no_grad():
                    launcher.triton_monarch(x, layer.first[None], layer.second[None], False)
    assert 10 < len(variants) <= 51


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_fill_tensor_cores_and_fit(dtype: torch.dtype) -> None:
    """Which the interpreter does not ask for: sides of products of 16 or more, results of 64 KiB on chip at most."""
    for rank in (*range(1, 20), 64, 300):
        for size in (1, 30, 64, 1000):
            for adjoint in (False, True):
                sizes = launcher._Sizes(9, size, 9, size, rank)
                tile = launcher._tile(sizes, 9 * size, dtype, adjoint, 1)
                blocks, rows = tile["BLOCKS"], tile["ROWS"]
                assert min(blocks * tile["RANKS"], tile["ENTRIES"], tile["ENTRIES_IN"], rows) >= 16
                assert blocks * rows * tile["ENTRIES"] <= (16384 if dtype == torch.float32 else 32768)
                assert blocks == 1 or blocks % tile["num_warps"] == 0
