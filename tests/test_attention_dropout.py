"""The hash that says which attention weights are dropped: the right share, and no masks that resemble each other."""

import pytest
import torch
from torch import Tensor

from longreach.ops.attention_dropout import kept_weights

ALL = slice(None)
SHAPE = (2, 3, 120, 130)


def kept(seed: int, dropout: float = 0.5) -> Tensor:
    """The whole mask of a seed."""
    return kept_weights(torch.tensor(seed), dropout, SHAPE, ALL, ALL)


@pytest.mark.parametrize("dropout", [0.001, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped(dropout: float) -> None:
    mask = kept(3, dropout)
    deviation = (dropout * (1 - dropout) / mask.numel()) ** 0.5
    assert abs((~mask).double().mean() - dropout) < 4 * deviation


def test_rows_columns_heads_and_seeds_are_unlike_each_other() -> None:
    """Two masks of independent coins agree in half of all places."""
    mask = kept(0)
    pairs = {
        "rows of the batch": (mask[0], mask[1]),
        "heads": (mask[:, 0], mask[:, 1]),
        "queries": (mask[:, :, 1:], mask[:, :, :-1]),
        "keys": (mask[..., 1:], mask[..., :-1]),
        "diagonals": (mask[:, :, 1:, 1:], mask[:, :, :-1, :-1]),
        "transposed": (mask[:, :, :, :120], mask[:, :, :, :120].mT),
        "seeds": (mask, kept(1)),
        "shifted seeds": (mask[:, :, 1:], kept(1)[:, :, :-1]),
        "far seeds": (mask, kept(2**30)),
    }
    for name, (a, b) in pairs.items():
        assert abs((a == b).double().mean() - 0.5) < 4 * 0.5 / a.numel() ** 0.5, name


def test_a_tile_is_a_part_of_the_whole() -> None:
    tile = kept_weights(torch.tensor(5), 0.3, SHAPE, slice(64, 120), slice(7, 64))
    assert torch.equal(tile, kept(5, 0.3)[:, :, 64:120, 7:64])
