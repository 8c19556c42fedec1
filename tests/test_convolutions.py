"""What LongConv and SGConv do beyond the laws and the golden files: kernels, starts, hints, long streams, bad input."""

import math

import laws
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixer_cases import CASES
from test_mixers import make, shaken
from torch import Tensor
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers import LongConv, SGConv, SGConvOptions
from longreach.mixers.convolution import Convolution, weigh_neighbours
from longreach.mixers.long_conv import decays, moving_average, smooth_spectrum
from longreach.mixers.sgconv import stretch
from longreach.ops.online_conv import BASE, held_inputs

CONVOLUTIONS = [
    case for case in CASES if isinstance(make(case), Convolution) and not getattr(make(case), "dense", False)
]


def by_the_book(mixer: Convolution, x: Tensor) -> Tensor:
    """One position and one tap at a time."""
    past, *future = mixer.kernels(mixer.taps)
    y = torch.zeros_like(x) if mixer.skip is None else mixer.skip * x
    for t in range(x.shape[1]):
        for s in range(x.shape[1]):
            if 0 <= t - s < mixer.taps:
                y[:, t] += past[:, t - s] * x[:, s]
            if future and 0 < s - t <= mixer.taps:
                y[:, t] += future[0][:, s - t - 1] * x[:, s]
    return y if getattr(mixer, "bias", None) is None else y + mixer.bias


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_forward_is_the_convolution(case: str) -> None:
    """Also of an input longer than the kernel, which must not wrap around."""
    mixer = make(case)
    x = laws.random_input(mixer, length=21)
    with torch.no_grad():
        laws.equal(mixer(x), by_the_book(mixer, x))


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_the_first_taps_do_not_depend_on_how_many_are_asked_for(case: str) -> None:
    mixer = make(case)
    kernels = mixer.kernels(mixer.taps)
    for count in {1, 2, 5, mixer.taps - 1} & set(range(1, mixer.taps)):
        laws.equal(mixer.kernels(count), kernels[..., :count])


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, 6 * BASE), min_size=1, max_size=4, unique=True), taps=st.integers(1, 3 * BASE))
def test_streams_are_exact_over_many_blocks(cuts: list[int], taps: int) -> None:
    """Streams that are much longer than the kernel, by chunks and steps."""
    length = 6 * BASE + 7
    mixer = shaken(LongConv(2, kernel_length=taps))
    x = torch.randn(2, length, 2, dtype=torch.float64)
    outputs, state = [], mixer.init_state(2)
    with torch.no_grad():
        for chunk in x.tensor_split(sorted(cuts), dim=1):
            if chunk.shape[1] > 2:
                y, state = mixer.prefill(chunk[:, :-2], state)
                outputs.append(y)
            y, state = laws.unroll(mixer, chunk[:, -2:], state)
            outputs.append(y)
        laws.equal(torch.cat(outputs, dim=1), mixer(x))


def test_what_the_kernel_no_longer_reaches_is_forgotten() -> None:
    mixer = LongConv(2, kernel_length=2 * BASE)
    state, most = mixer.init_state(1), 0
    for chunk in torch.randn(1, 40 * BASE, 2).split(BASE + 11, dim=1):
        _, state = mixer.prefill(chunk, state)
        most = max(most, sum(block.shape[-1] for block in held_inputs(state)))
    assert 2 * BASE <= most <= 6 * BASE


def test_padding_may_hold_anything_but_must_not_come_late() -> None:
    mixer = shaken(SGConv(4, kernel_length=8, piece_length=4))
    x = torch.randn(2, 12, 4, dtype=torch.float64)
    mask = torch.arange(12).expand(2, 12) >= 5
    padded = x.masked_fill(~mask[..., None], math.nan)
    laws.equal(mixer(padded, mask)[:, 5:], mixer(x[:, 5:]))
    y, state = mixer.prefill(padded, mixer.init_state(2), mask)
    laws.equal(y[:, 5:], mixer(x[:, 5:]))
    with pytest.raises(InputError, match=r"rows \[0, 1\] have padding after"):
        mixer.prefill(x, state, mask)
    with pytest.raises(InputError, match=r"rows \[1\] have padding after"):
        mixer.prefill(x, state, torch.tensor([[True], [False]]).expand(2, 12))


