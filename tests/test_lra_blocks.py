"""Attention over patterns of blocks: each against its definition, pair by pair, and what the laws do not see."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longreach.errors import InputError
from longreach.mixers import (
    BigBird,
    LocalAttention,
    Longformer,
    Reformer,
    SequenceMixer,
    Sinkhorn,
    SparseAttention,
    SparseOptions,
)
from longreach.mixers.heads import join_heads
from longreach.mixers.reformer import lsh_buckets
from longreach.ops import rotary

TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}
LENGTH, WIDTH = 75, 8

PATTERNS: dict[str, tuple[Callable[[], SequenceMixer], Callable[[int, int], bool]]] = {
    "local": (lambda: LocalAttention(WIDTH, block_size=9), lambda i, j: j <= i and i // 9 == j // 9),
    "local, neighbours": (
        lambda: LocalAttention(WIDTH, block_size=4, n_neighbours=2, causal=False),
        lambda i, j: abs(i // 4 - j // 4) <= 2,
    ),
    "fixed": (
        lambda: SparseAttention(WIDTH, stride=7, options=SparseOptions(n_summary=2)),
        lambda i, j: j <= i and (i // 7 == j // 7 or j % 7 >= 5),
    ),
    "fixed, first": (
        lambda: SparseAttention(WIDTH, stride=7, options=SparseOptions(n_summary=1, summarise_first=True)),
        lambda i, j: j <= i and (i // 7 == j // 7 or j % 7 in (0, 6)),
    ),
    "fixed, no summary": (
        lambda: SparseAttention(WIDTH, stride=7, options=SparseOptions(n_summary=0)),
        lambda i, j: j <= i and i // 7 == j // 7,
    ),
    "strided": (
        lambda: SparseAttention(WIDTH, pattern="strided", stride=6),
        lambda i, j: j <= i and (i - j < 6 or (i - j) % 6 == 0),
    ),
    "strided, narrow": (
        lambda: SparseAttention(WIDTH, pattern="strided", stride=6, options=SparseOptions(window=2)),
        lambda i, j: j <= i and (i - j < 2 or (i - j) % 6 == 0),
    ),
    "strided, wide": (
        lambda: SparseAttention(WIDTH, pattern="strided", stride=6, options=SparseOptions(window=20)),
        lambda i, j: j <= i and (i - j < 20 or (i - j) % 6 == 0),
    ),
    "class token": (
        lambda: SparseAttention(WIDTH, stride=6, options=SparseOptions(n_summary=2, class_token=True)),
        lambda i, j: i * j == 0 or (j <= i and ((i - 1) // 6 == (j - 1) // 6 or (j - 1) % 6 >= 4)),
    ),
    "window, even": (lambda: Longformer(WIDTH, window=40, causal=False), lambda i, j: -20 <= i - j <= 19),
    "window, odd": (lambda: Longformer(WIDTH, window=41), lambda i, j: 0 <= i - j <= 20),
    "window, dilated": (
        lambda: Longformer(WIDTH, window=10, dilation=3, causal=False),
        lambda i, j: (i - j) % 3 == 0 and -15 <= i - j <= 12,
    ),
}


def dense(mixer: SequenceMixer, x: Tensor, allowed: Tensor) -> Tensor:
    """Attention where `allowed` (#h, l, m) is True."""
    query, key, value = mixer._project(x, torch.arange(x.shape[1])[None])
    scores = (query @ key.mT) / math.sqrt(query.shape[-1])
    return mixer._merge(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ value, torch.arange(x.shape[1])[None])


@pytest.mark.parametrize("name", PATTERNS)
def test_who_sees_whom(name: str) -> None:
    build, sees = PATTERNS[name]
    mixer, x = build().double(), torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    allowed = torch.tensor([[sees(i, j) for j in range(LENGTH)] for i in range(LENGTH)])
    torch.testing.assert_close(mixer(x), dense(mixer, x, allowed), **TOLERANCE)


def test_global_positions_have_maps_of_their_own() -> None:
    mixer = Longformer(WIDTH, window=6, global_positions=(4, 60), causal=False).double()
    x, chosen = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64), torch.tensor([4, 60])
    y, position = mixer(x), torch.arange(LENGTH)
    distance = position[:, None] - position
    near = (distance >= -3) & (distance <= 2) | torch.isin(position, chosen)
    plain = Longformer(WIDTH, window=6, causal=False).double()
    plain.load_state_dict({n: v for n, v in mixer.state_dict().items() if "global" not in n})
    expected = dense(plain, x, near)
    plain.qkv = mixer.qkv_global
    expected[:, chosen] = dense(plain, x, torch.ones_like(near))[:, chosen]
    torch.testing.assert_close(y, expected, **TOLERANCE)


