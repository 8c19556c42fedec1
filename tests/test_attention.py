"""The attention operator: what it is, that every backend computes it, and that its memory is linear."""

import inspect
import itertools
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from longreach.errors import InputError
from longreach.ops import OPS, AttentionMask, BackendError, attention, attention_tiled, native, use_backend

TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}
LENGTHS = [(1, 1), (1, 70), (5, 5), (65, 65), (66, 140), (140, 66)]
"""Queries and keys: within a tile, across tiles, more of either."""


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest tiles, 64 by 64, so that short inputs have several."""
    monkeypatch.setattr(attention_tiled, "TILE", 1)


def segments(length: int, size: int) -> Tensor:
    """Packed sequences of `size` positions, cut elsewhere in each row; the last ones line up at the end."""
    return torch.stack([(torch.arange(length) - length + shift) // size for shift in (0, size // 2)])


def masks(l: int, m: int) -> dict[str, AttentionMask]:
    """The masks to try for `l` queries and `m` keys in two rows."""
    padding = torch.arange(m) >= torch.tensor([[0], [m // 3]])
    ragged = padding.cumsum(1) - 1
    packed = {"query_segment": segments(l, 23), "key_segment": segments(m, 23)}
    return {
        "none": AttentionMask(),
        "causal": AttentionMask(causal=True),
        "window": AttentionMask(window=9),
        "causal-window": AttentionMask(causal=True, window=30),
        "padding": AttentionMask(key_mask=padding),
        "causal-padding": AttentionMask(causal=True, key_mask=padding.flip(1)),
        "packed": AttentionMask(**packed),
        "causal-packed": AttentionMask(causal=True, **packed),
        "positions": AttentionMask(True, 40, padding, None, None, (torch.arange(l) + m - l).expand(2, -1), ragged),
        "everything": AttentionMask(True, 20, padding, **packed),
        "nobody": AttentionMask(key_mask=torch.arange(m).expand(2, -1) < torch.tensor([[0], [1]])),
    }


def real(*shape: int) -> Tensor:
    """Random numbers in float64 that want gradients."""
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def terms(l: int, m: int) -> dict[str, dict[str, Any]]:
    """The options to try besides masks, for four heads."""
    seed = torch.tensor(7)
    forbidding = torch.randn(1, 4, 1, m, dtype=torch.float64)
    forbidding[..., ::3] = -torch.inf
    return {
        "plain": {},
        "scale": {"scale": 0.3},
        "softcap": {"softcap": 0.7},
        "alibi": {"alibi_slopes": real(4)},
        "bias": {"bias": real(2, 4, l, m)},
        "bias-of-keys": {"bias": forbidding},
        "bias-of-queries-and-heads": {"bias": real(1, 4, l, 1)},
        "bias-of-rows": {"bias": real(2, 1, 1, m)},
        "dropout": {"dropout": 0.4, "dropout_seed": seed},
        "all": {
            "scale": 0.9,
            "softcap": 2.0,
            "alibi_slopes": real(4),
            "bias": real(1, 1, l, m),
            "dropout": 0.2,
            "dropout_seed": seed,
        },
    }


def triple(l: int, m: int, *, groups: int = 2, value_width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of two rows and four heads, not contiguous."""
    shapes = (l, 4, 5), (m, groups, 5), (m, groups, value_width)
    query, key, value = (torch.randn(2, *shape, dtype=torch.float64).transpose(1, 2) for shape in shapes)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def one_by_one(query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, **options: Any) -> Tensor:
    """Attention as its docstring says it, number by number."""
    (b, h, l, e), (_, g, m, _) = query.shape, key.shape
    output = torch.zeros(b, h, l, value.shape[3], dtype=torch.float64)
    for row, head, i in itertools.product(range(b), range(h), range(l)):
        position = m - l + i if mask.query_position is None else int(mask.query_position[row, i])
        group, weights = head * g // h, {}
        for j in range(m):
            distance = position - (j if mask.key_position is None else int(mask.key_position[row, j]))
            hidden = (
                (mask.causal and distance < 0)
                or (mask.window is not None and abs(distance) >= mask.window)
                or (mask.key_mask is not None and not mask.key_mask[row, j])
                or (mask.query_segment is not None and mask.query_segment[row, i] != mask.key_segment[row, j])
            )
            if hidden:
                continue
            score = float(query[row, head, i] @ key[row, group, j]) * (options.get("scale") or 1 / math.sqrt(e))
            if cap := options.get("softcap"):
                score = cap * math.tanh(score / cap)
            if "alibi_slopes" in options:
                score -= float(options["alibi_slopes"][head]) * abs(distance)
            if "bias" in options:
                score += float(options["bias"].expand(b, h, l, m)[row, head, i, j])
            weights[j] = math.exp(score)
        for j, weight in weights.items():
            output[row, head, i] += weight / sum(weights.values()) * value[row, group, j]
    return output


