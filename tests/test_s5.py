"""What is particular to S5: how it starts, what its options do, its groups of parameters and its output stages."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longreach.errors import InputError
from longreach.hippo import transition
from longreach.mixers import S5, S5Options, SequenceMixer
from longreach.mixers.s5 import CInit
from longreach.models import S5Gate
from longreach.models.channel_mixers import S5Form


def equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Assert that two results are the same up to rounding."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def recurrence(mixer: S5, x: Tensor, C: Tensor, *, liquid: bool = False) -> Tensor:
    """Zero-order hold and the scan from their definitions, all modes and their conjugates; without D."""
    A, B = torch.complex(mixer.A_real, mixer.A_imag), torch.view_as_complex(mixer.B)
    A, B, C, dt = torch.cat([A, A.conj()]), torch.cat([B, B.conj()]), torch.cat([C, C.conj()], 1), mixer.log_dt.exp()
    abar = (A * dt.repeat(2)).exp()
    bbar = ((abar - 1) / A)[:, None] * B
    state, outputs = torch.zeros_like(A), []
    for u in x.to(A.dtype):
        drive = bbar @ u
        state = (abar + drive if liquid else abar) * state + drive
        outputs.append(C @ state)
    y = torch.stack(outputs)
    equal(y.imag, torch.zeros_like(y.imag))
    return y.real


@pytest.mark.parametrize("liquid", [False, True])
def test_pairs_stand_for_a_real_system(liquid: bool) -> None:
    mixer = S5(3, d_state=8, n_blocks=2, dt_min=0.1, dt_max=0.3, options=S5Options(liquid=liquid)).double()
    x = torch.randn(1, 9, 3, dtype=torch.float64)
    C = torch.view_as_complex(mixer.C)[0]
    equal(mixer(x)[0], recurrence(mixer, x[0], C, liquid=liquid) + mixer.D * x[0])


def test_both_directions_count_the_present() -> None:
    mixer = S5(3, d_state=4, n_blocks=1, causal=False).double()
    x = torch.randn(1, 9, 3, dtype=torch.float64)
    past, future = torch.view_as_complex(mixer.C)
    backwards = recurrence(mixer, x[0].flip(0), future).flip(0)
    equal(mixer(x)[0], recurrence(mixer, x[0], past) + backwards + mixer.D * x[0])


@pytest.mark.parametrize("pairs", [False, True])
def test_it_starts_from_blocks_of_hippo(pairs: bool) -> None:
    """A is the normal part of HiPPO-LegS in its eigenvectors, repeated; B and C are real ones in the same basis."""
    options = S5Options(conjugate_pairs=pairs)
    mixer = S5(512, d_state=16, n_blocks=2, dt_min=0.01, dt_max=0.5, options=options)
    A, _ = transition("legs", 8)
    eigenvalues = torch.linalg.eigvals((A - A.mT) / 2 - torch.eye(8) / 2)
    wanted = sorted(value.imag for value in eigenvalues.tolist() if value.imag < 0 or not pairs)
    equal(mixer.A_imag, torch.tensor(wanted * 2), 1e-4)
    equal(mixer.A_real, torch.full_like(mixer.A_imag, -0.5))
    position = (mixer.log_dt.double() - math.log(0.01)) / math.log(50)  # uniform in [0, 1]
    assert position.min() > -1e-6
    assert position.max() < 1 + 1e-6
    kept = 0.5 if pairs else 1.0  # of the squared length of a real vector, in half of the eigenvectors
    assert (torch.view_as_complex(mixer.B).abs().square().sum(0).mean() - kept).abs() < 0.05
    assert (mixer.D.std() - 1).abs() < 0.1


def test_the_readout_starts_with_the_published_variance() -> None:
    """Variance 1 / d_state in both parts of the real readout, or 1 / (d_state d), or 1/2 in each part of a mode."""
    wished: dict[CInit, float] = {"trunc_standard_normal": 2 / 64, "lecun_normal": 2 / 64 / 128, "complex_normal": 1}
    for init, expected in wished.items():
        C = S5(128, d_state=64, n_blocks=4, options=S5Options(C_init=init)).C
        assert (torch.view_as_complex(C).abs().square().mean() / expected - 1).abs() < 0.05


def test_truncated_normals_are_cut() -> None:
    """With a single block of two states the eigenvectors only turn: no entry is longer than both its parts allow."""
    C = S5(4096, d_state=2, n_blocks=1, options=S5Options(conjugate_pairs=False)).C
    reach = 2 / 0.87962566103423978 / math.sqrt(2)
    assert torch.view_as_complex(C).abs().square().sum(-1).max() <= 4 * reach**2 + 1e-5
    assert torch.view_as_complex(C).abs().square().sum(-1).max() > 0.5 * 4 * reach**2


def test_clipped_modes_do_not_grow() -> None:
    mixer = S5(2, d_state=4, n_blocks=1, dt_min=1.0, dt_max=1.0, options=S5Options(clip=True)).double()
    with torch.no_grad():
        mixer.A_real.fill_(0.3)
    equal(mixer._system()[0].abs(), torch.full((2,), math.exp(-1e-4), dtype=torch.float64))


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_rate_multiplies_the_time_steps(rule) -> None:
    fast = S5(3, d_state=4, n_blocks=1, discretisation=rule, options=S5Options(rate=2.0)).double()
    slow = S5(3, d_state=4, n_blocks=1, discretisation=rule).double()
    slow.load_state_dict(fast.state_dict())
    with torch.no_grad():
        slow.log_dt.add_(math.log(2))
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    equal(fast(x), slow(x))


@pytest.mark.parametrize(
    ("options", "slow", "decayed"),
    [
        (S5Options(), {"A_real", "A_imag", "log_dt", "B"}, set()),
        (S5Options(groups="decay_B"), {"A_real", "A_imag", "log_dt", "B"}, {"B"}),
        (S5Options(groups="fast_B"), {"A_real", "A_imag", "log_dt"}, set()),
        (S5Options(groups="slow_BCD"), {"A_real", "A_imag", "log_dt", "B", "C", "D"}, set()),
        (S5Options(ordinary_dt=True), {"A_real", "A_imag", "B"}, set()),
    ],
    ids=["standard", "decay_B", "fast_B", "slow_BCD", "ordinary_dt"],
)
def test_groups_are_those_that_were_published(options: S5Options, slow: set[str], decayed: set[str]) -> None:
    hints = S5(4, d_state=4, n_blocks=1, options=options).optim_hints
    assert {name for name, hint in hints.items() if hint.lr == 1e-3} == set(hints) == slow
    assert {name for name, hint in hints.items() if hint.weight_decay} == decayed


def test_padding_anywhere_in_a_stream_is_left_out() -> None:
    """A chunk with any mask, after any state, is read as its real positions alone; even if padding is NaN."""
    for liquid in (False, True):
        mixer = S5(3, d_state=4, n_blocks=1, options=S5Options(liquid=liquid)).double()
        x = torch.randn(5, 14, 3, dtype=torch.float64)
        mask = torch.rand(5, 8) < 0.6
        mask[0], mask[1] = False, True
        _, state = mixer.prefill(x[:, :6], mixer.init_state(5))
        expected = SequenceMixer.prefill(mixer, x[:, 6:], state, mask)
        x[:, 6:][~mask] = float("nan")
        actual = mixer.prefill(x[:, 6:], state, mask)
        equal(actual[0][mask], expected[0][mask])
        equal(actual[1].modes, expected[1].modes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_state": 9}, "d_state=9 must be a positive multiple of n_blocks=8"),
        ({"d_state": 8}, "blocks of 1 states; conjugate pairs need an even number"),
        ({"n_blocks": 0}, "n_blocks=0"),
    ],
)
def test_bad_options_are_named(arguments, message: str) -> None:
    with pytest.raises(InputError, match=message):
        S5(8, **arguments)


def test_output_stages() -> None:
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    bent = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    formulas: dict[S5Form, Callable[[Any], Tensor]] = {
        "full_glu": lambda linear: linear(bent)[..., :4] * linear(bent)[..., 4:].sigmoid(),
        "half_glu1": lambda linear: bent * linear(bent).sigmoid(),
        "half_glu2": lambda linear: x * linear(bent).sigmoid(),
        "gelu": lambda _: bent,
    }
    for form, formula in formulas.items():
        gate = S5Gate(4, form=form).double()
        equal(gate(x), formula(gate.linear))


def test_output_stages_drop_what_the_map_reads() -> None:
    gate = S5Gate(4, form="half_glu2", dropout=1.0)
    x = torch.randn(3, 4)
    assert gate.linear is not None
    equal(gate(x), x * gate.linear.bias.sigmoid(), 1e-6)
