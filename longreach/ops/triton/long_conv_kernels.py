"""Kernels of the long convolution that hold whole rows: transform, product with a spectrum, inverse.

A row is a real signal, gated where it is read and where it is written, or complex: a part of one whose outer levels
`long_conv_levels.py` has taken care of, transformed in place.  What follows of a row is in `long_conv_transform.py`.

Signals are (batch, channel, length), samples side by side.  Sizes are in units of UNIT samples, so that the compiler
sees that addresses are divisible.  The spectrum is (2, channel, N); it is that of a causal filter plus the conjugate of
that of the filter that looks into the future, as Re F^-1(conj(F f) F v) correlates.
"""

from typing import no_type_check

import triton
import triton.language as tl

from longreach.ops.triton.long_conv_transform import anew, converted, inverse, multiply, transform

SIZES = ["batch", "length", "batch_stride", "channel_stride"]
"""Of the signals: run-time arguments, for which nothing is compiled anew."""


@triton.jit
@no_type_check
def _places(first, sizes, N1: tl.constexpr, N2: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr):
    """Where the samples of rows from `first` on are in the channel of the program, and which of them there are."""
    batch, length, batch_stride, channel_stride = sizes
    column = tl.arange(0, ROWS * N2)[None, :].to(tl.int64)
    sample = tl.arange(0, N1)[:, None].to(tl.int64) * N2 + column % N2
    row = first + column // N2
    start = tl.program_id(0).to(tl.int64) * channel_stride * UNIT
    return start + row * batch_stride * UNIT + sample, (sample < length * UNIT) & (row < batch)


@triton.jit
@no_type_check
def _contiguous(sizes):
    """The sizes of a contiguous signal of the same shape, and how many samples it has, in units."""
    batch, length, _, _ = sizes
    batch_stride = tl.num_programs(0).to(tl.int64) * length
    return (batch, length, batch_stride, length), batch_stride * batch


@triton.jit
@no_type_check
def _frequencies(N1: tl.constexpr, N2: tl.constexpr, ROWS: tl.constexpr):
    """Where the spectrum of the program's channel is, repeated for every row."""
    k1 = tl.arange(0, N1 * ROWS)[:, None] // ROWS
    return tl.program_id(0).to(tl.int64) * (N1 * N2) + k1 * N2 + tl.arange(0, N2)[None, :]


@triton.jit
@no_type_check
def _filter(filters, N1: tl.constexpr, N2: tl.constexpr, ROWS: tl.constexpr):
    """The spectrum of the program's channel, for every row."""
    filters, at = anew(filters), _frequencies(N1, N2, ROWS)
    return tl.load(filters + at), tl.load(filters + tl.num_programs(0).to(tl.int64) * (N1 * N2) + at)


@triton.jit
@no_type_check
def _times(x, gate, at, inside):
    """x times a signal, if there is one."""
    if gate is not None:
        x = x * tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit
@no_type_check
def _gated(source, gate, at, inside):
    """Samples times those of the gate, if there is one, in float32."""
    return _times(tl.load(source + at, mask=inside, other=0.0).to(tl.float32), gate, at, inside)


@triton.jit
@no_type_check
def _imaginary(source, plane, at, inside, REAL: tl.constexpr):
    """The other plane of complex samples; anything for real ones."""
    im = 0.0
    if not REAL:
        im = tl.load(source + plane + at, mask=inside, other=0.0).to(tl.float32)
    return im


