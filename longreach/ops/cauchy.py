"""Sums of simple poles, through which S4 evaluates a state-space model in the frequency domain.

    r_k = sum_n v_n / (z_k - w_n) + conj(v_n) / (z_k - conj(w_n))

the product with a Cauchy matrix (Gu, Goel & Re 2021, https://arxiv.org/abs/2111.00396).  One of each conjugate pair of
poles is given, so for real coefficients of the two fractions together

    r_k = sum_n (alpha_n z_k - beta_n) / (z_k^2 - 2 Re(w_n) z_k + |w_n|^2)      alpha = 2 Re v, beta = 2 Re(v conj(w))

Axes: d channels, n poles, k points; `...` any leading axes of coefficients that share the poles.
"""

import torch
from jaxtyping import Complex
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.cauchy_native import DTYPES, native_cauchy
from longreach.ops.native import MISSING
from longreach.ops.triton import available
from longreach.ops.triton.cauchy import DTYPES as TRITON_DTYPES
from longreach.ops.triton.cauchy import triton_cauchy

BLOCK_ELEMENTS = 1 << 21
"""Entries of the Cauchy matrix that exist at the same time: 32 MiB in complex128."""


def _check(v: Tensor, z: Tensor, w: Tensor) -> None:
    if v.ndim < 2 or w.shape != v.shape[-2:] or z.ndim != 1:
        raise InputError(
            f"cauchy: coefficients {tuple(v.shape)} must be (..., channels, poles), poles {tuple(w.shape)} "
            f"(channels, poles), and points {tuple(z.shape)} a vector"
        )


@op
def cauchy(
    v: Complex[Tensor, "... d n"], z: Complex[Tensor, " k"], w: Complex[Tensor, "d n"]
) -> Complex[Tensor, "... d k"]:
    """r_k = sum_n v_n / (z_k - w_n) + conj(v_n) / (z_k - conj(w_n)).  The definition takes O(d n k) time and memory."""
    _check(v, z, w)
    apart = z - w[..., None]
    mirrored = z - w.conj()[..., None]
    return (v[..., None] / apart + v.conj()[..., None] / mirrored).sum(-2)


@cauchy.backend("blocked")
def _blocked(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Products of real and complex matrices for a block of points at a time, computed again in the backward pass."""
    _check(v, z, w)
    block = max(1, BLOCK_ELEMENTS // max(1, w.numel()))
    parts = [checkpoint(_pairs, v, part, w, use_reentrant=False) for part in z.split(block)]
    return torch.cat(parts, dim=-1)  # type: ignore[arg-type]


def _pairs(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """The two fractions of every conjugate pair together."""
    inverse = (z * (z - 2 * w.real[..., None]) + w.abs().square()[..., None]).reciprocal()  # (d, n, k)
    alpha, beta = 2 * v.real, 2 * (v * w.conj()).real
    shape = (*v.shape[:-2], *w.shape[:-1], len(z))
    alpha, beta = (x.flatten(0, -3).transpose(0, 1) if v.ndim > 2 else x[:, None] for x in (alpha, beta))
    coefficients = torch.cat([alpha, beta], dim=1).to(w.dtype)  # (d, 2 rows, n)
    numerator, rest = (coefficients @ inverse).chunk(2, dim=1)
    return (z * numerator - rest).transpose(0, 1).reshape(shape)


def _native_refuses(v: Tensor, z: Tensor, w: Tensor) -> str | None:
    if w.device.type != "cpu":
        return f"runs on the CPU, the input is on {w.device.type}"
    return _kernel_refuses(v, z, w) or MISSING


def _kernel_refuses(v: Tensor, z: Tensor, w: Tensor) -> str | None:
    """What neither the compiled kernels nor those in Triton take."""
    if len({v.dtype, z.dtype, w.dtype}) > 1 or w.dtype not in DTYPES:
        return f"takes one complex dtype; got {v.dtype}, {z.dtype} and {w.dtype}"
    return "has no gradient for the points" if z.requires_grad else None


@cauchy.backend("native", refuses=_native_refuses)
def _native(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Every fraction in registers, for a few rows at a time; nothing is kept or computed again for rows alone."""
    _check(v, z, w)
    return native_cauchy(v, z, w)


def _triton_refuses(v: Tensor, z: Tensor, w: Tensor) -> str | None:
    return available.refusal(w.device, w.dtype, TRITON_DTYPES) or _kernel_refuses(v, z, w)


def _triton_yields(v: Tensor, z: Tensor, w: Tensor) -> str | None:
    return available.interpretation(w.device)


@cauchy.backend("triton", refuses=_triton_refuses, yields=_triton_yields)
def _triton(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Every fraction in registers, for four rows at a time."""
    _check(v, z, w)
    return triton_cauchy(v, z, w)
