"""WKV in Triton: against the definition, its derivatives, and itself, however extreme the keys are."""

from functools import partial

import pytest
import torch
from torch import Tensor
from triton_checks import assert_like_torch, repetitions, values_and_gradients

from longreach.ops import init_wkv, use_backend, wkv
from longreach.ops.triton import linear_scan as launcher
from longreach.ops.wkv import WKVState

BOTH = ("triton", "reference")
CALLS = [(1, torch.float64), (21, torch.float64), (21, torch.float32), (21, torch.bfloat16)]


@pytest.fixture(params=["one chunk", "chunks"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few lanes are enough for one, or none are, so that small shapes take both ways."""
    monkeypatch.setattr(launcher, "ENOUGH", 1 if request.param == "one chunk" else 1 << 30)
    monkeypatch.setattr(launcher, "SHORTEST", 3)


def arguments(b: int, l: int, c: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> list[Tensor]:
    """Decay, bonus, key, value and the tensors of a state; key and value are of this dtype."""
    wide = torch.promote_types(dtype, torch.float32)
    w, u, k, v = -torch.randn(c).exp(), torch.randn(c), scale * torch.randn(b, l, c), torch.randn(b, l, c)
    state = torch.randn(b, c), torch.randn(b, c).exp(), torch.randn(b, c)
    return [x.to(device, dtype if x.ndim == 3 else wide) for x in (w, u, k, v, *state)]


def run(*values: Tensor, mask: Tensor | None = None) -> Tensor:
    """The averages that count, and those of two more positions, which tell what is in the state."""
    w, u, k, v, *state = values
    y, after = wkv(w, u, k, v, WKVState(*state), mask)
    if mask is not None:
        y = y.masked_fill(~mask[..., None], 0)
    probe = torch.ones_like(y[:, :1]).expand(-1, 2, -1)
    return torch.cat([y, wkv(w, u, probe, probe, after)[0]], dim=1)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("length", "dtype"), CALLS)
def test_is_the_definition(length: int, dtype: torch.dtype, masked: bool, device: torch.device) -> None:
    mask = torch.rand(2, length, device=device) > 0.3 if masked else None
    inputs = arguments(2, length, 19, dtype, device)
    if dtype != torch.float64:
        assert_like_torch("wkv", partial(run, mask=mask), inputs)
        return
    cotangent = torch.randn(2, length + 2, 19, dtype=dtype, device=device)
    both = [values_and_gradients("wkv", name, partial(run, mask=mask), inputs, cotangent) for name in BOTH]
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("chunks")
def test_large_keys(device: torch.device) -> None:
    assert_like_torch("wkv", run, arguments(1, 40, 3, torch.float32, device, scale=30.0))


@pytest.mark.usefixtures("chunks")
def test_extreme_keys_from_an_empty_state(device: torch.device) -> None:
    """Neither keys of +-10,000 nor decays near 0 or 1 overflow, nor do their gradients."""
    key = 1e4 * torch.tensor([0.1, -1, 1, -0.5, 1, 0.3, -1, -1], device=device)[None, :, None].repeat(1, 1, 3)
    value = torch.randn(1, 8, 3, device=device)
    leaves = [torch.tensor([-1e-6, -1.0, -1e6], device=device), torch.zeros(3, device=device), key, value]
    leaves = [x.requires_grad_() for x in leaves]
    with use_backend(wkv="triton"):
        y, _ = wkv(*leaves, init_wkv(1, leaves[1]))
    torch.testing.assert_close(y, wkv.backends["reference"](*leaves, init_wkv(1, leaves[1]))[0])
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), leaves))


@pytest.mark.usefixtures("chunks")
def test_padding_leaves_no_trace(device: torch.device) -> None:
    w, u, k, v, *_ = arguments(2, 9, 3, torch.float32, device)
    nothing = torch.zeros(2, 9, dtype=torch.bool, device=device)
    with use_backend(wkv="triton"):
        y, state = wkv(w, u, k * torch.nan, v * torch.nan, init_wkv(2, u), nothing)
    for found, expected in zip(state, init_wkv(2, u), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(y, torch.zeros_like(y))


def test_takes_views_and_says_what_it_cannot(device: torch.device) -> None:
    w, u, k, v, *state = arguments(2, 6, 4, torch.float64, device)
    values = w[::2], u[::2], k.mT.contiguous().mT[..., ::2], v.flip(1)[..., 1::2], *(x[:, 1::2] for x in state)
    with use_backend(wkv="triton"):
        found = run(*values)
        y = run(*(x.requires_grad_() for x in values))
        (first,) = torch.autograd.grad(y.sum(), values[2], create_graph=True)
    with use_backend(wkv="reference"):
        torch.testing.assert_close(found, run(*values))
    with pytest.raises(RuntimeError, match="wkv: this backend computes first derivatives only"):
        first.sum().backward()


def test_is_a_well_behaved_operator_of_torch(device: torch.device) -> None:
    w, u, k, v, *state = arguments(1, 4, 2, torch.float64, device)
    mask = torch.ones(1, 4, dtype=torch.bool, device=device)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    inputs = [x.requires_grad_() for x in (w, u, k, v, torch.stack(state))]
    torch.library.opcheck(torch.ops.longreach.wkv_triton, (*inputs, mask), test_utils=tests)


def test_the_same_bits_every_time_and_neighbours_change_none(device: torch.device) -> None:
    inputs = arguments(2, 20, 3, torch.float32, device)
    cotangent = torch.ones(2, 22, 3, device=device)
    first = values_and_gradients("wkv", "triton", run, inputs, cotangent)
    for _ in range(repetitions(device)):
        again = values_and_gradients("wkv", "triton", run, inputs, cotangent)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    inputs[3][0, 12, 1] = torch.nan
    found, *_ = values_and_gradients("wkv", "triton", run, inputs, cotangent)
    assert found[0, 12:, 1].isnan().all()
    assert found.isnan().sum() == 10


def test_no_length_compiles_anew(device: torch.device, idle: None, variants: set[tuple[str, str]]) -> None:
    """Four tiles of channels, with and without a mask; the walk also for the adjoint, the carry in both directions."""
    for length in (*range(1, 200), 1000):
        w, u, k, v, *state = arguments(1 + length % 3, length, (5, 30, 60, 300)[length % 4], torch.float32, device)
        mask = torch.ones(k.shape[:2], dtype=torch.bool, device=device) if length % 3 else None
        with use_backend(wkv="triton"):
            wkv(w, u, k.requires_grad_(), v, WKVState(*state), mask)[0].sum().backward()
    names = [name for name, _ in variants]
    each = {"aggregate": 8, "aggregate_adjoint": 8, "walk_adjoint": 8, "walk": 16, "carry": 2}
    assert {name: names.count(name) for name in names} == each