def run(backend: str, inputs: tuple[Tensor, ...], mask: AttentionMask, options: dict[str, Any]) -> Tensor:
    """One call on one backend."""
    with use_backend(attention=backend):
        return attention(*inputs, mask, **options)


@pytest.mark.parametrize("mask", masks(1, 1))
@pytest.mark.parametrize(("l", "m"), [(1, 4), (5, 5), (3, 6), (6, 3)])
def test_the_reference_is_what_it_says(mask: str, l: int, m: int) -> None:
    inputs = [x.detach() for x in triple(l, m, value_width=3)]
    rule = masks(l, m)[mask]
    rule = rule._replace(window=None if rule.window is None else 2)
    for options in (
        {},
        {"scale": 0.3, "softcap": 0.5, "alibi_slopes": real(4).detach(), "bias": real(2, 1, l, m).detach()},
    ):
        with use_backend(attention="reference"):
            torch.testing.assert_close(
                attention(*inputs, rule, **options), one_by_one(*inputs, rule, **options), **TOLERANCE
            )


def compare(backend: str, l: int, m: int, mask: AttentionMask, options: dict[str, Any], **sizes: int) -> None:
    """Assert that a backend has the values and all derivatives of the reference, or refuses."""
    inputs = triple(l, m, **sizes)
    if reason := attention.refusal(backend, *inputs, mask, **options):
        with pytest.raises(BackendError, match=reason):
            run(backend, inputs, mask, options)
        return
    wanted = [x for x in (*inputs, *options.values()) if isinstance(x, Tensor) and x.requires_grad]
    expected = run("reference", inputs, mask, options)
    actual = run(backend, inputs, mask, options)
    torch.testing.assert_close(actual, expected, **TOLERANCE)
    cotangent = torch.randn_like(expected)
    gradients = (torch.autograd.grad(y, wanted, cotangent) for y in (actual, expected))
    for a, e in zip(*gradients, strict=True):
        torch.testing.assert_close(a, e, **TOLERANCE)


REFERENCE_OR_ELSEWHERE = ("reference", "triton", *(["native"] if native.MISSING else []))
FAST = [name for name in attention.backends if name not in REFERENCE_OR_ELSEWHERE]  # Triton has tests of its own
WITH_KERNELS = pytest.mark.skipif(native.MISSING is not None, reason=f"{native.MISSING}")
NATIVE = pytest.param("native", marks=WITH_KERNELS)


@pytest.mark.parametrize(("l", "m"), LENGTHS)
@pytest.mark.parametrize("mask", masks(1, 1))
@pytest.mark.parametrize("backend", FAST)
def test_masks(backend: str, mask: str, l: int, m: int) -> None:
    compare(backend, l, m, masks(l, m)[mask], {})


@pytest.mark.parametrize(("l", "m"), LENGTHS)
@pytest.mark.parametrize("term", terms(1, 1))
@pytest.mark.parametrize("backend", FAST)
def test_terms(backend: str, term: str, l: int, m: int) -> None:
    compare(backend, l, m, AttentionMask(), terms(l, m)[term])
    compare(backend, l, m, masks(l, m)["padding"], terms(l, m)[term])


@pytest.mark.parametrize("term", terms(1, 1))
@pytest.mark.parametrize("backend", FAST)
def test_terms_with_every_kind_of_mask(backend: str, term: str) -> None:
    compare(backend, 70, 90, masks(70, 90)["everything"], terms(70, 90)[term])


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("value_width", [1, 5, 8])
@pytest.mark.parametrize("backend", FAST)
def test_grouped_heads_and_widths_of_values(backend: str, groups: int, value_width: int) -> None:
    compare(backend, 67, 67, AttentionMask(causal=True), {}, groups=groups, value_width=value_width)


