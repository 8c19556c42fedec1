"""Linear attention: both backends mean what the definition says, in every precision and however a sequence is cut."""

import pytest
import torch
from torch import Tensor

from longreach.errors import InputError
from longreach.ops import linear_attention, use_backend
from longreach.ops import linear_attention as op

TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}
CHUNK = 128


def random_arguments(length: int, features: int = 5, width: int = 3) -> tuple[Tensor, ...]:
    """Query, key, value and sums to start from, in float64."""
    shapes = (2, 3, length, features), (2, 3, length, features), (2, 3, length, width), (2, 3, features, width)
    return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("backend", op.backends)
def test_the_definition(backend: str, causal: bool) -> None:
    query, key, value, initial = random_arguments(4)
    with use_backend(linear_attention=backend):
        y, final = linear_attention(query, key, value, initial, causal=causal)
    for t in range(4):
        expected = query[1, 2, t] @ initial[1, 2]
        for s in range(t + 1 if causal else 4):
            expected = expected + (query[1, 2, t] @ key[1, 2, s]) * value[1, 2, s]
        torch.testing.assert_close(y[1, 2, t], expected, **TOLERANCE)
    outer = sum(key[1, 2, s][:, None] * value[1, 2, s] for s in range(4))
    torch.testing.assert_close(final[1, 2], initial[1, 2] + outer, **TOLERANCE)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_backends_agree_in_values_and_gradients(length: int, causal: bool) -> None:
    arguments = [x.requires_grad_() for x in random_arguments(length)]
    results, cotangents = [], [torch.randn(2, 3, length, 3).double(), torch.randn(2, 3, 5, 3).double()]
    for backend in ("chunked", "reference"):
        with use_backend(linear_attention=backend):
            found = linear_attention(*arguments, causal=causal)
        results.append([*found, *torch.autograd.grad(found, arguments, cotangents)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("backend", op.backends)
def test_first_and_second_derivatives(backend: str, causal: bool) -> None:
    arguments = [x.requires_grad_() for x in random_arguments(CHUNK + 2 if backend == "chunked" else 5)]
    with use_backend(linear_attention=backend):
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            assert check(lambda *x: linear_attention(*x, causal=causal), arguments, fast_mode=True, rtol=1e-5)


def test_a_sequence_can_be_cut_anywhere() -> None:
    query, key, value, state = random_arguments(300)
    expected, final = linear_attention(query, key, value, state)
    outputs = []
    for part in (slice(0, 1), slice(1, 140), slice(140, 300)):
        y, state = linear_attention(query[:, :, part], key[:, :, part], value[:, :, part], state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=2), expected, **TOLERANCE)
    torch.testing.assert_close(state, final, **TOLERANCE)


def test_a_column_of_ones_gives_the_sum_of_the_weights() -> None:
    query, key, value, _ = (x.abs() for x in random_arguments(200))
    y, _ = linear_attention(query, key, torch.nn.functional.pad(value, (0, 1), value=1.0))
    weights = (query @ key.mT).tril()
    torch.testing.assert_close(y[..., :-1] / y[..., -1:], weights / weights.sum(-1, keepdim=True) @ value, **TOLERANCE)


def test_the_sums_are_no_view_of_something_larger() -> None:
    query, key, value, _ = random_arguments(1000)
    _, final = linear_attention(query, key, value)
    assert final.untyped_storage().nbytes() == final.numel() * final.element_size()


@pytest.mark.parametrize("causal", [True, False])
def test_float32_error_is_that_of_the_reference(causal: bool) -> None:
    low = [x.abs().float() for x in random_arguments(1000, features=32, width=32)]
    exact, _ = linear_attention(*(x.double() for x in low), causal=causal)
    errors = []
    for backend in ("chunked", "reference"):
        with use_backend(linear_attention=backend):
            y, _ = linear_attention(*low, causal=causal)
        assert y.dtype == torch.float32
        errors.append((y - exact).norm())
    assert errors[1] < 1e-5 * exact.norm()
    assert errors[0] <= 4 * errors[1] + 1e-7 * exact.norm()  # sums over chunks are shorter than sums over everything


def test_autocast_and_half_precision_do_not_reach_the_sums() -> None:
    half = [x.bfloat16() for x in random_arguments(300)]
    exact, final = linear_attention(*(x.double() for x in half))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = linear_attention(*half)
    assert (y.dtype, state.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(state.double(), final, rtol=1e-4, atol=1e-3)


def test_memory_is_linear_in_the_length() -> None:
    """What is kept for the backward pass at four times the length takes four times the memory."""

    def kept(length: int) -> int:
        arguments = [x.requires_grad_() for x in random_arguments(length)]
        storages: dict[int, int] = {}

        def keep(x: Tensor) -> Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            y, _ = linear_attention(*arguments)
        assert y.shape[2] == length
        return sum(storages.values())

    assert kept(4096) < 4.5 * kept(1024)


def test_shapes_that_do_not_fit_are_refused() -> None:
    query, key, value, initial = random_arguments(4)
    for arguments in ((query, key[..., :2], value), (query, key, value[:, :, :3]), (query, key, value, initial.mT)):
        with pytest.raises(InputError, match=r"linear_attention: .*\(2, 3, 4, 5\)"):
            linear_attention.backends["chunked"](*arguments)
