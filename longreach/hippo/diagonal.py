"""Diagonal state-space systems to start training from (Gu, Gupta, Goel & Re 2022, https://arxiv.org/abs/2206.11893).

With N real states, the system has N/2 conjugate pairs of modes, of which one each is kept, n from 0:

    lin     A_n = -1/2 - i pi n                        quad   A_n = -1/2 - i (2n+1)^2 / pi
    inv     A_n = -1/2 - i N/pi (N/(2n+1) - 1)         inv2   A_n = -1/2 - i N/pi (N/(n+1) - 1)
    real    A_n = -(n+1)                               rand   A_n = -1/2 - i exp(normal)
    legs    the normal part of HiPPO-LegS: eigenvalues, and B in its eigenvectors
    fourier the normal part of HiPPO-Fourier: A_n = -i pi n, fastest first, and B in its eigenvectors

and in mixtures of systems: diag = inv and lin, hippo = legs and fourier, all = legs, fourier, inv and lin.  The sign of
Im A does not matter, because the kernel is real; it is negative here as in the published code.

Axes: s copies (independent systems), n modes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Complex128, Float64
from torch import Tensor

from longreach.errors import InputError
from longreach.hippo.normal import normal_form

Single = Literal["lin", "inv", "inv2", "quad", "real", "rand", "legs", "fourier"]
Spectrum = Literal["lin", "inv", "inv2", "quad", "real", "rand", "legs", "fourier", "diag", "hippo", "all"]
MIXTURES: dict[str, list[Single]] = {
    "diag": ["inv", "lin"],
    "hippo": ["legs", "fourier"],
    "all": ["legs", "fourier", "inv", "lin"],
}
B_CLIP = 2.0
"""Bound on Im B of a HiPPO measure; without it the highest frequency of LegS drowns the others."""


@dataclass(frozen=True)
class DiagonalInit:
    """What can be chosen about the start beside the spectrum.

    Attributes:
        B: input vector: all ones; normal; 1 and -1 in turn; the roots of unity exp(-+2 pi i n / N); or that of LegS in
            its eigenvectors.  The spectra legs and fourier bring their own, whatever is set here.
        real_scale: multiplies Re A.
        imag_scale: multiplies Im A.
        real_random: Re A uniform in [-1, 0] (for the spectrum real: in [-N/2, 0]) instead of -1/2.
        imag_random: n uniform in [0, N/2] instead of 0, 1, 2 ... in the formulas for Im A.
        B_scale: multiplies B.
        normalise: divide B by sqrt(2 sum |B/A|^2), so that a random C gives a response of unit variance to a constant.
    """

    B: Literal["constant", "random", "alternating", "unit-cw", "unit-ccw", "legs"] = "constant"
    real_scale: float = 1.0
    imag_scale: float = 1.0
    real_random: bool = False
    imag_random: bool = False
    B_scale: float = 1.0
    normalise: bool = False


class DiagonalSystem(NamedTuple):
    """x' = A x + B u with diagonal A, one of each conjugate pair."""

    A: Complex128[Tensor, "s n"]
    B: Complex128[Tensor, "s n"]


def diagonal_system(spectrum: Spectrum, d_state: int, copies: int, init: DiagonalInit) -> DiagonalSystem:
    """The start of `copies` independent systems of `d_state / 2` modes; a mixture gives an equal part to each.

    Raises InputError if `d_state` is not even, or `copies` not a multiple of the number of spectra in a mixture.
    """
    if d_state < 2 or d_state % 2:
        raise InputError(f"d_state={d_state} must be even and positive: modes come in conjugate pairs")
    spectra = MIXTURES.get(spectrum, [cast(Single, spectrum)])
    if copies % len(spectra):
        raise InputError(
            f"the spectrum {spectrum!r} mixes {' and '.join(spectra)}, so the number of independent systems must be a "
            f"multiple of {len(spectra)}, not {copies}"
        )
    parts = [_single(one, d_state, copies // len(spectra), init) for one in spectra]
    return DiagonalSystem(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _single(spectrum: Single, d_state: int, copies: int, init: DiagonalInit) -> DiagonalSystem:
    """Copies of one system."""
    if spectrum == "fourier":
        form = normal_form("fourier", d_state)
        return DiagonalSystem(form.W.repeat(copies, 1), clip_input(form.B).repeat(copies, 1) * init.B_scale)
    A = torch.complex(-init.real_scale * _decay(spectrum, d_state, copies, init),
                      -init.imag_scale * _frequency(spectrum, d_state, copies, init))  # fmt: skip
    B = init.B_scale * _input(spectrum, d_state, copies, init)
    if init.normalise:
        B = B / (2 * (B / A).abs().square().sum(-1, keepdim=True)).sqrt()
    return DiagonalSystem(A, B)


def _decay(spectrum: Single, d_state: int, copies: int, init: DiagonalInit) -> Float64[Tensor, "s n"]:
    shape, highest = (copies, d_state // 2), d_state / 2 if spectrum == "real" else 1.0
    if init.real_random:
        return highest * torch.rand(shape, dtype=torch.float64)
    if spectrum == "real":
        return 1.0 + torch.arange(d_state // 2, dtype=torch.float64).repeat(copies, 1)
    return torch.full(shape, 0.5, dtype=torch.float64)


def _frequency(spectrum: Single, d_state: int, copies: int, init: DiagonalInit) -> Float64[Tensor, "s n"]:
    N = d_state
    n = torch.arange(N // 2, dtype=torch.float64).repeat(copies, 1)
    if init.imag_random:
        n = N / 2 * torch.rand_like(n)
    formulas: dict[str, Callable[[], Tensor]] = {
        "lin": lambda: math.pi * n,
        "inv": lambda: N / math.pi * (N / (2 * n + 1) - 1),
        "inv2": lambda: N / math.pi * (N / (n + 1) - 1),
        "quad": lambda: (2 * n + 1).square() / math.pi,
        "real": lambda: torch.zeros_like(n),
        "rand": lambda: torch.randn_like(n).exp(),
        "legs": lambda: -normal_form("legs", N).W.imag.repeat(copies, 1),
    }
    return formulas[spectrum]()


def _input(spectrum: Single, d_state: int, copies: int, init: DiagonalInit) -> Complex128[Tensor, "s n"]:
    n = torch.arange(d_state // 2, dtype=torch.float64)
    if spectrum == "legs" or init.B == "legs":
        B = clip_input(normal_form("legs", d_state).B)
    elif init.B == "random":
        return torch.randn(copies, d_state // 2, dtype=torch.complex128)
    elif init.B == "constant":
        B = torch.ones_like(n)
    elif init.B == "alternating":
        B = 1 - 2 * (n % 2)
    else:
        turn = 2 * math.pi / d_state * n
        B = torch.polar(torch.ones_like(n), -turn if init.B == "unit-cw" else turn)
    return B.to(torch.complex128).repeat(copies, 1)


def clip_input(B: Complex128[Tensor, "..."]) -> Complex128[Tensor, "..."]:
    """B with its imaginary part clipped, as published; depends on the phases of the eigenvectors."""
    return torch.complex(B.real, B.imag.clamp(-B_CLIP, B_CLIP))
