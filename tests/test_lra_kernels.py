"""What laws and golden cases leave open of the linear, low-rank, synthetic and Fourier variants of attention."""

import math
from collections.abc import Callable
from typing import Any

import laws
import pytest
import torch
from cases.lra_kernels import CASES
from test_mixers import make
from torch import Tensor
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers import (
    GAU,
    CausalLuna,
    FNet,
    LinearTransformer,
    Linformer,
    Luna,
    Nystromformer,
    Performer,
    PerformerOptions,
    SequenceMixer,
    Synthesizer,
    SynthesizerScores,
)
from longreach.mixers.nystromformer import pseudo_inverse, segment_means
from longreach.ops import attention
from longreach.ops.random_features import Features, positive_features, random_directions, trigonometric_features


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


# All of them: padding, rows of nothing but padding, memory, dropout.


@pytest.mark.parametrize("case", CASES)
def test_padding_is_invisible_wherever_it_lies(case: str) -> None:
    mixer, x = make(case), randn(3, 12, 8)
    mask = torch.rand(3, 12, generator=torch.Generator().manual_seed(4)) < 0.6
    y = mixer(torch.where(mask[..., None], x, 100 * randn(3, 12, 8)), mask)
    for row in range(3):
        laws.equal(y[row, mask[row]], mixer(x[row, mask[row]][None])[0])


@pytest.mark.parametrize("case", CASES)
def test_rows_of_padding_give_no_nan(case: str) -> None:
    mixer, x = make(case), randn(2, 6, 8).requires_grad_()
    mask = torch.tensor([[False] * 6, [False] * 3 + [True] * 3])
    y = mixer(x, mask)
    y[mask].square().sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in [x, *mixer.parameters()] if p.grad is not None)


@pytest.mark.parametrize("case", CASES)
def test_a_bfloat16_mixer_stays_one(case: str) -> None:
    """Sums and features are wider inside; what comes out is as narrow as what went in."""
    mixer, x = CASES[case]().bfloat16(), torch.randn(2, 5, 8).bfloat16()
    outputs = [mixer(x), mixer(x, torch.arange(5) < torch.tensor([[5], [2]]))]
    if mixer.causal:
        y, state = mixer.prefill(x, mixer.init_state(2))
        outputs += [y, mixer.step(x[:, 0], state)[0]]
    assert {y.dtype for y in outputs} == {torch.bfloat16}


LINEAR = {
    "LinearTransformer": lambda: LinearTransformer(8, n_heads=2),
    "Performer": lambda: Performer(8, n_heads=2),
    "Linformer": lambda: Linformer(8, n_heads=2, rank=8, max_length=8192),
    "Nystromformer": lambda: Nystromformer(8, n_heads=2, n_landmarks=8, conv_width=3),
    "Luna": lambda: Luna(8, n_heads=2),
    "CausalLuna": lambda: CausalLuna(8, n_heads=2),
    "GAU": lambda: GAU(8, d_key=4, max_length=8192),
    "FNet": lambda: FNet(8),
}


@pytest.mark.parametrize("name", LINEAR)
def test_memory_is_linear_in_the_length(name: str) -> None:
    """What is kept for the backward pass; the quadratic time of GAU needs no quadratic memory."""
    mixer: SequenceMixer[Any] = LINEAR[name]()

    def kept(length: int) -> int:
        storages: dict[int, int] = {}

        def keep(x: Tensor) -> Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            mixer(torch.randn(1, length, 8))
        return sum(storages.values())

    assert kept(8192) <= 4.5 * kept(2048) + 2**16


DROPOUT: dict[str, Callable[[float], SequenceMixer]] = {
    "Linformer": lambda p: Linformer(8, n_heads=2, rank=4, max_length=12, dropout=p),
    "Synthesizer": lambda p: Synthesizer(8, n_heads=2, max_length=12, dropout=p),
    "Luna": lambda p: Luna(8, n_heads=2, dropout=p),
    "GAU, weights": lambda p: GAU(8, d_key=4, max_length=12, attention_dropout=p),
    "GAU, hidden": lambda p: GAU(8, d_key=4, max_length=12, hidden_dropout=p),
}


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_acts_in_training_only(name: str) -> None:
    mixer, x = DROPOUT[name](0.5), torch.randn(1, 12, 8)
    torch.manual_seed(0)
    first, second = mixer(x), mixer(x)
    torch.manual_seed(0)
    assert torch.equal(mixer(x), first)
    assert not torch.equal(second, first)
    exact = mixer.eval()(x)
    assert torch.equal(mixer(x), exact)
    with pytest.raises(InputError, match=r"dropout=1\.5"):
        DROPOUT[name](1.5)


# Performer.


