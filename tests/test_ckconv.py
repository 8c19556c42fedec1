"""What CKConv and FlexConv do beyond the laws and the golden files: networks, starts, rates, masks, dense kernels."""

import math

import laws
import pytest
import torch
from test_mixers import shaken
from torch import Tensor

from longreach.errors import InputError
from longreach.mixers import CKConv, FilterOptions, KernelOptions
from longreach.mixers.ckconv import smooth
from longreach.mixers.implicit_filter import ImplicitFilter
from longreach.mixers.kernel_network import Magnet, Perceptron, make_network
from longreach.ops import dense_conv, use_backend

NETWORKS = ("sine", "relu", "leaky_relu", "swish", "random_fourier", "magnet")
POSITIONS = torch.linspace(-1, 1, 9, dtype=torch.float64)


def network(kind: str, **options) -> Perceptron | Magnet:
    """A network of three taps, in float64 and away from its start."""
    return shaken(make_network(3, KernelOptions(kind, **({"width": 4} | options))))  # pyright: ignore


@pytest.mark.parametrize("kind", ["sine", "relu", "leaky_relu", "swish", "random_fourier"])
@pytest.mark.parametrize("weight_norm", [False, True])
def test_perceptrons_are_what_the_paper_says(kind: str, weight_norm: bool) -> None:
    net = network(kind, weight_norm=weight_norm, frequency=2.0)
    assert isinstance(net, Perceptron)
    bend = {
        "sine": lambda h: (2.0 * h).sin(),
        "swish": lambda h: h * h.sigmoid(),
        "leaky_relu": lambda h: h.where(h > 0, h / 100),
    }
    for position, taps in zip(POSITIONS, net(POSITIONS).mT, strict=True):
        h = position[None]
        if kind == "random_fourier":
            angle = net.frequencies * position + net.phases
            h = torch.cat([angle.cos(), angle.sin()])
        for i in range(len(net.weights)):
            weight = net.weights[i]
            if weight_norm:
                weight = torch.stack(
                    [g * v / v.square().sum().sqrt() for g, v in zip(net.gains[i], weight, strict=True)]
                )
            h = weight @ h + net.biases[i]
            if i < len(net.weights) - 1:
                h = bend.get(kind, lambda h: h.clamp(min=0))(h)
        laws.equal(taps, h)


def test_magnets_are_what_the_paper_says() -> None:
    net = network("magnet", n_layers=2, frequency=3.0)
    for position, taps in zip(POSITIONS, net(POSITIONS).mT, strict=True):
        h = None
        for i in range(3):
            window = (-((net.sharpness[i] * (position - net.centre[i])) ** 2) / 2).exp()
            factor = window * (net.frequency[i] * position + net.phase[i]).sin()
            h = factor if h is None else factor * (net.weights[i - 1] @ h + net.biases[i - 1])
        laws.equal(taps, net.output @ h + net.output_bias)


def test_layer_norms_see_all_positions_and_batch_norms_their_statistics() -> None:
    net = network("relu", norm="layer", n_layers=2)
    hidden = net._weight(0) @ POSITIONS[None] + net.biases[0][:, None]
    normed = (hidden - hidden.mean()) / hidden.std(unbiased=False) * net.norms[0].weight[:, None] + net.norms[0].bias[
        :, None
    ]
    laws.equal(net(POSITIONS), net._weight(1) @ normed.relu() + net.biases[1][:, None])
    batch = network("relu", norm="batch").train()
    before = batch.norms[0].running_mean.clone()
    batch(POSITIONS)
    assert not torch.equal(batch.norms[0].running_mean, before)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("mask_width", [None, 0.2])
def test_noise_keeps_its_variance_at_the_start(kind: str, mask_width: float | None) -> None:
    for dense in (False, True):
        kernel = KernelOptions(kind, width=32, frequency=1.0 if kind == "random_fourier" else 20.0)  # pyright: ignore
        mixer = CKConv(24, kernel_length=256, kernel=kernel, dense=dense, mask_width=mask_width)
        with torch.no_grad():
            variance = mixer(torch.randn(4, 512, 24))[:, 256:].var().item()
        assert 0.5 < variance < 2, (kind, dense, variance)


