"""The recurrences of RWKV: the definitions mean what they say, and the fast backends compute them, however extreme."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longreach.errors import InputError
from longreach.ops import OPS, delta_rule, gated_linear_attention, init_wkv, native, token_shift, use_backend, wkv
from longreach.ops.decayed_scores import decayed_scores
from longreach.ops.wkv_state import WKVState

TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}
LENGTHS = (1, 2, 3, 16, 37, 150)
SMOOTH = ("wkv", "attention", "delta rule")
"""Cases that finite differences can check."""


def real(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64)


def wkv_arguments(length: int, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Decay, bonus, key, value and the tensors of a state."""
    return -real(3).exp(), real(3), real(2, length, 3, scale=scale), real(2, length, 3), real(2, 3), real(2, 3).exp()


def run_wkv(
    log_decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, above: Tensor, below: Tensor, **options: Any
) -> Tensor:
    """The averages, and those of two more positions, which tell what is in the state: its scale is a free choice."""
    y, state = wkv(log_decay, bonus, key, value, WKVState(above, below, torch.full_like(above, 0.5)), **options)
    probe = torch.ones_like(key[:, :1]).expand(-1, 2, -1)
    return torch.cat([y, wkv(log_decay, bonus, probe, probe, state)[0]], dim=1)


def heads(length: int, *widths: int, scale: float = 1.0) -> list[Tensor]:
    return [real(2, 3, length, width, scale=scale) for width in widths]


def attention_arguments(length: int, decay: float = 1.0) -> tuple[Tensor, ...]:
    query, key, value, speed = heads(length, 4, 4, 5, 4)
    return query, key, value, -(decay * speed).exp(), real(3, 4), real(2, 3, 4, 5)


def delta_arguments(length: int, decay: float = 1.0) -> tuple[Tensor, ...]:
    query, key, value, speed, read, write = heads(length, 4, 4, 5, 4, 4, 4, scale=0.5)
    return query, key, value, -(2 * decay * speed).exp(), read, write, real(2, 3, 4, 5)


def joined(operator: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """An operator whose output and state are one tensor."""
    return lambda *arguments: torch.cat([x.flatten(2) for x in operator(*arguments)], dim=2)


CASES: dict[str, tuple[str, Callable[..., Tensor], Callable[[int], tuple[Tensor, ...]]]] = {
    "wkv": ("wkv", run_wkv, wkv_arguments),
    "wkv of large keys": ("wkv", run_wkv, lambda length: wkv_arguments(length, 30.0)),
    "attention": ("gated_linear_attention", joined(gated_linear_attention), attention_arguments),
    "attention, strong decay": (
        "gated_linear_attention",
        joined(gated_linear_attention),
        lambda length: attention_arguments(length, 5.0),
    ),
    "delta rule": ("delta_rule", joined(delta_rule), delta_arguments),
    "delta rule, strong decay": ("delta_rule", joined(delta_rule), lambda length: delta_arguments(length, 5.0)),
}


def with_gradients(case: str, backend: str, arguments: tuple[Tensor, ...]) -> list[Tensor]:
    """The result on one backend, and the gradients of all arguments."""
    name, function, _ = CASES[case]
    leaves = [x.detach().requires_grad_() for x in arguments]
    with use_backend(**{name: backend}):
        y = function(*leaves)
    cotangent = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y, *torch.autograd.grad(y, leaves, cotangent, materialize_grads=True, allow_unused=True)]


def runs_here(backend: str) -> bool:
    """Whether a backend can run: the compiled kernels may be missing, and those in Triton have tests of their own."""
    return backend != "triton" and (backend != "native" or native.MISSING is None)


FAST = [
    (case, backend)
    for case, (name, _, _) in CASES.items()
    for backend in OPS[name].backends
    if backend != "reference" and runs_here(backend)
]
OF_EVERY_WKV = pytest.mark.parametrize("backend", [name for name in OPS["wkv"].backends if runs_here(name)])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("case", "backend"), FAST)
def test_value_and_gradient(case: str, backend: str, length: int) -> None:
    arguments = CASES[case][2](length)
    found = [with_gradients(case, name, arguments) for name in (backend, "reference")]
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("case", "backend"),
    [(case, name) for case, name in [*FAST, *((case, "reference") for case in CASES)] if case in SMOOTH],
)
def test_first_and_second_derivatives(case: str, backend: str) -> None:
    name, function, make = CASES[case]
    arguments = [x.requires_grad_() for x in make(5)]
    with use_backend(**{name: backend}):
        assert torch.autograd.gradcheck(function, arguments, fast_mode=True, rtol=1e-5, atol=1e-7)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("case", "backend"), FAST)
