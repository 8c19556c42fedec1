"""Calls of the operators that have compiled kernels, of any shape and with tensors that lie anywhere in memory."""

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from longreach.ops import OPS, AttentionMask, WKVState, native

BUILDS = [name for name in native.instruction_sets() if (native.FOLDER / f"{name}.so").exists()]
"""Every set of kernels that this processor can run, also those that are not the best."""

DEFINED = 300
"""Up to this length a call is compared with the definition; above with torch, which test_ops.py compares with that."""


def differentiable(x: Any) -> bool:
    """Whether an argument is a tensor of a kind that has gradients."""
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def chained(values: Sequence[Any]) -> list[Any]:
    """Each that has gradients computed from the one before, too."""
    made: list[Any] = []
    latest = torch.zeros(())
    for x in values:
        if differentiable(x):
            x = x + 0.1 * latest.abs().square().mean().to(x.real.dtype)
            latest = x
        made.append(x)
    return made


def assert_derived_twice(function: Callable[..., Tensor], values: Sequence[Any]) -> None:
    """Gradients that have derivatives are the gradients that have none, and their derivatives are right."""
    wanted = [x for x in values if differentiable(x)]
    y = function(*values)
    cotangent = torch.randn_like(y)
    once = torch.autograd.grad(y, wanted, cotangent, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(y, wanted, cotangent, create_graph=True), once, rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True, rtol=1e-5, atol=1e-7)


class Call(NamedTuple):
    """What an operator is called with; the wanted gradients are those of all tensors but `constants`."""

    op: str
    length: int
    positional: tuple[Any, ...]
    named: dict[str, Any] = {}
    constants: tuple[int, ...] = ()
    """Positions of arguments that have no gradient."""

    def __repr__(self) -> str:
        """Shapes and strides instead of numbers."""

        def short(x: Any) -> str:
            return f"{tuple(x.shape)} by {x.stride()} {x.dtype}" if isinstance(x, Tensor) else repr(x)

        named = [f"{name}={short(x)}" for name, x in self.named.items()]
        return f"{self.op}({', '.join([*map(short, self.positional), *named])})"

    def tensors(self) -> list[Tensor]:
        """The tensors that have one."""
        wanted = [x for i, x in enumerate(self.positional) if i not in self.constants]
        flat = [x for part in (*wanted, *self.named.values()) for x in (part if isinstance(part, list) else [part])]
        return [x for x in flat if differentiable(x)]

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Call":
        """With `function` applied to every tensor that has a gradient."""

        def apply(x: Any, constant: bool = False) -> Any:
            if isinstance(x, list):
                return [apply(part, constant) for part in x]
            return function(x) if differentiable(x) and not constant else x

        positional = tuple(apply(x, i in self.constants) for i, x in enumerate(self.positional))
        return self._replace(positional=positional, named={name: apply(x) for name, x in self.named.items()})

    def single(self) -> "Call":
        """In single precision, constants included."""
        everything = self._replace(constants=())
        low = everything.mapped(lambda x: x.to(torch.complex64 if x.is_complex() else torch.float32))
        return low._replace(constants=self.constants)

    def double(self) -> "Call":
        """In double precision, constants included."""
        everything = self._replace(constants=())
        high = everything.mapped(lambda x: x.to(torch.complex128 if x.is_complex() else torch.float64))
        return high._replace(constants=self.constants)


@contextmanager
def built_for(instructions: str) -> Iterator[None]:
    """The kernels of another instruction set instead of the best."""
    before = native._LIBRARY
    native._LIBRARY = ctypes.CDLL(str(native.FOLDER / f"{instructions}.so"))
    native.kernel.cache_clear()
    try:
        yield
    finally:
        native._LIBRARY = before
        native.kernel.cache_clear()


def operator(name: str, backend: str) -> Callable[..., Tensor]:
    """One backend, called directly because `use_backend` is for one thread at a time, with a single result."""
    function = OPS[name].backends[backend]
    return functools.partial(AS_ONE[name], function) if name in AS_ONE else function