@pytest.mark.parametrize("kind", ["relu", "leaky_relu", "swish"])
def test_the_units_of_relu_bend_at_equally_spaced_positions(kind: str) -> None:
    net = make_network(1, KernelOptions(kind, width=8, n_layers=4, weight_norm=False)).double()  # pyright: ignore
    assert isinstance(net, Perceptron)
    hidden, activation = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None], {"relu": torch.relu}.get(kind)
    for i in range(3 if activation else 1):
        hidden = hidden @ net.weights[i].mT + net.biases[i]
        torch.testing.assert_close(hidden.diagonal(), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-5)
        hidden = activation(hidden) if activation else hidden


def test_sines_start_as_siren_does() -> None:
    net = make_network(1, KernelOptions(width=200, frequency=30.0))
    assert isinstance(net, Perceptron)
    assert 0.95 < net.weights[0].abs().max() <= 1
    bound = math.sqrt(6 / 200) / 30
    assert 0.95 * bound < net.weights[1].abs().max() <= bound


@pytest.mark.parametrize("frequency", [0.01, 8.0])
def test_a_magnet_has_the_bandwidth_that_it_says(frequency: float) -> None:
    """Of the spectrum over many samples, little lies above the sum of the factors' bandwidths, windows or sines."""
    net = make_network(5, KernelOptions("magnet", width=8, frequency=frequency)).double()
    assert isinstance(net, Magnet)
    samples = 8192
    position = torch.linspace(-8, 8, samples, dtype=torch.float64)  # the windows have ended there
    with torch.no_grad():
        energy = torch.fft.rfft(net(position)).abs().square()
    bins = torch.fft.rfftfreq(samples, d=16 / samples).double()
    bandwidth = net.bandwidths().sum().item()
    beyond, within = (energy[:, bins > part * bandwidth].sum() / energy.sum() for part in (1.0, 0.1))
    assert beyond < 1e-3 < within


def test_aliasing_is_punished() -> None:
    slow = CKConv(2, kernel_length=1000, kernel=KernelOptions("magnet", width=4, frequency=1.0))
    assert slow.aliasing() == 0
    fast = CKConv(2, kernel_length=20, kernel=KernelOptions("magnet", width=4, frequency=50.0))
    penalty, bandwidths = fast.aliasing(), fast.network.bandwidths()
    expected = sum(max(0.0, b - 19 / 4 / 4) ** 2 for b in bandwidths.tolist())
    torch.testing.assert_close(penalty.item(), expected)
    penalty.backward()
    assert fast.network.frequency.grad.any()
    with pytest.raises(InputError, match="only the bandwidth of a magnet is known"):
        CKConv(2).aliasing()


def test_another_rate_samples_the_same_kernel() -> None:
    kernel = KernelOptions(width=6, frequency=3.0)
    mixers = [shaken(CKConv(3, kernel_length=21, kernel=kernel, rate=rate)) for rate in (1.0, 2.0, 0.5)]
    for mixer in mixers[1:]:
        mixer.load_state_dict(mixers[0].state_dict())
    plain, coarse, fine = (mixer.kernels(mixer.taps)[0] for mixer in mixers)
    laws.equal(coarse, 2 * plain[:, ::2])
    raw = mixers[2].network(torch.linspace(1, -1, 41, dtype=torch.float64))
    laws.equal(raw[:, ::2], plain)
    laws.equal(fine, 0.5 * smooth(raw, 2))
    laws.equal(mixers[2].kernels(7)[0], fine[:, :7])


def test_smoothing_leaves_the_ends_alone() -> None:
    taps = torch.randn(2, 9, dtype=torch.float64)
    smoothed, scale = smooth(taps, 2), 0.5 * math.sqrt(2 * math.pi)
    assert torch.equal(smoothed[:, :2], taps[:, :2])
    assert torch.equal(smoothed[:, -2:], taps[:, -2:])
    for n in range(2, 7):
        laws.equal(smoothed[:, n], sum(math.exp(-2.0 * i * i) / scale * taps[:, n + i] for i in range(-2, 3)))
    assert torch.equal(smooth(taps[:, :4], 2), taps[:, :4])


