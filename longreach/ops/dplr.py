"""Diagonal-plus-low-rank linear systems in discrete time, the core of S4, in all of their views.

    s_t = M s_{t-1} + bbar u_t,    M s = abar s - sum_r left_r 2 Re(right_r . s)        y_t = 2 Re(C . s_t)

One of each conjugate pair of modes is given.  As a convolution y = K * u with K_l = 2 Re(C . M^l bbar).  Where M comes
from HiPPO-LegS it has no eigenvectors worth the name, so K is found without any:

    doubling   M, M^2, M^4 ... as real matrices of m = 2n states; from them M^i bbar and C M^(q i) for about sqrt(l)
               lags each, doubling their number, and all of K as the product of the two.
               O(d (m^3 log l + m^2 sqrt(l) + m l)) time; accurate to rounding whenever M does not expand
    cauchy     sum_l K_l zeta^l = z C (z - M)^-1 bbar, z = 1 / zeta, which on a circle is a sum of Cauchy kernels and a
               small solve (Woodbury); then an inverse Fourier transform.  O(d m l) time and no powers of M.
               The circle has a radius below 1, so that what lies beyond the last lag folds back damped to 1e-13;
               where M expands, which no tied low-rank part does, that is not enough, and the taps are wrong.
               The Nyquist frequency is a point like any other: in discrete time no node lies at infinity

(Gu, Goel & Re 2021, https://arxiv.org/abs/2111.00396.)

Axes: b batch, c outputs of a channel, d channels, n modes, m = 2n real states, r rank, l length.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from longreach.errors import InputError
from longreach.ops.backend import op
from longreach.ops.cauchy import cauchy
from longreach.ops.long_conv import long_conv
from longreach.ops.modal import modal_step, padding_first
from longreach.ops.native import MISSING

ALIASING = 1e-13
"""By so much the Cauchy backend damps lags that fold back; its rounding errors grow by ALIASING^(-1/4)."""
BLOCK_BYTES = 1 << 26
"""The doubling backend takes so many channels at a time that their powers of M fit into this."""


class DPLRSystem(NamedTuple):
    """A sampled system."""

    abar: Complex[Tensor, "d n"]
    left: Complex[Tensor, "r d n"]
    right: Complex[Tensor, "r d n"]
    bbar: Complex[Tensor, "d n"]
    C: Complex[Tensor, "c d n"]


def _check(system: DPLRSystem, length: int) -> None:
    modes = system.abar.shape
    if length < 1 or any(part.shape[-2:] != modes for part in system) or system.left.shape != system.right.shape:
        raise InputError(
            f"dplr: the parts of the system are {[tuple(part.shape) for part in system]}; all must end in the same "
            f"(channels, modes), left and right be alike, and the length, {length}, be at least 1"
        )


def _turn(state: Tensor, system: DPLRSystem) -> Tensor:
    """M s, O(n r) a channel; (..., d, n)."""
    seen = 2 * torch.einsum("rdn,...dn->...rd", system.right, state).real
    return system.abar * state - torch.einsum("rdn,...rd->...dn", system.left, seen.to(state.dtype))


@op
def dplr_kernel(system: DPLRSystem, length: int) -> Float[Tensor, "c d {length}"]:
    """The first `length` taps of every impulse response.  The definition takes O(d n (c + r) l) time, in l steps."""
    _check(system, length)
    state, taps = system.bbar, []
    for _ in range(length):
        taps.append(2 * (system.C * state).real.sum(-1))
        state = _turn(state, system)
    return torch.stack(taps, dim=-1)


@dplr_kernel.backend("cauchy")
def _cauchy(system: DPLRSystem, length: int) -> Tensor:
    """Evaluate the generating function on a circle, in float64."""
    _check(system, length)
    abar, left, right, bbar, C = (part.to(torch.complex128) for part in system)
    size = 4 * length
    radius = ALIASING ** (1 / size)
    turns = torch.arange(size // 2 + 1, device=abar.device, dtype=torch.float64) / size
    z = torch.polar(torch.full_like(turns, 1 / radius), 2 * math.pi * turns)
    outputs, inputs = torch.cat([C, right]), torch.cat([bbar[None], left])
    r = cauchy(outputs[:, None] * inputs, z, abar).permute(2, 3, 0, 1)  # (d, k, c + rank, 1 + rank)
    c, unit = len(C), torch.eye(len(left), dtype=r.dtype, device=r.device)
    correction = r[..., :c, 1:] @ torch.linalg.solve(unit + r[..., c:, 1:], r[..., c:, :1])
    spectrum = (z[:, None] * (r[..., :c, 0] - correction[..., 0])).permute(2, 0, 1)
    damped = torch.fft.irfft(spectrum, n=size)[..., :length]
    lag = torch.arange(length, device=abar.device, dtype=torch.float64)
    return (damped * radius**-lag).to(system.abar.real.dtype)


def _doubling_yields(system: DPLRSystem, length: int) -> str | None:
    states = 2 * system.abar.shape[-1]
    compiled = MISSING is None and system.abar.device.type == "cpu"
    factor = 24 if compiled else 350  # as measured on a CPU, forward and backward
    if states**2 * length.bit_length() > factor * max(length, 128):
        return "powers of so large a matrix cost more than a sum over all frequencies"
    return None


@dplr_kernel.backend("doubling", yields=_doubling_yields)
def _doubling(system: DPLRSystem, length: int) -> Tensor:
    """Powers of M by squaring; those of a block of channels at a time, computed again in the backward pass."""
    _check(system, length)
    (channels, n), wide = system.abar.shape, system.abar.element_size() // 2
    block = max(1, BLOCK_BYTES // (length.bit_length() * (2 * n) ** 2 * wide))
    if block >= channels:
        return _impulse_response(length, *system)
    parts = [
        checkpoint(_impulse_response, length, *block_of_channels, use_reentrant=False)
        for block_of_channels in zip(*(part.split(block, dim=-2) for part in system), strict=True)
    ]
    return torch.cat(parts, dim=-2)  # type: ignore[arg-type]


def _impulse_response(length: int, *parts: Tensor) -> Tensor:
    dense = _Dense.of(DPLRSystem(*parts), length)
    return dense.kernel()[..., :length]


class _Dense(NamedTuple):
    """A system as real matrices, with what its views on `coarse` blocks of `fine` lags need."""

    powers: list[Tensor]
    """M, M^2, M^4 ..., (d, m, m), up to the largest power of two that is not more than the length."""
    C: Tensor
    columns: Tensor
    """M^i bbar for i < fine, (d, m, fine)."""
    fine: int
    coarse: int

    @classmethod
    def of(cls, system: DPLRSystem, length: int) -> "_Dense":
        abar, left, right, bbar, C = system
        real, imag = abar.real.diag_embed(), abar.imag.diag_embed()
        matrix = torch.cat([torch.cat([real, -imag], dim=-1), torch.cat([imag, real], dim=-1)], dim=-2)
        powers = [matrix - torch.einsum("rdi,rdj->dij", _stack(left), _stack(right.conj()) * 2)]
        while 2 ** len(powers) <= length:
            powers.append(powers[-1] @ powers[-1])
        fine = 1 << (length - 1).bit_length() // 2
        columns = _krylov(powers, _stack(bbar)[..., None], fine)
        return cls(powers, 2 * _stack(C.conj()), columns, fine, -(-length // fine))

    @property
    def block_powers(self) -> list[Tensor]:
        """Powers of M^fine."""
        return self.powers[self.fine.bit_length() - 1 :]

    def kernel(self) -> Tensor:
        """The impulse responses, (c, d, coarse * fine)."""
        rows = _krylov([power.mT for power in self.block_powers], self.C[..., None], self.coarse)
        return (rows.mT @ self.columns).flatten(-2)

    def response(self, u: Tensor) -> Tensor:
        """The state that zero reaches by reading u (b, d, l): first inside each block, then pairs of blocks."""
        newest_first = pad(u.flip(-1), (0, self.coarse * self.fine - u.shape[-1])).unflatten(-1, (self.coarse, -1))
        blocks = newest_first @ self.columns.mT  # (b, d, coarse, m)
        for power in self.block_powers:
            blocks = pad(blocks, (0, 0, 0, blocks.shape[-2] % 2))
            blocks = blocks[..., 0::2, :] + blocks[..., 1::2, :] @ power.mT
        return blocks[..., 0, :]

    def free(self, state: Tensor) -> Tensor:
        """What a state (b, d, m) gives when it is left alone, (b, d, coarse * fine)."""
        starts = _krylov(self.block_powers, self.powers[0] @ state[..., None], self.coarse)  # (b, d, m, coarse)
        rows = _krylov([power.mT for power in self.powers], self.C[0][..., None], self.fine)  # (d, m, fine)
        return (starts.mT @ rows).flatten(-2)

    def advance(self, state: Tensor, elapsed: Tensor) -> Tensor:
        """M^elapsed times a state (b, d, m), with its own number of steps (b or 1,) for every row."""
        for i, power in enumerate(self.powers):
            turned = (power @ state[..., None])[..., 0]
            state = torch.where((elapsed >> i & 1).bool()[:, None, None], turned, state)
        return state


def _stack(modes: Tensor) -> Tensor:
    """Complex modes as real states."""
    return torch.cat([modes.real, modes.imag], dim=-1)


def _krylov(powers: list[Tensor], start: Tensor, count: int) -> Tensor:
    """start, M start .. M^(count-1) start on the last axis, from `start` (..., m, 1) and M, M^2, M^4 ..."""
    vectors = start
    for power in powers:
        if vectors.shape[-1] < count:
            vectors = torch.cat([vectors, power @ vectors[..., : count - vectors.shape[-1]]], dim=-1)
    return vectors


def dplr_whole_output(system: DPLRSystem, length: int) -> Complex[Tensor, "c d n"]:
    """The C for which `system.C` is C - C M^length, O(d m^3 log length).

    Published S4 stores that difference, from which the discrete Fourier transform gives `length` taps without wrapping.
    """
    _check(system, length)
    dense = _Dense.of(system, length)
    unit = torch.eye(dense.C.shape[-1], dtype=dense.C.dtype, device=dense.C.device)
    columns = unit[:, None].expand(-1, len(system.bbar), -1)
    power_transposed = dense.advance(columns, torch.tensor([length], device=unit.device)).transpose(0, 1)  # (d, m, m)
    whole = torch.linalg.solve(unit - power_transposed, dense.C.permute(1, 2, 0)).permute(2, 0, 1) / 2
    return torch.complex(*whole.chunk(2, dim=-1)).conj()


def dplr_step(
    u: Float[Tensor, "b d"],
    state: Complex[Tensor, "b d n"],
    system: DPLRSystem,
    skip: Float[Tensor, " d"] | None = None,
) -> tuple[Float[Tensor, "b d"], Complex[Tensor, "b d n"]]:
    """One position, O(b d n r): the output in the precision of the state, and the state after it; see modal_step."""
    abar, left, right, bbar, C = system
    return modal_step(u, state, abar, bbar, C[0], skip, left, right)


def dplr_prefill(
    u: Float[Tensor, "b d l"],
    state: Complex[Tensor, "b d n"],
    system: DPLRSystem,
    mask: Bool[Tensor, "b l"] | None = None,
) -> tuple[Float[Tensor, "b d l"], Complex[Tensor, "b d n"]]:
    """A chunk: outputs and states as steps over the positions where `mask` is True give them.

    What `u` holds where `mask` is False does not matter, and the output there is undefined.  Costs, beside powers of M
    as for the kernel, O(b d (l log l + m l + m^2 sqrt(l))).
    """
    if mask is None:
        return _prefill(u, state, system, None)
    order = padding_first(mask)
    u = u.masked_fill(~mask[:, None], 0).gather(-1, order[:, None].expand_as(u))
    y, state = _prefill(u, state, system, (~mask).sum(1)[:, None])
    return y.gather(-1, order.argsort(dim=1)[:, None].expand_as(y)), state


def _prefill(u: Tensor, state: Tensor, system: DPLRSystem, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """Prefill with the first `padding` (b, 1) positions of each row, which hold zeros, left out of time."""
    length = u.shape[-1]
    _check(system, length)
    dense, x = _Dense.of(system, length), _stack(state)
    free = dense.free(x)[..., :length]
    elapsed = torch.full((1,), length, device=u.device)
    if padding is not None:
        since = (torch.arange(length, device=u.device) - padding).clamp(min=0)
        free, elapsed = free.gather(-1, since[:, None].expand_as(free)), elapsed - padding[:, 0]
    after = dense.advance(x, elapsed) + dense.response(u.to(x.dtype))
    y = long_conv(u, dense.kernel()[0, :, :length].to(u.dtype)) + free.to(u.dtype)
    return y, torch.complex(*after.chunk(2, dim=-1))
