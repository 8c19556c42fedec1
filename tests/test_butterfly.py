"""Butterfly matrices: the operator and its backends, fixed transforms, projection, the layer, learned convolution."""

import math
from pathlib import Path

import laws
import pytest
import torch
from safetensors import safe_open
from test_mixers import shaken
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers import ButterflyConv, LongConv, OptimHint, TransformOptions
from longreach.mixers.learned_fft import LearnedFFT
from longreach.models import ButterflyLinear
from longreach.ops import (
    ButterflyTransform,
    apply_transform,
    bit_reversal,
    butterfly_factor,
    butterfly_multiply,
    circulant_transform,
    cosine_transform,
    fourier_transform,
    hadamard_transform,
    merge_factors,
    permutation_twiddle,
    project_butterfly,
    sine_transform,
    toeplitz_transform,
    transpose_twiddle,
    unitary_twiddle,
    use_backend,
    wavelet_order,
)

GOLDEN = Path(__file__).parent / "golden" / "butterfly"
DTYPES = [torch.float64, torch.complex128]


def random_twiddle(n: int, *, stacks: int = 1, blocks: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(stacks, blocks, n.bit_length() - 1, n // 2, 2, 2, dtype=dtype)


def dense(twiddle: Tensor, increasing: bool = True) -> Tensor:
    """The matrices, (stacks, n, n), from the definition: one 2 x 2 matrix at a time."""
    stacks, _, levels, half = twiddle.shape[:4]
    matrices = torch.eye(2 * half, dtype=twiddle.dtype).repeat(stacks, 1, 1)
    for block in twiddle.unbind(1):
        for i in range(levels):
            stride = 2 ** (i if increasing else levels - 1 - i)
            factor = torch.zeros_like(matrices)
            for place in range(half):
                row = place // stride * 2 * stride + place % stride
                for a in range(2):
                    for b in range(2):
                        factor[:, row + a * stride, row + b * stride] = block[:, i, place, a, b]
            matrices = factor @ matrices
        increasing = not increasing
    return matrices


@pytest.mark.parametrize("backend", ["reference", "merged"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("n", [2, 4, 8, 32, 64])
def test_multiplies_with_the_matrix_that_it_means(n: int, increasing: bool, dtype: torch.dtype, backend: str) -> None:
    twiddle = random_twiddle(n, stacks=2, blocks=3, dtype=dtype)
    x = torch.randn(3, 1, 2, n, dtype=torch.float64)
    with use_backend(butterfly_multiply=backend):
        y = butterfly_multiply(x, twiddle, increasing)
    laws.equal(y, torch.einsum("kij,...kj->...ki", dense(twiddle, increasing), x.to(dtype)))


@pytest.mark.parametrize("backend", ["reference", "merged"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_first_and_second_order(dtype: torch.dtype, backend: str) -> None:
    arguments = torch.randn(2, 1, 32, dtype=dtype, requires_grad=True), random_twiddle(32, dtype=dtype).requires_grad_()
    with use_backend(butterfly_multiply=backend):
        assert torch.autograd.gradcheck(butterfly_multiply, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(butterfly_multiply, arguments, fast_mode=True)


def test_many_rows_are_multiplied_with_merged_factors_and_few_are_not() -> None:
    twiddle = random_twiddle(16)
    assert butterfly_multiply.choose(torch.randn(64, 1, 16), twiddle) == "merged"
    assert butterfly_multiply.choose(torch.randn(2, 1, 16), twiddle) == "reference"
    assert butterfly_multiply.choose(torch.randn(64, 1, 2), random_twiddle(2)) == "reference"


@pytest.mark.parametrize("increasing", [True, False])
def test_merging_in_float32_and_autocast_loses_no_more_than_the_definition(increasing: bool) -> None:
    twiddle, x = random_twiddle(256), torch.randn(64, 1, 256, dtype=torch.float64)
    exact = butterfly_multiply(x, twiddle, increasing)
    with use_backend(butterfly_multiply="reference"):
        allowed = 4 * laws.rms(butterfly_multiply(x.float(), twiddle.float(), increasing) - exact)
    with torch.autocast("cpu", dtype=torch.bfloat16), use_backend(butterfly_multiply="merged"):
        rough = butterfly_multiply(x.float(), twiddle.float(), increasing)
    assert 0 < laws.rms(rough - exact) <= allowed < laws.rms(exact)


@pytest.mark.parametrize("increasing", [True, False])
def test_factors_of_any_stride_merge(increasing: bool) -> None:
    x, factors = torch.randn(5, 64).double(), torch.randn(3, 3, 32, 2, 2).double()
    y = x[:, None]
    for i in range(3):
        y = butterfly_factor(y, factors[:, i], 4 * 2 ** (i if increasing else 2 - i))
    merged = merge_factors(factors, 4, increasing)
    assert merged.shape == (3, 8, 8, 8)
    laws.equal(butterfly_factor(x[:, None], merged, 4), y)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("increasing", [True, False])
def test_transposed_twiddles_make_the_transposed_matrix(increasing: bool, blocks: int) -> None:
    twiddle = random_twiddle(16, blocks=blocks)
    other_way = increasing == (blocks == 2)
    laws.equal(dense(transpose_twiddle(twiddle), other_way), dense(twiddle, increasing).mT)


def test_angles_make_unitary_matrices() -> None:
    matrices = unitary_twiddle(torch.randn(7, 4).double())
    laws.equal(matrices @ matrices.mH, torch.eye(2, dtype=torch.complex128).expand(7, 2, 2))
    phi, alpha, psi, chi = 0.3, 0.5, 0.7, 1.1
    (matrix,) = unitary_twiddle(torch.tensor([[phi, alpha, psi, chi]], dtype=torch.float64))
    laws.equal(matrix[0, 1], torch.tensor(math.sin(phi) * complex(math.cos(1.6), math.sin(1.6)), dtype=matrix.dtype))


@pytest.mark.parametrize("decimation", ["time", "frequency"])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("inverse", [True, False])
@pytest.mark.parametrize("n", [2, 16, 1024])
def test_fourier_transforms_are_exact(n: int, inverse: bool, normalized: bool, decimation) -> None:
    x = torch.randn(3, n, dtype=torch.complex128)
    transform = fourier_transform(n, inverse=inverse, normalized=normalized, decimation=decimation)
    expected = (torch.fft.ifft if inverse else torch.fft.fft)(x, norm="ortho" if normalized else None)
    assert laws.rms((apply_transform(x, transform) - expected).abs()) < 1e-15 * n


def trigonometric(n: int, kind: int, sine: bool, normalized: bool) -> Tensor:
    """The matrix by scipy's definition."""
    column = torch.arange(n).double()
    row, shift = column[:, None], {2: (0, 0.5), 3: (0.5, 0), 4: (0.5, 0.5)}[kind]
    first = 1 if sine else 0  # sines count from one, except where there is a half already
    rows, columns = (axis + (part or first) for axis, part in zip((row, column), shift, strict=True))
    matrix = 2 * (torch.sin if sine else torch.cos)(math.pi / n * rows * columns)
    special = -1 if sine else 0
    if normalized:
        matrix /= math.sqrt(2 * n)
    if kind == 3:
        matrix[:, special] /= math.sqrt(2) if normalized else 2
    if kind == 2 and normalized:
        matrix[special] /= math.sqrt(2)
    return matrix


@pytest.mark.parametrize("sine", [False, True])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("kind", [2, 3, 4])
@pytest.mark.parametrize("n", [2, 8, 64])
def test_cosine_and_sine_transforms_are_exact(n: int, kind, normalized: bool, sine: bool) -> None:
    matrix = trigonometric(n, kind, sine, normalized)
    if normalized:
        laws.equal(matrix @ matrix.T, torch.eye(n).double())
    transform = (sine_transform if sine else cosine_transform)(n, kind, normalized=normalized)
    x = torch.randn(3, n).double()
    laws.equal(apply_transform(x, transform), x @ matrix.T)


@pytest.mark.parametrize("n", [2, 32])
def test_hadamard_transforms_are_products_of_signs(n: int) -> None:
    x = torch.randn(3, n).double()
    matrix = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)]).double()
    laws.equal(apply_transform(x, hadamard_transform(n)), x @ matrix.T)
    laws.equal(apply_transform(x, hadamard_transform(n, normalized=True)), x @ matrix.T / math.sqrt(n))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_circulant_and_toeplitz_matrices_are_exact(n: int, dtype: torch.dtype) -> None:
    column, row, x = torch.randn(n, dtype=dtype), torch.randn(n, dtype=dtype), torch.randn(3, n, dtype=dtype)
    if n > 1:
        circulant = torch.stack([column.roll(i) for i in range(n)], dim=1)
        laws.equal(apply_transform(x, circulant_transform(column)), x @ circulant.T)
        toeplitz = torch.stack([torch.cat([row[1 : i + 1].flip(0), column[: n - i]]) for i in range(n)], dim=1)
        laws.equal(apply_transform(x, toeplitz_transform(column, row)), x @ toeplitz.T)
    else:
        laws.equal(apply_transform(x, toeplitz_transform(column, row)), x * column)


def test_gradients_reach_the_column_of_a_convolution() -> None:
    column = torch.randn(5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda c: apply_transform(x, circulant_transform(c)), (column,))


@pytest.mark.parametrize("n", [2, 4, 8, 64])
def test_every_permutation_is_two_butterflies(n: int) -> None:
    x = torch.randn(3, 1, n).double()
    for _ in range(10):
        order = torch.randperm(n)
        twiddle = permutation_twiddle(order)
        assert set(twiddle.flatten().tolist()) == {0.0, 1.0}
        assert torch.equal(butterfly_multiply(x, twiddle, increasing=False), x[..., order])


def test_orders_of_entries() -> None:
    assert bit_reversal(8).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    assert bit_reversal(1).tolist() == [0]
    assert wavelet_order(8).tolist() == [0, 4, 2, 6, 1, 3, 5, 7]


PUBLISHED = {
    **{
        f"fft_n{n}_brfirst{int(first)}_norm{int(norm)}": fourier_transform(
            n, normalized=norm, decimation="time" if first else "frequency"
        )
        for n in (8, 16)
        for first in (False, True)
        for norm in (False, True)
    },
    "ifft_n8_brfirst1": fourier_transform(8, inverse=True),
    "ifft_n16_brfirst0": fourier_transform(16, inverse=True, decimation="frequency"),
}
"""Golden file -> our transform."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_our_factors_are_the_published_ones(name: str) -> None:
    transform: ButterflyTransform = PUBLISHED[name]
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key.rpartition(".")[2].rpartition("/")[2]: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    theirs = tensors["twiddle"]
    laws.equal(transform.twiddle, torch.view_as_complex(theirs) if theirs.ndim == 7 else theirs)
    for order in (transform.order_before, transform.order_after):
        assert order is None or torch.equal(order, tensors["permutation"])


@pytest.mark.parametrize(
    ("name", "transform"), [("dct2_n16", cosine_transform(16, normalized=True)), ("dst4_n8", sine_transform(8, 4))]
)
def test_ours_make_the_published_outputs(name: str, transform: ButterflyTransform) -> None:
    """Factors differ in where their scale is."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        x, y = file.get_tensor("input").clone(), file.get_tensor("output").clone()
    laws.equal(apply_transform(x, transform), y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("n", [2, 4, 8, 32])
def test_projection_finds_a_butterfly(n: int, increasing: bool, dtype: torch.dtype) -> None:
    matrices = dense(random_twiddle(n, stacks=2, dtype=dtype), increasing)
    found = project_butterfly(matrices, increasing=increasing)
    laws.equal(dense(found, increasing), matrices)


def test_projection_is_near_a_disturbed_butterfly() -> None:
    """The nearest butterfly is no farther away than the disturbance; ours is less than twice as far."""
    matrices = dense(random_twiddle(32))
    noise = 0.01 * torch.randn_like(matrices)
    error = (dense(project_butterfly(matrices + noise)) - matrices - noise).norm()
    assert 0 < error < 2 * noise.norm()


@pytest.mark.parametrize("n", [8, 64])
def test_projection_finds_the_fast_fourier_transform(n: int) -> None:
    matrix = torch.fft.fft(torch.eye(n, dtype=torch.complex128))[:, bit_reversal(n)]
    laws.equal(dense(project_butterfly(matrix[None]))[0], matrix)


@pytest.mark.parametrize("init", ["normal", "orthogonal", "identity"])
@pytest.mark.parametrize("numbers", ["real", "complex", "unitary"])
def test_layers_start_as_published(numbers, init) -> None:
    if (numbers, init) == ("unitary", "identity"):
        with pytest.raises(InputError, match="init='orthogonal'"):
            ButterflyLinear(8, 8, numbers=numbers, init=init)
        return
    layer = ButterflyLinear(256, 500, numbers=numbers, init=init)
    matrices = layer.matrices().detach()
    assert matrices.shape == (2, 1, 8, 128, 2, 2)
    if numbers == "unitary" or init != "normal":
        identity = torch.eye(2, dtype=matrices.dtype).expand_as(matrices)
        torch.testing.assert_close(matrices @ matrices.mH, identity, atol=1e-5, rtol=0)
        assert torch.equal(matrices, identity) == (init == "identity")
        if numbers != "real" and init != "identity":  # Haar measure: the squares of the entries are uniform in [0, 1]
            squares = matrices[..., 0, 0].abs().square()
            assert squares.mean().item() == pytest.approx(0.5, abs=0.03)
            assert squares.std().item() == pytest.approx(12**-0.5, abs=0.02)
        if (numbers, init) == ("real", "orthogonal"):
            assert 0.4 < (torch.linalg.det(matrices) > 0).double().mean() < 0.6
    else:
        assert matrices.abs().square().mean().sqrt().item() == pytest.approx(0.5**0.5, rel=0.05)
    assert layer.bias.abs().max().item() == pytest.approx(1 / 16, rel=0.05)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (8, 8), (10, 7), (6, 29)])
@pytest.mark.parametrize("numbers", ["real", "complex", "unitary"])
def test_layers_take_any_number_of_features(inputs: int, outputs: int, numbers) -> None:
    layer = ButterflyLinear(inputs, outputs, numbers=numbers, n_blocks=2, increasing=False).double()
    x = torch.randn(2, 3, inputs).double()
    bias = layer.bias if numbers == "real" else torch.view_as_complex(layer.bias)
    matrix = dense(layer.matrices(), increasing=False).flatten(0, 1)[:outputs, :inputs]
    laws.equal(layer(x), x.to(matrix.dtype) @ matrix.T + bias)
    layer(x).abs().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("n_blocks", [1, 2])
def test_layers_apply_transposed_and_conjugate_matrices(n_blocks: int) -> None:
    layer = ButterflyLinear(8, 8, numbers="complex", n_blocks=n_blocks, bias=False).double()
    matrix, x = dense(layer.matrices())[0], torch.randn(3, 8, dtype=torch.complex128)
    laws.equal(layer(x, transpose=True), x @ matrix)
    laws.equal(layer(x, transpose=True, conjugate=True), x @ matrix.conj())


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_nearest_layer_of_a_butterfly_is_the_butterfly(bias: bool, increasing: bool) -> None:
    first = ButterflyLinear(8, 20, bias=bias, increasing=increasing).double()
    linear = nn.Linear(8, 20, bias=bias).double()
    with torch.no_grad():
        linear.weight.copy_(dense(first.twiddle, increasing).flatten(0, 1)[:20])
    x = torch.randn(5, 8).double()
    nearest = ButterflyLinear.nearest(linear, increasing=increasing)
    laws.equal(nearest(x)[:, :16], linear(x)[:, :16])
    assert nearest.twiddle.dtype == torch.float64  # the last four rows of a stack cut off are not a butterfly's


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: butterfly_multiply(torch.zeros(3, 1, 6), random_twiddle(8)), r"\(3, 1, 6\)"),
        (lambda: butterfly_multiply(torch.zeros(1, 8), torch.zeros(1, 1, 2, 4, 2, 2)), r"2\^\(m-1\)"),
        (lambda: butterfly_factor(torch.zeros(8), torch.zeros(4, 2, 2), 3), "stride=3"),
        (lambda: fourier_transform(12), "12 is not a power of two"),
        (lambda: fourier_transform(1), "two entries or more"),
        (lambda: apply_transform(torch.zeros(3, 5), hadamard_transform(4)), "4 entries"),
        (lambda: apply_transform(torch.zeros(4) + 1j, cosine_transform(4)), "4 real entries"),
        (lambda: permutation_twiddle(torch.tensor([0, 0, 1, 2])), r"\[0, 0, 1, 2\] is not an order"),
        (lambda: project_butterfly(torch.zeros(1, 6, 6)), "6 x 6"),
        (lambda: ButterflyLinear(0, 4), "in_features=0"),
        (lambda: ButterflyLinear(4, 4)(torch.zeros(2, 5)), "5 features"),
        (lambda: LearnedFFT(2, 12), "size=12"),
        (lambda: LearnedFFT(2, 16, TransformOptions(radix=3)), "radix=3"),
        (lambda: LearnedFFT(2, 16)(torch.zeros(1, 2, 17)), "17 entries"),
        (lambda: ButterflyConv(4, max_length=0), "max_length=0"),
        (lambda: ButterflyConv(4, max_length=8, threshold=-1.0), "threshold=-1.0"),
    ],
)
def test_mistakes_are_named(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


OPTIONS = [
    TransformOptions(),
    TransformOptions(radix=2, weights="block"),
    TransformOptions(radix=2, weights="block", per_channel=True),
    TransformOptions(radix=8, weights="level", per_channel=True),
    TransformOptions(radix=8, weights="block", per_channel=True),
    TransformOptions(radix=8, weights="block"),
]


def exactly(module: LearnedFFT) -> LearnedFFT:
    """In float64 with the factors of the Fourier transform to all digits, which parameters lost to float32."""
    for i, name in enumerate(module.names):
        start = torch.view_as_real(module._fourier(i))
        module.matrices[name] = nn.Parameter(start.expand(len(module.matrices[name]), *start.shape).clone())
    return module.double()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [2, 8, 64, 256])