def masked(threshold: float = 0.1) -> CKConv:
    """A mixer whose Gaussian ends about a fifth of the way back."""
    mixer = shaken(CKConv(3, kernel_length=50, kernel=KernelOptions(width=5), mask_width=0.2, mask_threshold=threshold))
    with torch.no_grad():
        mixer.mask.copy_(torch.tensor([1.02, 0.2]))
    return mixer


def test_the_gaussian_ends_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x = masked(), torch.randn(2, 60, 3, dtype=torch.float64)
    position = torch.linspace(1, -1, 50, dtype=torch.float64)
    mean, width = mixer.mask.detach()
    window = (-0.5 * ((position - mean) / width) ** 2).exp()
    expected = mixer.network(position) * window * ((window >= 0.1) | (position > mean))
    reach = mixer.taps
    assert 5 < reach < 45
    laws.equal(mixer.kernels(reach)[0], expected[:, :reach])
    assert not expected[:, reach:].any()
    y = mixer(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert mixer.taps == 50
    laws.equal(mixer(x), y)


def test_the_gaussian_can_learn_to_see_farther() -> None:
    mixer = masked()
    mixer(torch.randn(2, 60, 3, dtype=torch.float64)).square().sum().backward()
    assert mixer.mask.grad.all()
    before = mixer.taps
    with torch.no_grad():
        mixer.mask[1] *= 2
    assert mixer.taps > 1.5 * before
    with torch.no_grad():
        mixer.mask.copy_(torch.tensor([3.0, 0.01]))
    assert mixer.taps == 1


@pytest.mark.parametrize("backend", ["reference", "fft"])
@pytest.mark.parametrize(
    ("length", "taps", "past"), [(1, 1, None), (5, 9, None), (9, 5, 3), (4, 6, 20), (7, 1, 2), (1, 8, 0)]
)
def test_dense_convolutions(backend: str, length: int, taps: int, past: int | None) -> None:
    kernel = torch.randn(3, 2, taps, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 2, length, dtype=torch.float64, requires_grad=True)
    before = None if past is None else torch.randn(2, 2, past, dtype=torch.float64, requires_grad=True)

    def by_the_book(x: Tensor, kernel: Tensor, before: Tensor | None) -> Tensor:
        joined = x if before is None else torch.cat([before, x], dim=-1)
        start, columns = joined.shape[-1] - length, []
        for t in range(start, joined.shape[-1]):
            lags = range(min(taps, t + 1))
            columns.append(sum((joined[..., t - j] @ kernel[..., j].mT for j in lags), torch.zeros(2, 3).double()))
        return torch.stack(columns, dim=-1)

    inputs = [tensor for tensor in (x, kernel, before) if tensor is not None and tensor.numel()]
    with use_backend(dense_conv=backend):
        y = dense_conv(x, kernel, before)
    expected = by_the_book(x, kernel, before)
    laws.equal(y, expected)
    cotangent = torch.randn_like(y)
    for actual, wanted in zip(
        torch.autograd.grad(y, inputs, cotangent, allow_unused=True),
        torch.autograd.grad(expected, inputs, cotangent, allow_unused=True),
        strict=True,
    ):
        if wanted is not None:
            laws.equal(actual, wanted)


def test_dense_convolutions_in_bfloat16_are_summed_in_float32() -> None:
    x, kernel = torch.randn(1, 4, 200).bfloat16(), torch.randn(5, 4, 200)
    for backend in ("reference", "fft"):
        with use_backend(dense_conv=backend):
            y = dense_conv(x, kernel)
        assert y.dtype == torch.bfloat16
        exact = dense_conv(x.double(), kernel.double())
        rounding = (exact.bfloat16().double() - exact).square().mean().sqrt()
        assert (y.double() - exact).square().mean().sqrt() <= 1.1 * rounding


def test_dense_convolutions_name_what_does_not_fit() -> None:
    wrong = torch.zeros(1, 3, 5), torch.zeros(2, 4, 6)
    for backend in dense_conv.backends.values():
        with pytest.raises(InputError, match=r"x is \(1, 3, 5\) .* kernel \(2, 4, 6\)"):
            getattr(backend, "__wrapped__", backend)(*wrong)  # without the check of shapes that only tests make


def test_a_dense_mixer_sums_over_all_pairs_and_keeps_what_it_reaches() -> None:
    mixer = shaken(CKConv(3, kernel_length=7, kernel=KernelOptions(width=4), dense=True))
    x = torch.randn(2, 12, 3, dtype=torch.float64)
    kernel, expected = mixer.kernels(7)[0].unflatten(0, (3, 3)), mixer.bias.expand(2, 12, 3).clone()
    for t in range(12):
        for j in range(min(7, t + 1)):
            expected[:, t] += x[:, t - j] @ kernel[..., j].mT
    laws.equal(mixer(x), expected)
    _, state = mixer.prefill(x, mixer.init_state(2))
    laws.equal(state.recent, x[:, -6:].mT)
    late = torch.tensor([[True] * 3, [False] * 2 + [True]])
    with pytest.raises(InputError, match=r"rows \[1\] have padding after"):
        mixer.prefill(x[:, :3], state, late)


def test_taps_are_dropped_in_training_only() -> None:
    mixer = CKConv(4, kernel_length=100, dropout=0.5)
    dropped = (mixer.kernels(100) == 0).double().mean().item()
    assert 0.4 < dropped < 0.6
    assert (mixer.eval().kernels(100) != 0).all()


def test_kernels_are_not_rounded_by_autocast() -> None:
    mixer = CKConv(4, kernel_length=100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mixer.kernels(100), mixer.kernels(100).double().float())
        rough = mixer.kernels(100)
    assert torch.equal(rough, mixer.kernels(100))


@pytest.mark.parametrize("kind", ["sine", "magnet"])
def test_hyena_filters_can_be_drawn_by_these_networks(kind: str) -> None:
    options = FilterOptions(network=kind, width=6, modulate=False)  # pyright: ignore
    filter = shaken(ImplicitFilter(3, n_filters=2, length=21, options=options, two_sided=True))
    position = torch.linspace(1, -1, 21, dtype=torch.float64)
    laws.equal(filter(21), filter.network(position).unflatten(0, (2, 3)))
    laws.equal(filter.future(5), filter.future_network(position[:5]).unflatten(0, (2, 3)))
    assert {name.partition(".")[0] for name in filter.optim_hints()} == {"network", "future_network"}


def test_networks_draw_hyena_filters_of_the_usual_size() -> None:
    sizes = {}
    for kind in ("hyena", "sine", "magnet"):
        filter = ImplicitFilter(200, n_filters=1, length=300, options=FilterOptions(network=kind, modulate=False))
        sizes[kind] = filter(300).std().item()
    assert max(sizes.values()) < 4 * min(sizes.values()), sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_length": 0}, "kernel_length=0"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"mask_width": 0.0}, "mask_width=0.0"),
        ({"mask_width": 0.1, "mask_threshold": 1.0}, "mask_threshold=1.0"),
        ({"kernel": KernelOptions(n_layers=1)}, "n_layers=1"),
        ({"kernel": KernelOptions(width=0)}, "width=0"),
        ({"kernel": KernelOptions("random_fourier", width=5)}, "even width"),
        ({"kernel": KernelOptions("random_fourier", n_layers=2)}, "at least 3 layers"),
        ({"kernel": KernelOptions(norm="batch")}, "norm='batch': a sine network has none"),
        ({"kernel": KernelOptions("magnet", norm="layer")}, "norm='layer'"),
        ({"kernel": KernelOptions("magnet", n_layers=0)}, "n_layers=0"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CKConv(4, **options)
