"""Attention with a bias for every distance: both backends against the formulas, and chunks against whole sequences."""

import importlib
import itertools
import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from longreach.errors import InputError
from longreach.ops import relative_attention, use_backend
from longreach.ops.attention_mask import NO_MASK, AttentionMask
from longreach.ops.chunk_attention import ChunkRule, attend_in_chunks, attend_in_next_chunks
from longreach.ops.key_value_cache import empty_cache
from longreach.ops.relative_attention import Weighting

MODULE = importlib.import_module("longreach.ops.relative_attention")  # its name in the package is the operator's
BACKENDS = ["reference", "tiled"]
WEIGHTINGS = get_args(Weighting)
MASKS = {
    "none": NO_MASK,
    "causal": AttentionMask(causal=True),
    "keys": AttentionMask(key_mask=torch.arange(7) < torch.tensor([[7], [4]])),
    "positions": AttentionMask(
        causal=True,
        key_mask=torch.tensor([[True] * 7, [False] * 2 + [True] * 5]),
        query_position=torch.tensor([[2, 3, 4, 5, 6], [0, 1, 2, 3, 4]]),
        key_position=torch.tensor([[0, 1, 2, 3, 4, 5, 6], [-1, -1, 0, 1, 2, 3, 4]]),
    ),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two queries make a tile."""
    monkeypatch.setattr(MODULE, "TILE", 28)


def arguments(queries: int = 5, keys: int = 7) -> tuple[Tensor, ...]:
    """Queries, keys, values and a bias, with gradients."""
    shapes = ((2, queries, 3), (2, keys, 3), (2, keys, 4), (2 * keys - 1,))
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


def slowly(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: AttentionMask, weighting: str) -> Tensor:
    """One weight after the other, from the formulas."""
    (b, l, _), m = query.shape, key.shape[1]
    mask = mask.located(l, m, query.device)
    p, s = (x.expand(b, -1).tolist() for x in (mask.query_position, mask.key_position))
    real = [[True] * m] * b if mask.key_mask is None else mask.key_mask.tolist()
    rows = []
    for row, i in itertools.product(range(b), range(l)):
        seen = [j for j in range(m) if real[row][j] and (s[row][j] <= p[row][i] or not mask.causal)]
        count = 1 if weighting == "softmax" else p[row][i] + 1 if mask.causal else sum(real[row])
        weights = []
        for j in seen:
            score = query[row, i] @ key[row, j] / count + bias[len(bias) // 2 + s[row][j] - p[row][i]]
            if weighting == "softmax":
                weights.append(score.exp())
            elif weighting == "relu2":
                weights.append(score.clamp(min=0) ** 2)
            else:
                weights.append((1 + torch.erf((score - 0.707107) / (0.282095 * math.sqrt(2)))) / 2)
        total = sum(weights) if weighting == "softmax" else 1
        rows.append(sum(weight / total * value[row, j] for weight, j in zip(weights, seen, strict=True)))
    return torch.stack(rows).unflatten(0, (b, l))


def gradients(y: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return torch.autograd.grad(y, inputs, torch.randn(y.shape, dtype=y.dtype, generator=generator), True)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("mask", MASKS)
def test_backends_compute_the_formulas(mask: str, weighting: Weighting) -> None:
    inputs = arguments()
    expected = slowly(*inputs, MASKS[mask], weighting)
    for backend in BACKENDS:
        with use_backend(relative_attention=backend):
            y = relative_attention(*inputs, MASKS[mask], weighting=weighting)
        torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
        for actual, wished in zip(gradients(y, inputs), gradients(expected, inputs), strict=True):
            torch.testing.assert_close(actual, wished, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(backend: str) -> None:
    def function(*inputs: Tensor) -> Tensor:
        with use_backend(relative_attention=backend):
            return relative_attention(*inputs, AttentionMask(causal=True), weighting="laplace")

    assert torch.autograd.gradgradcheck(function, arguments(3, 3), fast_mode=True)


def test_backends_drop_the_same_weights() -> None:
    inputs, seed = arguments(), torch.tensor(5)
    results = []
    for backend in BACKENDS:
        with use_backend(relative_attention=backend):
            y = relative_attention(*inputs, dropout=0.4, dropout_seed=seed)
        results.append((y, *gradients(y, inputs)))
    torch.testing.assert_close(*results)
    assert not torch.allclose(results[0][0], relative_attention(*inputs))


def test_dropping_keeps_the_mean() -> None:
    query, key, value, bias = arguments(300, 300)
    y = relative_attention(query, key, torch.ones_like(value), bias, dropout=0.3, dropout_seed=torch.tensor(3))
    assert abs(y.mean() - 1) < 0.02
    assert y.std() > 0.01


def test_a_softmax_without_a_real_key_is_finite() -> None:
    """Its result has no meaning, but neither it nor a gradient may be NaN."""
    mask = AttentionMask(key_mask=torch.zeros(2, 7, dtype=torch.bool))
    inputs = arguments()
    for weighting in WEIGHTINGS:
        y = relative_attention(*inputs, mask, weighting=weighting)
        assert all(x.isfinite().all() for x in (y, *gradients(y, inputs)))


def test_short_ones_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    assert relative_attention.choose(*arguments()) == "tiled"
    monkeypatch.setattr(MODULE, "TILE", 2 * 5 * 7)
    assert relative_attention.choose(*arguments()) == "reference"


def saved_for_backward(length: int) -> int:
    """The bytes that a call keeps for its gradients."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    inputs = arguments(length, length)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = relative_attention(*inputs, AttentionMask(causal=True))
    return sum(storages.values()) + y.nbytes


def test_memory_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "TILE", 2**12)
    assert saved_for_backward(512) < 2.5 * saved_for_backward(256)
    with use_backend(relative_attention="reference"):
        assert saved_for_backward(512) > 3.5 * saved_for_backward(256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": torch.zeros(2, 7, 4)}, "query, key, value must be"),
        ({"value": torch.zeros(2, 6, 4)}, "query, key, value must be"),
        ({"bias": torch.zeros(6)}, "bias has 6 entries"),
        ({"dropout": 1.0, "dropout_seed": torch.tensor(1)}, "dropout=1.0"),
        ({"dropout": 0.5}, "needs dropout_seed"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    names = ("query", "key", "value", "bias")
    given = dict(zip(names, (x.float() for x in arguments()), strict=True)) | change
    with pytest.raises(InputError, match=message):
        relative_attention.backends["tiled"](**given)


def chunk_rule(chunk_size: int | None, causal: bool = True, length: int = 300) -> ChunkRule:
    bias = torch.randn(2 * length - 1, dtype=torch.float64)
    return ChunkRule(chunk_size, causal, "laplace", lambda _: bias)


@pytest.mark.parametrize("causal", [True, False])
def test_chunks_are_sequences_of_their_own(causal: bool) -> None:
    rule, (query, key, value, _) = chunk_rule(4, causal), arguments(11, 11)
    y = attend_in_chunks(query, key, value, rule)
    for part in (slice(0, 4), slice(4, 8), slice(8, 11)):
        alone = attend_in_chunks(query[:, part], key[:, part], value[:, part], rule)
        torch.testing.assert_close(y[:, part], alone)


@pytest.mark.parametrize("chunk_size", [100, None])
def test_a_cache_of_several_blocks(monkeypatch: pytest.MonkeyPatch, chunk_size: int | None) -> None:
    """However 270 positions are cut, rows that are at different places of their chunks get what they get alone."""
    monkeypatch.setattr(MODULE, "TILE", 2**22)
    rule, (query, key, value, _) = chunk_rule(chunk_size), arguments(270, 270)
    first = torch.arange(270) >= torch.tensor([[0], [37]])  # the second row begins later
    alone = [attend_in_chunks(*(x[i : i + 1, first[i]] for x in (query, key, value)), rule) for i in range(2)]
    for cut in ([270], [150, 1, 1, 118], [1, 70, 64, 60, 75], [40] + [1] * 230):
        outputs, cache = [], empty_cache(key[:, None, :0], value[:, None, :0])
        for piece in torch.arange(270).split(cut):
            mask = None if first[:, piece].all() else first[:, piece]
            y, cache = attend_in_next_chunks(query[:, piece], key[:, piece], value[:, piece], rule, cache, mask)
            outputs.append(y)
            held = sum(block.size for block in (*cache.blocks, cache.tail))
            assert chunk_size is None or held <= 2 * chunk_size + 64
        y = torch.cat(outputs, dim=1)
        for i in range(2):
            torch.testing.assert_close(y[i, first[i]], alone[i][0], rtol=1e-10, atol=1e-10)


def test_a_finished_chunk_is_forgotten() -> None:
    rule, (query, key, value, _) = chunk_rule(5), arguments(10, 10)
    _, cache = attend_in_next_chunks(query, key, value, rule, empty_cache(key[:, None, :0], value[:, None, :0]))
    assert sum(block.size for block in (*cache.blocks, cache.tail)) == 0
    assert cache.n_read.tolist() == [10, 10]