def kernel_estimate(features: Callable[..., Features], q: Tensor, k: Tensor, directions: Tensor) -> Tensor:
    """phi(q) . phi(k)."""
    phi = [f.factor * f.exponent.exp() for f in (features(q, directions), features(k, directions))]
    return (phi[0] * phi[1]).sum(-1)


@pytest.mark.parametrize("kind", ["orthogonal", "independent"])
@pytest.mark.parametrize("features", [positive_features, trigonometric_features])
def test_features_estimate_the_softmax_kernel_without_bias(features: Any, kind: Any) -> None:
    """To within four standard errors, which are less than two percent."""
    q, k, generator = 0.5 * randn(4), 0.5 * randn(4), torch.Generator().manual_seed(0)
    draws = [random_directions(2000, 4, kind, generator).double() for _ in range(100)]
    estimates = torch.stack([kernel_estimate(features, q, k, draw) for draw in draws])
    error, exact = estimates.std() / 10, (q @ k).exp()
    assert error < 0.02 * exact
    assert (estimates.mean() - exact).abs() < 4 * error


def test_orthogonal_directions_vary_less() -> None:
    q, k = 0.5 * randn(8), 0.5 * randn(8)
    spread = {}
    for kind in ("orthogonal", "independent"):
        generator = torch.Generator().manual_seed(0)
        draws = [random_directions(8, 8, kind, generator).double() for _ in range(500)]
        spread[kind] = torch.stack([kernel_estimate(positive_features, q, k, draw) for draw in draws]).std()
    assert spread["orthogonal"] < 0.9 * spread["independent"]


def test_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = random_directions(10, 4, "orthogonal-unit", generator)
    assert rows.shape == (10, 4)
    for block in rows.split(4):
        torch.testing.assert_close(block @ block.mT, 4.0 * torch.eye(len(block)), rtol=0, atol=1e-5)
    mean = torch.stack([random_directions(4, 4, "orthogonal", generator) for _ in range(1000)]).mean(0)
    assert mean.abs().max() < 4 / 1000**0.5, "a direction is as likely as the opposite one"
    lengths = random_directions(4000, 4, "orthogonal", generator).norm(dim=1)
    expected = math.sqrt(2) * math.exp(math.lgamma(2.5) - math.lgamma(2.0))  # of the chi distribution
    assert abs(lengths.mean() - expected) < 0.05
    assert lengths.std() > 0.5


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", ["positive", "trigonometric"])
def test_many_directions_make_softmax_attention(kernel: Any, causal: bool) -> None:
    mixer = Performer(4, n_heads=1, kernel=kernel, causal=causal, n_directions=20_000).double()
    x = 0.5 * randn(1, 7, 4)
    query, key, value = mixer.heads.split(x)
    scores = (query @ key.mT) / 2
    if causal:
        scores = scores.masked_fill(~torch.ones(7, 7, dtype=torch.bool).tril(), -torch.inf)
    torch.testing.assert_close(mixer(x), mixer.heads.join(scores.softmax(-1) @ value), rtol=0, atol=2e-2)


def published_features(x: Tensor, W: Tensor, kernel: str, *, is_query: bool, floor: float) -> Tensor:
    """The features of a whole sequence as the published code makes them."""
    scaled = x * x.shape[-1] ** -0.25
    projected, half = scaled @ W.mT, scaled.square().sum(-1, keepdim=True) / 2
    if kernel == "trigonometric":
        both = torch.cat([projected.cos(), projected.sin()], -1) / len(W) ** 0.5
        return both * (half - half.amax(-2, keepdim=True)).exp()
    greatest = projected.amax(-1, keepdim=True) if is_query else projected.amax((-1, -2), keepdim=True)
    return ((projected - half - greatest).exp() + floor) / len(W) ** 0.5


@pytest.mark.parametrize(
    ("kernel", "normalise"),
    [("positive", True), ("positive", False), ("trigonometric", True)],  # published sums of the last have another scale
)
def test_a_causal_output_is_that_of_the_published_features_of_the_past(kernel: Any, normalise: bool) -> None:
    """Position t of ours is the last position of the published code on the first t + 1: the floor sees no future."""
    floor, least = 0.05, 0.3
    mixer = Performer(
        8, n_heads=2, kernel=kernel, n_directions=5, options=PerformerOptions(floor, least, normalise)
    ).double()
    x = 2 * randn(1, 9, 8)
    y = mixer(x)
    for t in range(9):
        query, key, value = mixer.heads.split(x[:, : t + 1])
        phi_query = published_features(query, mixer.W, kernel, is_query=True, floor=floor)
        phi_key = published_features(key, mixer.W, kernel, is_query=False, floor=floor)
        if kernel == "trigonometric":  # whose common factor for all queries cancels only above `least`
            phi_query = published_features(query[:, :, -1:], mixer.W, kernel, is_query=True, floor=floor)
        weights = phi_query[:, :, -1:] @ phi_key.mT
        total = weights.sum(-1, keepdim=True)
        total = torch.where(total.abs() <= least, total + 2 * least, total) if normalise else 1.0
        laws.equal(y[:, t : t + 1], mixer.heads.join(weights @ value / total))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", ["positive", "trigonometric"])
