"""Which tiles are computed: never too few, and for the usual masks not one too many."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longreach.ops import AttentionMask
from longreach.ops.attention_tiles import rows_of_tiles


def check(mask: AttentionMask, l: int, m: int, size: int) -> int:
    """Assert that what is left out is hidden and what needs no mask is seen; the number of tiles more than needed."""
    mask = mask.located(l, m, torch.device("cpu"))
    allowed = mask.allowed()
    covered = torch.zeros_like(allowed)
    wasted = 0
    starts = []
    for queries, tiles in rows_of_tiles(mask, l, m, size):
        starts.append(queries.start)
        for tile in tiles:
            assert tile.queries == queries
            seen = allowed[:, tile.queries, tile.keys]
            covered[:, tile.queries, tile.keys] = True
            wasted += int(not seen.any()) + int(tile.partial and bool(seen.all()))
            assert tile.partial or seen.all()
    assert starts == list(range(0, l, size))
    assert not (allowed & ~covered).any()
    return wasted


sizes = st.integers(1, 40)


@given(l=sizes, m=sizes, size=st.sampled_from([3, 8, 64]), causal=st.booleans(), window=st.none() | sizes)
def test_by_distance_exactly_the_tiles_that_are_needed(
    l: int, m: int, size: int, causal: bool, window: int | None
) -> None:
    assert check(AttentionMask(causal, window), l, m, size) == 0


@given(l=sizes, size=st.sampled_from([3, 8]), packed=st.integers(1, 20), causal=st.booleans())
def test_of_packed_sequences_exactly_the_tiles_that_are_needed(l: int, size: int, packed: int, causal: bool) -> None:
    segment = torch.arange(l)[None] // packed
    wasted = check(AttentionMask(causal, query_segment=segment, key_segment=segment), l, l, size)
    assert wasted == 0


@given(
    seed=st.integers(0, 2**31),
    size=st.sampled_from([3, 8]),
    causal=st.booleans(),
    window=st.none() | sizes,
    parts=st.sets(st.sampled_from(["padding", "segments", "positions"])),
)
def test_whatever_the_mask_nothing_is_missed(
    seed: int, size: int, causal: bool, window: int | None, parts: set[str]
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    l, m = draw(1, 40, 2).tolist()
    mask = AttentionMask(causal, window)
    if "padding" in parts:
        mask = mask._replace(key_mask=torch.arange(m) < draw(0, m + 1, 2, 1))
    if "segments" in parts:
        mask = mask._replace(query_segment=draw(0, 3, 2, l).sort(1)[0], key_segment=draw(0, 3, 2, m))
    if "positions" in parts:
        mask = mask._replace(query_position=draw(-1, 40, 2, l), key_position=draw(-1, 40, 2, m))
    check(mask, l, m, size)


@pytest.mark.parametrize("real", [0, 5, 16])
def test_blocks_of_padding_are_left_out(real: int) -> None:
    mask = AttentionMask(key_mask=torch.arange(16)[None] < real).located(4, 16, torch.device("cpu"))
    ((_, tiles),) = rows_of_tiles(mask, 4, 16, 4)
    expected = [(start, start + 4 > real) for start in range(0, real, 4)]
    assert [(tile.keys.start, tile.partial) for tile in tiles] == expected
