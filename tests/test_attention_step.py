"""The compiled step of attention, for every instruction set, against what torch makes of the same cache."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_calls import BUILDS, LAYOUTS, built_for
from torch import Tensor

from longreach.mixers import Attention
from longreach.ops import native
from longreach.ops.attention_step import attention_step_refuses
from longreach.ops.key_value_cache import KeyValueBlock, attend_to_parts

pytestmark = pytest.mark.skipif(native.MISSING is not None, reason=f"{native.MISSING}")

OF_EVERY_BUILD = pytest.mark.parametrize("build", BUILDS)
FEW = settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def drawn(data: st.DataObject) -> tuple[Tensor, Tensor, list[KeyValueBlock], int | None, Tensor | None]:
    """The arguments of a call: parts of any sizes, rows with padding before them, the newest position always seen."""
    b, groups, shared = (data.draw(st.integers(1, 3)) for _ in range(3))
    e, f = (data.draw(st.integers(1, 40)) for _ in range(2))
    sizes = [*data.draw(st.lists(st.integers(0, 70), max_size=4)), 1]
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    lay = LAYOUTS[data.draw(st.sampled_from(["dense", "axes reversed", "unaligned", "gaps", "negated"]))]
    total = sum(sizes)
    padding = torch.randint(total, (b, 1))
    position = (torch.arange(total) - padding).clamp(min=-1)
    key, value = (torch.randn(b, groups, total, width, dtype=torch.float64) for width in (e, f))
    split = (x.split(sizes, dim=dim) for x, dim in ((key, 2), (value, 2), (position, 1)))
    parts = [KeyValueBlock(lay(k), lay(v), p) for k, v, p in zip(*split, strict=True)]
    query = lay(data.draw(st.sampled_from([1.0, 50.0])) * torch.randn(b, groups * shared, 1, e, dtype=torch.float64))
    slopes = torch.rand(groups * shared, dtype=torch.float64) if data.draw(st.booleans()) else None
    return query, position[:, -1:], parts, data.draw(st.sampled_from([None, 1, 20])), slopes


def attend(
    query: Tensor, position: Tensor, parts: list[KeyValueBlock], window: int | None, slopes: Tensor | None
) -> Tensor:
    return attend_to_parts(query, position, parts, window=window, alibi_slopes=slopes)


@OF_EVERY_BUILD
@FEW
@given(data=st.data())
def test_the_kernel_is_what_torch_makes_of_it(build: str, data: st.DataObject) -> None:
    arguments = drawn(data)
    expected = attend(*arguments)
    with built_for(build), torch.inference_mode():
        assert attention_step_refuses(arguments[0], arguments[2]) is None
        found = attend(*arguments)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@OF_EVERY_BUILD
@FEW
@given(data=st.data())
def test_single_precision_errs_no_more_than_torch(build: str, data: st.DataObject) -> None:
    query, position, parts, window, slopes = drawn(data)
    query, slopes = query.float(), None if slopes is None else slopes.float()
    parts = [KeyValueBlock(part.key.float(), part.value.float(), part.position) for part in parts]
    wide = [KeyValueBlock(part.key.double(), part.value.double(), part.position) for part in parts]
    truth = attend(query.double(), position, wide, window, None if slopes is None else slopes.double())
    allowed = attend(query, position, parts, window, slopes) - truth
    with built_for(build), torch.inference_mode():
        error = attend(query, position, parts, window, slopes) - truth
    assert error.norm() <= 4 * allowed.norm() + 1e-6 * truth.norm()


@OF_EVERY_BUILD
@FEW
@given(data=st.data())
def test_what_is_not_finite_is_not_lost(build: str, data: st.DataObject) -> None:
    """NaN in a query, in a key or in a value that is seen makes NaN, as it does on torch."""
    query, position, parts, window, slopes = drawn(data)
    part = parts[-1]  # the newest position is always seen
    query, key, value = query.clone(), part.key.clone(), part.value.clone()
    data.draw(st.sampled_from([query, key, value]))[..., 0] = data.draw(st.sampled_from([torch.nan, torch.inf]))
    arguments = query, position, [*parts[:-1], KeyValueBlock(key, value, part.position)], window, slopes
    expected = attend(*arguments)
    with built_for(build), torch.inference_mode():
        found = attend(*arguments)
    assert torch.equal(found.isnan(), expected.isnan())


@OF_EVERY_BUILD
@FEW
@given(data=st.data())
def test_denormal_and_huge_values(build: str, data: st.DataObject) -> None:
    """The result is linear in them."""
    query, position, parts, window, slopes = drawn(data)
    scale = data.draw(st.sampled_from([1e-315, 1e300]))
    parts = [part._replace(value=scale * part.value) for part in parts]
    expected = attend(query, position, parts, window, slopes)
    with built_for(build), torch.inference_mode():
        found = attend(query, position, parts, window, slopes)
    assert expected.any()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-320 + 1e-11 * expected.abs().max().item())


def test_calls_at_the_same_time_change_no_bit() -> None:
    def call(size: int) -> Tensor:
        part = KeyValueBlock(*torch.ones(2, 1, 2, size, 8).cumsum(2).sin().unbind(), torch.arange(size)[None])
        with torch.inference_mode():
            return attend(part.value[:, :, -1:], torch.tensor([[size - 1]]), [part], None, None)

    sizes = [1, 2, 30, 500, 2000] * 8
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(call, sizes))
    assert all(torch.equal(found, call(size)) for size, found in zip(sizes, together, strict=True))


def test_several_threads_take_heads_and_rows() -> None:
    parts = [KeyValueBlock(torch.randn(2, 4, 999, 32), torch.randn(2, 4, 999, 32), torch.arange(999).expand(2, -1))]
    query, position = torch.randn(2, 8, 1, 32), torch.full((2, 1), 998)
    with torch.inference_mode():
        alone = attend(query, position, parts, None, None)
        torch.set_num_threads(2)
        try:
            together = attend(query, position, parts, None, None)
        finally:
            torch.set_num_threads(1)
    assert torch.equal(alone, together)


def test_torch_does_what_the_kernel_cannot() -> None:
    query = torch.randn(1, 2, 1, 8)
    part = KeyValueBlock(torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8), torch.arange(3)[None])
    assert "gradient" in str(attention_step_refuses(query, [part]))
    with torch.inference_mode():
        assert attention_step_refuses(query, [part]) is None
        assert "one position" in str(attention_step_refuses(query.expand(-1, -1, 2, -1), [part]))
        assert "dtype" in str(attention_step_refuses(query, [part, part._replace(value=part.value.double())]))
        assert "bfloat16" in str(attention_step_refuses(query.bfloat16(), [part._replace(key=query, value=query)][:0]))


@pytest.mark.parametrize("position", ["rotary", "alibi", "none"])
@pytest.mark.parametrize("window", [None, 70])
def test_generation_is_training(position: str, window: int | None) -> None:
    """Steps by the kernel give what the whole sequence gives, across the borders of blocks."""
    torch.manual_seed(0)
    mixer = Attention(8, n_heads=4, n_kv_heads=2, position=position, window=window, bias=True).double()  # type: ignore[arg-type]
    x = torch.randn(2, 150, 8, dtype=torch.float64)
    expected = mixer(x)
    with torch.inference_mode():
        state, outputs = mixer.init_state(2), []
        for x_t in x.unbind(1):
            y, state = mixer.step(x_t, state)
            outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), expected, rtol=1e-9, atol=1e-9)
