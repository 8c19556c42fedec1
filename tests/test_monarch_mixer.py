"""What Monarch Mixer and its block-diagonal MLP do beyond the laws and the golden files."""

import math

import laws
import pytest
import torch
from test_mixers import shaken
from torch import Tensor

from longreach.errors import InputError
from longreach.mixers import FilterOptions, Hyena, MonarchMixer
from longreach.models import BlockDiagonalLinear, BlockDiagonalMLP
from longreach.ops.block_diagonal import block_diagonal
from longreach.ops.online_conv import BASE

SMALL = FilterOptions(width=6, embedding_dim=5)


def by_the_book(mixer: MonarchMixer, x: Tensor) -> Tensor:
    """The equations, one position and one tap at a time."""
    length = x.shape[1]
    projected = mixer.projections(x)
    short = torch.zeros_like(projected) + mixer.short_bias
    for t in range(length):
        for j in range(min(t + 1, mixer.short_width)):
            short[:, t] += mixer.short_weight[:, mixer.short_width - 1 - j] * projected[:, t - j]

    def convolve(u: Tensor, filter, skip: Tensor) -> Tensor:
        y, past = skip * u, filter(length)[0]
        for t in range(length):
            for s in range(length):
                y[:, t] += (past[:, t - s] if s <= t else filter.future(length)[0, :, s - t - 1]) * u[:, s]
        return y

    x_1, x_2, v = short.chunk(3, dim=-1)
    y = x_2 * convolve(x_1 * v, mixer.filter, mixer.skip)
    return mixer.out(y + convolve(x, mixer.residual_filter, mixer.residual_skip))


def test_forward_is_what_the_paper_says() -> None:
    mixer = shaken(MonarchMixer(4, max_length=12, filter=SMALL))
    x = torch.randn(2, 9, 4, dtype=torch.float64)
    with torch.no_grad():
        laws.equal(mixer(x), by_the_book(mixer, x))


def test_the_causal_one_without_residual_is_hyena_of_order_2() -> None:
    mixer = shaken(MonarchMixer(4, max_length=20, causal=True, residual_conv=False, filter=SMALL))
    hyena = shaken(Hyena(4, max_length=20, filter=SMALL))
    weights = dict(mixer.state_dict())
    for name in ("projections.weight", "projections.bias", "short_weight", "short_bias"):
        before, after, v = weights[name].chunk(3)
        weights[name] = torch.cat([after, before, v])
    hyena.load_state_dict(weights | {"skip": weights["skip"][None]})
    x = torch.randn(2, 17, 4, dtype=torch.float64)
    laws.equal(mixer(x), hyena(x))


def test_streams_are_exact_over_many_blocks() -> None:
    mixer = shaken(MonarchMixer(2, max_length=4 * BASE, causal=True, filter=SMALL))
    x = torch.randn(1, 3 * BASE + 9, 2, dtype=torch.float64)
    with torch.no_grad():
        first, state = mixer.prefill(x[:, : BASE + 5], mixer.init_state(1))
        second, _ = laws.unroll(mixer, x[:, BASE + 5 :], state)
        laws.equal(torch.cat([first, second], dim=1), mixer(x))


def test_padding_may_hold_anything_but_must_not_come_late() -> None:
    x = torch.randn(2, 12, 4, dtype=torch.float64)
    mask = torch.arange(12).expand(2, 12) >= 5
    padded = x.masked_fill(~mask[..., None], math.nan)
    both = shaken(MonarchMixer(4, max_length=20, filter=SMALL))
    laws.equal(both(padded, mask)[:, 5:], both(x[:, 5:]))
    mixer = shaken(MonarchMixer(4, max_length=30, filter=SMALL, causal=True))
    y, state = mixer.prefill(padded, mixer.init_state(2), mask)
    laws.equal(y[:, 5:], mixer(x[:, 5:]))
    with pytest.raises(InputError, match=r"rows \[0, 1\] have padding after"):
        mixer.prefill(x, state, mask)


def test_what_reads_the_future_cannot_be_stepped() -> None:
    mixer = MonarchMixer(4, max_length=8, filter=SMALL)
    state = MonarchMixer(4, max_length=8, filter=SMALL, causal=True).init_state(2)
    for call in (lambda: mixer.init_state(2), lambda: mixer.step(torch.zeros(2, 4), state)):
        with pytest.raises(InputError, match="reads the future"):
            call()