@pytest.mark.parametrize("length", [1, 5, 13, 47, 75])
def test_bigbird_sees_neighbours_ends_and_random_blocks(length: int) -> None:
    size, n_random = 5, 3
    mixer = BigBird(WIDTH, n_heads=2, block_size=size, n_random=n_random).double()
    n = -(-length // size)
    drawn = mixer.random_blocks(n, torch.tensor([[[n - 1]]]))[0]  # (h, n, r)
    sees = torch.zeros(2, n, n, dtype=torch.bool)
    for head in range(2):
        for block in range(n):
            sees[head, block, [0, n - 1]] = True
            sees[head, block, max(0, block - 1) : block + 2] = True
            found = [other for other in drawn[head, block].tolist() if other >= 0]
            others = set(range(1, n - 1)) - {block - 1, block, block + 1}
            assert len(found) == len(set(found)) == min(n_random, len(others))
            assert set(found) <= others
            sees[head, block, found] = True
            sees[head, block] |= block in (0, n - 1)
    allowed = sees.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, :length, :length]
    x = torch.randn(2, length, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), dense(mixer, x, allowed), **TOLERANCE)


def test_bigbird_draws_evenly_and_by_seed() -> None:
    n, seeds = 12, 400
    last = torch.tensor([[[n - 1]]])
    drawn = torch.stack([BigBird(WIDTH, n_random=2, seed=seed).random_blocks(n, last)[0] for seed in range(seeds)])
    counts = torch.stack([(drawn == block).sum((-1, 0)) for block in range(n)], -1).double()  # (h, n, n)
    for block in range(1, n - 1):
        free = [other for other in range(1, n - 1) if abs(other - block) > 1]
        expected = 2 * seeds / len(free)
        spread = (counts[:, block, free] - expected).square().sum(-1) / expected
        assert (spread < 3 * len(free)).all()  # chi-squared
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0, 0], drawn[0, 1])


@pytest.mark.parametrize("causal", [True, False])
def test_reformer_sees_the_nearest_of_its_bucket(causal: bool) -> None:
    window, n_heads, rounds = 7, 2, 3
    mixer = Reformer(WIDTH, n_heads=n_heads, n_buckets=4, n_hashes=rounds, window=window, causal=causal).double()
    x = torch.randn(1, LENGTH, WIDTH, dtype=torch.float64)
    query = mixer.query(x).unflatten(-1, (n_heads, -1)).transpose(1, 2)
    buckets = lsh_buckets(query, mixer.rotations)[0]
    key = query / (query.square().sum(-1, keepdim=True) + 4e-6).sqrt()
    query, key = (rotary(turned, torch.arange(LENGTH)[None]) for turned in (query, key))
    value = mixer.value(x).unflatten(-1, (n_heads, -1)).transpose(1, 2)
    y = torch.zeros_like(value)
    for head in range(n_heads):
        for i in range(LENGTH):
            seen = []
            for bucket in buckets[head].tolist():
                like = [j for j in range(LENGTH) if bucket[j] == bucket[i]]
                seen += [j for j in like if j < i][-window:]
                seen += [] if causal else [j for j in like if j > i][:window]
            seen = seen or [i]
            weights = (key[0, head, seen] @ query[0, head, i]).softmax(0)
            y[0, head, i] = weights @ value[0, head, seen]
    torch.testing.assert_close(mixer(x), mixer.out(join_heads(y)), **TOLERANCE)


