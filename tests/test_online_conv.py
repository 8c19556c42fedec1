"""Online convolution: steps and chunks, cut in any way, give the long convolution; states are values and stay small."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longreach.errors import InputError
from longreach.mixers import map_state
from longreach.ops import (
    OnlineConvState,
    init_online_conv,
    long_conv,
    online_conv,
    online_conv_prefill,
    online_conv_step,
)

BATCH, CHANNELS = 2, 3
TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}
TAPS = (1, 2, 4, 5, 8, 9, 13, 31, 64, 200)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 and pieces of 16, so that a hundred positions go through many merges."""
    monkeypatch.setattr(online_conv, "BASE", 4)
    monkeypatch.setattr(online_conv, "PIECE", 16)


def problem(taps: int, length: int) -> tuple[Tensor, Tensor]:
    """A filter and an input; the filter has no structure, so a wrong lag cannot hide."""
    generator = torch.Generator().manual_seed(taps)
    kernel = torch.randn(CHANNELS, taps, dtype=torch.float64, generator=generator)
    return kernel, torch.randn(BATCH, CHANNELS, length, dtype=torch.float64, generator=generator)


def feed(
    x: Tensor, kernel: Tensor, cut: list[int], state: OnlineConvState | None = None
) -> tuple[Tensor, OnlineConvState]:
    """All outputs and the final state; chunks of one go through `online_conv_step`."""
    taps = kernel.shape[-1]
    state = init_online_conv(x.shape[0], x.shape[1], dtype=x.dtype) if state is None else state

    def first(n: int) -> Tensor:
        assert 1 <= n <= taps, "asks for taps that do not exist"
        return kernel[:, :n]

    outputs = []
    for chunk in x.split(cut, dim=-1):
        if chunk.shape[-1] == 1:
            y, state = online_conv_step(chunk[..., 0], state, first, taps)
            y = y[..., None]
        else:
            y, state = online_conv_prefill(chunk, state, first, taps)
        outputs.append(y)
    return torch.cat(outputs, dim=-1), state


def leaves(state: OnlineConvState) -> list[Tensor]:
    """All tensors of a state."""
    found: list[Tensor] = []
    map_state(lambda leaf: found.append(leaf) or leaf, state)
    return found


def assert_same_state(actual: OnlineConvState, expected: OnlineConvState) -> None:
    """The same tensors in the same structure."""
    assert [len(actual.blocks)] == [len(expected.blocks)]
    for a, b in zip(leaves(actual), leaves(expected), strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 63, 64, 65, 100])
def test_steps_and_one_chunk_give_the_long_convolution(taps: int, length: int) -> None:
    kernel, x = problem(taps, length)
    expected = long_conv(x, kernel)
    steps, after_steps = feed(x, kernel, [1] * length)
    chunk, after_chunk = feed(x, kernel, [length])
    torch.testing.assert_close(steps, expected, **TOLERANCE)
    torch.testing.assert_close(chunk, expected, **TOLERANCE)
    assert_same_state(after_chunk, after_steps)