def test_every_term_with_the_smallest_tiles_is_a_derivative() -> None:
    """Finite differences, which do not share a mistake with the reference."""
    options = terms(70, 70)["all"]

    def function(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor, bias: Tensor) -> Tensor:
        rule = masks(70, 70)["everything"]
        return attention(query, key, value, rule, **(options | {"alibi_slopes": slopes, "bias": bias}))

    with use_backend(attention="tiled"):
        arguments = (*triple(70, 70), options["alibi_slopes"], options["bias"])
        assert torch.autograd.gradcheck(function, arguments, fast_mode=True, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("backend", "term"),
    [
        ("sdpa", "plain"),
        *(("tiled", term) for term in ("plain", "softcap", "alibi", "bias", "dropout")),
        *(pytest.param("native", term, marks=WITH_KERNELS) for term in ("plain", "softcap", "alibi", "dropout")),
    ],
)
def test_error_in_low_precision_is_no_worse_than_that_of_the_reference(
    backend: str, term: str, dtype: torch.dtype
) -> None:
    """The yardstick is the reference's own rounding error (the rule of FlashAttention), never a picked tolerance."""
    mask, options = AttentionMask(causal=term != "plain"), terms(150, 150)[term]
    low = {
        k: x.detach().to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for k, x in options.items()
    }
    exact = {k: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for k, x in low.items()}
    inputs = [x.detach().to(dtype).requires_grad_() for x in triple(150, 150)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    cotangent = torch.randn(2, 4, 150, 5).to(dtype)
    results = []
    for name, arguments, settings in ((backend, inputs, low), ("reference", inputs, low), ("reference", wide, exact)):
        y = run(name, tuple(arguments), mask, settings)
        assert y.dtype == arguments[0].dtype
        results.append([y, *torch.autograd.grad(y, arguments, cotangent.to(y.dtype))])
    for ours, reference, truth in zip(*results, strict=True):
        allowed = 4 * (reference.double() - truth).abs().max()
        assert allowed < truth.abs().max(), "the bound would let zeros pass"
        assert (ours.double() - truth).abs().max() <= allowed


def test_huge_scores_do_not_overflow() -> None:
    query, key, value = (x.detach() for x in triple(70, 70))
    for size in (1e3, 1e6):
        expected = run("reference", (size * query, key, value), AttentionMask(True), {})
        for backend in FAST:
            actual = run(backend, (size * query, key, value), AttentionMask(True), {})
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_who_sees_nobody_gets_zero_and_no_gradient(backend: str) -> None:
    inputs = triple(9, 9, value_width=5)
    y = run(backend, inputs, AttentionMask(key_mask=torch.zeros(2, 9, dtype=torch.bool)), {})
    assert not y.any()
    assert all(not g.any() for g in torch.autograd.grad(y.sum(), inputs))


def test_second_derivatives_are_exact_or_refused() -> None:
    inputs, mask = triple(4, 4), AttentionMask(causal=True)
    with use_backend(attention="reference"):
        assert torch.autograd.gradgradcheck(lambda *x: attention(*x, mask), inputs, fast_mode=True)
    for backend in FAST:
        y = run(backend, inputs, mask, {})
        (gradient,) = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)
        with pytest.raises(RuntimeError, match='use_backend\\(attention="reference"\\)'):
            gradient.sum().backward()


@pytest.mark.parametrize("backend", ["tiled", NATIVE])
def test_gradients_only_where_they_are_wanted(backend: str) -> None:
    query, key, value = triple(6, 6)
    with use_backend(attention=backend):
        y = attention(query.detach(), key, value.detach(), AttentionMask(causal=True))
        expected = torch.autograd.grad(run("reference", (query, key, value), AttentionMask(causal=True), {}).sum(), key)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), key), expected, **TOLERANCE)


def test_gradients_have_the_dtypes_of_what_they_belong_to() -> None:
    """As under autocast, where queries are rounded and a bias that is trained is not."""
    query, key, value = (x.detach().bfloat16().requires_grad_() for x in triple(9, 9))
    bias, slopes = torch.randn(1, 4, 9, 9, requires_grad=True), torch.rand(4, requires_grad=True)
    with use_backend(attention="tiled"):
        attention(query, key, value, bias=bias, alibi_slopes=slopes).sum().backward()
    assert [x.grad.dtype for x in (query, key, value)] == [torch.bfloat16] * 3
    assert [x.grad.dtype for x in (bias, slopes)] == [torch.float32] * 2
    assert (bias.grad != bias.grad.bfloat16()).any()
    assert (slopes.grad != slopes.grad.bfloat16()).any()


def test_tiled_attention_is_a_well_behaved_torch_operator() -> None:
    options = terms(9, 9)["all"]
    mask = AttentionMask(True, 5).located(9, 9, torch.device("cpu"))
    arguments = (*triple(9, 9), options["alibi_slopes"], options["bias"], *mask, 0.9, 2.0, 0.2, torch.tensor(7))
    torch.library.opcheck(torch.ops.longreach.tiled_attention.default, arguments)


def test_the_last_query_stands_at_the_last_key() -> None:
    """The result for the last queries alone is the end of the result for all of them."""
    query, key, value = triple(90, 90)
    for mask in (AttentionMask(True), AttentionMask(window=8), AttentionMask(True, 30)):
        whole, end = attention(query, key, value, mask), attention(query[:, :, 60:], key, value, mask)
        torch.testing.assert_close(end, whole[:, :, 60:], **TOLERANCE)


