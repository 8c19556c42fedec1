"""The fused loss in Triton: against the definition, its derivatives, and itself."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from triton_checks import assert_like_torch, repetitions, values_and_gradients

from longreach.errors import InputError
from longreach.ops import cross_entropy, linear_cross_entropy, use_backend
from longreach.ops.triton import available
from longreach.ops.triton import cross_entropy as launcher

SHAPES = [(1, 1, 1), (5, 7, 3), (140, 260, 40), (20, 390, 130), (300, 20, 8)]
"""Positions, words and width, on both sides of the borders between tiles."""


def arguments(
    n: int, v: int, d: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden vectors, weight, bias and targets, some of which are ignored."""
    target = torch.randint(v, (n,))
    target[1::4] = -100
    hidden, weight, bias = (x.to(device, dtype) for x in (torch.randn(n, d), torch.randn(v, d), torch.randn(v)))
    return hidden, weight, bias, target.to(device)


def gradients(name: str, inputs: tuple[Tensor, ...], target: Tensor, cotangent: Tensor) -> list[Tensor]:
    """Losses and gradients on one backend; the third of the inputs, if there is one, is a bias."""

    def losses(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear_cross_entropy(hidden, weight, target, bias)

    return values_and_gradients("linear_cross_entropy", name, losses, inputs, cotangent)


@pytest.fixture(params=["as few parts as possible", "as many as possible"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether what is walked over is split."""
    monkeypatch.setattr(launcher, "MULTIPROCESSORS", 0 if request.param == "as few parts as possible" else 1 << 20)
    monkeypatch.setattr(launcher, "FEW_TILES", 1)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_as_accurate_as_the_definition(shape: tuple[int, ...], with_bias: bool, device: torch.device) -> None:
    *inputs, target = arguments(*shape, device)
    assert_like_torch(
        "linear_cross_entropy",
        lambda hidden, weight, *bias: linear_cross_entropy(hidden, weight, target, *bias),
        inputs if with_bias else inputs[:2],
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES[1:4])
def test_low_precision(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    *inputs, target = arguments(*shape, device, dtype)
    assert_like_torch(
        "linear_cross_entropy",
        lambda hidden, weight, bias: linear_cross_entropy(hidden, weight, target, bias),
        inputs,
    )


def test_certainty_is_exact(device: torch.device) -> None:
    """Where one word has all of softmax its gradient is what the others have, and no rounding of a logit of 3,600."""
    hidden, weight, _, _ = arguments(3, 300, 64, device)
    weight[7] = 60 * hidden[0]
    target = torch.full((3,), 7, device=device)
    losses, of_hidden, of_weight = gradients("triton", (hidden[:1], weight), target[:1], torch.ones(1, device=device))
    assert losses == 0
    assert not of_hidden.any()
    assert not of_weight.any()


def test_float16_holds_gradients_of_a_mean_over_many(device: torch.device) -> None:
    """A millionth of the gradient of a logit is no number of float16; here only the result has to be one."""
    hidden, weight, _, target = arguments(40, 30, 16, device, torch.float16)
    small = torch.full((40,), 1e-5, device=device)
    _, *found = gradients("triton", (hidden.float(), weight.float()), target, small)
    with torch.autocast(device.type, dtype=torch.float16):
        _, *low = gradients("triton", (hidden.float(), weight.float()), target, small)
    for ours, exact in zip(low, found, strict=True):
        assert (ours - exact).norm() < 2e-3 * exact.norm()


def test_autocast_rounds_the_factors_and_nothing_else(device: torch.device) -> None:
    hidden, weight, _, target = arguments(13, 7, 24, device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        losses, *found = gradients("triton", (hidden, weight), target, torch.ones(13, device=device))
    logits = hidden.bfloat16().float() @ weight.bfloat16().float().T
    torch.testing.assert_close(losses, F.cross_entropy(logits, target, reduction="none"), rtol=1e-5, atol=1e-5)
    assert [x.dtype for x in (losses, *found)] == [torch.float32] * 3
    _, *exact = gradients("reference", (hidden, weight), target, torch.ones(13, device=device))
    for ours, truth in zip(found, exact, strict=True):
        assert 0 < (ours - truth).norm() < 0.02 * truth.norm()


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # of the interpreter
def test_ignored_positions_do_not_count(device: torch.device) -> None:
    hidden, weight, bias, _ = arguments(4, 9, 8, device)
    target = torch.tensor([1, -100, -100, 2], device=device)
    hidden[1] = 1e38  # whose logits are infinite, or not even that
    cotangent = torch.tensor([1.0, torch.inf, torch.nan, 1.0], device=device)
    losses, *found = gradients("triton", (hidden, weight, bias), target, cotangent)
    assert not losses[1:3].any()
    assert not found[0][1:3].any()
    expected = gradients("reference", (hidden[::3], weight, bias), target[::3], torch.ones(2, device=device))
    for ours, truth in zip((losses[::3], found[0][::3], *found[1:]), expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def test_words_that_a_bias_hides(device: torch.device) -> None:
    """More of them than a tile has words, from the first one on."""
    hidden, weight, bias, _ = arguments(3, 300, 8, device)
    bias[:290] = -torch.inf
    target = torch.tensor([291, 299, -100], device=device)
    both = (gradients(x, (hidden, weight, bias), target, torch.ones(3, device=device)) for x in ("triton", "reference"))
    for ours, truth in zip(*both, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_each_gradient_alone(wanted: int, device: torch.device) -> None:
    *inputs, target = arguments(9, 11, 5, device)
    inputs[wanted].requires_grad_()
    found = []
    for name in ("triton", "reference"):
        with use_backend(linear_cross_entropy=name):
            losses = linear_cross_entropy(*inputs[:2], target, inputs[2])
        found.append(torch.autograd.grad(losses.square().sum(), inputs[wanted])[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_views_that_are_not_aligned_or_have_gaps(device: torch.device) -> None:
    hidden, weight, bias, target = arguments(20, 36, 17, device)
    inputs = hidden[:, 1:], weight.mT.contiguous().mT[::2, 1:], bias[1::2]
    cotangent = torch.randn(20, device=device)[::2]
    target = target[::2] // 2 * target[::2].sign()
    target = target.masked_fill(target < 0, -100)
    both = (gradients(x, (inputs[0][::2], *inputs[1:]), target, cotangent) for x in ("triton", "reference"))
    for ours, truth in zip(*both, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)


def test_nothing_at_all_and_nothing_to_learn(device: torch.device) -> None:
    hidden, weight, bias, target = arguments(6, 5, 4, device)
    for inputs, targets in (((hidden[:0], weight, bias), target[:0]), ((hidden, weight, bias), target * 0 - 100)):
        results = gradients("triton", inputs, targets, torch.ones(len(targets), device=device))
        assert all(x.isfinite().all() and not x.any() for x in results)
    *_, of_weight = gradients("triton", (hidden, weight), target, torch.zeros(6, device=device))
    assert not of_weight.any()


def test_the_same_bits_every_time_and_neighbours_change_none(device: torch.device) -> None:
    hidden, weight, bias, target = arguments(130, 140, 24, device, torch.bfloat16)
    cotangent = torch.randn(130, device=device)
    first = gradients("triton", (hidden, weight, bias), target, cotangent)
    for _ in range(repetitions(device)):
        again = gradients("triton", (hidden, weight, bias), target, cotangent)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    hidden = hidden.detach().index_fill(0, torch.tensor(128, device=device), 3.0)
    found = gradients("triton", (hidden, weight, bias), target, cotangent)
    for ours, before in zip(found[:2], first[:2], strict=True):
        assert (ours != before).view(130, -1).any(1).nonzero().flatten().tolist() == [128]


def test_targets_outside_the_vocabulary_are_refused(device: torch.device) -> None:
    hidden, weight, _, target = arguments(6, 5, 4, device)
    target[4] = 5
    with use_backend(linear_cross_entropy="triton"), pytest.raises(InputError, match=r"target\[4\] = 5 "):
        linear_cross_entropy(hidden, weight, target)


def test_refuses_what_it_has_no_kernel_for_and_yields_where_logits_fit(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, _, target = arguments(6, 5, 4, device)
    assert "no kernel for torch.float64" in str(
        linear_cross_entropy.refusal("triton", hidden.double(), weight.double(), target)
    )
    assert "few enough to keep" in str(linear_cross_entropy.explain(hidden, weight, target)["triton"])
    monkeypatch.setattr(cross_entropy, "KEPT", 6 * 5 - 1)
    assert linear_cross_entropy.explain(hidden, weight, target)["triton"] == available.interpretation(device)


def test_second_derivatives_are_refused(device: torch.device) -> None:
    hidden, weight, _, target = arguments(6, 5, 4, device)
    with use_backend(linear_cross_entropy="triton"):
        losses = linear_cross_entropy(hidden.requires_grad_(), weight, target)
    (gradient,) = torch.autograd.grad(losses.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match='use_backend\\(linear_cross_entropy="reference"\\)'):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_a_well_behaved_operator_of_torch(dtype: torch.dtype, device: torch.device) -> None:
    hidden, weight, bias, target = arguments(6, 5, 4, device)
    given = hidden.requires_grad_(), weight, target, bias, dtype
    operators = torch.ops.longreach
    torch.library.opcheck(operators.linear_cross_entropy_triton, given)
    kept = torch.rand(2, 6, device=device)
    frozen = hidden.detach(), *given[1:]
    operator = operators.linear_cross_entropy_triton_adjoint
    torch.library.opcheck(operator, (torch.randn(6, device=device), kept, [True, False, True], *frozen))


def test_no_size_compiles_anew(device: torch.device, idle: None, variants: set[tuple[str, str]]) -> None:
    """Every number of positions and words, every width; with a bias and without."""
    for n in (*range(1, 200), 256, 4096, 70001):
        hidden, weight, bias, target = (x.to("meta") for x in arguments(n, 1 + 7 * n, 4 + n % 5, torch.device("cpu")))
        for given in (bias, None):
            launcher._forward(hidden, weight, target, given, torch.float32)
            needed = [True, True, given is not None]
            launcher._adjoint(
                target.float(), hidden.new_empty(2, n), needed, hidden, weight, target, given, torch.float32
            )
    names = [name for name, _ in variants]
    assert {name: names.count(name) for name in names} == {
        "sums": 2, "gradient_of_hidden": 2, "gradient_of_weight": 2,
    }  # fmt: skip


def test_parts_are_few_and_cover_everything() -> None:
    for n, v in ((1, 1), (16384, 50257), (1 << 20, 256), (128, 50257), (1 << 20, 50257)):
        for kernel in launcher.WAVES:
            for tile in launcher.TILINGS.values():
                plan = launcher._plan(kernel, n, v, tile)
                walked, size = (n, tile.positions) if kernel == "gradient_of_weight" else (v, tile.words)
                tiles = -(-walked // size)
                assert (plan.n_parts - 1) * plan.tiles_each < tiles <= plan.n_parts * plan.tiles_each
                assert plan.n_parts == 1 or plan.tiles_each >= launcher.FEW_TILES
                assert plan.n_parts == 1 or plan.n_programs <= launcher.WAVES[kernel] * launcher.MULTIPROCESSORS