def _wkv_as_one(wkv: Callable[..., Any], *arguments: Any) -> Tensor:
    """The averages and both sums after them; every `period`-th position is padding, whose average is undefined."""
    *tensors, numerator, denominator, period = arguments
    real = None if period is None else torch.arange(1, tensors[2].shape[1] + 1) % period != 0
    mask = None if real is None else real.expand(len(numerator), -1)
    y, state = wkv(*tensors, WKVState(numerator, denominator, torch.zeros_like(numerator)), mask)
    y = y if real is None else y.masked_fill(~real[:, None], 0)
    return torch.cat([y, state.numerator[:, None], state.denominator[:, None]], dim=1)


AS_ONE: dict[str, Callable[..., Tensor]] = {"wkv": _wkv_as_one}
"""For operators with several results: what makes one of them."""


def results(call: Call, backend: str, cotangent: Tensor | None = None) -> list[Tensor]:
    """The values and the gradients; cotangents are random, and the same at every call, unless one is given."""
    call = call.mapped(lambda x: x.detach().requires_grad_())
    y = operator(call.op, backend)(*call.positional, **call.named)
    values, generator = y if isinstance(y, tuple) else (y,), torch.Generator().manual_seed(1)
    drawn = [torch.randn(value.shape, dtype=value.dtype, generator=generator) for value in values]
    cotangents = drawn if cotangent is None else [cotangent]
    return [*(value.detach() for value in values), *torch.autograd.grad(values, call.tensors(), cotangents)]


def expected(call: Call) -> list[Tensor]:
    """The value and the gradients by the definition, or by torch where the definition takes too long."""
    faster = {"long_conv": "fft", "linear_scan": "blocked", "wkv": "scan", "damped_average": "convolution"}
    backend = faster if call.length > DEFINED else {}
    return results(call, backend.get(call.op, "reference"))


def _chunk(x: Tensor) -> Tensor:
    """The second half of a tensor twice as wide, as projections are split."""
    return torch.cat([x, x], dim=1).chunk(2, dim=1)[1] if x.ndim > 1 else torch.cat([x, x])[len(x) :]


def _axes_reversed(x: Tensor) -> Tensor:
    axes = tuple(reversed(range(x.ndim)))
    return x.permute(axes).contiguous().permute(axes)


def _unaligned(x: Tensor) -> Tensor:
    """One element behind the address at which torch begins its tensors."""
    return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x,
    "chunk": _chunk,
    "axes reversed": _axes_reversed,
    "last two exchanged": lambda x: x.mT.contiguous().mT if x.ndim > 1 else x,
    "unaligned": _unaligned,
    "gaps": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "first row repeated": lambda x: x[:1].expand_as(x),
    "first element of a row repeated": lambda x: x[..., :1].expand_as(x),
    "conjugated": lambda x: x.conj().resolve_conj().conj(),
    "negated": lambda x: torch._neg_view(-x) if not x.is_complex() else x,
}
"""Ways for the same values to lie in memory; two of them make values the same first."""

LENGTHS = st.one_of(st.integers(1, 40), st.integers(1, DEFINED), st.sampled_from([512, 1021, 1025, 2500, 4096, 5000]))


SHORT = st.integers(1, 100)


@st.composite
def calls(draw: st.DrawFn, op: str, lengths: st.SearchStrategy[int] = LENGTHS) -> Call:
    """Any call of `op` in float64."""
    length = draw(lengths)
    most = 40 if length <= 40 else 20 if length <= DEFINED else 3
    sizes = draw(st.integers(0, 3)), draw(st.integers(1, most)), length
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    call = MAKERS[op](draw, sizes, lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator))
    return call.mapped(lambda x: LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](x) if x.numel() else x)


def _complex(randn: Callable[..., Tensor], *shape: int) -> Tensor:
    return torch.complex(randn(*shape), randn(*shape))


def _ratios(randn: Callable[..., Tensor], *shape: int) -> Tensor:
    """Logarithms of ratios within the unit circle, with phases of all sizes."""
    return torch.complex(-0.1 * randn(*shape).abs(), 3 * randn(*shape))