def test_large_inputs_do_not_overflow_in_float32(kernel: Any, causal: bool) -> None:
    """Exponents here reach several hundreds."""
    mixer, x = Performer(16, n_heads=1, kernel=kernel, causal=causal), 30 * torch.randn(1, 40, 16)
    x.requires_grad_()
    y = mixer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_directions_can_be_drawn_again() -> None:
    mixer, other = Performer(8, n_heads=2), Performer(8, n_heads=2)
    other.load_state_dict(mixer.state_dict())
    x = torch.randn(1, 5, 8)
    before = mixer(x)
    mixer.redraw(torch.Generator().manual_seed(7))
    assert not torch.equal(mixer(x), before)
    other.redraw(torch.Generator().manual_seed(7))
    assert torch.equal(mixer(x), other(x))
    with pytest.raises(InputError, match="nothing to draw"):
        Performer(8, n_heads=2, kernel="relu", directions="none").redraw()


def test_the_default_number_of_directions() -> None:
    assert Performer(64, n_heads=1).W.shape == (math.ceil(64 * math.log(64)), 64)
    assert Performer(4, n_heads=4).W.shape == (1, 1)


# Nystromformer.


def test_enough_landmarks_make_softmax_attention() -> None:
    mixer = Nystromformer(8, n_landmarks=10, n_heads=2, n_iterations=30, conv_width=None).double()
    x, mask = randn(3, 10, 8), torch.arange(10) < torch.tensor([[10], [7], [1]])
    y = mixer(x, mask)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = x[row : row + 1, :length]
        expected = mixer.heads.join(attention(*mixer.heads.split(alone)))
        torch.testing.assert_close(y[row : row + 1, :length], expected, rtol=1e-6, atol=1e-7)


def test_landmarks_are_means_of_even_segments() -> None:
    mask = torch.arange(7) < torch.tensor([[7], [6], [2], [0]])
    means, used = segment_means(mask, 3, torch.float64)
    assert used.tolist() == [[True] * 3, [True] * 3, [True, True, False], [True, False, False]]
    third = 1 / 3
    assert torch.allclose(means[0, 0], torch.tensor([third, third, third, 0, 0, 0, 0]).double())
    assert means[0, 1].tolist() == [0, 0, 0, 0.5, 0.5, 0, 0]
    assert means[1, 2].tolist() == [0, 0, 0, 0, 0.5, 0.5, 0]
    assert means[2].tolist() == [*torch.eye(3, 7)[:2].tolist(), [0.0] * 7]
    assert not means[3].any()


def test_the_pseudo_inverse_inverts() -> None:
    A = (randn(2, 5, 5) + 3 * torch.eye(5)).softmax(-1)
    torch.testing.assert_close(pseudo_inverse(A, 30), A.inverse(), rtol=1e-6, atol=1e-8)
    errors = [(pseudo_inverse(A, n) - A.inverse()).norm() for n in (4, 6, 8)]
    assert errors[0] > errors[1] > errors[2]


# FNet, Luna, GAU and the Synthesizer, written out.