def test_reformer_buckets_are_directions() -> None:
    rotations = torch.eye(3)[None, None]  # three axes, both ways
    x = torch.tensor([[0.1, 2.0, 0.3], [-3.0, 1.0, 0.0], [0.0, 0.0, -1.0]])[None, None]
    assert lsh_buckets(x, rotations).tolist() == [[[[1, 3, 5]]]]


def test_reformer_keeps_its_rotations_with_its_weights() -> None:
    first, second = (Reformer(WIDTH, seed=seed) for seed in (0, 1))
    assert not torch.equal(first.rotations, second.rotations)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.rotations, second.rotations)


@pytest.mark.parametrize("causal", [True, False])
def test_sinkhorn_mixes_blocks(causal: bool) -> None:
    size, n_iterations, length = 4, 2, 18
    mixer = Sinkhorn(
        WIDTH, n_heads=1, block_size=size, n_iterations=n_iterations, position="none", causal=causal
    ).double()
    with torch.no_grad():
        mixer.sort.mul_(20.0)
    x = torch.randn(1, length, WIDTH, dtype=torch.float64)
    query, key, value = (y[0, 0] for y in mixer._project(x, torch.arange(length)[None]))
    key_blocks, value_blocks = (torch.cat([y, y.new_zeros(2, WIDTH)]).view(5, size, WIDTH) for y in (key, value))
    weights = torch.zeros(5, 5, dtype=torch.float64)
    for i in range(5):
        summary = key_blocks[:i].sum((0, 1)) if causal else key_blocks[i].sum(0)
        for j in range(i if causal else 5):
            weights[i, j] = (summary @ mixer.sort[:, j] / 0.75).exp()
    for step in range(2 * n_iterations + 1):
        sums = weights.sum(1, keepdim=True) if step % 2 == 0 else weights.cumsum(0) if causal else weights.sum(0)
        weights = torch.where(sums > 0, weights / sums, 0.0)
    y = torch.zeros(length, WIDTH, dtype=torch.float64)
    for i in range(length):
        block = i // size
        own = slice(block * size, i + 1 if causal else min(block * size + size, length))
        y[i] = (key[own] @ query[i] / math.sqrt(WIDTH)).softmax(0) @ value[own]
        if block > 0 or not causal:
            mixed_key, mixed_value = (torch.einsum("j,jse->se", weights[block], z) for z in (key_blocks, value_blocks))
            y[i] += (mixed_key @ query[i] / math.sqrt(WIDTH)).softmax(0) @ mixed_value
    torch.testing.assert_close(mixer(x)[0], mixer.out(y), **TOLERANCE)


def test_sinkhorn_tends_to_a_doubly_stochastic_matrix() -> None:
    mixer = Sinkhorn(WIDTH, n_heads=2, block_size=3, max_length=27, n_iterations=200, causal=False).double()
    key, value = torch.randn(2, 1, 2, 20, 4, dtype=torch.float64)
    weights, _, _ = mixer._sort(key, value, torch.ones(1, 20, dtype=torch.bool))
    for axis in (2, 3):
        torch.testing.assert_close(weights.sum(axis), torch.ones(1, 2, 7).double(), rtol=1e-6, atol=1e-6)
    assert weights.std() > 0.001


def test_a_short_block_has_no_empty_places() -> None:
    """Of the only block, the mixture is the block itself."""
    mixer = Sinkhorn(WIDTH, block_size=8, position="none", causal=False).double()
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), 2 * dense(mixer, x, torch.ones(3, 3, dtype=torch.bool)), **TOLERANCE)


