"""The linear recurrence in Triton: against the definition, its derivatives, and itself."""

import pytest
import torch
from torch import Tensor
from triton_checks import assert_like_torch, repetitions, values_and_gradients

from longreach.ops import linear_scan, use_backend
from longreach.ops.triton import linear_scan as launcher

BOTH = ("triton", "reference")
REAL = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
COMPLEX = [torch.complex64, torch.complex128]


def arguments(b: int, l: int, n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ratios of any phase between 0.5 and 1."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    x, initial = (torch.randn(shape, dtype=wide, device=device) for shape in ((b, l, n), (b, n)))
    direction = torch.randn_like(x)
    a = direction / direction.abs() * (0.5 + 0.5 * torch.rand(b, l, n, device=device))
    return a.to(dtype), x.to(dtype), initial.to(dtype)


@pytest.fixture(params=["one chunk", "chunks"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few lanes are enough for one, or none are, so that small shapes take both ways."""
    monkeypatch.setattr(launcher, "ENOUGH", 1 if request.param == "one chunk" else 1 << 30)
    monkeypatch.setattr(launcher, "SHORTEST", 3)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("dtype", REAL + COMPLEX)
@pytest.mark.parametrize(("b", "l", "n"), [(1, 1, 1), (2, 37, 5)])
def test_is_the_definition(b: int, l: int, n: int, dtype: torch.dtype, device: torch.device) -> None:
    inputs = arguments(b, l, n, dtype, device)
    if dtype not in (torch.float64, torch.complex128):
        assert_like_torch("linear_scan", linear_scan, inputs)
        return
    found, expected = (values_and_gradients("linear_scan", name, linear_scan, inputs, inputs[0]) for name in BOTH)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [9, 64, 130])
def test_every_block_of_channels(n: int, device: torch.device) -> None:
    assert_like_torch("linear_scan", linear_scan, arguments(1, 35, n, torch.float32, device))


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_strides_of_any_kind(dtype: torch.dtype, device: torch.device) -> None:
    """Ratios that are the same at all times, in all batches or channels, conjugates, and every other channel."""
    a, x, initial = arguments(2, 12, 6, dtype, device)
    for view in (a[:, :1].expand_as(a), a[:1, :, :1].expand_as(a), a.conj(), a.mT.contiguous().mT):
        with use_backend(linear_scan="triton"):
            found = linear_scan(view[..., ::2], x.conj()[..., 1::2], initial[:, ::2])
        with use_backend(linear_scan="reference"):
            expected = linear_scan(view[..., ::2], x.conj()[..., 1::2], initial[:, ::2])
        torch.testing.assert_close(found, expected)


def test_dtypes_are_joined(device: torch.device) -> None:
    a, x, initial = arguments(1, 5, 3, torch.complex64, device)
    with use_backend(linear_scan="triton"):
        h = linear_scan(a.real, x, initial.real.double())
    torch.testing.assert_close(h, linear_scan.backends["reference"](a.real, x, initial.real.double()))


def test_derivatives_of_derivatives(device: torch.device) -> None:
    inputs = [x.requires_grad_() for x in arguments(1, 4, 2, torch.complex128, device)]
    with use_backend(linear_scan="triton"):
        assert torch.autograd.gradcheck(linear_scan, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(linear_scan, inputs, fast_mode=True)


def test_is_a_well_behaved_operator_of_torch(device: torch.device) -> None:
    a, x, initial = arguments(2, 4, 3, torch.float64, device)
    torch.library.opcheck(torch.ops.longreach.linear_scan_triton, (a, x, initial, False))
    torch.library.opcheck(torch.ops.longreach.linear_scan_triton_adjoint, (x, a, initial, x, True))


def test_the_same_bits_every_time_and_neighbours_change_none(device: torch.device) -> None:
    inputs = arguments(2, 36, 9, torch.float32, device)
    first = values_and_gradients("linear_scan", "triton", linear_scan, inputs, inputs[1])
    for _ in range(repetitions(device)):
        again = values_and_gradients("linear_scan", "triton", linear_scan, inputs, inputs[1])
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    inputs[1][0, 30, 4] = torch.nan
    found = values_and_gradients("linear_scan", "triton", linear_scan, inputs, first[0])[0]
    assert found[0, 30:, 4].isnan().all()
    assert found.isnan().sum() == 6


def test_no_length_compiles_anew(device: torch.device, idle: None, variants: set[tuple[str, str]]) -> None:
    """Forward and backward of every length, batch, stride and number of channels: one variant for each block."""
    for l in (*range(1, 200), 256, 300, 4096):
        a, x, initial = arguments(1 + l % 3, l + 1, 8 if l % 2 else 130, torch.float32, device)
        a = (a[:, 1:] if l % 5 else a[:, :1].expand(-1, l, -1)).requires_grad_()
        with use_backend(linear_scan="triton"):
            linear_scan(a, x[:, 1:], initial).sum().backward()
    names = [name for name, _ in variants]
    assert {name: names.count(name) for name in names} == {"aggregate": 4, "carry": 1, "walk": 4}


def test_chunks_are_few_and_long_enough() -> None:
    for b, l, n in [(1, 1, 1), (1, 1 << 20, 1), (4, 65536, 256), (64, 4096, 4096), (1, 17, 3)]:
        cut = launcher.cut_time(b, l, n)
        assert (cut.n_chunks - 1) * cut.chunk_length < l <= cut.n_chunks * cut.chunk_length
        assert cut.n_chunks <= 4 * l**0.5
        assert cut.n_chunks == 1 or cut.chunk_length >= launcher.SHORTEST
    assert launcher.cut_time(64, 4096, 4096).n_chunks == 1
