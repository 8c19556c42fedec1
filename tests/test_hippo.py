"""HiPPO: matrices, their normal and diagonal forms, published starts, discretisation, projection, reconstruction."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from longreach.errors import InputError
from longreach.hippo import (
    DiagonalInit,
    Laguerre,
    Measure,
    basis,
    diagonal_system,
    diagonalise,
    discretise,
    discretise_matrix,
    generalised_bilinear,
    low_rank,
    normal_form,
    project,
    project_scaled,
    scaled_basis,
    transition,
)


def equal(actual: Tensor, expected: Tensor | list[float], tolerance: float = 1e-9) -> None:
    """Assert that `actual` is `expected` up to rounding."""
    wished = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, wished, rtol=tolerance, atol=tolerance)


def test_legs_projects_on_legendre_polynomials() -> None:
    """For x' = (A x + B u) / t and u = s^2, the coefficients of s^2 on [0, t] are those of Legendre polynomials."""
    A, B = transition("legs", 4)
    # s^2 on [0, 1] = sum_n x_n sqrt(2n+1) P_n(2s - 1) has x = (1/3, 1/(2 sqrt 3), 1/(6 sqrt 5), 0); on [0, t] times t^2
    x = torch.tensor([1 / 3, 1 / (2 * math.sqrt(3)), 1 / (6 * math.sqrt(5)), 0], dtype=torch.float64)
    equal(A @ x + B, 2 * x)  # t d/dt of t^2 x


def test_fourier_forgets_what_has_left_the_window() -> None:
    """F - B B^T on a constant input settles at the Fourier coefficients of a constant: B_0 alone."""
    A, B = transition("fourier", 8)
    settled = -torch.linalg.pinv(A) @ B  # the sine of frequency 0 belongs to no equation
    equal(settled, [1.0] + [0.0] * 7)


def test_fourier_turns_each_pair_forward() -> None:
    """The cosine of frequency pi j falls as the sine rises."""
    A, _ = transition("fourier", 6)
    equal(A.diagonal(-1)[2::2], [math.pi, 2 * math.pi])
    equal(A.diagonal(1)[2::2], [-math.pi, -2 * math.pi])


@pytest.mark.parametrize("measure", sorted(set(get_args(Measure)) - {"lmu"}))
@pytest.mark.parametrize("size", [2, 4, 16, 64])
def test_normal_form_reconstructs_the_matrices(measure, size: int) -> None:
    A, B = transition(measure, size)
    W, P, B_c, V = normal_form(measure, size)
    correction = low_rank(measure, size)
    whole = torch.cat([V, V.conj()], dim=1)
    equal(whole.mH @ whole, torch.eye(size), 1e-9)
    spectrum = torch.diag(torch.cat([W, W.conj()]))
    rebuilt = whole @ spectrum @ whole.mH - correction.mT @ correction
    torch.testing.assert_close(rebuilt, A.to(rebuilt.dtype), rtol=1e-9, atol=1e-9 * size**2)
    equal(2 * (V @ B_c).real, B)
    equal(2 * (V @ P.mT).real, correction.mT)
    assert (W.imag <= 1e-9).all()
    assert (W.imag.diff() >= 0).all()
    for vector in V.mT:
        first = vector[vector.abs() > 1e-6][0]
        assert first.real > 0
        assert first.imag.abs() < 1e-9


def test_legs_spectrum_is_the_published_one() -> None:
    """Real parts -1/2; for N = 64 the frequencies reach from 0.264 to 1303.27."""
    W = normal_form("legs", 64).W
    equal(W.real, torch.full((32,), -0.5))
    equal(-W.imag[[0, -1]], [1303.27, 0.264], 1e-3)


N4_FREQUENCIES = {
    "lin": [0, math.pi],
    "inv": [12 / math.pi, 4 / (3 * math.pi)],
    "inv2": [12 / math.pi, 4 / math.pi],
    "quad": [1 / math.pi, 9 / math.pi],
    "real": [0, 0],
    "fourier": [math.pi, 0],
}