@pytest.mark.parametrize("case", ["long_conv-frequency-bidirectional", "sgconv-sum-bidirectional"])
def test_what_reads_the_future_cannot_be_stepped(case: str) -> None:
    mixer = make(case)
    state = make("long_conv").init_state(2)
    for call in (lambda: mixer.init_state(2), lambda: mixer.step(torch.zeros(2, 8, dtype=torch.float64), state)):
        with pytest.raises(InputError, match="reads the future"):
            call()


def test_taps_below_the_threshold_are_silent() -> None:
    mixer = LongConv(3, kernel_length=50, init="random", threshold=1e-3)
    kernel, taps = mixer.kernels(50), mixer.kernel
    assert torch.equal(kernel != 0, taps.abs() > 1e-3)
    alive = kernel != 0
    torch.testing.assert_close((taps - kernel)[alive], 1e-3 * taps.sign()[alive])
    assert torch.equal(LongConv(3, kernel_length=5, threshold=0.0).kernels(5)[0].sign().abs(), torch.ones(3, 5))


@pytest.mark.parametrize(("init", "expected"), [("random", 0.13), ("exponential", 0.25)])
def test_how_many_taps_are_alive_at_the_start(init: str, expected: float) -> None:
    kernel = LongConv(256, kernel_length=512, init=init, threshold=0.003).kernels(512)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close((kernel != 0).double().mean().item(), expected, rtol=0, atol=0.02)


def test_exponential_starts_decay_at_the_published_rates() -> None:
    scale = decays(5, 8)
    for h in range(5):
        for j in range(8):
            assert scale[h, j].item() == pytest.approx(math.exp(-j / 8 * 2 ** (h / 5)))
    taps = LongConv(64, kernel_length=2000, threshold=0.0).kernel.detach()[0]
    early, late = taps[:, :200].std(dim=1), taps[:, -200:].std(dim=1)
    torch.testing.assert_close(
        early / (0.02 * decays(64, 2000)[:, :200].mean(1)).float(), torch.ones(64), rtol=0, atol=0.3
    )
    assert late[-1] < 1e-3 * early[-1]


def test_moving_averages_are_those_of_torch() -> None:
    kernel = torch.randn(2, 3, 11, dtype=torch.float64)
    expected = F.avg_pool1d(kernel, 5, stride=1, padding=2, count_include_pad=True)
    laws.equal(moving_average(kernel, 5), expected)
    laws.equal(weigh_neighbours(kernel, [0.0, 0.0, 1.0]), F.pad(kernel[..., 1:], (0, 1)))


@pytest.mark.parametrize("length", [11, 12])
def test_spectra_are_smoothed_bin_by_bin(length: int) -> None:
    kernel = torch.randn(3, length, dtype=torch.float64)
    spectrum, expected = torch.fft.rfft(kernel), torch.zeros(3, length // 2 + 1, dtype=torch.complex128)
    for f in range(spectrum.shape[-1]):
        for g in range(max(0, f - 2), min(spectrum.shape[-1], f + 3)):
            expected[:, f] += math.exp(-0.5 * (f - g) ** 2) * spectrum[:, g]
    laws.equal(smooth_spectrum(kernel, 5), torch.fft.irfft(expected, n=length))


def interpolated(mixer: SGConv) -> Tensor:
    """The kernels, made with torch's own interpolation."""
    options, last = mixer.options, len(mixer.pieces) - 1
    kernel = torch.zeros(*mixer.pieces.shape[1:3], mixer.taps, dtype=torch.float64)
    offset = 0
    for i, piece in enumerate(mixer.pieces):
        if options.decay == "scale":
            piece = piece * mixer.multiplier[:, None] ** (last - i)
        factor = 2 ** ((i if options.combine == "sum" else max(0, i - 1)) + options.first_scale)
        taps = F.interpolate(piece, scale_factor=factor, mode=options.interpolation)
        kernel[..., offset : offset + taps.shape[-1]] += taps
        offset += taps.shape[-1] if options.combine == "cat" else 0
    if options.decay != "scale":
        kernel = kernel * torch.arange(1, mixer.taps + 1).double() ** -mixer.decay[:, None]
    return kernel / mixer.norm[..., None]


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("sgconv")])
def test_pieces_are_stretched_as_torch_does(case: str) -> None:
    mixer = make(case)
    laws.equal(mixer.kernels(mixer.taps), interpolated(mixer))


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_stretching_stops_where_it_is_told(factor: int) -> None:
    piece = torch.randn(1, 2, 5, dtype=torch.float64)
    for count in (1, factor, 5 * factor - 1, 5 * factor, 100):
        expected = F.interpolate(piece, scale_factor=factor, mode="linear")[..., :count]
        laws.equal(stretch(piece, factor, count, "linear"), expected)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("sgconv")])