def test_float32_error_is_that_of_the_reference(case: str, backend: str) -> None:
    """At most four times the reference's own rounding error, for values and for gradients."""
    low = [x.float() for x in CASES[case][2](300)]
    exact = with_gradients(case, "reference", tuple(x.double() for x in low))
    found = [with_gradients(case, name, tuple(low)) for name in (backend, "reference")]
    for ours, reference, truth in zip(*found, exact, strict=True):
        assert ours.dtype == torch.float32
        error, allowed = ((x.double() - truth).norm() for x in (ours, reference))
        assert allowed < 1e-2 * truth.norm(), "an output of zeros would pass"
        assert error <= 4 * allowed + 1e-6 * truth.norm()


@pytest.mark.parametrize("case", CASES)
def test_which_backend_runs(case: str) -> None:
    """One position is a step; more than one go the fast way; compiled code, where there is some, takes both."""
    name, _, make = CASES[case]
    fastest = [backend for other, backend in FAST if other == case][-1]
    for length, expected in ((1, fastest if fastest == "native" else "reference"), (2, fastest)):
        arguments: list[Any] = list(make(length))
        if name == "wkv":
            arguments[4:] = [WKVState(arguments[4], arguments[5], arguments[5])]
        assert OPS[name].choose(*arguments) == expected


@OF_EVERY_WKV
def test_wkv_is_a_weighted_average(backend: str) -> None:
    """Against the two sums as they are written in the paper."""
    w, u, k, v, *_ = wkv_arguments(9)
    t = torch.arange(9)
    log_weight = k[:, None] + (t[:, None] - 1 - t)[None, :, :, None] * w  # of i (third axis) in the average of t
    log_weight = torch.where((t[:, None] > t)[None, :, :, None], log_weight, -torch.inf)
    log_weight = torch.where((t[:, None] == t)[None, :, :, None], u + k[:, None], log_weight)
    expected = torch.einsum("btic,bic->btc", log_weight.softmax(2), v)
    with use_backend(wkv=backend):
        y, state = wkv(w, u, k, v, init_wkv(2, u))
    torch.testing.assert_close(y, expected, **TOLERANCE)
    torch.testing.assert_close(state.exponent, (k + (8 - t)[:, None] * w).amax(1), **TOLERANCE)


@OF_EVERY_WKV
def test_wkv_of_extreme_keys(backend: str) -> None:
    """Neither keys of +-10,000 nor decays near 0 or 1 overflow in float32, nor do their gradients."""
    key = 1e4 * torch.tensor([0.1, -1, 1, -0.5, 1, 0.3, -1, -1])[None, :, None].repeat(1, 1, 3)
    value = torch.randn(1, 8, 3)
    log_decay = torch.tensor([-1e-6, -1.0, -1e6])
    leaves = [x.requires_grad_() for x in (log_decay, torch.zeros(3), key, value)]
    with use_backend(wkv=backend):
        y, _ = wkv(*leaves, init_wkv(1, leaves[1]))
    torch.testing.assert_close(y[0, 2], value[0, 2])  # the one large key so far
    two_steps = torch.lerp(value[0, 2], value[0, 4], torch.sigmoid(-2 * log_decay))  # the weights of both large keys
    torch.testing.assert_close(y[0, 6], torch.stack([*two_steps[:2], value[0, 5, 2]]))
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), leaves))


@OF_EVERY_WKV
def test_wkv_leaves_out_what_is_masked(backend: str) -> None:
    """Padding anywhere, also after a state and whatever it holds, is as if it were not there."""
    arguments = list(wkv_arguments(12))
    mask = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1], [1] * 11 + [0]], dtype=torch.bool)
    arguments[2] = torch.where(mask[..., None], arguments[2], 1e4)
    with use_backend(wkv=backend):
        together = run_wkv(*arguments, mask=mask)
    for row in range(2):
        keep = torch.cat([mask[row], torch.ones(2, dtype=torch.bool)])
        w, u, k, v, above, below = arguments
        alone = run_wkv(w, u, k[[row]][:, mask[row]], v[[row]][:, mask[row]], above[[row]], below[[row]])
        torch.testing.assert_close(together[row, keep], alone[0], **TOLERANCE)


@OF_EVERY_WKV
def test_wkv_stays_empty_while_there_is_padding(backend: str) -> None:
    w, u, k, v, *_ = wkv_arguments(5)
    empty = init_wkv(2, u)
    with use_backend(wkv=backend):
        _, state = wkv(w, u, k, v, empty, torch.zeros(2, 5, dtype=torch.bool))
    for found, expected in zip(state, empty, strict=True):
        assert torch.equal(found, expected)


@OF_EVERY_WKV
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_wkv_of_keys_that_are_not_finite(backend: str, poison: float) -> None:
    """NaN and infinite keys spoil what they spoil in the definition; one of -infinity is a value of no weight."""
    w, u, k, v, *_ = wkv_arguments(6)
    k[1, 2, 1] = poison
    found = []
    for name in (backend, "reference"):
        with use_backend(wkv=name):
            found.append(wkv(w, u, k, v, init_wkv(2, u))[0])
    torch.testing.assert_close(*found, equal_nan=True, **TOLERANCE)
    assert found[0].isfinite().all() == (poison == -float("inf"))