@pytest.mark.parametrize("normalisation", ["none", "ortho"])
def test_fnet_is_the_real_part_of_both_transforms(normalisation: Any) -> None:
    x, (l, d) = randn(1, 5, 6), (5, 6)
    rows = torch.exp(-2j * math.pi * torch.outer(torch.arange(l), torch.arange(l)) / l).to(torch.complex128)
    columns = torch.exp(-2j * math.pi * torch.outer(torch.arange(d), torch.arange(d)) / d).to(torch.complex128)
    expected = (rows @ x[0].to(rows.dtype) @ columns).real / (1 if normalisation == "none" else math.sqrt(l * d))
    torch.testing.assert_close(FNet(6, normalisation=normalisation)(x)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_causal_luna_is_its_definition(tied: bool) -> None:
    mixer = CausalLuna(8, n_memory=3, n_heads=2, tie_keys_values=tied).double()
    x = randn(1, 6, 8)
    packing, query, *rest = (part.view(6, 2, 4).transpose(0, 1) for part in mixer.into(x)[0].split(8, dim=-1))
    key, value = rest[0], rest[-1]
    memory = mixer.pack_query(mixer.memory).view(3, 2, 4).transpose(0, 1)
    taken = torch.log2(1 + 2 ** (packing @ memory.mT / 2))
    outputs = []
    for t in range(6):
        past = slice(t + 1)
        scores = sum((query[:, t] / 2 * key[:, s]).sum(-1, keepdim=True) * taken[:, s] for s in range(t + 1)) / (t + 1)
        y = torch.einsum("hp,hsp,hse->he", scores.softmax(-1), taken[:, past], value[:, past]) / (t + 1)
        outputs.append(mixer.out(y.flatten()))
    laws.equal(mixer(x)[0], torch.stack(outputs))


def test_lunas_start() -> None:
    """Xavier's uniform distribution with gain 2^-1/2 into the heads, 1 out of them; the memory has variance 1 / d."""
    mixer = Luna(64, n_memory=200, tie_keys_values=False)
    for weight in (mixer.query.weight, *mixer.key_value.weight.split(64), *mixer.pack_key_value.weight.split(64)):
        bound = math.sqrt(0.5 * 6 / 128)
        assert 0.95 * bound < weight.abs().max() <= bound
    assert 0.95 * math.sqrt(6 / 128) < mixer.out.weight.abs().max() <= math.sqrt(6 / 128)
    assert not mixer.out.bias.any()
    assert abs(mixer.memory.std() * 8 - 1) < 0.05
    causal = CausalLuna(64)
    assert max(part.abs().max() for part in causal.into.weight.split(64)) <= bound


@pytest.mark.parametrize("causal", [True, False])
def test_gau_is_its_definition(causal: bool) -> None:
    mixer = make("gau" if causal else "gau-bidirectional")
    x = randn(1, 5, 8)
    u, v, z = F.silu(mixer.into(x[0])).split((mixer.d_value, mixer.d_value, mixer.d_key), dim=-1)
    q, k = (z * mixer.scale[i] + mixer.shift[i] for i in (0, 1))
    attended = torch.zeros_like(v)
    for t in range(5):
        for s in range(t + 1 if causal else 5):
            score = q[t] @ k[s] / (t + 1 if causal else 5) + mixer.bias[36 - 1 + s - t]
            attended[t] += score.relu() ** 2 * v[s]
    laws.equal(mixer(x)[0], mixer.out(u * attended))


def test_gaus_start() -> None:
    mixer = GAU(64, max_length=500)
    for parameter in (mixer.into.weight, mixer.out.weight, mixer.scale, mixer.bias):
        assert abs(parameter.std() / 0.02 - 1) < 0.1
    assert not mixer.shift.any()
    assert mixer.d_value == 128


def test_the_synthesizer_is_its_definition() -> None:
    scores = SynthesizerScores(random="factorised", rank=2, dense=True, dot_product=True)
    mixer = Synthesizer(8, max_length=9, n_heads=2, scores=scores, causal=True).double()
    x = randn(1, 5, 8)
    query, key, value = (part[0] for part in mixer.heads.split(x))
    table = mixer.rows @ mixer.columns
    outputs = torch.zeros_like(value)
    for head in range(2):
        hidden = (x[0] @ mixer.dense_hidden.weight[4 * head : 4 * head + 4].mT).relu()
        dense = hidden @ mixer.dense_scores.weight.mT
        for t in range(5):
            total = table[head, t, : t + 1] + dense[t, : t + 1] + query[head, t] @ key[head, : t + 1].mT / 2
            outputs[head, t] = total.softmax(-1) @ value[head, : t + 1]
    laws.equal(mixer(x), mixer.heads.join(outputs[None]))


# What a user can get wrong.


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearTransformer(8, n_heads=3), "n_heads=3 must divide d_model=8"),
        (lambda: LinearTransformer(8, head_dim=0), "head_dim=0"),
        (lambda: LinearTransformer(8, epsilon=-1.0), r"epsilon=-1\.0"),
        (lambda: Performer(8, directions="none"), "needs random directions"),
        (lambda: Performer(8, kernel="relu", directions="none", n_directions=4), "n_directions=4"),
        (lambda: Performer(8, n_directions=0), "n_directions=0"),
        (lambda: Performer(8, options=PerformerOptions(floor=-1.0)), r"floor=-1\.0"),
        (lambda: Linformer(8, max_length=0), "max_length=0"),
        (lambda: Linformer(8, max_length=4, rank=0), "rank=0"),
        (lambda: Synthesizer(8, max_length=0), "max_length=0"),
        (lambda: Synthesizer(8, max_length=4, scores=SynthesizerScores(random="none")), "switch on"),
        (lambda: Nystromformer(8, n_landmarks=0), "n_landmarks=0"),
        (lambda: Nystromformer(8, conv_width=4), "conv_width=4 must be odd"),
        (lambda: Luna(8, n_pack_heads=3), "n_pack_heads=3"),
        (lambda: CausalLuna(8, n_memory=0), "n_memory=0"),
        (lambda: GAU(8, max_length=4, d_key=0), "d_key=0"),
        (lambda: FNet(8).init_state(1), "reads the future"),
        (lambda: Performer(8, causal=False).init_state(1), "reads the future"),
    ],
)
def test_mistakes_are_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()