def test_sgconv_starts_with_kernels_of_unit_norm_and_keeps_the_scale(case: str) -> None:
    mixer = CASES[case]()
    assert isinstance(mixer, SGConv)
    torch.testing.assert_close(mixer.kernels(mixer.taps).norm(dim=-1), torch.ones_like(mixer.norm))
    mixer.requires_grad_(False).pieces.mul_(2)
    torch.testing.assert_close(mixer.kernels(mixer.taps).norm(dim=-1), 2 * torch.ones_like(mixer.norm))


def test_sgconv_has_as_many_pieces_as_it_needs() -> None:
    for length, pieces, taps in ((64, 1, 64), (65, 2, 128), (1024, 5, 1024), (1025, 6, 2048), (10, 1, 64)):
        mixer = SGConv(2, kernel_length=length)
        assert (len(mixer.pieces), mixer.taps) == (pieces, taps)
    coarse = SGConv(2, kernel_length=1024, options=SGConvOptions(first_scale=2))
    assert (len(coarse.pieces), coarse.taps) == (3, 1024)


def test_cosine_starts_are_waves() -> None:
    mixer = SGConv(4, kernel_length=32, piece_length=16, options=SGConvOptions(init="cosine"))
    time = torch.linspace(0, 2 * math.pi, 16)
    waves = sorted(mixer.pieces[0, 0].tolist())
    expected = sorted((n * time).cos().tolist() for n in range(4))
    torch.testing.assert_close(torch.tensor(waves), torch.tensor(expected))
    assert torch.equal(mixer.pieces[0], mixer.pieces[1])


def test_power_decay_starts_between_its_limits() -> None:
    mixer = SGConv(200, options=SGConvOptions(decay="power", decay_min=1.0, decay_max=3.0))
    assert 1.0 <= mixer.decay.min() < 1.2 < 2.8 < mixer.decay.max() <= 3.0
    fixed = SGConv(4, options=SGConvOptions(decay="fixed-power"))
    assert "decay" in dict(fixed.named_buffers())


def test_hints_are_the_published_ones() -> None:
    hint = LongConv(4, lr=5e-4).optim_hints["kernel"]
    assert (hint.lr, hint.weight_decay) == (5e-4, False)
    hints = SGConv(4, options=SGConvOptions(decay="power")).optim_hints
    assert {name: hint.lr for name, hint in hints.items()} == {"pieces": 1e-3, "decay": 1e-3}
    assert all(hint.weight_decay for hint in hints.values())


def test_taps_are_dropped_in_training_only() -> None:
    mixer = LongConv(4, kernel_length=100, threshold=0.0, dropout=0.5)
    dropped = (mixer.kernels(100) == 0).double().mean().item()
    assert 0.4 < dropped < 0.6
    assert (mixer.eval().kernels(100) != 0).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LongConv(4, kernel_length=0), "kernel_length=0"),
        (lambda: LongConv(4, threshold=-1.0), "threshold=-1.0"),
        (lambda: LongConv(4, smoothing_width=4), "smoothing_width=4 must be odd"),
        (lambda: SGConv(4, kernel_length=0), "kernel_length=0"),
        (lambda: SGConv(4, piece_length=0), "piece_length=0"),
        (lambda: SGConv(4, options=SGConvOptions(n_scales=0)), "n_scales=0"),
        (lambda: SGConv(4, options=SGConvOptions(first_scale=-1)), "first_scale=-1"),
    ],
)
def test_options_that_cannot_be(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()
