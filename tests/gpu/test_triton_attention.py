"""Attention by FlashAttention-2 in Triton, against its definition in float64.

The judge in float32 is the backend `tiled`, which is the same algorithm on torch; it widens what is narrower, which
tensor cores do not, so there the definition is.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import triton_checks
from torch import Tensor

from longreach.ops import AttentionMask, BackendError, attention, use_backend
from longreach.ops.attention_tiles import spans_of_tiles
from longreach.ops.triton import attention_plan, available
from longreach.ops.triton.attention_plan import FEW_ROWS, Tiling

LENGTHS = [(1, 1), (33, 33), (40, 70), (70, 40), (5, 90)]
"""Queries and keys: within a tile, across tiles, more of either, and so few that the keys are split."""
HEADS, GROUPS = 2, 1


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Tiles of 16 or 32, so that short inputs have several of each kind, and no more than 10 rows are few."""
    if "real_tiles" in request.fixturenames:
        return
    tilings = {"forward": Tiling(32, 16, 4, 1), "queries": Tiling(16, 32, 4, 1), "keys": Tiling(32, 16, 4, 1)}
    tilings["split"] = Tiling(16, 16, 4, 1)
    monkeypatch.setattr(attention_plan, "FEW_ROWS", 10)
    monkeypatch.setattr("longreach.ops.triton.attention.tiling", lambda kernel, *sizes: tilings[kernel])


@pytest.fixture
def real_tiles() -> None:
    """The tiles that users get."""


