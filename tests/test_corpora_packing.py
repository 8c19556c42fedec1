"""Batches: pure, complete, disjoint, and of constant size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longreach.errors import InputError
from longreach.tasks.corpora.packing import Packer, Stage, permute

ROW = np.arange(1000, dtype=np.uint16)  # token = its own place, so a window tells where it was taken


def targets_of_epochs(packer: Packer, n_epochs: int) -> np.ndarray:
    """How often each place was a target in each epoch."""
    n_windows = -(-len(packer.tokens) // packer.context)
    flat = [packer.batch(step, 0, 1).targets for step in range(n_epochs * n_windows // packer.batch_size)]
    windows = np.concatenate(flat).reshape(n_epochs, -1)
    return np.stack([np.bincount(epoch, minlength=len(packer.tokens)) for epoch in windows])


def test_targets_are_the_inputs_one_later_around_the_ring() -> None:
    packer = Packer(ROW, context=64, batch_size=16)
    batch = packer.batch(5, 0, 1)
    assert batch.inputs.shape == batch.targets.shape == (16, 64)
    assert (batch.targets == (batch.inputs + 1) % 1000).all()
    assert (batch.inputs[:, 1:] == batch.targets[:, :-1]).all()
    assert batch.weight == 16 * 64


def test_a_batch_depends_on_the_step_and_the_seed_alone() -> None:
    packer = Packer(ROW, 64, 4, seed=3)
    batches = [packer.batch(step, 0, 1).inputs for step in range(9)]
    fresh = Packer(ROW, 64, 4, seed=3)
    for step in reversed(range(9)):
        assert (fresh.batch(step, 0, 1).inputs == batches[step]).all()
    assert len({tuple(batch.flatten().tolist()) for batch in batches}) == 9
    assert (Packer(ROW, 64, 4, seed=4).batch(0, 0, 1).inputs != batches[0]).any()


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_the_parts_are_the_batch_in_equal_pieces(parts: int) -> None:
    packer = Packer(ROW, 32, 6, curriculum=[Stage(2, 16)])
    for step in range(4):
        pieces = [packer.batch(step, part, parts).inputs for part in range(parts)]
        assert len({piece.shape for piece in pieces}) == 1
        assert (np.concatenate(pieces) == packer.batch(step, 0, 1).inputs.numpy()).all()


@pytest.mark.parametrize(("length", "context"), [(1000, 100), (1000, 64), (7, 2), (65, 64)])
def test_an_epoch_has_every_token_and_few_of_them_twice(length: int, context: int) -> None:
    counts = targets_of_epochs(Packer(ROW[:length], context, 1), 3)
    assert counts.min() == 1
    assert counts.max() <= 2
    assert ((counts == 2).sum(1) == -length % context).all()


def test_epochs_differ_in_order_and_in_where_windows_start() -> None:
    packer = Packer(ROW, 100, 10)
    epochs = [packer.batch(step, 0, 1).inputs[:, 0] for step in range(4)]
    assert len({int(epoch.min()) for epoch in epochs}) == 4
    orders = [tuple(((epoch - epoch.min()) // 100).tolist()) for epoch in epochs]
    assert len(set(orders)) == 4
    assert tuple(range(10)) not in orders


def test_a_batch_may_reach_into_the_next_epoch() -> None:
    packer = Packer(ROW, 100, 7)
    targets = np.concatenate([packer.batch(step, 0, 1).targets.numpy() for step in range(10)])
    assert (np.bincount(targets.flatten()) == 7).all()


def test_the_curriculum_grows_the_context_and_keeps_the_tokens() -> None:
    packer = Packer(ROW, 64, 2, curriculum=[Stage(3, 8), Stage(5, 32)])
    shapes = [tuple(packer.batch(step, 0, 1).inputs.shape) for step in range(7)]
    assert shapes == [(16, 8)] * 3 + [(4, 32)] * 2 + [(2, 64)] * 2


def test_a_stage_may_have_its_own_batch_size() -> None:
    packer = Packer(ROW, 64, 2, curriculum=[Stage(3, 24, batch_size=3)])
    assert [tuple(packer.batch(step, 0, 1).inputs.shape) for step in (2, 3)] == [(3, 24), (2, 64)]
    with pytest.raises(InputError, match="batch_size 0 must be at least 1"):
        Packer(ROW, 64, 1, curriculum=[Stage(5, 24, batch_size=0)])
    with pytest.raises(InputError, match="context 65 must be from 1 to the full context, 64"):
        Packer(ROW, 64, 1, curriculum=[Stage(5, 65, batch_size=1)])


def test_targets_are_counted_over_the_stages() -> None:
    packer = Packer(ROW, 64, 2, curriculum=[Stage(3, 8), Stage(5, 32, batch_size=1)])
    sizes = [packer.batch(step, 0, 1).targets.numel() for step in range(9)]
    for first, stop in [(0, 9), (0, 3), (2, 4), (3, 5), (4, 9), (6, 8), (7, 7)]:
        assert packer.n_targets(first, stop) == sum(sizes[first:stop])


def test_every_stage_starts_an_epoch_of_its_own() -> None:
    packer = Packer(ROW, 100, 2, curriculum=[Stage(5, 50)])
    for steps in (range(5), range(5, 10)):
        targets = np.concatenate([packer.batch(step, 0, 1).targets.numpy().flatten() for step in steps])
        assert (np.bincount(targets) == 1).all()


@given(st.integers(1, 700), st.integers(0, 2**64 - 1))
@settings(max_examples=60)
def test_a_permutation_is_one_to_one(size: int, key: int) -> None:
    images = permute(np.arange(size, dtype=np.uint64), size, key)
    assert sorted(images.tolist()) == list(range(size))


def test_permutations_look_random() -> None:
    """Over many keys, every number goes everywhere about equally often."""
    size, n_keys = 6, 1000
    counts = np.zeros((size, size))
    for key in range(n_keys):
        counts[np.arange(size), permute(np.arange(size, dtype=np.uint64), size, key).astype(int)] += 1
    chi_squared = ((counts - n_keys / size) ** 2 / (n_keys / size)).sum()
    assert chi_squared < 60  # 25 degrees of freedom: 60 is passed once in 10,000 times


def test_a_huge_epoch_needs_no_list() -> None:
    found = permute(np.array([0, 1, 10**12 - 1], np.uint64), 10**12, 1)
    assert len(set(found.tolist())) == 3
    assert found.max() < 10**12


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(InputError, match=r"has 1000 tokens, too few for context = 1000 .* at most 999"):
        Packer(ROW, 1000, 1)
    Packer(ROW, 999, 1).batch(0, 0, 1)
    with pytest.raises(InputError, match="batch_size = 4 cannot be divided equally into 3 parts"):
        Packer(ROW, 10, 4).batch(0, 0, 3)
    for context, batch_size in [(0, 1), (1, 0)]:
        with pytest.raises(InputError, match="must be at least 1"):
            Packer(ROW, context, batch_size)
    with pytest.raises(InputError, match="context 24 must divide the full context, 64"):
        Packer(ROW, 64, 1, curriculum=[Stage(5, 24)])
    with pytest.raises(InputError, match="until_step 5 must be greater than the stage's start, 5"):
        Packer(ROW, 64, 1, curriculum=[Stage(5, 16), Stage(5, 32)])