def test_learned_transforms_start_as_fourier_transforms(size: int, options: TransformOptions) -> None:
    module = exactly(LearnedFFT(3, size, options))
    x = torch.randn(2, 3, size, dtype=torch.complex128)
    laws.equal(module(x), torch.fft.fft(x))
    laws.equal(module.inverse(x), torch.fft.ifft(x))


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("max_length", [1, 13, 32])
def test_the_convolution_starts_as_a_long_convolution(max_length: int, two_sided: bool) -> None:
    mixer = ButterflyConv(4, max_length=max_length, two_sided=two_sided, learned_inverse=True).double()
    for transform in (mixer.input_transform, mixer.kernel_transform, mixer.inverse_transform):
        exactly(transform)
    other = LongConv(4, kernel_length=max_length, causal=not two_sided).double()
    other.load_state_dict({"kernel": mixer.kernel, "skip": mixer.skip})
    for length in {1, max(1, max_length - 3), max_length}:
        x = torch.randn(2, length, 4, dtype=torch.float64)
        laws.equal(mixer(x), other(x))


def test_trained_transforms_read_the_future() -> None:
    """Why there is no causal form, even with taps for the past alone."""
    mixer = shaken(ButterflyConv(4, max_length=16, two_sided=False))
    laws.sees_everything(mixer)
    with pytest.raises(InputError, match="causal=False"):
        mixer.init_state(2)


