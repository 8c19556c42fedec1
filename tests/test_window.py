"""Windows carry finite filters from chunk to chunk; linear maps write the layout that convolutions want."""

import laws
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from longreach import ops

TAPS = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def signal(length: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, length, dtype=torch.float64)


def fir(u: Tensor) -> Tensor:
    return ops.short_conv(u, TAPS.flip(-1))


def system(decay: float = 0.1) -> ops.ModalSystem:
    shape = (3, 4)
    log_abar = torch.complex(-decay * torch.rand(shape).double(), torch.randn(shape).double())
    bbar, C = torch.randn(2, *shape, dtype=torch.complex128)
    return ops.ModalSystem(log_abar, bbar, C)


@pytest.mark.parametrize("cut", [(1,) * 12, (7, 5), (2, 1, 9), (12,)])
@pytest.mark.parametrize("width", [4, 6])
def test_chunks_behind_a_window_are_one_convolution(cut: tuple[int, ...], width: int) -> None:
    u, outputs, window = signal(12), [], signal(width) * 0
    for chunk in u.split(cut, dim=-1):
        y, window = ops.window_prefill(fir, chunk, window)
        outputs.append(y)
    laws.equal(torch.cat(outputs, dim=-1), fir(u))
    laws.equal(window, u[..., -width:])


@pytest.mark.parametrize("finish", ["fir", "modal"])
def test_padding_anywhere_is_no_time(finish: str) -> None:
    """Also in the middle of a stream, in all of a chunk, and when it holds NaN."""
    dynamics, width = system(), 5
    u, mask = signal(20, batch=3), torch.rand(3, 20) < 0.6
    mask[1, 10:] = False
    noisy = u.masked_fill(~mask[:, None], torch.nan)
    outputs, window = [], torch.zeros(3, 3, width, dtype=torch.float64)
    for part in (slice(0, 4), slice(4, 10), slice(10, 20)):
        if finish == "fir":
            y, window = ops.window_prefill(fir, noisy[..., part], window, mask[:, part])
        else:
            y, _, window = ops.modal_window_prefill(noisy[..., part], window, dynamics, mask[:, part])
        outputs.append(y)
    y = torch.cat(outputs, dim=-1)
    kernel = TAPS if finish == "fir" else ops.modal_kernel(dynamics, width)
    for row in range(3):
        real = u[row : row + 1, :, mask[row]]
        laws.equal(y[row, :, mask[row]], ops.long_conv(real, kernel)[0])
        count = min(width, real.shape[-1])
        laws.equal(window[row, :, width - count :], real[0, :, -count:])


def test_a_cut_system_steps_as_it_reads() -> None:
    dynamics, u = system(), signal(40)
    expected = ops.long_conv(u, ops.modal_kernel(dynamics, 6))
    modes, window = torch.zeros(2, 3, 4, dtype=torch.complex128), torch.zeros(2, 3, 6, dtype=torch.float64)
    outputs = []
    for u_t in u.unbind(-1):
        y, modes, window = ops.modal_window_step(u_t, modes, window, dynamics)
        outputs.append(y)
    laws.equal(torch.stack(outputs, dim=-1), expected)
    _, read, last = ops.modal_window_prefill(u, torch.zeros(2, 3, 6, dtype=torch.float64), dynamics)
    laws.equal(last, window)
    laws.equal(torch.view_as_real(read), torch.view_as_real(modes))


def test_a_window_keeps_nothing_else_alive() -> None:
    _, window = ops.window_prefill(fir, signal(1000), signal(4))
    assert window.untyped_storage().nbytes() == window.numel() * window.element_size()


@pytest.mark.parametrize("biased", [True, False])
def test_linear_maps_to_and_from_channels(biased: bool) -> None:
    x, weight, bias = torch.randn(2, 7, 4).double(), torch.randn(6, 4).double(), torch.randn(6).double()
    inputs = [tensor.requires_grad_() for tensor in (x, weight, *([bias] if biased else []))]
    pairs = [
        (ops.linear_to_channels(x, weight, bias if biased else None).mT, F.linear(x, weight, bias if biased else None)),
        (
            ops.linear_from_channels(x.mT, weight, bias if biased else None),
            F.linear(x, weight, bias if biased else None),
        ),
    ]
    for actual, expected in pairs:
        cotangent = torch.randn_like(expected)
        laws.equal(actual, expected)
        found, wished = (torch.autograd.grad(y, inputs, cotangent) for y in (actual, expected))
        for ours, theirs in zip(found, wished, strict=True):
            laws.equal(ours, theirs)