CAUSAL = {
    "local": lambda: LocalAttention(WIDTH, block_size=20, n_neighbours=1),
    "fixed": lambda: SparseAttention(WIDTH, stride=16),
    "strided": lambda: SparseAttention(WIDTH, pattern="strided", stride=16),
    "window": lambda: Longformer(WIDTH, window=70),
    "global": lambda: Longformer(WIDTH, window=30, global_positions=(0, 200)),
    "reformer": lambda: Reformer(WIDTH, n_heads=2, n_buckets=4, window=30),
    "sinkhorn": lambda: Sinkhorn(WIDTH, block_size=40),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_long_chunks_continue_a_state(name: str) -> None:
    """Longer than a piece, and than what the cache drops."""
    mixer = CAUSAL[name]().double()
    x = torch.randn(1, 330, WIDTH, dtype=torch.float64)
    outputs, state = [], mixer.init_state(1)
    for chunk in x.split((94, 233, 3), dim=1):  # blocks of the cache end at 64
        y, state = mixer.prefill(chunk, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), mixer(x), **TOLERANCE)


BIDIRECTIONAL = {
    "local, both sides": PATTERNS["local, neighbours"][0],
    "class token": PATTERNS["class token"][0],
    "window, both sides": lambda: Longformer(WIDTH, window=6, dilation=2, global_positions=(1, 50), causal=False),
    "bigbird": lambda: BigBird(WIDTH, block_size=4),
    "reformer, both sides": lambda: Reformer(WIDTH, n_heads=2, n_buckets=4, window=5, causal=False),
    "sinkhorn, both sides": lambda: Sinkhorn(WIDTH, block_size=6, causal=False),
}


@pytest.mark.parametrize("name", CAUSAL | BIDIRECTIONAL)
def test_padding_is_invisible_in_long_rows(name: str) -> None:
    """On either side, in rows with more blocks than those of the laws have."""
    mixer = (CAUSAL | BIDIRECTIONAL)[name]().double()
    x, real = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64), 41
    for shift in (0, LENGTH - real):
        mask = torch.zeros(2, LENGTH, dtype=torch.bool)
        mask[1] = True
        mask[0, shift : shift + real] = True
        y = mixer(x, mask)
        torch.testing.assert_close(y[:1, shift : shift + real], mixer(x[:1, shift : shift + real]), **TOLERANCE)
        torch.testing.assert_close(y[1:], mixer(x[1:]), **TOLERANCE)


@pytest.mark.parametrize("name", ["local", "window"])
def test_what_nobody_sees_again_is_dropped(name: str) -> None:
    """At the beginning, and further on."""
    mixer = CAUSAL[name]()
    state = mixer.init_state(1)
    for _ in range(2):
        _, state = mixer.prefill(torch.randn(1, 1000, WIDTH), state)
        assert sum(block.size for block in state.blocks) + state.tail.size <= mixer.reach + 128


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LocalAttention(WIDTH, block_size=0), "block_size=0 must be at least 1"),
        (lambda: LocalAttention(WIDTH, n_heads=3), "n_heads=3 must divide d_model=8"),
        (lambda: LocalAttention(WIDTH, head_dim=3), "even width, not 3"),
        (lambda: SparseAttention(WIDTH, stride=0), "stride=0"),
        (lambda: SparseAttention(WIDTH, stride=4), "n_summary=8 positions of a block of stride=4"),
        (lambda: Longformer(WIDTH, window=0), "window=0"),
        (lambda: Longformer(WIDTH, global_positions=(-1,)), "none can be negative"),
        (lambda: BigBird(WIDTH, n_random=-1), "n_random=-1 at least 0"),
        (lambda: Reformer(WIDTH, n_buckets=3), "n_buckets=3 must be even"),
        (lambda: Reformer(WIDTH, n_heads=8), "n_heads=8 must divide d_model=8, into even widths"),
        (lambda: Sinkhorn(WIDTH, temperature=0.0), "temperature=0.0 above 0"),
        (
            lambda: Sinkhorn(WIDTH, block_size=2, max_length=6)(torch.zeros(1, 7, WIDTH)),
            "7 positions is longer than max_length=6",
        ),
        (lambda: BigBird(WIDTH).init_state(1), "BigBird with causal=False reads the future"),
        (lambda: Reformer(WIDTH, causal=False).init_state(1), "Reformer with causal=False reads the future"),
    ],
)
def test_mistakes_are_explained(build: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()