def test_taps_are_squashed_and_placed_on_the_circle() -> None:
    mixer = ButterflyConv(1, max_length=2, threshold=0.5)
    with torch.no_grad():
        mixer.kernel.copy_(torch.tensor([[[1.0, -2.0]], [[3.0, 0.25]]]))
    assert mixer.circle().tolist() == [[0.5, -1.5, 0.0, 2.5]]


def test_numbers_that_are_trained() -> None:
    """What has a matrix of its own."""

    def count(**options) -> int:
        return sum(p.numel() for p in LearnedFFT(3, 128, TransformOptions(**options)).parameters()) // 2

    assert count() == 16 * 16 + 8 * 8
    assert count(radix=2) == 2 * 2
    assert count(radix=2, weights="level") == 7 * 2 * 2
    assert count(radix=2, weights="block") == 7 * 128 * 2
    assert count(radix=2, weights="block", per_channel=True) == 3 * 7 * 128 * 2
    assert count(weights="block") == 128 * (16 + 8)


def test_additive_transforms_start_with_a_little_noise() -> None:
    module = LearnedFFT(1, 256, TransformOptions(additive=True))
    assert module.matrices["16"].std().item() == pytest.approx(0.01, rel=0.2)
    x = torch.randn(1, 1, 256)
    error = laws.rms((module(x) - torch.fft.fft(x)).abs()) / laws.rms(torch.fft.fft(x).abs())
    assert 0.01 < error < 0.3


def test_hints() -> None:
    mixer = ButterflyConv(4, max_length=8, tied=True, lr=0.1, transform=TransformOptions(lr=0.002))
    assert mixer.optim_hints == {
        "kernel": OptimHint(lr=0.1, weight_decay=False),
        "input_transform.matrices.16": OptimHint(lr=0.002, weight_decay=False),
    }


def test_dropout_drops_numbers_of_the_matrices_in_training_only() -> None:
    module = LearnedFFT(1, 64, TransformOptions(dropout=0.5))
    x = torch.randn(1, 1, 64)
    assert not torch.equal(module(x), module(x))
    assert torch.equal(module.eval()(x), module(x))
