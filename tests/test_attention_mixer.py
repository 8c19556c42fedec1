"""What is particular to the attention mixer; that it obeys the laws is tested with all mixers."""

import laws
import pytest
import torch
from mixer_cases import WIDTH

from longreach.errors import InputError
from longreach.mixers import Attention
from longreach.mixers.attention import alibi_slopes
from longreach.ops import native, use_backend

TILES = "tiled" if native.MISSING else "native"


def test_slopes_of_alibi_are_the_published_ones() -> None:
    exponents = {
        1: [8],
        8: [1, 2, 3, 4, 5, 6, 7, 8],
        12: [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5],
        3: [4, 8, 2],
    }
    for n_heads, expected in exponents.items():
        torch.testing.assert_close(-alibi_slopes(n_heads).log2(), torch.tensor(expected, dtype=torch.float32))


def test_dropout_is_on_in_training_and_off_in_evaluation() -> None:
    mixer = Attention(WIDTH, dropout=0.5).double()
    x = laws.random_input(mixer)
    torch.manual_seed(1)
    first, second = mixer(x), mixer(x)
    torch.manual_seed(1)
    assert torch.equal(mixer(x), first)
    assert not torch.allclose(first, second)
    state = mixer.init_state(2)
    assert not torch.allclose(mixer.prefill(x, state)[0], mixer.prefill(x, state)[0])
    assert torch.equal(mixer.eval()(x), mixer(x))


@pytest.mark.parametrize(("backend", "options"), [("sdpa", {}), (TILES, {"window": 3}), (TILES, {"dropout": 0.1})])
def test_training_runs_on_the_fastest_backend(backend: str, options: dict) -> None:
    """Forced by name, a backend that could not run would raise; it must also be the one that is chosen."""
    mixer = Attention(WIDTH, **options).double()
    x = laws.random_input(mixer)
    torch.manual_seed(2)
    expected = mixer(x)
    torch.manual_seed(2)
    with use_backend(attention=backend):
        assert torch.equal(mixer(x), expected)


def test_a_window_as_long_as_the_sequence_changes_nothing() -> None:
    mixer = Attention(WIDTH, window=12).double()
    whole = Attention(WIDTH).double()
    whole.load_state_dict(mixer.state_dict())
    x = laws.random_input(mixer, length=13)
    laws.equal(mixer(x)[:, :12], whole(x)[:, :12])
    assert not torch.allclose(mixer(x)[:, 12], whole(x)[:, 12])


def test_a_larger_base_turns_more_slowly() -> None:
    """With a base so large that nothing but the first pair turns, heads of one pair do not notice it."""
    torch.manual_seed(0)
    for n_heads, same in ((4, True), (2, False)):
        mixer, slow = (Attention(WIDTH, n_heads=n_heads, rotary_base=base).double() for base in (1e4, 1e9))
        slow.load_state_dict(mixer.state_dict())
        x = laws.random_input(mixer)
        assert torch.allclose(mixer(x), slow(x), rtol=0, atol=1e-12) == same


def test_a_mixer_that_reads_the_future_has_no_state() -> None:
    with pytest.raises(InputError, match="causal=False reads the future"):
        Attention(WIDTH, causal=False).init_state(2)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("n_heads=3 must divide d_model=8", {"n_heads": 3}),
        ("multiple of n_kv_heads=3", {"n_heads": 4, "n_kv_heads": 3}),
        ("heads must have an even width, not 1", {"n_heads": 8}),
        ("window=0 must be at least 1", {"window": 0}),
    ],
)
def test_options_that_do_not_fit_are_refused(message: str, options: dict) -> None:
    with pytest.raises(InputError, match=message):
        Attention(WIDTH, **options)