@triton.jit
@no_type_check
def _store(target, x, at, inside):
    tl.store(target + at, converted(x, target.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _store_planes(target, plane, re, im, at, inside, REAL: tl.constexpr):
    """Both planes, or the only one of real samples."""
    _store(target, re, at, inside)
    if not REAL:
        _store(target + plane, im, at, inside)


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def spectrum(
    signals,
    tables,
    scale,
    batch,
    length,
    batch_stride,
    channel_stride,
    N1: tl.constexpr,
    N2: tl.constexpr,
    UNIT: tl.constexpr,
    REAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The spectrum of the filters times `scale`; the second row of the batch, if any, looks into the future."""
    source, target = signals
    sizes = batch, length, batch_stride, channel_stride
    contiguous, plane = _contiguous(sizes)
    at, inside = _places(0, contiguous, N1, N2, 1, UNIT)
    im = _imaginary(source, plane * UNIT, at, inside, REAL)
    re, im = transform(_gated(source, None, at, inside), im, tables, N1, N2, 1, REAL, PRECISION)
    if batch > 1:
        at, inside = _places(1, contiguous, N1, N2, 1, UNIT)
        im_2 = _imaginary(source, plane * UNIT, at, inside, REAL)
        re_2, im_2 = transform(_gated(source, None, at, inside), im_2, tables, N1, N2, 1, REAL, PRECISION)
        re, im = re + re_2, im - im_2
    at = _frequencies(N1, N2, 1)
    tl.store(target + at, re * scale)
    tl.store(target + tl.num_programs(0).to(tl.int64) * (N1 * N2) + at, im * scale)


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def convolve(
    signals,
    filters,
    tables,
    batch,
    length,
    batch_stride,
    channel_stride,
    N1: tl.constexpr,
    N2: tl.constexpr,
    ROWS: tl.constexpr,
    UNIT: tl.constexpr,
    REAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows gated, filtered, gated again.  The result is contiguous; complex rows are."""
    source, before, after, target = signals
    sizes = batch, length, batch_stride, channel_stride
    contiguous, plane = _contiguous(sizes)
    first = tl.program_id(1) * ROWS
    at, inside = _places(first, sizes, N1, N2, ROWS, UNIT)
    im = _imaginary(source, plane * UNIT, at, inside, REAL)
    re, im = transform(_gated(source, before, at, inside), im, tables, N1, N2, ROWS, REAL, PRECISION)
    k_re, k_im = _filter(filters, N1, N2, ROWS)
    re, im = multiply(re, im, k_re, k_im)
    re, im = inverse(re, im, tables, N1, N2, ROWS, REAL, PRECISION)
    re = _times(re, after, at, inside)
    at, inside = _places(first, contiguous, N1, N2, ROWS, UNIT)
    _store_planes(target, plane * UNIT, re, im, at, inside, REAL)


@triton.jit
@no_type_check
def _adjoint_rows(
    first,
    signals,
    filters,
    tables,
    sizes,
    N1: tl.constexpr,
    N2: tl.constexpr,
    ROWS: tl.constexpr,
    UNIT: tl.constexpr,
    REAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of the signals of ROWS rows, and their part of the spectrum of the filters' gradient."""
    grad, u, before, after, grad_u, grad_before, grad_after, _, _ = signals
    contiguous, plane = _contiguous(sizes)
    at, inside = _places(first, sizes, N1, N2, ROWS, UNIT)
    out, _ = _places(first, contiguous, N1, N2, ROWS, UNIT)
    v_im = _imaginary(u, plane * UNIT, at, inside, REAL)
    v_re, v_im = transform(_gated(u, before, at, inside), v_im, tables, N1, N2, ROWS, REAL, PRECISION)
    x = _times(_gated(grad, None, out, inside), after, at, inside)
    level = tl.sum(x * _gated(u, before, at, inside)) if REAL else 0.0
    g_im = _imaginary(grad, plane * UNIT, out, inside, REAL)
    g_re, g_im = transform(x, g_im, tables, N1, N2, ROWS, REAL, PRECISION)
    if grad_after is not None:
        k_re, k_im = _filter(filters, N1, N2, ROWS)
        re, im = multiply(v_re, v_im, k_re, k_im)
        re, im = inverse(re, im, tables, N1, N2, ROWS, REAL, PRECISION)
        if REAL:
            re = _times(re, grad, out, inside)
        _store_planes(grad_after, plane * UNIT, re, im, out, inside, REAL)
    k_re, k_im = _filter(filters, N1, N2, ROWS)
    re, im = multiply(g_re, g_im, k_re, -k_im)
    re, im = inverse(re, im, tables, N1, N2, ROWS, REAL, PRECISION)
    if grad_before is not None:
        _store(grad_before, _times(re, u, at, inside), out, inside)
    _store_planes(grad_u, plane * UNIT, _times(re, before, at, inside), im, out, inside, REAL)
    re, im = multiply(g_re, g_im, v_re, -v_im)
    return re, im, level


@triton.jit
@no_type_check
def _correlate(
    target,
    re,
    im,
    tables,
    length,
    N1: tl.constexpr,
    N2: tl.constexpr,
    UNIT: tl.constexpr,
    REAL: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """From the spectrum of what the program's rows say of the filters: at lags of the past, then at those ahead."""
    count: tl.constexpr = 2 if TWO_SIDED else 1
    sizes, plane = _contiguous((tl.num_programs(1) * count, length, length, length))
    for index in tl.static_range(count):
        y_re, y_im = inverse(re, im, tables, N1, N2, 1, REAL, PRECISION)
        at, inside = _places(tl.program_id(1) * count + index, sizes, N1, N2, 1, UNIT)
        _store_planes(target, plane * UNIT, y_re, y_im, at, inside, REAL)
        im = -im


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def adjoint(
    signals,
    filters,
    tables,
    scale,
    batch,
    length,
    batch_stride,
    channel_stride,
    N1: tl.constexpr,
    N2: tl.constexpr,
    ROWS: tl.constexpr,
    UNIT: tl.constexpr,
    REAL: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All gradients.  A program takes every so many rows of a channel; what they say of the filters is added up there.

    The last of the signals are the correlation, (programs along the batch, filters, channel, length), and the sums of
    products without a lag, (programs along the batch, channel), of real rows only.  TWO_SIDED: there is a second
    filter, which looks into the future.
    """
    sizes = batch, length, batch_stride, channel_stride
    correlation, products = signals[7], signals[8]
    re = tl.zeros((N1 * ROWS, N2), tl.float32)
    im = tl.zeros((N1 * ROWS, N2), tl.float32)
    total = 0.0
    step = tl.num_programs(1) * ROWS
    for first in range(tl.program_id(1) * ROWS, batch, step):
        s_re, s_im, level = _adjoint_rows(first, signals, filters, tables, sizes, N1, N2, ROWS, UNIT, REAL, PRECISION)
        re += s_re
        im += s_im
        total += level
    if products is not None:
        tl.store(products + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), total)
    if correlation is not None:
        re = tl.sum(tl.reshape(re * scale, (N1, ROWS, N2)), 1)
        im = tl.sum(tl.reshape(im * scale, (N1, ROWS, N2)), 1)
        _correlate(correlation, re, im, tables, length, N1, N2, UNIT, REAL, TWO_SIDED, PRECISION)