def test_hints_are_those_of_both_filters() -> None:
    options = FilterOptions(lr=6e-4, features_lr=1e-5, decay_lr=2e-5, weight_decay=True)
    hints = MonarchMixer(4, max_length=8, filter=options).optim_hints
    for prefix in ("filter.", "residual_filter."):
        for name in ("weights.0", "future_weights.0", "output", "future_output", "frequency"):
            assert hints[prefix + name][1:] == (6e-4, True)
        assert hints[f"{prefix}features"][1:] == (1e-5, False)
        assert hints[f"{prefix}decay"][1:] == (2e-5, False)
    assert set(MonarchMixer(4, max_length=8, residual_conv=False).optim_hints) == {
        name for name in hints if name.startswith("filter.") and not name.endswith("decay")
    }


def test_dropout_works_in_training_only() -> None:
    mixer = MonarchMixer(4, max_length=20, filter=SMALL, dropout=0.5)
    x = torch.randn(1, 20, 4)
    assert not torch.equal(mixer(x), mixer(x))
    assert torch.equal(mixer.eval()(x), mixer(x))
    silent = MonarchMixer(4, max_length=20, filter=SMALL, dropout=1.0)
    assert torch.equal(silent(x), silent.out.bias.expand(1, 20, 4))


@pytest.mark.parametrize(
    ("options", "message"), [({"short_width": 0}, "short_width=0"), ({"max_length": 0}, "max_length=0")]
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MonarchMixer(4, **({"max_length": 8} | options))


def test_what_is_too_long_names_the_remedy() -> None:
    mixer = MonarchMixer(4, max_length=8, filter=SMALL)
    with pytest.raises(InputError, match=r"9 positions .* this MonarchMixer, .* max_length=8 .* larger max_length"):
        mixer(torch.randn(1, 9, 4))
    with pytest.raises(InputError, match="8 taps, not 9"):
        mixer.filter.future(9)


def test_block_diagonal_products_are_those_of_the_whole_matrix() -> None:
    x, weight = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(4, 3, 2, dtype=torch.float64)
    laws.equal(block_diagonal(x, weight), x @ torch.block_diag(*weight).mT)
    with pytest.raises(InputError, match=r"7 features; the weight \(4, 3, 2\) takes 8"):
        block_diagonal(x[..., :7], weight)


@pytest.mark.parametrize(("inputs", "outputs", "blocks"), [(8, 12, 4), (7, 5, 3), (3, 3, 1), (2, 9, 4)])
def test_linear_maps_fill_up_their_last_block(inputs: int, outputs: int, blocks: int) -> None:
    linear = BlockDiagonalLinear(inputs, outputs, n_blocks=blocks).double()
    dense = torch.block_diag(*linear.weight)[:outputs, :inputs]
    x = torch.randn(5, inputs, dtype=torch.float64)
    laws.equal(linear(x), x @ dense.mT + linear.bias)
    assert BlockDiagonalLinear(inputs, outputs, n_blocks=blocks, bias=False).bias is None


def test_linear_maps_start_as_dense_ones_of_the_width_of_a_block() -> None:
    linear = BlockDiagonalLinear(400, 400, n_blocks=4)
    torch.testing.assert_close(linear.weight.std().item(), (3 * 100) ** -0.5, rtol=0.02, atol=0)
    torch.testing.assert_close(linear.bias.std().item(), (3 * 400) ** -0.5, rtol=0.15, atol=0)
    with pytest.raises(InputError, match="n_blocks=0"):
        BlockDiagonalLinear(4, 4, n_blocks=0)


@pytest.mark.parametrize("gated", [True, False])
def test_the_mlp_widens_and_narrows(gated: bool) -> None:
    mlp = BlockDiagonalMLP(8, expand=2.5, n_blocks=2, gated=gated, dropout=0.3).double().eval()
    up, down = (torch.block_diag(*linear.weight) for linear in (mlp.up, mlp.down))
    x = torch.randn(3, 8, dtype=torch.float64)
    h = x @ up.mT
    bent = torch.nn.functional.gelu(h[:, :20]) * h[:, 20:] if gated else torch.nn.functional.gelu(h)
    laws.equal(mlp(x), bent @ down.mT + mlp.down.bias)
    assert not torch.equal(mlp.train()(x), mlp(x))


def test_the_mlp_runs_in_bfloat16_under_autocast() -> None:
    mlp, x = BlockDiagonalMLP(32), torch.randn(64, 32)
    exact = mlp.double()(x.double())
    rounded = BlockDiagonalMLP(32).double()
    rounded.load_state_dict({name: tensor.bfloat16().double() for name, tensor in mlp.state_dict().items()})
    allowed = 4 * laws.rms(rounded(x.bfloat16().double()).bfloat16() - exact)
    mlp = mlp.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mlp(x)
    assert y.dtype == torch.bfloat16
    assert laws.rms(y - exact) <= allowed
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in mlp.parameters())