def test_the_definition_of_gated_linear_attention() -> None:
    """Against sums over all pairs of positions."""
    q, k, v, g, u, state = attention_arguments(6)
    y = torch.zeros_like(v)
    for t in range(6):
        y[:, :, t] = torch.einsum("bhk,bhkv->bhv", q[:, :, t] * g[:, :, :t].sum(2).exp(), state)
        y[:, :, t] += (q[:, :, t] * u * k[:, :, t]).sum(-1, keepdim=True) * v[:, :, t]
        for i in range(t):
            weight = (q[:, :, t] * g[:, :, i + 1 : t].sum(2).exp() * k[:, :, i]).sum(-1, keepdim=True)
            y[:, :, t] += weight * v[:, :, i]
    torch.testing.assert_close(gated_linear_attention(q, k, v, g, u, state)[0], y, **TOLERANCE)


def test_the_delta_rule_replaces_what_is_stored() -> None:
    """With a = -kappa, b = kappa and an orthonormal kappa, the last value that was written is read, and no other."""
    kappa = torch.eye(4, dtype=torch.float64)[[0, 1, 0, 2, 1]].expand(1, 1, 5, 4)
    value = real(1, 1, 5, 3)
    none = torch.zeros_like(kappa)
    _, memory = delta_rule(kappa, kappa, value, none, -kappa, kappa, torch.zeros(1, 1, 4, 3, dtype=torch.float64))
    expected = torch.stack([value[0, 0, 2], value[0, 0, 4], value[0, 0, 3], torch.zeros(3).double()])
    torch.testing.assert_close(memory[0, 0], expected, **TOLERANCE)


@pytest.mark.parametrize("case", ["attention", "delta rule"])
def test_decays_of_any_strength_neither_overflow_nor_lose_digits(case: str) -> None:
    """A decay of e^-10,000 between weak ones forgets what was before and touches nothing after, in float32."""
    name, function, make = CASES[case]
    arguments = [x.float() for x in make(64)]
    arguments[3] = torch.full_like(arguments[3], -0.01)
    arguments[3][:, :, 5] = -1e4
    exact = function(*(x.double() for x in arguments))
    with use_backend(**{name: "reference"}):
        allowed = (function(*arguments).double() - exact).norm()
    assert (function(*arguments).double() - exact).norm() <= 4 * allowed + 1e-6 * exact.norm()


@pytest.mark.parametrize("case", ["attention", "delta rule"])
def test_autocast_does_not_reach_the_memory(case: str) -> None:
    _, function, make = CASES[case]
    arguments = [x.float() for x in make(70)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = function(*arguments)
    assert torch.equal(under, function(*arguments))


@pytest.mark.parametrize("size", [1, 2, 8, 32])
def test_decayed_scores(size: int) -> None:
    q, k, g = real(2, size, 3), real(2, size, 3), -real(2, size, 3).exp()
    expected = torch.zeros(2, size, size, dtype=torch.float64)
    for t in range(size):
        for i in range(t):
            expected[:, t, i] = (q[:, t] * k[:, i] * g[:, i + 1 : t].sum(1).exp()).sum(-1)
    torch.testing.assert_close(decayed_scores(q, k, g), expected, **TOLERANCE)


def test_token_shift() -> None:
    x, last = real(2, 4, 3), real(2, 3)
    previous, after = token_shift(x, last)
    assert torch.equal(previous, torch.cat([last[:, None], x[:, :-1]], dim=1))
    assert torch.equal(after, x[:, -1])
    assert after.untyped_storage().nbytes() < x.untyped_storage().nbytes(), "the state keeps the whole chunk"
    mask = torch.tensor([[False, True, False, True], [False] * 4])
    previous, after = token_shift(x, last, mask)
    assert torch.equal(previous[0, [1, 3]], torch.stack([last[0], x[0, 1]]))
    assert torch.equal(after, torch.stack([x[0, 3], last[1]]))


def test_what_does_not_fit_is_said() -> None:
    ones = torch.ones(2, 3, 4)
    with pytest.raises(InputError, match="wkv: key"):
        wkv(torch.ones(3), torch.ones(4), ones, ones, init_wkv(2, torch.ones(4)))
    with pytest.raises(InputError, match="the state is"):
        wkv(torch.ones(4), torch.ones(4), ones, ones, init_wkv(1, torch.ones(4)))
    with pytest.raises(InputError, match="token_shift"):
        token_shift(ones[:, :0], torch.ones(2, 4))
    with pytest.raises(InputError, match="power of two"):
        decayed_scores(ones, ones, ones)
    wide = torch.ones(1, 2, 3, 4)
    with pytest.raises(InputError, match="gated_linear_attention"):
        gated_linear_attention(wide, wide, wide, wide, torch.ones(2, 5), torch.ones(1, 2, 4, 4))
    with pytest.raises(InputError, match="delta_rule"):
        delta_rule(wide, wide, wide, wide, wide, wide, torch.ones(1, 2, 5, 4))
