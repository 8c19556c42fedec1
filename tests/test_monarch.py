"""Monarch matrices: products, Fourier transforms, projection, and the layers."""

import itertools
import math

import laws
import pytest
import torch
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.models import BlockDiagonalLinear, MonarchLinear
from longreach.ops import block_diagonal, cooley_tukey, dft_matrix, monarch, monarch_dft, project_monarch
from longreach.ops.cooley_tukey import radices
from longreach.ops.monarch import near_square

DTYPES = [torch.float64, torch.complex128]


def by_the_book(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """out[s, l] = sum_r second[l, s, r] inner[r l_max + l] of every row, number by number."""
    k, q, p = first.shape
    blocks, s, r = second.shape
    inner = torch.stack(
        [(first[i // q, i % q] * x[:, i // q * p : (i // q + 1) * p]).sum(-1) for i in range(k * q)], -1
    )
    y = torch.zeros(len(x), s * blocks, dtype=inner.dtype)
    for a, b, c in itertools.product(range(s), range(blocks), range(r)):
        y[:, a * blocks + b] += second[b, a, c] * inner[:, c * blocks + b]
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("first", "second"),
    [((3, 4, 5), (4, 2, 3)), ((2, 6, 3), (3, 5, 4)), ((4, 1, 2), (2, 3, 2)), ((1, 1, 1), (1, 1, 1))],
)
def test_two_factors_of_any_size(first: tuple[int, ...], second: tuple[int, ...], dtype: torch.dtype) -> None:
    factors = [torch.randn(first, dtype=dtype), torch.randn(second, dtype=dtype)]
    x = torch.randn(3, first[0] * first[2], dtype=dtype)
    laws.equal(monarch(x, factors), by_the_book(x, *factors))
    laws.equal(monarch(x[:, None], factors)[:, 0], monarch(x, factors))


def test_one_factor_is_a_shuffled_block_diagonal_matrix() -> None:
    x, factor = torch.randn(2, 6).double(), torch.randn(2, 4, 3).double()
    laws.equal(monarch(x, [factor]), block_diagonal(x, factor).view(2, 2, 4).mT.flatten(1))


def test_three_factors_join_everything_with_everything() -> None:
    """Blocks of 2, 3 and 4 in turn; with two of them some pairs of 24 entries would not meet."""
    factors = [torch.rand(24 // size, size, size).double() for size in (2, 3, 4)]
    eye = torch.eye(24).double()
    assert (monarch(eye, factors) > 0).all()
    assert not (monarch(eye, factors[:2]) > 0).all()


def test_entries_can_be_shuffled_together() -> None:
    """Width b1 = 2 inside and b2 = 3 at the end, as an einsum."""
    first, second, x = torch.randn(3, 8, 4).double(), torch.randn(4, 6, 6).double(), torch.randn(5, 12).double()
    inner = torch.einsum("kjci,nki->njkc", first.view(3, 4, 2, 4), x.view(5, 3, 4))
    expected = torch.einsum("jlbkc,njkc->nljb", second.view(4, 2, 3, 3, 2), inner).flatten(1)
    laws.equal(monarch(x, [first, second], [2, 3]), expected)


def test_gradients_of_first_and_second_order() -> None:
    arguments = [torch.randn(shape).double().requires_grad_() for shape in ((2, 6), (2, 4, 3), (4, 2, 2))]

    def function(x: Tensor, *factors: Tensor) -> Tensor:
        return monarch(x, factors)

    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize("n", [1, 2, 7, 15, 48, 1000])
def test_fourier_transforms_of_any_size_are_exact(n: int, inverse: bool, normalized: bool) -> None:
    x = torch.randn(3, n, dtype=torch.complex128)
    order, *factors = monarch_dft(n, inverse=inverse, normalized=normalized)
    expected = (torch.fft.ifft if inverse else torch.fft.fft)(x, norm="ortho" if normalized else None)
    laws.equal(monarch(x[..., order], factors), expected)


@pytest.mark.parametrize("sizes", [[7], [2, 3, 4], [16, 16, 2], [2] * 6])
def test_levels_of_any_size_make_the_fourier_transform(sizes: list[int]) -> None:
    n = math.prod(sizes)
    x = torch.randn(2, 3, n).double()
    matrices = [dft_matrix(size) for size in sizes]
    laws.equal(cooley_tukey(x, matrices), torch.fft.fft(x))
    back = torch.arange(n).view(sizes[::-1]).permute(*reversed(range(len(sizes)))).flatten()
    laws.equal(cooley_tukey(x, matrices, in_order=False), torch.fft.fft(x)[..., back])


def test_levels_may_have_a_matrix_for_every_channel() -> None:
    x, matrices = torch.randn(2, 3, 8).double(), [torch.randn(3, s, s, dtype=torch.complex128) for s in (4, 2)]
    each = [cooley_tukey(x[:, i], [matrix[i] for matrix in matrices]) for i in range(3)]
    laws.equal(cooley_tukey(x, matrices), torch.stack(each, dim=1))


def test_long_transforms_keep_their_digits() -> None:
    """Angles are reduced to a turn before they are rounded."""
    n = 2**16
    turn = torch.polar(torch.tensor(1.0).double(), torch.tensor(-2 * math.pi / 1024, dtype=torch.float64))
    assert (dft_matrix(1024)[-1, -1] - turn).abs() < 1e-16
    x = torch.randn(n, dtype=torch.complex128)
    y = cooley_tukey(x, [dft_matrix(size) for size in (16,) * 4])
    assert laws.rms((y - torch.fft.fft(x)).abs()) < 1e-12 * laws.rms(torch.fft.fft(x).abs())


def test_sizes_of_levels() -> None:
    assert [radices(*pair) for pair in ((512, 16), (64, 8), (8, 16), (2, 2))] == [[16, 16, 2], [8, 8], [8], [2]]
    assert [near_square(n) for n in (1, 7, 12, 16)] == [(1, 1), (7, 1), (4, 3), (4, 4)]


def best_error(matrix: Tensor, first: int, second: int, rank: int) -> Tensor:
    """The distance to the nearest Monarch matrix: the singular values that parts of this rank leave out."""
    parts = matrix.unflatten(1, (first, -1)).unflatten(0, (-1, second)).permute(1, 2, 0, 3)
    return torch.linalg.svdvals(parts)[..., rank:].norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "blocks", "inner"), [((12, 12), (4, 3), 3), ((12, 20), (2, 3), 6), ((9, 9), (3, 3), 3)]
)
def test_projection_is_the_nearest(shape: tuple, blocks: tuple, inner: int, dtype: torch.dtype) -> None:
    matrix = torch.randn(shape, dtype=dtype)
    factors = project_monarch(matrix, blocks, inner=inner)
    assert factors[0].shape == (blocks[0], inner, shape[1] // blocks[0])
    found = monarch(torch.eye(shape[1], dtype=dtype), factors).T
    expected = best_error(matrix, *blocks, rank=inner // blocks[1])
    torch.testing.assert_close(torch.linalg.matrix_norm(matrix - found), expected.to(torch.float64))
    again = monarch(torch.eye(shape[1], dtype=dtype), project_monarch(found, blocks, inner=inner)).T
    laws.equal(again, found)


@pytest.mark.parametrize(("first", "second"), [((4, 2, 3), (4, 5, 2)), ((4, 6, 6), (4, 6, 6)), ((3, 4, 5), (6, 4, 2))])
def test_projection_finds_factors_that_join_parts_unevenly(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    """Where numbers of blocks and sizes do not match, some parts are zero, or differ in their rank."""
    eye = torch.eye(first[0] * first[2]).double()
    matrix = monarch(eye, [torch.randn(first).double(), torch.randn(second).double()]).T
    factors = project_monarch(matrix, (first[0], second[0]), inner=first[1])
    assert [factor.shape for factor in factors] == [first, second]
    laws.equal(monarch(eye, factors).T, matrix)


@pytest.mark.parametrize(
    ("inputs", "outputs", "n_blocks"), [(12, 12, 4), (10, 7, 4), (8, 20, 4), (1, 3, 2), (16, 16, 2)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_the_nearest_layer_of_a_monarch_matrix_is_that_matrix(inputs: int, outputs: int, n_blocks: int, bias) -> None:
    layer = MonarchLinear(inputs, outputs, n_blocks=n_blocks, bias=bias).double()
    linear = nn.Linear(inputs, outputs, bias=bias).double()
    with torch.no_grad():
        linear.weight.copy_((layer(torch.eye(inputs).double()) - layer(torch.zeros(1, inputs).double())).T)
    x = torch.randn(2, 3, inputs).double()
    laws.equal(MonarchLinear.nearest(linear, n_blocks=n_blocks)(x), linear(x))


def test_the_layer_starts_as_published() -> None:
    layer = MonarchLinear(1024, 2048)
    assert (layer.first.shape, layer.second.shape, layer.bias.shape) == ((4, 256, 256), (4, 512, 256), (2048,))
    narrowing = MonarchLinear(10, 7)
    assert (narrowing.first.shape, narrowing.second.shape) == ((4, 2, 3), (4, 2, 2))
    for factor in (layer.first, layer.second):
        assert factor.abs().max().item() == pytest.approx(1 / 16, rel=1e-3)
        assert factor.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=0.01)
    assert layer.bias.abs().max().item() == pytest.approx(1 / 32, rel=0.01)


def test_layers_train_in_autocast() -> None:
    layer = MonarchLinear(12, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.randn(5, 12))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(parameter.grad.any() for parameter in layer.parameters())


def test_a_shuffled_block_diagonal_map_reads_every_row() -> None:
    """Features in 2 rows of 3: the blocks get the columns 0 0 1 and 1 2 2."""
    layer = BlockDiagonalLinear(6, 2, n_blocks=2, bias=False, shuffle=True)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[1.0, 10.0, 100.0]], [[1.0, 10.0, 100.0]]]))
    assert layer(torch.arange(6.0)).tolist() == [0 + 30 + 100, 4 + 20 + 500]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: monarch(torch.zeros(2, 6), [torch.zeros(2, 3, 3), torch.zeros(4, 2, 2)]), "6 entries cannot be dealt"),
        (lambda: monarch(torch.zeros(2, 6), [torch.zeros(2, 3, 3)], [1, 1]), "1 factors need a width each"),
        (lambda: cooley_tukey(torch.zeros(8), [dft_matrix(4)]), "make 4 entries; x has 8"),
        (lambda: project_monarch(torch.zeros(6, 6), (4, 3)), "6 x 6"),
        (lambda: project_monarch(torch.zeros(6, 6), (3, 3), inner=12), "12 inner outputs"),
        (lambda: MonarchLinear(4, 4, n_blocks=0), "n_blocks=0"),
        (lambda: MonarchLinear(4, 4)(torch.zeros(2, 5)), "5 features"),
    ],
)
def test_mistakes_are_named(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