@settings(max_examples=60)
@given(taps=st.sampled_from(TAPS), cut=st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_any_cut_gives_the_long_convolution(taps: int, cut: list[int]) -> None:
    kernel, x = problem(taps, sum(cut))
    y, state = feed(x, kernel, cut)
    torch.testing.assert_close(y, long_conv(x, kernel), **TOLERANCE)
    assert_same_state(state, feed(x, kernel, [sum(cut)])[1])


@pytest.mark.parametrize("taps", [2, 9, 200])
def test_states_are_values(taps: int) -> None:
    """A state can be used twice, lead to two futures, and have its rows picked and reordered."""
    kernel, x = problem(taps, 50)
    for cut in range(1, 34):
        _, state = feed(x[..., :cut], kernel, [cut])
        before = map_state(torch.clone, state)
        other = torch.flip(x, dims=(-1,))
        y, _ = feed(x[..., cut:], kernel, [1] * (50 - cut), state)
        feed(other, kernel, [50], state)
        assert_same_state(state, before)
        torch.testing.assert_close(y, long_conv(x, kernel)[..., cut:], **TOLERANCE)
        rows = torch.tensor([1, 0, 0])
        picked, _ = feed(x[rows, :, cut:], kernel, [50 - cut], map_state(lambda leaf, rows=rows: leaf[rows], state))
        torch.testing.assert_close(picked, y[rows], **TOLERANCE)


def test_a_step_shares_what_does_not_change() -> None:
    """Between two states all large tensors are the same objects: a step copies O(BASE), not the past."""
    kernel, x = problem(200, 101)
    _, state = feed(x[..., :100], kernel, [100])
    assert [block.size for block in state.blocks] == [64, 32, 4]
    _, after = online_conv_step(x[..., 100], state, lambda n: kernel[:, :n], 200)
    assert all(new is old for new, old in zip(after.blocks, state.blocks, strict=True))
    _, merged = online_conv_prefill(x[..., :4], state, lambda n: kernel[:, :n], 200)
    assert [block.size for block in merged.blocks] == [64, 32, 8]
    assert all(new is old for new, old in zip(merged.blocks[:2], state.blocks, strict=False))


def test_what_has_passed_is_not_kept_and_inputs_are_not_copied() -> None:
    """Just before all blocks merge their tiles are short, and the merged block holds the pieces that they held."""
    kernel, x = problem(200, 128)
    _, state = feed(x[..., :124], kernel, [1] * 124)
    assert [block.size for block in state.blocks] == [64, 32, 16, 8, 4]
    assert [block.tile.shape[-1] for block in state.blocks] == [4, 4, 4, 4, 4]
    _, merged = feed(x[..., 124:], kernel, [4], state)
    (block,) = merged.blocks
    assert (block.size, block.tile.shape[-1], len(block.inputs)) == (128, 128, 8)
    before = [piece for block in state.blocks[:3] for piece in block.inputs]
    assert all(new is old for new, old in zip(block.inputs, before, strict=False))
    for length in range(4, 124, 4):
        _, state = feed(x[..., :length], kernel, [length])
        assert sum(leaf.shape[-1] for leaf in leaves(state)) <= 3 * length
        assert all(leaf.untyped_storage().nbytes() == leaf.numel() * leaf.itemsize for leaf in leaves(state))


@pytest.mark.parametrize("taps", [1, 4, 5, 9, 33])
@pytest.mark.parametrize("cut", [[1] * 300, [7] * 42 + [6], [300]])
def test_memory_is_bounded_by_the_filter_however_long_the_stream_is(taps: int, cut: list[int]) -> None:
    """Inputs and tiles of fewer than 4 max(taps, BASE) positions, and no view that keeps a longer tensor alive."""
    kernel, x = problem(taps, 300)
    state = init_online_conv(BATCH, CHANNELS, dtype=torch.float64)
    for chunk in x.split(cut, dim=-1):
        _, state = online_conv_prefill(chunk, state, lambda n: kernel[:, :n], taps)
        storages = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in leaves(state)}
        positions = sum(storages.values()) / (8 * BATCH * CHANNELS)
        assert positions < 8 * max(taps, 4) + 4


def test_a_step_asks_for_few_taps() -> None:
    """At most BASE for the output; twice the size of the block where one is completed, which is rare for large ones."""
    kernel, x = problem(200, 128)
    asked: list[int] = []
    state = init_online_conv(BATCH, CHANNELS, dtype=torch.float64)
    for t in range(128):
        _, state = online_conv_step(x[..., t], state, lambda n: asked.append(n) or kernel[:, :n], 200)
    assert sum(n > 4 for n in asked) == 128 // 4
    assert [asked.count(n) for n in (8, 16, 32, 64, 128, 200)] == [16, 8, 4, 2, 1, 1]


