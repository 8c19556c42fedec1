"""The key-value cache: exact whatever its blocks are, appended to and not copied, and bounded by a sliding window."""

import laws
import pytest
import torch
from test_mixers import CAUSAL, make
from torch import Tensor

from longreach.mixers import attention as mixer_module
from longreach.mixers import map_state
from longreach.ops import key_value_cache
from longreach.ops.key_value_cache import KeyValueBlock, KeyValueCache, append, empty_cache, next_positions

CASES = [case for case in CAUSAL if case.startswith("attention")]
RECURRENT = [
    laws.chunked_equals_parallel,
    laws.gradients_agree,
    laws.old_states_can_be_used_again,
    laws.ragged_prompts_are_read_together,
    laws.recurrent_equals_parallel,
    laws.states_are_values,
]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two positions, and chunks of four are no longer few: short inputs reach every branch."""
    monkeypatch.setattr(key_value_cache, "TAIL", 2)
    monkeypatch.setattr(mixer_module, "FEW", 3)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("law", RECURRENT, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", CASES)
def test_laws_with_many_blocks(case: str, law) -> None:
    law(make(case))


def block(length: int, value: float = 0.0) -> KeyValueBlock:
    """Positions of one row, with numbers that tell them apart."""
    content = value + torch.arange(float(length), dtype=torch.float64).view(1, 1, length, 1)
    return KeyValueBlock(content, -content, torch.zeros(1, length, dtype=torch.int64))


def grown(length: int, chunk: int, window: int | None = None) -> list[KeyValueCache]:
    """Every cache on the way to `length` positions in chunks of `chunk`; entry t holds the number t."""
    empty = torch.zeros(1, 1, 0, 1, dtype=torch.float64)
    caches = [empty_cache(empty, empty)]
    for start in range(0, length, chunk):
        count = min(chunk, length - start)
        new = block(count, start)._replace(position=next_positions(caches[-1], count))
        caches.append(append(caches[-1], new, window))
    return caches


def contents(cache: KeyValueCache) -> Tensor:
    """All keys, oldest first."""
    return torch.cat([part.key for part in (*cache.blocks, cache.tail)], dim=2).flatten()


def sizes(cache: KeyValueCache) -> list[int]:
    """The sizes of the blocks."""
    return [part.size for part in cache.blocks]


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_nothing_is_lost_and_blocks_are_binary_digits(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(key_value_cache, "TAIL", 4)
    cache = grown(50, chunk)[-1]
    assert contents(cache).tolist() == list(range(50))
    assert torch.cat([part.position for part in (*cache.blocks, cache.tail)], dim=1).tolist() == [list(range(50))]
    assert sizes(cache) == [32, 16]
    assert cache.tail.size == 2
    assert int(cache.n_read) == 50


def test_most_of_a_cache_is_shared_with_the_one_before() -> None:
    """Over 1,000 steps the memory that is new, old caches kept, is far from the 500,000 positions of plain copies."""
    caches = grown(1000, 1)
    storages = {}
    for cache in caches:
        for part in (*cache.blocks, cache.tail):
            storages[part.key.untyped_storage().data_ptr()] = part.key.untyped_storage().nbytes() // 8
    blocks = 1000 * 5  # each position once for each of the sizes 64 to 512, and once loose
    tails = 1000 * key_value_cache.TAIL // 2
    assert sum(storages.values()) <= blocks + tails
    shared = {part.key.data_ptr() for part in caches[-2].blocks} & {part.key.data_ptr() for part in caches[-1].blocks}
    assert len(shared) == len(caches[-1].blocks) == 4


@pytest.mark.parametrize("window", [1, 3, 5, 64, 100])
@pytest.mark.parametrize("chunk", [1, 7, 402])
def test_what_has_left_the_window_is_dropped_and_freed(
    monkeypatch: pytest.MonkeyPatch, window: int, chunk: int
) -> None:
    monkeypatch.setattr(key_value_cache, "TAIL", 4)
    cache = grown(402, chunk, window)[-1]
    kept = contents(cache).tolist()
    assert kept == list(range(402 - len(kept), 402))
    oldest_seen_next = 402 - window + 1
    assert kept[0] <= oldest_seen_next
    if cache.blocks:
        assert kept[0] + cache.blocks[0].size > oldest_seen_next, "a block has left the window whole"
    assert len(kept) <= 1.25 * window + 8
    parts = (*cache.blocks, cache.tail)
    storages = {part.key.untyped_storage().data_ptr(): part.key.untyped_storage().nbytes() for part in parts}
    assert sum(storages.values()) <= 8 * (1.25 * window + 8)
    assert sizes(cache) == sizes(grown(402, 1, window)[-1])


@pytest.mark.usefixtures("small_blocks")
def test_padding_may_lie_between_chunks() -> None:
    """Rows that go on at different lengths: what is padding in one chunk does not even take up distance."""
    for case in CASES:
        mixer = make(case)
        x = laws.random_input(mixer, length=20)
        mask = torch.ones(2, 20, dtype=torch.bool)
        mask[0, 3:8] = mask[1, 9:16] = False
        outputs, state = [], mixer.init_state(2)
        for chunk, real in zip(x.split((2, 9, 1, 8), dim=1), mask.split((2, 9, 1, 8), dim=1), strict=True):
            y, state = mixer.prefill(chunk, state, real)
            outputs.append(y)
        for y in (torch.cat(outputs, dim=1), mixer(x, mask)):
            for row in range(2):
                alone = mixer(x[row, mask[row]][None])[0]
                laws.equal(y[row, mask[row]], alone)


def test_long_chunks_after_a_cache() -> None:
    """At the real sizes of blocks and tiles, with a cache that has several of them."""
    for case in CASES:
        mixer = make(case)
        x = laws.random_input(mixer, length=330)
        expected = mixer(x)
        first, state = mixer.prefill(x[:, :190], mixer.init_state(2))
        second, state = mixer.prefill(x[:, 190:320], state)
        third, _ = mixer.prefill(x[:, 320:], state)
        laws.equal(torch.cat([first, second, third], dim=1), expected)


def test_rows_of_a_cache_can_be_beams() -> None:
    """One prompt, continued in several ways, shares nothing that could be overwritten."""
    mixer = make(CASES[0])
    x = laws.random_input(mixer, batch=3, length=70)
    prompt = x[:1, :66]
    _, state = mixer.prefill(prompt, mixer.init_state(1))
    state = map_state(lambda leaf: leaf[torch.zeros(3, dtype=torch.int64)], state)
    y, _ = laws.unroll(mixer, x[:, 66:], state)
    laws.equal(y, mixer(torch.cat([prompt.expand(3, -1, -1), x[:, 66:]], dim=1))[:, 66:])
