"""The fused loss: what it is, that chunks change nothing, and that the logits are never there all at once."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.ops import cross_entropy, linear_cross_entropy, native, use_backend

TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}
ELSEWHERE = ("triton", *(["native"] if native.MISSING else []))
BACKENDS = [name for name in linear_cross_entropy.backends if name not in ELSEWHERE]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of five positions, so that a short input has several and an incomplete one."""
    monkeypatch.setattr(cross_entropy, "CHUNK", 35)
    monkeypatch.setattr(cross_entropy, "MIN_ROWS", 1)


def arguments(n: int, *, bias: bool = True, dtype: torch.dtype = torch.float64) -> tuple[Tensor | None, ...]:
    """Hidden vectors, weight, targets (some ignored) and bias for a vocabulary of seven."""
    target = torch.randint(7, (n,))
    target[1::4] = -100
    hidden, weight, shift = (torch.randn(*shape, dtype=dtype).requires_grad_() for shape in ((n, 3), (7, 3), (7,)))
    return hidden, weight, target, shift if bias else None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n", [1, 5, 13])
def test_value_and_gradient(backend: str, bias: bool, n: int) -> None:
    hidden, weight, target, shift = arguments(n, bias=bias)
    logits = hidden @ weight.T + (shift if bias else 0.0)
    real = target != -100
    expected = torch.where(real, logits.logsumexp(-1) - logits[torch.arange(n), target.clamp(min=0)], 0.0)
    with use_backend(linear_cross_entropy=backend):
        actual = linear_cross_entropy(hidden, weight, target, shift)
    torch.testing.assert_close(actual, expected, **TOLERANCE)
    wanted = [x for x in (hidden, weight, shift) if x is not None]
    cotangent = torch.randn_like(expected)
    gradients = (torch.autograd.grad(y, wanted, cotangent) for y in (actual, expected))
    for a, e in zip(*gradients, strict=True):
        torch.testing.assert_close(a, e, **TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_positions_do_not_count(backend: str) -> None:
    hidden, weight, _, _ = arguments(4)
    hidden = (hidden.detach() * torch.tensor([[1.0], [1e300], [1.0], [1.0]], dtype=torch.float64)).requires_grad_()
    target = torch.tensor([1, -100, -100, 2])
    with use_backend(linear_cross_entropy=backend):
        losses = linear_cross_entropy(hidden, weight, target)
        assert not losses[1:3].any()
        (gradient,) = torch.autograd.grad(losses.sum(), hidden)
    assert not gradient[1:3].any()
    assert gradient[[0, 3]].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_in_low_precision_is_no_worse_than_that_of_the_reference(dtype: torch.dtype) -> None:
    low = [x.detach() if x.is_floating_point() else x for x in arguments(300, dtype=dtype)]
    results = []
    for backend, width in (("chunked", dtype), ("reference", dtype), ("reference", torch.float64)):
        hidden, weight, target, bias = (x.to(width).requires_grad_() if x.is_floating_point() else x for x in low)
        with use_backend(linear_cross_entropy=backend):
            losses = linear_cross_entropy(hidden, weight, target, bias)
        assert losses.dtype == torch.promote_types(width, torch.float32)
        results.append([losses, *torch.autograd.grad(losses.mean(), (hidden, weight, bias))])
    for ours, reference, truth in zip(*results, strict=True):
        allowed = 4 * (reference.double() - truth).abs().max()
        assert allowed < truth.abs().max(), "the bound would let zeros pass"
        assert (ours.double() - truth).abs().max() <= allowed


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_rounds_the_products_and_not_the_softmax(backend: str) -> None:
    hidden, weight, target, _ = arguments(13, bias=False, dtype=torch.float32)
    logits = hidden.bfloat16() @ weight.bfloat16().T
    if backend == "native":  # whose sums of products are float32, and stay it
        logits = hidden.bfloat16().float() @ weight.bfloat16().float().T
    with torch.autocast("cpu", dtype=torch.bfloat16), use_backend(linear_cross_entropy=backend):
        losses = linear_cross_entropy(hidden, weight, target)
    torch.testing.assert_close(losses, F.cross_entropy(logits.float(), target, reduction="none"), rtol=1e-6, atol=1e-6)
    gradients = torch.autograd.grad(losses.sum(), (hidden, weight))
    assert [g.dtype for g in gradients] == [torch.float32, torch.float32]
    exact = torch.autograd.grad(linear_cross_entropy(hidden, weight, target).sum(), (hidden, weight))
    for g, e in zip(gradients, exact, strict=True):
        assert 0 < (g - e).norm() < 0.02 * e.norm()


def test_gradients_only_where_they_are_wanted() -> None:
    hidden, weight, target, _ = arguments(13)
    with use_backend(linear_cross_entropy="chunked"):
        linear_cross_entropy(hidden.detach(), weight, target).sum().backward()
    assert hidden.grad is None
    assert weight.grad.any()


def test_second_derivatives_are_exact_or_refused() -> None:
    hidden, weight, target, bias = arguments(6)
    with use_backend(linear_cross_entropy="reference"):
        assert torch.autograd.gradgradcheck(
            lambda *x: linear_cross_entropy(x[0], x[1], target, x[2]), (hidden, weight, bias), fast_mode=True
        )
    with use_backend(linear_cross_entropy="chunked"):
        losses = linear_cross_entropy(hidden, weight, target, bias)
    (gradient,) = torch.autograd.grad(losses.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match='use_backend\\(linear_cross_entropy="reference"\\)'):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", [7, -1, -99])
def test_targets_outside_the_vocabulary_are_refused(backend: str, wrong: int) -> None:
    hidden, weight, target, _ = arguments(6)
    target[4] = wrong
    with (
        use_backend(linear_cross_entropy=backend),
        pytest.raises(InputError, match=f"target\\[4\\] = {wrong} .* vocabulary of 7"),
    ):
        linear_cross_entropy(hidden, weight, target)


def test_logits_are_kept_where_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, target, bias = arguments(13)
    assert linear_cross_entropy.choose(hidden, weight, target, bias) == "reference"
    monkeypatch.setattr(cross_entropy, "KEPT", 13 * 7 - 1)
    assert linear_cross_entropy.choose(hidden, weight, target, bias) == "chunked"
    monkeypatch.setattr(cross_entropy, "KEPT_LOW", 13 * 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear_cross_entropy.choose(hidden, weight, target, bias) == "reference"


MEMORY = """
import resource, torch
from longreach.ops import linear_cross_entropy
torch.set_num_threads(1)
hidden, weight = torch.randn(40_000, 4, requires_grad=True), torch.randn(2_000, 4, requires_grad=True)
linear_cross_entropy(hidden[:9], weight, torch.zeros(9, dtype=torch.long)).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
linear_cross_entropy(hidden, weight, torch.zeros(40_000, dtype=torch.long)).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is that of Linux")
def test_the_logits_are_never_there_all_at_once() -> None:
    """They would take 320 MB, and three times that with their softmax and their gradient; a chunk takes 4 MB."""
    result = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True)
    assert int(result.stdout) < 60_000
