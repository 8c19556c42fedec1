"""S4, the structured state-space mixer (Gu, Goel & Re 2021, https://arxiv.org/abs/2111.00396).

Every channel is its own linear system, whose matrix is diagonal but for a correction of low rank (DPLR), with n complex
modes, one of each conjugate pair, sampled by the bilinear rule with a learned time step dt:

    s'(t) = (A - sum_r P_r P_r^*) s(t) + B u(t)        A = -real_transform(A_real) - i imag_transform(A_imag), diagonal
    y(t)  = 2 Re(C s(t)) + D u(t)

That is the form that the matrices of HiPPO have, for which a diagonal alone (S4D) is an approximation.  In training it
is a convolution with K_l = 2 Re(C M^l bbar), M the sampled matrix (longreach.ops.dplr).  Kernels and states are
computed in float64 whatever the parameters are: in float32 a kernel of 16,384 taps is wrong by 2e-3.

The mixer is the bare system: GELU and the gated linear map of the published block are longreach.models.GLU.

Axes: b batch, l length, d channels, n modes (half of `d_state`), s independent systems, r rank, t time steps of a
channel (1 or n), c directions, w window.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from longreach import ops
from longreach.errors import InputError
from longreach.hippo import DiagonalInit, DPLRStart, discretise_dplr, dplr_system
from longreach.hippo.transforms import TRANSFORMS, inverse_transform, start_time_steps, time_steps
from longreach.mixers.base import OptimHint, SequenceMixer
from longreach.mixers.constant_weights import of_weights
from longreach.mixers.state_space_options import StateSpaceOptions

_DYNAMICS = OptimHint(lr=1e-3, weight_decay=False)


@dataclass(frozen=True)
class S4Options(StateSpaceOptions):
    """The less common choices of the published kernel, beside those of StateSpaceOptions.

    With a `kernel_length` the mixer keeps its last inputs as its state, and a step costs as much as making the kernel.

    Attributes:
        P_scale: standard deviation at the start of the P of spectra.  With 0, as in published mixtures, P never learns.
    """

    P_scale: float = 1.0


class S4Parameters(NamedTuple):
    """What is trained, complex numbers as pairs of real ones."""

    inv_dt: Float[Tensor, "d t"]
    A_real: Float[Tensor, "s n"]
    A_imag: Float[Tensor, "s n"]
    B: Float[Tensor, "s n 2"]
    P: Float[Tensor, "r s n 2"]
    C: Float[Tensor, "c d n 2"]

    def sampled(self, options: S4Options) -> ops.DPLRSystem:
        """The sampled system in float64; channel i is made of the independent system i mod s."""
        inv_dt, A_real, A_imag, B, P, C = (parameter.double() for parameter in self)
        copies = len(inv_dt) // len(A_real)
        dt = time_steps(inv_dt, options.dt_transform, options.dt_fast) * options.rate
        A = -torch.complex(TRANSFORMS[options.real_transform](A_real), TRANSFORMS[options.imag_transform](A_imag))
        B, P, C = (torch.view_as_complex(pairs.contiguous()) for pairs in (B, P, C))
        return discretise_dplr(A.repeat(copies, 1), P.repeat(1, copies, 1), B.repeat(copies, 1), C, dt)


class S4State(NamedTuple):
    """All that later outputs depend on."""

    modes: Complex[Tensor, "b d n"]
    """The modes of every channel after the last position; none where the kernel ends."""
    window: Float[Tensor, "b d w"]
    """The last inputs, one less than the kernel has taps; none where it does not end."""


class S4(SequenceMixer[S4State]):
    """Diagonal-plus-low-rank state-space mixer: O(d l log l) on a sequence, O(d n r) on a step.

    Args:
        d_model: number of channels.
        d_state: real states of a channel, two for each mode.
        init: where A, P and B start; see longreach.hippo.dplr.  Several are shared out among the independent systems:
            `[legs, fourier]` is the published `hippo`.
        init_options: further choices about the start of spectra.
        rank: rank of the correction.  legt needs 2, everything else 1.
        dt_min: least time step at the start; the steps are log-uniform.
        dt_max: greatest time step at the start.  A channel remembers about 1/dt positions.
        causal: whether a position sees only itself and what came before it; otherwise what follows too.
        n_ssm: number of independent A, P and B; channel i uses those of i mod n_ssm.  None is one for each channel.
        options: the less common choices.
    """

    optim_hints = dict.fromkeys(("inv_dt", "A_real", "A_imag", "B", "P"), _DYNAMICS)

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        init: DPLRStart | list[DPLRStart] = "legs",
        init_options: DiagonalInit = DiagonalInit(),  # noqa: B008 (immutable)
        rank: int = 1,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        causal: bool = True,
        n_ssm: int | None = None,
        options: S4Options = S4Options(),
    ) -> None:
        super().__init__(d_model, causal=causal)
        self.options = options
        options.check()
        if n_ssm is not None and (n_ssm < 1 or d_model % n_ssm):
            raise InputError(f"n_ssm={n_ssm} must divide d_model={d_model}")
        self.taps = options.taps
        starts: list[DPLRStart] = init if isinstance(init, list) else [init]
        systems = d_model if n_ssm is None else n_ssm
        A, P, B = dplr_system(starts, d_state, rank, systems, init_options, options.P_scale)
        self.A_real = nn.Parameter(inverse_transform(-A.real, options.real_transform, "real_transform"))
        self.A_imag = nn.Parameter(inverse_transform(-A.imag, options.imag_transform, "imag_transform"))
        self.B, self.P = _pairs(B), _pairs(P)
        modes = A.shape[1]
        self.C = _pairs(torch.randn(1 if causal else 2, d_model, modes, dtype=torch.complex64))
        shape = d_model, 1 if options.dt_tied else modes
        self.inv_dt = nn.Parameter(start_time_steps(shape, dt_min, dt_max, options.dt_transform, options.dt_fast))
        self.D = nn.Parameter(torch.randn(d_model))

    @property
    def parameters_of_system(self) -> S4Parameters:
        """All parameters but the skip connection."""
        return S4Parameters(self.inv_dt, self.A_real, self.A_imag, self.B, self.P, self.C)

    @of_weights
    def _system(self) -> ops.DPLRSystem:
        return self.parameters_of_system.sampled(self.options)

    def kernels(self, length: int) -> Float[Tensor, "c d k"]:
        """The impulse responses, past first, of `length` taps or as many as there are."""
        taps = length if self.taps is None else min(length, self.taps)
        return ops.dplr_kernel(self._system(), taps).to(self.D.dtype)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Convolve with the impulse responses, O(d l log l)."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        return ops.transposed(self._convolve(ops.transposed(x)))

    def _convolve(self, u: Float[Tensor, "b d l"]) -> Float[Tensor, "b d l"]:
        past, *future = self.kernels(u.shape[-1])
        return ops.long_conv(u, past, reverse_kernel=future[0] if future else None, skip=self.D)

    def init_state(self, batch_size: int) -> S4State:
        """A system at rest."""
        if not self.causal:
            raise self._no_recurrent_view()
        modes, window = (self.A_real.shape[1], 0) if self.taps is None else (0, self.taps - 1)
        at_rest = torch.zeros(batch_size, self.d_model, modes, dtype=torch.complex128, device=self.D.device)
        return S4State(at_rest, self.D.new_zeros(batch_size, self.d_model, window))

    def step(self, x: Float[Tensor, "b d"], state: S4State) -> tuple[Float[Tensor, "b d"], S4State]:
        """Advance every mode by one sample, O(d n r)."""
        if not self.causal:
            raise self._no_recurrent_view()
        if self.taps is not None:
            y, state = self.prefill(x[:, None], state)
            return y[:, 0], state
        real = state.modes.real.dtype
        y, modes = ops.dplr_step(x.to(real), state.modes, self._system(), self.D.to(real))
        return y.to(x.dtype), S4State(modes, state.window)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: S4State, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], S4State]:
        """The convolution of the chunk, plus what the state gives when it is left alone; see longreach.ops.dplr."""
        if not self.causal:
            raise self._no_recurrent_view()
        u = x.mT
        if self.taps is not None:
            y, window = ops.window_prefill(self._convolve, u, state.window, mask)
            return y.mT.to(x.dtype), S4State(state.modes, window)
        y, modes = ops.dplr_prefill(u, state.modes, self._system(), mask)
        return (y + self.D[:, None] * u).mT.to(x.dtype), S4State(modes, state.window)


def _pairs(value: Complex[Tensor, "..."]) -> nn.Parameter:
    """A parameter that holds complex numbers as pairs of real ones, in float32."""
    return nn.Parameter(torch.view_as_real(value.to(torch.complex64).resolve_conj()).clone())
