"""Block attention: what is computed, that both backends do, in every precision; tables; the union of sets of keys."""

import math

import pytest
import torch
from torch import Tensor

from longreach.errors import InputError
from longreach.ops import AttentionMask, attention, block_attention, use_backend
from longreach.ops import block_attention as op
from longreach.ops.block_attention import band_of_blocks, merge_attention
from longreach.ops.block_attention_gathered import TILE

TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}


def heads(length: int, n_heads: int = 4, width: int = 3, batch: int = 2) -> Tensor:
    return torch.randn(batch, n_heads, length, width, dtype=torch.float64)


MASKS = {
    "everything": AttentionMask(),
    "causal": AttentionMask(causal=True),
    "causal-padding": AttentionMask(causal=True, key_mask=torch.arange(13) % 5 != torch.tensor([[0], [3]])),
    "window-positions": AttentionMask(
        window=6, query_position=torch.arange(11)[None] + 2, key_position=2 * torch.arange(13)[None]
    ),
    "segments-of-rows": AttentionMask(
        query_segment=torch.arange(11)[None] // torch.tensor([[3], [4]]), key_segment=torch.arange(13)[None] // 4
    ),
}
TABLES = {
    "one for all": torch.tensor([[0, 2, -1], [-1, -1, -1], [3, 4, 1]]).expand(1, 1, 3, 3),
    "of heads, with repetitions": torch.randint(-1, 5, (1, 4, 3, 6), generator=torch.Generator().manual_seed(0)),
    "of rows": torch.randint(-1, 5, (2, 1, 3, 2), generator=torch.Generator().manual_seed(1)),
}