@pytest.mark.parametrize("spectrum", N4_FREQUENCIES)
def test_spectra(spectrum) -> None:
    system = diagonal_system(spectrum, 4, 3, DiagonalInit())
    assert system.A.shape == system.B.shape == (3, 2)
    equal(-system.A.imag, [N4_FREQUENCIES[spectrum]] * 3)
    decay = {"real": [1.0, 2.0], "fourier": [0.0, 0.0]}.get(spectrum, [0.5, 0.5])
    equal(-system.A.real, [decay] * 3)
    equal(system.B.abs(), [[1.0, math.sqrt(0.5)] if spectrum == "fourier" else [1.0, 1.0]] * 3)


def test_legs_brings_its_clipped_input() -> None:
    system = diagonal_system("legs", 64, 2, DiagonalInit(B="constant"))
    B = normal_form("legs", 64).B
    equal(system.B[1].real, B.real)
    equal(system.B[1].imag, B.imag.clamp(-2, 2))
    assert (B.imag.abs() > 2).sum() == 11  # as published
    equal(diagonal_system("lin", 64, 1, DiagonalInit(B="legs")).B[0].imag, B.imag.clamp(-2, 2))


def test_random_spectrum_is_log_normal() -> None:
    frequency = -diagonal_system("rand", 64, 500, DiagonalInit()).A.imag
    assert frequency.log().mean().abs() < 0.05
    assert (frequency.log().std() - 1).abs() < 0.05


