"""What Hyena does beyond the laws and the golden files: filters, training hints, long streams, bad input."""

import math

import laws
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers import FilterOptions, Hyena, map_state
from longreach.mixers.implicit_filter import ImplicitFilter, position_features
from longreach.models import MLP, Backbone, LanguageModel
from longreach.ops.online_conv import BASE

SMALL = FilterOptions(width=6, embedding_dim=5, sine_frequency=3.0)


def shaken(module: nn.Module) -> nn.Module:
    """In float64 and eval mode, parameters moved."""
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def make_filter(options: FilterOptions = SMALL, *, channels: int = 4, n_filters: int = 2, length: int = 50):
    return ImplicitFilter(channels, n_filters=n_filters, length=length, options=options)


def by_the_book(mixer: Hyena, x: Tensor) -> Tensor:
    """The equations of the paper, one position and one tap at a time."""
    length, d = x.shape[1:]
    projected = mixer.projections(x)
    short = torch.zeros_like(projected) + mixer.short_bias
    for t in range(length):
        for j in range(min(t + 1, mixer.short_width)):
            short[:, t] += mixer.short_weight[:, mixer.short_width - 1 - j] * projected[:, t - j]
    *gates, v = short.split(d, dim=-1)
    kernels = mixer.filter(length)
    for stage in range(mixer.order - 1):
        v = gates[mixer.order - 1 - stage] * v
        y = mixer.skip[stage] * v
        for t in range(length):
            for j in range(t + 1):
                y[:, t] += kernels[stage, :, j] * v[:, t - j]
        v = y
    return mixer.out(gates[0] * v)


@pytest.mark.parametrize("order", [2, 3])
def test_forward_is_what_the_paper_says(order: int) -> None:
    mixer = shaken(Hyena(4, max_length=30, order=order, filter=SMALL))
    x = torch.randn(2, 11, 4, dtype=torch.float64)
    with torch.no_grad():
        laws.equal(mixer(x), by_the_book(mixer, x))


@settings(max_examples=12, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 5 * BASE), min_size=1, max_size=4, unique=True),
    padding=st.integers(0, 2 * BASE),
    order=st.integers(2, 3),
)
def test_streams_are_exact_over_many_blocks(cuts: list[int], padding: int, order: int) -> None:
    """The lengths of the laws fill no block of the online convolution; these do, with chunks, steps and padding."""
    length = 5 * BASE + 7
    mixer = shaken(Hyena(2, max_length=length + 2 * BASE, order=order, filter=SMALL))
    x = torch.randn(2, length, 2, dtype=torch.float64)
    with torch.no_grad():
        expected = mixer(x)
        state = mixer.init_state(2)
        if padding:
            silent = torch.zeros(2, padding, dtype=torch.bool)
            _, state = mixer.prefill(torch.randn(2, padding, 2, dtype=torch.float64), state, silent)
        outputs = []
        for chunk in x.tensor_split(sorted(cuts), dim=1):
            if chunk.shape[1] > 2:
                y, state = mixer.prefill(chunk[:, :-2], state)
                outputs.append(y)
            y, state = laws.unroll(mixer, chunk[:, -2:], state)
            outputs.append(y)
        laws.equal(torch.cat(outputs, dim=1), expected)


def test_the_state_holds_a_few_numbers_for_each_position() -> None:
    mixer = Hyena(4, max_length=4096, filter=SMALL)
    sizes = []
    for length in (1024, 4096):
        _, state = mixer.prefill(torch.randn(1, length, 4), mixer.init_state(1))
        sizes.append(sum(leaf.numel() for leaf in laws.leaves(state)))
    assert sizes[1] <= 4 * sizes[0] <= 4 * (2 * 1024 * 4 + 100)


def test_a_step_shares_the_past_with_the_state_before() -> None:
    """A step that completes no block makes nothing but the few inputs that are in none yet."""
    mixer = Hyena(4, max_length=4096, filter=SMALL)
    _, before = mixer.prefill(torch.randn(1, 5 * BASE, 4), mixer.init_state(1))
    _, after = mixer.step(torch.randn(1, 4), before)
    shared = {leaf.data_ptr() for leaf in laws.leaves(before) if leaf.numel()}
    new = [leaf for leaf in laws.leaves(after) if leaf.data_ptr() not in shared]
    assert sum(leaf.numel() for leaf in new) <= 4 * (BASE + 3 * 2)


def test_a_filter_has_one_shape_however_much_of_it_is_asked_for() -> None:
    kernel = shaken(make_filter())
    for count in (1, 2, 17):
        laws.equal(kernel(count), kernel(50)[..., :count])


def test_a_filter_of_one_tap() -> None:
    assert make_filter(length=1)(1).shape == (2, 4, 1)


def test_features_are_time_and_waves() -> None:
    z = position_features(9, 5)
    laws.equal(z[:, 0], torch.linspace(0, 1, 9, dtype=torch.float64))
    n = torch.arange(9, dtype=torch.float64)
    laws.equal(z[:, 2], (2 * math.pi * n / 9).cos())  # the second of two bands has one period in the length
    laws.equal(z[:, 4], -(2 * math.pi * n / 9).sin())
    laws.equal(z[:, 1], (2e-4 * math.pi * n / 9).cos())


def test_windows_fall_to_the_target_where_the_options_say() -> None:
    """The slowest of these windows reaches the target at the end of the filter, the fastest at a quarter of it."""
    options = FilterOptions(slow_decay=1.0, fast_decay=0.25, target=0.02, decay_order="stacked")
    window = make_filter(options, channels=3, length=41).double().window(41)
    torch.testing.assert_close(window[0, 40].item(), 0.02, rtol=1e-6, atol=0)
    torch.testing.assert_close(window[-1, 10].item(), 0.02, rtol=1e-6, atol=0)
    shifted = make_filter(FilterOptions(shift=0.3), channels=3, length=41).double().window(41)
    assert shifted[:, 0].eq(1.3).all()
    assert (shifted > 0.3).all()