def _attention(draw: st.DrawFn, sizes: tuple[int, int, int], randn: Callable[..., Tensor]) -> Call:
    b, heads, l = min(sizes[0], 2), min(sizes[1], 4), min(sizes[2], DEFINED)
    m, e, f = draw(st.integers(1, DEFINED)), draw(st.integers(1, 40)), draw(st.integers(1, 40))
    groups = heads // draw(st.sampled_from([n for n in (1, 2, 3, 4) if heads % n == 0]))
    window = draw(st.sampled_from([None, 1, 10, 100]))
    key_mask = randn(b, m) > -1 if draw(st.booleans()) else None
    segments = [torch.arange(n)[None].expand(b, -1) // 50 if draw(st.booleans()) else None for n in (l, m)]
    packed = segments if all(x is not None for x in segments) else [None, None]
    mask = AttentionMask(draw(st.booleans()), window, key_mask, *packed)
    named: dict[str, Any] = {"scale": draw(st.sampled_from([None, 0.3, -1.0]))}
    if draw(st.booleans()):
        named["softcap"] = 2.0
    if draw(st.booleans()):
        named["alibi_slopes"] = 0.01 * randn(heads)
    if draw(st.booleans()):
        named |= {"dropout": 0.3, "dropout_seed": torch.tensor(draw(st.integers(-(2**62), 2**62)))}
    return Call("attention", l, (randn(b, heads, l, e), randn(b, groups, m, e), randn(b, groups, m, f), mask), named)


def _linear_cross_entropy(draw: st.DrawFn, sizes: tuple[int, int, int], randn: Callable[..., Tensor]) -> Call:
    n, vocabulary, width = sizes[2], draw(st.integers(2, DEFINED)), sizes[1]
    target = (3 * randn(n)).long().abs() % vocabulary
    target[::5] = -100
    bias = randn(vocabulary) if draw(st.booleans()) else None
    return Call("linear_cross_entropy", n, (randn(n, width), randn(vocabulary, width), target, bias))


def _long_conv(draw: st.DrawFn, sizes: tuple[int, int, int], randn: Callable[..., Tensor]) -> Call:
    b, d, l = sizes
    taps = st.one_of(st.just(l), st.integers(1, 2 * l))
    named: dict[str, Any] = {}
    if draw(st.booleans()):
        named = {"reverse_kernel": randn(d, draw(taps)), "reverse_lag": draw(st.integers(0, 1))}
    if draw(st.booleans()):
        named["skip"] = randn(d)
    for gate in ("gate_before", "gate_after"):
        if draw(st.booleans()):
            named[gate] = randn(b, d, l)
    return Call("long_conv", l, (randn(b, d, l), randn(d, draw(taps))), named)


def _linear_scan(draw: st.DrawFn, sizes: tuple[int, int, int], randn: Callable[..., Tensor]) -> Call:
    b, n, l = sizes
    n *= draw(st.sampled_from([1, 1, 7]))
    if draw(st.booleans()):
        return Call("linear_scan", l, (randn(b, l, n).tanh(), randn(b, l, n), randn(b, n)))
    a = _ratios(randn, b, l, n).exp()
    return Call("linear_scan", l, (a, _complex(randn, b, l, n), _complex(randn, b, n)))


def _damped_average(draw: st.DrawFn, sizes: tuple[int, int, int], randn: Callable[..., Tensor]) -> Call:
    b, d, l = sizes
    d *= draw(st.sampled_from([1, 1, 7]))
    averages = draw(st.integers(1, 2)), d, draw(st.integers(1, 9))
    return Call("damped_average", l, (randn(b, l, d), randn(*averages), randn(*averages).sigmoid(), randn(d)))


def _short_conv(draw: st.DrawFn, sizes: tuple[int, int, int], randn: Callable[..., Tensor]) -> Call:
    b, d, l = sizes
    width = draw(st.integers(1, 20))
    bias, tail = draw(st.booleans()), draw(st.booleans())
    optional = randn(d) if bias else None, randn(b, d, width - 1) if tail else None
    return Call("short_conv", l, (randn(b, d, l), randn(d, width), *optional))


def _modes(draw: st.DrawFn, channels: int, randn: Callable[..., Tensor]) -> Tensor:
    return _ratios(randn, draw(st.sampled_from([1, channels])), draw(st.integers(1, 20)))


def _vandermonde(draw: st.DrawFn, sizes: tuple[int, int, int], randn: Callable[..., Tensor]) -> Call:
    b, d, l = sizes
    modes = _modes(draw, d, randn)
    return Call("vandermonde", l, (_complex(randn, b, d, modes.shape[1]), modes, l))


def _vandermonde_adjoint(draw: st.DrawFn, sizes: tuple[int, int, int], randn: Callable[..., Tensor]) -> Call:
    return Call("vandermonde_adjoint", sizes[2], (randn(*sizes), _modes(draw, sizes[1], randn)))


def _cauchy(draw: st.DrawFn, sizes: tuple[int, int, int], randn: Callable[..., Tensor]) -> Call:
    b, d, k = sizes
    poles = torch.complex(-0.1 - randn(d, draw(st.integers(1, 20))).abs(), 3 * randn(1, 1)[0, 0].expand(d, 1))
    angle = torch.arange(k, dtype=torch.float64) / k
    points = torch.complex(torch.zeros_like(angle), 2 * torch.tan(3 * (angle - 0.5)))
    return Call("cauchy", k, (_complex(randn, b, *poles.shape), points, poles), constants=(1,))


def _transposed(draw: st.DrawFn, sizes: tuple[int, int, int], randn: Callable[..., Tensor]) -> Call:
    return Call("transposed", sizes[2], (randn(*sizes),))


def _wkv(draw: st.DrawFn, sizes: tuple[int, int, int], randn: Callable[..., Tensor]) -> Call:
    b, c, l = sizes
    c *= draw(st.sampled_from([1, 1, 7]))
    sequences = draw(st.sampled_from([1.0, 100.0])) * randn(b, l, c), randn(b, l, c)
    period = draw(st.sampled_from([None, 1, 2, 5]))
    return Call("wkv", l, (-randn(c).exp(), randn(c), *sequences, randn(b, c), randn(b, c).exp(), period))


def _modal_step(draw: st.DrawFn, sizes: tuple[int, int, int], randn: Callable[..., Tensor]) -> Call:
    b, d, l = sizes
    n, rank = draw(st.integers(1, 40)), draw(st.integers(0, 2))
    make = partial(_complex, randn) if draw(st.booleans()) else randn
    abar, bbar = (make(*draw(st.sampled_from([(d, n), (1, n), (b, d, n), (1, d, n)]))) for _ in range(2))
    low_rank = (make(rank, d, n), make(rank, d, n)) if rank else (None, None)
    skip = randn(d) if draw(st.booleans()) else None
    return Call("modal_step", l, (randn(b, d), make(b, d, n), abar, bbar, make(d, n), skip, *low_rank))


def _filter_step(draw: st.DrawFn, sizes: tuple[int, int, int], randn: Callable[..., Tensor]) -> Call:
    b, d, l = sizes
    width, taps = draw(st.integers(0, 70)), draw(st.integers(1, 70))
    added = [randn(b, d, 3)[..., 1] for _ in range(draw(st.integers(0, 3)))]
    bias = randn(d) if draw(st.booleans()) else None
    kept = draw(st.integers(0, width + 1))
    return Call("filter_step", l, (randn(b, d), randn(b, d, width), randn(d, taps), kept, bias, added))


def _memory_step(draw: st.DrawFn, sizes: tuple[int, int, int], randn: Callable[..., Tensor]) -> Call:
    b, h, l = sizes
    k, v = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    decay, bonus = randn(b, h, k) if draw(st.booleans()) else None, randn(h, k) if draw(st.booleans()) else None
    rule = (randn(b, h, k), randn(b, h, k)) if draw(st.booleans()) else (None, None)
    vectors = randn(b, h, k), randn(b, h, k), randn(b, h, v)
    return Call("memory_step", l, (*vectors, randn(b, h, k, v), decay, *rule, bonus))


MAKERS: dict[str, Callable[[st.DrawFn, tuple[int, int, int], Callable[..., Tensor]], Call]] = {
    "attention": _attention,
    "cauchy": _cauchy,
    "damped_average": _damped_average,
    "filter_step": _filter_step,
    "linear_cross_entropy": _linear_cross_entropy,
    "linear_scan": _linear_scan,
    "long_conv": _long_conv,
    "memory_step": _memory_step,
    "modal_step": _modal_step,
    "short_conv": _short_conv,
    "transposed": _transposed,
    "vandermonde": _vandermonde,
    "vandermonde_adjoint": _vandermonde_adjoint,
    "wkv": _wkv,
}
"""How to draw a call of each operator: rows or states, channels and length are given."""