def by_hand(query: Tensor, key: Tensor, value: Tensor, table: Tensor, mask: AttentionMask, i: int) -> tuple:
    """Row 1, head 3 of query i: a loop over the listed blocks."""
    allowed = mask.located(11, 13, query.device).allowed()[-1]
    total, y = 0.0, torch.zeros(value.shape[-1], dtype=torch.float64)
    for block in table[-1, -1, i // 4].tolist():
        for j in range(max(block, 0) * 3, min(block * 3 + 3, 13)):
            if allowed[i, j]:
                weight = math.exp(query[1, 3, i] @ key[1, 1, j] / math.sqrt(3))
                total, y = total + weight, y + weight * value[1, 1, j]
    return (y / total, math.log(total)) if total else (y, -math.inf)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("backend", op.backends)
def test_the_definition(backend: str, mask: AttentionMask, table: Tensor) -> None:
    query, key, value = heads(11), heads(13, 2), heads(13, 2, 5)
    with use_backend(block_attention=backend):
        y, log_total = block_attention(query, key, value, table, 4, mask, key_block_size=3)
    for i in range(11):
        expected, log = by_hand(query, key, value, table, mask, i)
        torch.testing.assert_close(y[1, 3, i], expected, **TOLERANCE)
        assert log_total[1, 3, i].item() == pytest.approx(log, rel=1e-9, abs=1e-10)


def results(backend: str, *arguments: Tensor, mask: AttentionMask, table: Tensor, size: int) -> list[Tensor]:
    """y, log Z where there is one, and the gradients of a function of both."""
    with use_backend(block_attention=backend):
        y, log_total = block_attention(*arguments, table, size, mask, key_block_size=3, scale=0.7)
    log_total = log_total.masked_fill(log_total == -torch.inf, 0.0)
    loss = y.mul(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum() + log_total.sin().sum()
    return [y, log_total, *torch.autograd.grad(loss, arguments)]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_backends_agree_in_values_and_gradients(mask: AttentionMask, table: Tensor) -> None:
    arguments = [x.requires_grad_() for x in (heads(11), heads(13, 2), heads(13, 2, 5))]
    found = [results(name, *arguments, mask=mask, table=table, size=4) for name in ("gathered", "reference")]
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, **TOLERANCE)


def test_many_tiles_are_one_result(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [x.requires_grad_() for x in (heads(90), heads(90), heads(90))]
    table, mask = band_of_blocks(30, 30), AttentionMask(causal=True)
    whole = results("gathered", *arguments, mask=mask, table=table, size=3)
    monkeypatch.setattr("longreach.ops.block_attention_gathered.TILE", 2000)
    for actual, expected in zip(results("gathered", *arguments, mask=mask, table=table, size=3), whole, strict=True):
        torch.testing.assert_close(actual, expected, **TOLERANCE)


def test_torch_accepts_the_operators() -> None:
    arguments = (heads(5), heads(5, 2), heads(5, 2), band_of_blocks(3, 1))
    rule = AttentionMask(causal=True, key_mask=torch.ones(2, 5, dtype=torch.bool)).located(5, 5, torch.device("cpu"))
    call = (*arguments, *rule, 2, 2, 0.5)
    torch.library.opcheck(torch.ops.longreach.block_attention.default, call)
    learning = (*(x.requires_grad_() for x in arguments[:3]), *call[3:])
    torch.library.opcheck(torch.ops.longreach.block_attention.default, learning)


def test_second_derivatives_are_exact_or_refused() -> None:
    query, key, value = (heads(5, 1, 2, 1).requires_grad_() for _ in range(3))

    def function(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return block_attention(*inputs, band_of_blocks(3, 1), 2)

    assert torch.autograd.gradcheck(function, (query, key, value), fast_mode=True, rtol=1e-5, atol=1e-7)
    with use_backend(block_attention="reference"):
        assert torch.autograd.gradgradcheck(function, (query, key, value), fast_mode=True)
    (gradient,) = torch.autograd.grad(function(query, key, value)[0].square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_as_good_as_the_dense_definition(dtype: torch.dtype) -> None:
    exact = [x.to(dtype).double() for x in (heads(40), heads(40), heads(40))]
    table = band_of_blocks(10, 2, 1)
    y, log_total = block_attention(*exact, table, 4)
    errors = []
    for backend in ("gathered", "reference"):
        with use_backend(block_attention=backend):
            rough, log = block_attention(*(x.to(dtype) for x in exact), table, 4)
        assert rough.dtype == dtype
        assert log.dtype == torch.float32
        errors.append([(rough - y).square().mean().sqrt(), (log - log_total).square().mean().sqrt()])
    for ours, theirs in zip(*errors, strict=True):
        assert 0 < ours <= 4 * theirs


def test_memory_and_work_follow_the_table() -> None:
    """Half a million positions, of which dense scores would take a terabyte."""
    length, size = 2**19, 64
    query = torch.zeros(1, 1, length, 1, requires_grad=True)
    table = band_of_blocks(length // size, 0)
    assert size * length > 4 * TILE
    y, log_total = block_attention(query, query, query, table, size)
    assert torch.equal(y, torch.zeros_like(y))
    torch.testing.assert_close(log_total, torch.full_like(log_total, math.log(size)))
    log_total.sum().backward()


@pytest.mark.parametrize(
    ("n", "before", "after", "n_keys", "expected"),
    [
        (3, 1, 0, None, [[-1, 0], [0, 1], [1, 2]]),
        (3, 9, 0, None, [[-1, -1, 0], [-1, 0, 1], [0, 1, 2]]),
        (2, 0, 1, 3, [[0, 1], [1, 2]]),
        (1, 4, 4, None, [[0]]),
    ],
)
def test_bands(n: int, before: int, after: int, n_keys: int | None, expected: list[list[int]]) -> None:
    assert band_of_blocks(n, before, after, n_keys=n_keys).tolist() == [[expected]]


@pytest.mark.parametrize("backend", op.backends)
def test_sets_of_keys_are_merged_as_if_they_were_one(backend: str) -> None:
    query, key, value = (x.requires_grad_() for x in (heads(6), heads(6), heads(6)))
    table = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    real = torch.arange(6) != torch.tensor([[1], [2]])
    parts = []
    with use_backend(block_attention=backend):
        for odd in (False, True):  # the first query sees nothing of what is odd
            chosen = (torch.arange(6) % 2 == odd) & real
            parts.append(block_attention(query, key, value, table, 6, AttentionMask(True, key_mask=chosen)))
    y, log_total = merge_attention(*parts)
    expected = attention(query, key, value, AttentionMask(causal=True, key_mask=real))
    torch.testing.assert_close(y, expected, **TOLERANCE)
    cotangent = torch.randn_like(y)
    actual = torch.autograd.grad((y * cotangent).sum() + log_total.sum(), (query, key, value))
    scores = ((query @ key.mT) * 3**-0.5).masked_fill(~(real[:, None, None] & torch.ones(6, 6).tril().bool()), -1e300)
    both = (expected * cotangent).sum() + scores.logsumexp(-1).sum()
    for one, other in zip(actual, torch.autograd.grad(both, (query, key, value)), strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)


def test_merging_nothing_gives_nothing() -> None:
    nothing = torch.zeros(1, 1, 2, 3).requires_grad_(), torch.full((1, 1, 2), -torch.inf).requires_grad_()
    y, log_total = merge_attention(nothing, nothing)
    assert not y.any()
    assert (log_total == -torch.inf).all()
    for gradient in torch.autograd.grad(y.sum(), nothing):
        assert not gradient.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_blocks": torch.zeros(1, 1, 2, 1, dtype=torch.int64)}, "with a row for every block of 2 of the 5"),
        ({"key_blocks": torch.full((1, 1, 3, 1), 3)}, "lists blocks 3 .. 3; there are 0 .. 2, and -1"),
        ({"key_blocks": torch.full((1, 1, 3, 1), -2)}, "lists blocks -2"),
        ({"block_size": 0}, "block_size=0 and key_block_size=0 must be at least 1"),
        ({"query": heads(5, 3)}, "g a divisor of h; they are"),
        ({"mask": AttentionMask(window=0)}, "window=0"),
    ],
)
def test_mistakes_are_explained(change: dict, message: str) -> None:
    arguments = {"query": heads(5), "key": heads(5, 2), "value": heads(5, 2), "key_blocks": band_of_blocks(3, 0)}
    for backend in op.backends:
        with use_backend(block_attention=backend), pytest.raises(InputError, match=message):
            block_attention(**({"block_size": 2} | arguments | change))