@pytest.mark.parametrize(
    ("spectrum", "parts"),
    [("diag", ["inv", "lin"]), ("hippo", ["legs", "fourier"]), ("all", ["legs", "fourier", "inv", "lin"])],
)
def test_mixtures_hold_their_parts_one_after_the_other(spectrum, parts) -> None:
    mixture = diagonal_system(spectrum, 8, 8, DiagonalInit())
    for part, A, B in zip(parts, mixture.A.chunk(len(parts)), mixture.B.chunk(len(parts)), strict=True):
        single = diagonal_system(part, 8, 8 // len(parts), DiagonalInit())
        equal(A, single.A)
        equal(B, single.B)


def test_options_of_the_start() -> None:
    start = diagonal_system("lin", 8, 1, DiagonalInit(real_scale=2.0, imag_scale=3.0, B_scale=5.0))
    equal(start.A, [[complex(-1.0, -3 * math.pi * n) for n in range(4)]])
    equal(start.B, [[5.0] * 4])
    turns = {"unit-cw": -1, "unit-ccw": 1}
    for B, sign in turns.items():
        roots = diagonal_system("lin", 8, 1, DiagonalInit(B=B)).B
        equal(roots, torch.exp(torch.arange(4) * sign * 2j * math.pi / 8)[None].to(roots.dtype), 1e-6)
    equal(diagonal_system("lin", 8, 1, DiagonalInit(B="alternating")).B, [[1.0, -1.0, 1.0, -1.0]])


def test_random_options_of_the_start() -> None:
    start = diagonal_system("lin", 8, 2000, DiagonalInit(real_random=True, imag_random=True, B="random"))
    for uniform in (-start.A.real, -start.A.imag / (4 * math.pi)):
        assert 0 <= uniform.min() < 0.01
        assert 0.99 < uniform.max() <= 1
        assert (uniform.mean() - 0.5).abs() < 0.02
    assert (start.B.abs().square().mean() - 1).abs() < 0.05
    assert -diagonal_system("real", 8, 2000, DiagonalInit(real_random=True)).A.real.min() > 3.9


def test_normalised_input_gives_unit_variance() -> None:
    """With C of unit variance, 2 Re sum C B / A, the response to a constant, has variance 2 sum |B/A|^2 = 1."""
    A, B = diagonal_system("inv", 16, 2, DiagonalInit(normalise=True))
    equal(2 * (B / A).abs().square().sum(-1), [1.0, 1.0])
    C = torch.randn(40_000, 8, dtype=torch.complex128)
    assert ((2 * (C * (B / A)[0]).real.sum(-1)).var() - 1).abs() < 0.05


@pytest.mark.parametrize("d_state", [0, 3, -2])
def test_odd_state_is_refused(d_state: int) -> None:
    with pytest.raises(InputError, match=f"d_state={d_state}"):
        diagonal_system("lin", d_state, 1, DiagonalInit())


def test_uneven_mixture_is_refused() -> None:
    with pytest.raises(InputError, match=r"legs and fourier and inv and lin.*multiple of 4, not 6"):
        diagonal_system("all", 4, 6, DiagonalInit())


def test_zero_order_hold_is_the_exact_solution() -> None:
    """exp(dt [[A, B], [0, 0]]) = [[abar, bbar], [0, 1]]."""
    A, B = torch.randn(2, 5, dtype=torch.complex128)
    dt = torch.rand(5, dtype=torch.float64)
    log_abar, bbar = discretise("zoh", A, B, dt)
    joint = torch.zeros(5, 2, 2, dtype=torch.complex128)
    joint[:, 0, 0], joint[:, 0, 1] = A, B
    exact = torch.linalg.matrix_exp(dt[:, None, None] * joint)
    equal(log_abar.exp(), exact[:, 0, 0])
    equal(bbar, exact[:, 0, 1])


def test_bilinear_is_the_trapezoid_rule() -> None:
    """(s_k - s_{k-1}) / dt = A (s_k + s_{k-1}) / 2 + B u."""
    A, B, s = torch.randn(3, 5, dtype=torch.complex128)
    dt = torch.rand(5, dtype=torch.float64)
    log_abar, bbar = discretise("bilinear", A, B, dt)
    after = log_abar.exp() * s + bbar * 0.7
    equal((after - s) / dt, A * (after + s) / 2 + B * 0.7)


def test_slow_modes_keep_their_precision() -> None:
    """Where dt A is tiny, abar - 1 would lose all digits in float32; log abar and bbar do not."""
    A, dt = torch.tensor([-1e-4 + 1e-4j]), torch.tensor([1e-4])
    for rule in ("zoh", "bilinear"):
        log_abar, bbar = discretise(rule, A, torch.ones(1, dtype=torch.complex64), dt)
        torch.testing.assert_close(log_abar, A * dt, rtol=1e-6, atol=0)
        torch.testing.assert_close(bbar, dt + 0j, rtol=1e-6, atol=0)


def impulse_basis(measure, age: Tensor, laguerre: Laguerre) -> Tensor:
    """exp(age A) B: how much of the input of that age is in each state; (k, n)."""
    A, B = transition(measure, 6, laguerre)
    return torch.linalg.matrix_exp(age[:, None, None] * A) @ B


WEIGHTS = {
    "legs": lambda age: (-age).exp(),
    "lagt": lambda age: 4.0 * torch.ones_like(age),  # beta^2
    "tlagt": lambda age: 4.0 * (-2 * age).exp(),  # beta^2 exp(-beta age)
    "glagt": lambda age: (-2 * age).exp() * age**-0.3 * 2**0.7 / math.exp(math.lgamma(0.7)),
}
"""The weight of the past by its age that these measures have with these parameters; states are projections under it."""


@pytest.mark.parametrize("measure", WEIGHTS)
def test_states_are_projections(measure) -> None:
    """x_n = integral of f g_n weight, so exp(age A) B = g_n weight."""
    laguerre = Laguerre(alpha=0.3 if measure == "glagt" else 0.0, beta=2.0)
    age = torch.linspace(0.1, 2, 9, dtype=torch.float64)
    expected = basis(measure, 6, age, laguerre) * WEIGHTS[measure](age)[:, None]
    equal(impulse_basis(measure, age, laguerre), expected)


SMOOTH = {
    "legs": (1.0, 0.03), "legt": (1.9, 2e-3), "lmu": (0.95, 2e-3), "lagt": (3.0, 0.05), "tlagt": (3.0, 0.05),
    "glagt": (3.0, 0.05), "fourier": (1.6, 0.08), "fourier2": (0.8, 0.08),
}  # fmt: skip
"""Oldest age to look at, and the error that 32 states may leave of a wave of amplitude 1 (Gibbs for Fourier)."""


@pytest.mark.parametrize("measure", SMOOTH)
def test_a_smooth_past_is_remembered(measure) -> None:
    dt, (oldest, allowed) = 2e-3, SMOOTH[measure]
    signal = torch.sin(1.3 * dt * torch.arange(4000, dtype=torch.float64))
    age = dt * torch.arange(100, int(oldest / dt), 50, dtype=torch.float64)
    laguerre = Laguerre(beta=1.0)
    remembered = basis(measure, 32, age, laguerre) @ project(signal, measure, 32, dt=dt, laguerre=laguerre)[-1]
    past = torch.sin(1.3 * (dt * 3999 - age))
    assert (remembered - past).abs().max() < allowed
    assert past.abs().max() > 5 * allowed


def test_scaled_legs_remembers_everything_at_any_time() -> None:
    """After 300 and after 1200 samples, the whole past is there at the same relative resolution."""
    signal = torch.sin(torch.arange(1200, dtype=torch.float64) / 150)
    coefficients = project_scaled(signal, 24)
    position = torch.linspace(0.05, 0.99, 20, dtype=torch.float64)
    for length in (300, 1200):
        remembered = scaled_basis(24, position) @ coefficients[length - 1]
        assert (remembered - torch.sin(position * length / 150)).abs().max() < 0.02


def test_projection_of_batches_and_in_float32() -> None:
    signal = torch.randn(2, 3, 80)
    for project_one in (
        lambda u: project(u, "legt", 5, dt=0.05, rule="zoh"),
        lambda u: project_scaled(u, 5, rule="backward"),
    ):
        whole = project_one(signal)
        assert (whole.shape, whole.dtype) == ((2, 3, 80, 5), torch.float32)
        torch.testing.assert_close(whole[1, 2].double(), project_one(signal[1, 2].double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["zoh", "bilinear", "forward", "backward"])
def test_sampled_matrices(rule) -> None:
    """Against the diagonal formulas in eigenvectors, or the difference equation; for several time steps at once."""
    A, B = transition("legt", 6)
    dt = torch.tensor([0.1, 0.4], dtype=torch.float64)
    system = discretise_matrix(rule, A, B, dt)
    assert (system.abar.shape, system.bbar.shape) == ((2, 6, 6), (2, 6))
    values, vectors = torch.linalg.eig(A)
    modal = torch.linalg.solve(vectors, B.to(vectors.dtype))
    for i, step in enumerate(dt):
        if rule in ("zoh", "bilinear"):
            log_abar, bbar = discretise(rule, values, modal, step)
            equal(system.abar[i].to(vectors.dtype), vectors @ torch.diag(log_abar.exp()) @ torch.linalg.inv(vectors))
            equal(system.bbar[i].to(vectors.dtype), vectors @ bbar)
        else:
            before, u = torch.randn(6, dtype=torch.float64), 0.7
            after = system.abar[i] @ before + system.bbar[i] * u
            equal((after - before) / step, A @ (before if rule == "forward" else after) + B * u)


def test_generalised_bilinear_lies_between_the_rules() -> None:
    A, B = transition("lagt", 4)
    dt = torch.tensor(0.2, dtype=torch.float64)
    before, u = torch.randn(4, dtype=torch.float64), 0.3
    system = generalised_bilinear(A, B, dt, 0.7)
    after = system.abar @ before + system.bbar * u
    equal((after - before) / dt, A @ (0.7 * after + 0.3 * before) + B * u)


def test_singular_matrices_are_sampled() -> None:
    """The sine of frequency 0 never changes: A of Fourier is singular."""
    system = discretise_matrix("zoh", *transition("fourier", 4), torch.tensor(0.3, dtype=torch.float64))
    equal(system.abar[1], [0.0, 1.0, 0.0, 0.0])
    assert system.bbar.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transition("legs", 0), "legs with 0 states"),
        (lambda: low_rank("lmu", 4), "lmu has no normal-plus-low-rank form"),
        (lambda: low_rank("glagt", 4, Laguerre(alpha=0.5)), "glagt has no normal"),
        (lambda: transition("glagt", 4, Laguerre(alpha=1.0)), "alpha=1.0 must lie between -1 and 1"),
        (lambda: transition("tlagt", 4, Laguerre(beta=0.0)), "beta=0.0 must be positive"),
        (lambda: normal_form("legs", 5), "d_state=5 must be even"),
        (lambda: diagonalise(*transition("lmu", 4)[:1], torch.zeros(0, 4).double(), torch.ones(4).double()), "skew"),
        (lambda: project(torch.zeros(3), "legs", 4, dt=0.0), "dt=0.0 must be positive"),
        (lambda: basis("legt", 4, torch.tensor([2.5])), "legt remembers ages from 0 to 2.0, not 2.5"),
        (lambda: basis("legsd", 4, torch.tensor([0.5])), "legsd has no basis"),
    ],
)
def test_what_does_not_exist_is_refused(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