def test_the_same_weights_are_dropped_on_every_call_with_a_seed() -> None:
    inputs, mask = triple(80, 80), AttentionMask()

    def dropped(seed: int) -> Tensor:
        return attention(*inputs, mask, dropout=0.5, dropout_seed=torch.tensor(seed))

    assert torch.equal(dropped(3), dropped(3))
    assert not torch.allclose(dropped(3), dropped(4))


@pytest.mark.parametrize(
    ("expected", "mask", "options"),
    [
        ("sdpa", AttentionMask(), {}),
        ("sdpa", AttentionMask(causal=True), {}),
        ("sdpa", AttentionMask(key_mask=torch.ones(2, 32, dtype=torch.bool)), {}),
        ("sdpa", AttentionMask(), {"bias": torch.zeros(1, 1, 32, 32, dtype=torch.float64)}),
        pytest.param("native", AttentionMask(causal=True, window=3), {}, marks=WITH_KERNELS),
        pytest.param("native", AttentionMask(), {"softcap": 1.0}, marks=WITH_KERNELS),
        ("tiled", AttentionMask(causal=True), {"bias": torch.zeros(1, 1, 32, 32, dtype=torch.float64)}),
    ],
)
def test_the_choice_of_backends(expected: str, mask: AttentionMask, options: dict[str, Any]) -> None:
    assert attention.choose(*triple(32, 32), mask, **options) == expected


@WITH_KERNELS
def test_many_pairs_of_queries_and_keys_are_for_the_compiled_kernel() -> None:
    assert attention.choose(*triple(100, 100), AttentionMask(causal=True)) == "native"
    assert attention.choose(*triple(15, 9000)) == "sdpa"
    assert attention.choose(*triple(100, 100), bias=torch.zeros(1, 1, 100, 100, dtype=torch.float64)) == "sdpa"


def test_torch_is_not_asked_for_what_it_would_do_in_quadratic_memory() -> None:
    assert "another width" in attention.refusal("sdpa", *triple(4, 4, value_width=3))
    assert "trainable bias" in attention.refusal("sdpa", *triple(4, 4), bias=real(1, 1, 4, 4))
    dropout = {"dropout": 0.1, "dropout_seed": torch.tensor(0)}
    assert "dropout" in attention.refusal("sdpa", *triple(4, 4), **dropout)


def test_a_forced_backend_never_falls_back() -> None:
    with use_backend(attention="sdpa"), pytest.raises(BackendError, match="no sliding window"):
        attention(*triple(4, 4), AttentionMask(window=2))


@pytest.mark.parametrize(
    ("message", "mask", "options"),
    [
        ("window=0", AttentionMask(window=0), {}),
        ("query_segment and key_segment", AttentionMask(key_segment=torch.zeros(2, 4, dtype=torch.int64)), {}),
        ("query_position and key_position", AttentionMask(query_position=torch.zeros(2, 4, dtype=torch.int64)), {}),
        ("dropout=1.0", AttentionMask(), {"dropout": 1.0, "dropout_seed": torch.tensor(1)}),
        ("needs dropout_seed", AttentionMask(), {"dropout": 0.1}),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "tiled", NATIVE])
def test_what_makes_no_sense_is_refused(
    backend: str, message: str, mask: AttentionMask, options: dict[str, Any]
) -> None:
    with use_backend(attention=backend), pytest.raises(InputError, match=message):
        attention(*triple(4, 4), mask, **options)


def test_heads_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(InputError, match="4 query heads cannot share 3"):
        attention(*triple(4, 4, groups=3))


@pytest.mark.parametrize("operation", ["attention", "linear_cross_entropy"])
def test_backends_share_the_signature(operation: str) -> None:
    expected = list(inspect.signature(OPS[operation].backends["reference"]).parameters)
    for backend in OPS[operation].backends.values():
        assert list(inspect.signature(backend).parameters) == expected


MEMORY = """
import resource, torch
from longreach.ops import AttentionMask, attention, use_backend
torch.set_num_threads(1)
def run(l, mask, **options):
    inputs = [torch.randn(1, 1, l, 8, requires_grad=True) for _ in range(3)]
    with use_backend(attention={backend!r}):
        attention(*inputs, mask, **options).sum().backward()
run(64, {mask})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(8_000, {mask})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is that of Linux")
@pytest.mark.parametrize(
    ("backend", "mask"),
    [
        ("tiled", "AttentionMask(True), softcap=3.0"),
        pytest.param("native", "AttentionMask(True), softcap=3.0", marks=WITH_KERNELS),
        ("sdpa", "AttentionMask(True)"),
    ],
)
def test_memory_is_linear(backend: str, mask: str) -> None:
    """A single square of scores would take 256 MB; the tiles and what is kept for the gradients, a few."""
    program = MEMORY.format(backend=backend, mask=mask)
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert int(result.stdout) < 80_000