@pytest.mark.parametrize("taps", [3, 30])
def test_gradients_flow_through_steps_and_states(taps: int) -> None:
    kernel, x = problem(taps, 21)
    kernel.requires_grad_()
    x.requires_grad_()
    cotangent = torch.randn(x.shape, dtype=x.dtype)
    expected = torch.autograd.grad(long_conv(x, kernel), (x, kernel), cotangent)
    for cut in ([1] * 21, [21], [6, 1, 9, 5]):
        actual = torch.autograd.grad(feed(x, kernel, cut)[0], (x, kernel), cotangent)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, **TOLERANCE)


def test_gradcheck_through_a_state() -> None:
    kernel, x = problem(9, 11)

    def outputs_and_state(x: Tensor, kernel: Tensor) -> tuple[Tensor, ...]:
        y, state = feed(x, kernel, [5, 1, 4, 1])
        return y, *leaves(state)

    arguments = (x.requires_grad_(), kernel.requires_grad_())
    assert torch.autograd.gradcheck(outputs_and_state, arguments, fast_mode=True, rtol=1e-5, atol=1e-7)
    assert torch.autograd.gradgradcheck(
        lambda *a: outputs_and_state(*a)[0], arguments, fast_mode=True, rtol=1e-5, atol=1e-7
    )


def test_zeros_before_the_first_input_are_invisible() -> None:
    """Left padding with zeros shifts nothing: prompts of different lengths can be read together."""
    kernel, x = problem(31, 20)
    padded = torch.nn.functional.pad(x, (7, 0))
    torch.testing.assert_close(feed(padded, kernel, [15, 1, 11])[0][..., 7:], feed(x, kernel, [20])[0], **TOLERANCE)


def test_half_precision_inputs_are_kept_and_summed_in_float32() -> None:
    kernel, x = problem(50, 40)
    state = init_online_conv(BATCH, CHANNELS, dtype=torch.float32)
    kernel, low = kernel.float(), x.bfloat16()
    outputs = []
    for t in range(40):
        y, state = online_conv_step(low[..., t], state, lambda n: kernel[:, :n], 50)
        outputs.append(y)
    y = torch.stack(outputs, dim=-1)
    assert y.dtype == torch.bfloat16
    assert {leaf.dtype for leaf in leaves(state)} == {torch.float32}
    exact = long_conv(low.double(), kernel.double())
    assert ((y - exact).abs() <= 2.0**-8 * exact.abs() + 1e-5 * exact.abs().max()).all()


def test_a_state_keeps_its_dtype() -> None:
    kernel, x = problem(5, 9)
    state = init_online_conv(BATCH, CHANNELS, dtype=torch.float32)
    y, state = online_conv_prefill(x, state, lambda n: kernel.float()[:, :n], 5)
    assert y.dtype == torch.float64
    assert {leaf.dtype for leaf in leaves(state)} == {torch.float32}


def test_the_block_size_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real BASE too, over two merges and a remainder."""
    monkeypatch.undo()
    length = 3 * online_conv.BASE + 5
    kernel, x = problem(200, length)
    torch.testing.assert_close(feed(x, kernel, [1] * length)[0], long_conv(x, kernel), **TOLERANCE)


def test_mistakes() -> None:
    kernel, x = problem(5, 6)
    state = init_online_conv(BATCH, CHANNELS, dtype=torch.float64)
    with pytest.raises(InputError, match="kernel_length=0"):
        online_conv_prefill(x, state, lambda n: kernel[:, :n], 0)
    with pytest.raises(InputError, match=r"\(batch, channels\) \(2, 3\)"):
        online_conv_prefill(x[:1], state, lambda n: kernel[:, :n], 5)
    with pytest.raises(InputError, match="must not be empty"):
        online_conv_prefill(x[..., :0], state, lambda n: kernel[:, :n], 5)
    with pytest.raises(InputError, match=r"torch\.bfloat16"):
        init_online_conv(1, 1, dtype=torch.bfloat16)
