"""Liquid-S4 (Hasani, Lechner, Wang, Chahine, Amini & Rus 2022, https://arxiv.org/abs/2209.12951).

Every channel is a diagonal state-space model as in S4D whose transition the input moves too:

    s_k = (abar + bbar u_k) s_{k-1} + bbar u_k       A = -exp(A_real) + i A_imag and B, sampled with dt = exp(log_dt)
    y_k = 2 Re(C s_k) + D u_k                        by longreach.hippo.discretise

Products are elementwise; modes come in conjugate pairs, of which one is kept.  Sorted by degree in the input, s is a
sum z_1 + z_2 + ..: z_1 is S4D, z_2 correlates pairs of inputs.  `order` is where the sum ends, which is exact, causal
and always stable (longreach.ops.liquid_scan); None is the recurrence itself, stable while |abar + bbar u| < 1.

A second C makes the mixer bidirectional: its recurrence runs from the end, and is read from the next position on.

Axes: b batch, l length, d channels, n modes (half of `d_state`), s independent systems, r directions, o terms.
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from longreach import ops
from longreach.errors import InputError
from longreach.hippo import DiagonalInit, Discretisation, diagonal_system, discretise
from longreach.hippo.transforms import inverse_transform, start_time_steps
from longreach.mixers.base import OptimHint, SequenceMixer
from longreach.mixers.constant_weights import of_weights

_DYNAMICS = OptimHint(lr=1e-3, weight_decay=False)


class LiquidS4State(NamedTuple):
    """All that later outputs depend on."""

    modes: Complex[Tensor, "b o d n"]
    """The terms z_1 .. z_o after the last position, or s alone."""


class LiquidS4(SequenceMixer[LiquidS4State]):
    """Liquid-S4: O(order d n l) on a sequence, O(order d n) on a step.

    Args:
        d_model: number of channels.
        d_state: real states of a channel, two for each mode.
        order: highest degree in the input, at least 2, or None for the recurrence itself (liquid_degree).
        init: where A and B start; see longreach.hippo.diagonal.
        discretisation: how the system is sampled.
        dt_min: least time step at the start; the steps are log-uniform.
        dt_max: greatest time step at the start.
        causal: whether a position sees only itself and what came before it; otherwise what follows too.
        n_ssm: number of independent pairs of A and B; channel i uses pair i mod n_ssm.  None is one for each channel.
    """

    optim_hints = {"log_dt": _DYNAMICS, "A_real": _DYNAMICS, "A_imag": _DYNAMICS, "B": _DYNAMICS}

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        order: int | None = 2,
        init: Literal["legs", "lin", "inv"] = "legs",
        discretisation: Discretisation = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        causal: bool = True,
        n_ssm: int | None = None,
    ) -> None:
        super().__init__(d_model, causal=causal)
        self.n_ssm = d_model if n_ssm is None else n_ssm
        self.discretisation: Discretisation = discretisation
        self.order = order
        self._check()
        A, B = diagonal_system(init, d_state, self.n_ssm, DiagonalInit())
        self.A_real = nn.Parameter(inverse_transform(-A.real, "exp", "A_real"))
        self.A_imag = nn.Parameter(A.imag.float())
        self.B = nn.Parameter(torch.view_as_real(B.to(torch.complex64).resolve_conj()).clone())
        self.C = nn.Parameter(math.sqrt(0.5) * torch.randn(1 if causal else 2, d_model, A.shape[1], 2))
        self.D = nn.Parameter(torch.randn(d_model))
        self.log_dt = nn.Parameter(start_time_steps((d_model, 1), dt_min, dt_max, "exp", fast=False)[:, 0])

    def _check(self) -> None:
        if self.order is not None and self.order < 2:
            raise InputError(f"order={self.order} must be at least 2; a system without products of inputs is S4D")
        if self.n_ssm < 1 or self.d_model % self.n_ssm:
            raise InputError(f"n_ssm={self.n_ssm} must divide d_model={self.d_model}")

    @of_weights
    def _systems(self) -> list[ops.ModalSystem]:
        """The sampled system, for each direction."""
        copies = self.d_model // self.n_ssm
        A = torch.complex(-self.A_real.exp(), self.A_imag).repeat(copies, 1)
        B = torch.view_as_complex(self.B).repeat(copies, 1)
        log_abar, bbar = discretise(self.discretisation, A, B, self.log_dt.exp()[:, None])
        return [ops.ModalSystem(log_abar, bbar, C) for C in torch.view_as_complex(self.C)]

    @of_weights
    def _recurrence(self) -> ops.ModalRecurrence:
        return self._systems()[0].recurrence

    def _rest(self, batch_size: int) -> Complex[Tensor, "b o d n"]:
        terms = 1 if self.order is None else self.order
        return torch.view_as_complex(self.D.new_zeros(batch_size, terms, self.d_model, self.A_real.shape[1], 2))

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Scan the sequence, O(order d n l) time; of all modes no more are held than of a stretch of positions."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        u, (past, *future) = ops.transposed(x).to(self.D.dtype), self._systems()
        y, _ = ops.liquid_scan(u, self._rest(len(x)), past, full=self.order is None)
        for system in future:
            z, _ = ops.liquid_scan(u.flip(-1), self._rest(len(x)), system, full=self.order is None)
            y = y + pad(z.flip(-1)[..., 1:], (0, 1))
        return ops.transposed(y + self.D[:, None] * u).to(x.dtype)

    def init_state(self, batch_size: int) -> LiquidS4State:
        """A system at rest."""
        if not self.causal:
            raise self._no_recurrent_view()
        return LiquidS4State(self._rest(batch_size))

    def step(self, x: Float[Tensor, "b d"], state: LiquidS4State) -> tuple[Float[Tensor, "b d"], LiquidS4State]:
        """Advance every term by one sample, O(order d n)."""
        if not self.causal:
            raise self._no_recurrent_view()
        u = x.to(self.D.dtype)
        y, modes = ops.liquid_step(u, state.modes, self._recurrence(), full=self.order is None)
        return (y + self.D * u).to(x.dtype), LiquidS4State(modes)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: LiquidS4State, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], LiquidS4State]:
        """The scan that continues from the state; at padding it stands still."""
        if not self.causal:
            raise self._no_recurrent_view()
        u = x.mT.to(self.D.dtype)
        y, modes = ops.liquid_scan(u, state.modes, self._systems()[0], full=self.order is None, mask=mask)
        return (y + self.D[:, None] * u).mT.to(x.dtype), LiquidS4State(modes)