def test_decay_orders_deal_out_the_same_rates() -> None:
    rates = {
        order: make_filter(FilterOptions(decay_order=order)).decay.view(2, 4) for order in ("interleaved", "stacked")
    }
    assert rates["stacked"][0].max() < rates["stacked"][1].min()
    assert (rates["interleaved"].diff(dim=0) < rates["interleaved"].diff(dim=1).min()).all()
    torch.testing.assert_close(*(rate.flatten().sort().values for rate in rates.values()))


def test_normalized_taps_sum_to_one() -> None:
    taps = make_filter(FilterOptions(normalise=True))(50)
    torch.testing.assert_close(taps.abs().sum((0, 1)), torch.ones(50))


def test_the_network_is_not_rounded_by_autocast() -> None:
    kernel = make_filter()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kernel(50), kernel.double().float()(50))


def test_hints_are_the_published_ones() -> None:
    mixer = Hyena(4, max_length=20, filter=FilterOptions(lr=6e-4, features_lr=1e-5, decay_lr=2e-5))
    hints = mixer.optim_hints
    assert not any(hint.weight_decay for hint in hints.values())
    rates = {name: hints[f"filter.{name}"].lr for name in ("features", "decay", "output", "frequency", "weights.1")}
    assert rates == {"features": 1e-5, "decay": 2e-5, "output": 6e-4, "frequency": 6e-4, "weights.1": 6e-4}
    assert set(hints) == {name for name, _ in mixer.named_parameters() if name.startswith("filter.")}
    still = Hyena(4, max_length=20, filter=FilterOptions(features_lr=0.0))
    assert {name for name, _ in still.filter.named_buffers()} == {"features", "decay"}
    assert {hint.lr for hint in still.optim_hints.values()} == {None}


def test_a_language_model_leaves_the_filter_as_it_starts() -> None:
    """Its initialisation is for projections; with it, filters would start at a third of their strength."""
    wide = FilterOptions(width=64)
    model = LanguageModel(
        9, Backbone(32, n_layers=1, mixers=[lambda d: Hyena(d, max_length=64, filter=wide)], channel_mixer=MLP)
    )
    mixer = model.backbone.blocks[0].mixer
    torch.testing.assert_close(mixer.projections.weight.std().item(), 0.02, rtol=0.1, atol=0)
    torch.testing.assert_close(mixer.filter.output.std().item(), (3 * 64) ** -0.5, rtol=0.1, atol=0)


def test_padding_may_hold_anything() -> None:
    mixer = shaken(Hyena(4, max_length=20, order=3, filter=SMALL))
    x = torch.randn(2, 12, 4, dtype=torch.float64)
    mask = torch.arange(12).expand(2, 12) >= 5
    padded = x.masked_fill(~mask[..., None], math.nan)
    laws.equal(mixer(padded, mask)[:, 5:], mixer(x[:, 5:]))
    laws.equal(mixer.prefill(padded, mixer.init_state(2), mask)[0][:, 5:], mixer(x[:, 5:]))


def test_padding_that_would_move_the_past_is_refused() -> None:
    mixer = shaken(Hyena(4, max_length=300, filter=SMALL))
    x = torch.randn(3, 2 * BASE, 4, dtype=torch.float64)
    begun = torch.zeros(3, 2 * BASE, dtype=torch.bool)
    begun[1:, -1] = True
    _, state = mixer.prefill(x, mixer.init_state(3), begun)
    late = torch.ones(3, 5, dtype=torch.bool)
    late[0, :2] = late[1, :2] = False
    with pytest.raises(InputError, match=r"rows \[1\] have padding after"):
        mixer.prefill(x[:, :5], state, late)
    mixer.prefill(x[:2, :5], map_state(lambda leaf: leaf[::2], state), late[::2])
    hole = torch.tensor([[True, True], [True, False], [False, True]])
    with pytest.raises(InputError, match=r"rows \[1\] have padding after"):
        mixer.prefill(x[:, :2], mixer.init_state(3), hole)


def test_dropout_works_in_training_only() -> None:
    mixer = Hyena(4, max_length=20, filter=SMALL, dropout=0.5)
    x = torch.randn(1, 20, 4)
    first, second = mixer(x), mixer(x)
    assert not torch.equal(first, second)
    assert torch.equal(mixer.eval()(x), mixer(x))
    silent = Hyena(4, max_length=20, filter=SMALL, dropout=1.0)
    assert torch.equal(silent(x), silent.out.bias.expand(1, 20, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 1}, "order=1"),
        ({"short_width": 0}, "short_width=0"),
        ({"max_length": 0}, "max_length=0"),
        ({"filter": FilterOptions(embedding_dim=4)}, "embedding_dim=4"),
        ({"filter": FilterOptions(embedding_dim=1)}, "embedding_dim=1"),
        ({"filter": FilterOptions(n_inner_layers=-1)}, "n_inner_layers=-1"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Hyena(4, **({"max_length": 8} | options))


def test_what_is_too_long_names_the_remedy() -> None:
    mixer = Hyena(4, max_length=8, filter=SMALL)
    with pytest.raises(InputError, match=r"9 positions .* max_length=8 .* larger max_length"):
        mixer(torch.randn(1, 9, 4))
    with pytest.raises(InputError, match="8 taps, not 9"):
        mixer.filter(9)