def table(l: int, size: int, shift: int = 0) -> Tensor:
    """Packed sequences of `size` positions, cut elsewhere in each row; the last ones line up at the end."""
    return torch.stack([(torch.arange(l) - l + s) // size for s in (shift, shift + size // 2)])


def masks(l: int, m: int) -> dict[str, AttentionMask]:
    """The masks to try for `l` queries and `m` keys in two rows."""
    padding = torch.arange(m) >= torch.tensor([[0], [m // 3]])
    packed = {"query_segment": table(l, 23), "key_segment": table(m, 23)}
    ragged = padding.cumsum(1) - 1
    return {
        "none": AttentionMask(),
        "causal": AttentionMask(causal=True),
        "window": AttentionMask(window=9),
        "causal-window": AttentionMask(causal=True, window=30),
        "causal-padding": AttentionMask(causal=True, key_mask=padding.flip(1)),
        "causal-packed": AttentionMask(causal=True, **packed),
        "positions": AttentionMask(True, 40, padding, None, None, (torch.arange(l) + m - l)[None], ragged),
        "everything": AttentionMask(True, 20, padding, **packed),
        "nobody": AttentionMask(key_mask=torch.arange(m).expand(2, -1) < torch.tensor([[0], [1]])),
    }


def on(device: torch.device, mask: AttentionMask) -> AttentionMask:
    """The mask with its tensors there."""
    return AttentionMask(*(x.to(device) if isinstance(x, Tensor) else x for x in mask))


def triple(
    l: int, m: int, device: torch.device, dtype: torch.dtype, widths: tuple[int, int] = (16, 16)
) -> list[Tensor]:
    """Query, key and value of two rows, not contiguous."""
    shapes = (l, HEADS, widths[0]), (m, GROUPS, widths[0]), (m, GROUPS, widths[1])
    return [torch.randn(2, *shape, device=device, dtype=dtype).transpose(1, 2) for shape in shapes]


def assert_like_torch(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Value and all gradients."""
    judge = "tiled" if inputs[0].dtype == torch.float32 else "reference"
    triton_checks.assert_like_torch("attention", function, inputs, judge=judge)


def called(mask: AttentionMask, **options: Any) -> Callable[..., Tensor]:
    """Attention as a function of query, key, value and, if given, slopes; other tensors as wide as these."""

    def function(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None = None) -> Tensor:
        floats = {k: x.to(query.dtype) if k == "bias" else x for k, x in options.items()}
        return attention(query, key, value, mask, alibi_slopes=slopes, **floats)

    return function


@pytest.mark.parametrize(("l", "m"), LENGTHS)
@pytest.mark.parametrize("mask", masks(1, 1))
def test_masks(mask: str, l: int, m: int, device: torch.device) -> None:
    assert_like_torch(called(on(device, masks(l, m)[mask])), triple(l, m, device, torch.float32))


def terms(m: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """The options to try besides masks."""
    bias = torch.randn(1, HEADS, 1, m, device=device)
    bias[..., ::3] = -torch.inf
    dropout = {"dropout": 0.4, "dropout_seed": torch.tensor(-7, device=device)}
    return {
        "plain": {},
        "scale": {"scale": 0.3},
        "softcap": {"softcap": 0.7},
        "slopes": {"slopes": True},
        "bias": {"bias": bias},
        "dropout": dropout,
        "all": {"scale": 0.9, "softcap": 2.0, "bias": bias, "slopes": True, **dropout},
    }


def compare(l: int, m: int, device: torch.device, dtype: torch.dtype, term: str, mask: str) -> None:
    options = dict(terms(m, device)[term])
    slopes = [torch.rand(HEADS, device=device, dtype=dtype)] if options.pop("slopes", False) else []
    inputs = [*triple(l, m, device, dtype), *slopes]
    assert_like_torch(called(on(device, masks(l, m)[mask]), **options), inputs)


@pytest.mark.parametrize(("l", "m"), [(40, 70), (5, 90)])
@pytest.mark.parametrize("mask", ["none", "everything"])
@pytest.mark.parametrize("term", ["scale", "softcap", "slopes", "bias", "dropout", "all"])
def test_terms(term: str, mask: str, l: int, m: int, device: torch.device) -> None:
    compare(l, m, device, torch.float32, term, mask)


@pytest.mark.parametrize(("l", "m"), [(40, 70), (5, 90)])
@pytest.mark.parametrize("term", ["plain", "all"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype: torch.dtype, term: str, l: int, m: int, device: torch.device) -> None:
    compare(l, m, device, dtype, term, "causal")


@pytest.mark.parametrize("l", [2, 20])
@pytest.mark.parametrize("widths", [(1, 16), (5, 40), (64, 8), (48, 256), (256, 1)])
def test_widths(widths: tuple[int, int], l: int, device: torch.device) -> None:
    assert_like_torch(called(AttentionMask(True)), triple(l, 40, device, torch.float32, widths))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("l", "m"), [(140, 170), (FEW_ROWS // 2, 300), (1, 600)])
def test_the_tiles_that_users_get(dtype: torch.dtype, l: int, m: int, device: torch.device, real_tiles: None) -> None:
    assert_like_torch(called(AttentionMask(True, window=140)), triple(l, m, device, dtype, (64, 64)))


def test_small_values_keep_their_digits_under_a_wide_soft_cap(device: torch.device) -> None:
    inputs = triple(20, 20, device, torch.float32)
    assert_like_torch(called(AttentionMask(), softcap=50.0), [0.3 * x for x in inputs])


def test_huge_scores_do_not_overflow(device: torch.device) -> None:
    """Their gradients have few digits left, as scores are rounded by much of a weight; but they are finite."""
    query, key, value = triple(40, 40, device, torch.float32)
    for few in (query, query[:, :, -2:]):
        inputs = [x.requires_grad_() for x in (1e3 * few, key, value)]
        results = []
        for backend in ("triton", "tiled", "reference"):
            wide = [x.detach().double() for x in inputs] if backend == "reference" else inputs
            with use_backend(attention=backend):
                results.append(attention(*wide, AttentionMask(True)))
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(results[0].sum(), inputs))
        triton_checks.assert_as_exact(*([x.detach()] for x in results))


def test_inputs_that_are_parts_of_others(device: torch.device) -> None:
    """Rows that begin where no 16 bytes do, elements with gaps between them, rows that are one in memory."""
    whole = torch.randn(2, HEADS, 40, 33, device=device)
    gaps, shifted, one = whole[..., ::2][..., :16], whole[..., 1:17], whole[:1, :, :1, :16].expand(2, -1, 40, -1)
    for inputs in ((gaps, shifted, one), (shifted, one, gaps), (one, gaps, shifted)):
        assert_like_torch(called(AttentionMask(True)), inputs)


def test_the_same_bits_every_time(device: torch.device) -> None:
    options = {"dropout": 0.2, "dropout_seed": torch.tensor(3, device=device)}
    inputs = [x.requires_grad_() for x in triple(40, 70, device, torch.float32)]
    slopes, results = torch.rand(HEADS, device=device, requires_grad=True), []
    for _ in range(triton_checks.repetitions(device)):
        with use_backend(attention="triton"):
            y = called(AttentionMask(True), **options)(*inputs, slopes)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), (*inputs, slopes))])
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, results[0], strict=True))


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_what_is_not_a_number_stays_in_its_row(device: torch.device) -> None:
    query, key, value = triple(40, 40, device, torch.float32)
    with use_backend(attention="triton"):
        expected = attention(query, key, value, AttentionMask(True))
        query[1, 1, 17] = torch.nan
        actual = attention(query, key, value, AttentionMask(True))
    assert actual[1, 1, 17].isnan().all()
    actual[1, 1, 17] = expected[1, 1, 17]
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(("b", "l", "m"), [(0, 3, 3), (2, 0, 3), (2, 3, 0)])
def test_nothing_in_is_nothing_out(b: int, l: int, m: int, device: torch.device) -> None:
    inputs = [torch.randn(b, HEADS, n, 16, device=device, requires_grad=True) for n in (l, m, m)]
    with use_backend(attention="triton"):
        y = attention(*inputs)
    assert y.shape == (b, HEADS, l, 16)
    assert not y.any()
    assert all(not g.any() for g in torch.autograd.grad(y.sum(), inputs))


def test_lengths_do_not_compile_anew(device: torch.device, variants: set[tuple[str, str]], real_tiles: None) -> None:
    """One variant of each kernel, and of splitting one for few rows and one for more, whatever the lengths are."""
    lengths = [1, 2, 3, 7, 16, 17, 32, 33, 64, 65, 96, 100, 128, 130, 144, 160]
    for l in lengths:
        inputs = [torch.randn(1, 1, l, 16, device=device, requires_grad=True) for _ in range(3)]
        with use_backend(attention="triton"):
            y = attention(*inputs, AttentionMask(True))
            y.sum().backward()
    counts = {name: sum(name == found for found, _ in variants) for name, _ in variants}
    assert counts == {"forward": 3, "combine": 1, "gradient_of_queries": 1, "gradient_of_keys": 1}


def test_it_is_a_well_behaved_torch_operator(device: torch.device) -> None:
    query, key, value = (x.requires_grad_() for x in triple(20, 20, device, torch.float32))
    mask = on(device, masks(20, 20)["everything"])
    slopes, seed = torch.rand(HEADS, device=device, requires_grad=True), torch.tensor(7, device=device)
    arguments = (query, key, value, slopes, None, *mask, 0.9, 2.0, 0.2, seed)
    torch.library.opcheck(torch.ops.longreach.triton_attention.default, arguments)


def test_second_derivatives_are_refused(device: torch.device) -> None:
    query, key, value = (x.requires_grad_() for x in triple(4, 4, device, torch.float32))
    with use_backend(attention="triton"):
        (gradient,) = torch.autograd.grad(attention(query, key, value).square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match='use_backend\\(attention="reference"\\)'):
        gradient.sum().backward()


def test_what_has_no_kernel_is_refused(device: torch.device) -> None:
    query, key, value = triple(4, 4, device, torch.float32)
    bias = torch.zeros(1, 1, 4, 4, device=device, requires_grad=True)
    wide = torch.zeros(1, 1, 4, 257, device=device)
    for reason, inputs, options in [
        ("torch.float64", [x.double() for x in (query, key, value)], {}),
        ("one dtype", [query, key.half(), value], {}),
        ("wider than 256", [wide, wide, wide], {}),
        ("gradient for a bias", [query, key, value], {"bias": bias}),
    ]:
        assert reason in attention.refusal("triton", *inputs, **options)
        with use_backend(attention="triton"), pytest.raises(BackendError, match=reason):
            attention(*inputs, **options)


def test_torch_takes_what_it_has_a_kernel_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of tensors that say they are on a GPU, where there is none."""
    monkeypatch.setattr(available, "INTERPRETED", False)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        query = torch.empty(1, 2, 8, 16, device="cuda")
        mask = AttentionMask(key_mask=torch.ones(1, 8, dtype=torch.bool, device="cuda"))
        for expected, rule in [
            ("sdpa", AttentionMask()),
            ("sdpa", AttentionMask(causal=True)),
            ("triton", AttentionMask(causal=True, window=3)),
            ("triton", mask),
        ]:
            reasons = attention.explain(query, query, query, rule)
            assert [name for name, reason in reasons.items() if reason is None][-1] == expected


@pytest.mark.parametrize("mask", masks(1, 1))
@pytest.mark.parametrize("of_keys", [False, True])
def test_spans_of_tiles_miss_no_pair(mask: str, of_keys: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longreach.ops.attention_tiles.SPAN", 6)
    l, m, tile = 40, 70, (8, 16)
    located = masks(l, m)[mask].located(l, m, torch.device("cpu"))
    spans = spans_of_tiles(located, (l, m), tile, of_keys=of_keys)
    allowed = located.allowed().mT if of_keys else located.allowed()
    size, n_others = tile[of_keys], allowed.shape[2]
    assert spans.shape[1] == -(-allowed.shape[1] // size)
    assert (spans[..., 0] <= spans[..., 1]).all()
    assert spans.min() >= 0
    assert spans.max() <= n_others
    inside = torch.zeros_like(allowed)
    for row, block in itertools.product(range(len(spans)), range(spans.shape[1])):
        start, stop = spans[row, block].tolist()
        inside[row, block * size : (block + 1) * size, start:stop] = True
    assert not (allowed & ~inside).any()
    if mask == "causal":
        assert not inside.all()
