"""S4D, the diagonal state-space mixer (Gu, Gupta, Goel & Re 2022, https://arxiv.org/abs/2206.11893).

Every channel is its own linear system with n complex modes, sampled with a learned time step dt:

    s'(t) = A s(t) + B u(t)           A = -real_transform(A_real) - i imag_transform(A_imag), diagonal
    y(t)  = 2 Re(C s(t)) + D u(t)

which longreach.hippo.discretise turns into  s_k = abar s_{k-1} + bbar u_k.  In training that is a convolution with
K_l = 2 Re sum_n C_n bbar_n abar_n^l.  Modes come in conjugate pairs: one of each is stored, 2 Re(.) supplies the other.
A second C makes the mixer bidirectional: its kernel reads the future, from the next position on.

The mixer is the bare system: GELU and the gated linear map of the published block are longreach.models.GLU.

Axes: b batch, l length, d channels, n modes (half of `d_state`), s independent systems, r directions, w window.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from longreach import ops
from longreach.errors import InputError
from longreach.hippo import DiagonalInit, Discretisation, Spectrum, diagonal_system, discretise
from longreach.hippo.transforms import TRANSFORMS, inverse_transform, start_time_steps, time_steps
from longreach.mixers.base import OptimHint, SequenceMixer
from longreach.mixers.constant_weights import of_weights
from longreach.mixers.state_space_options import StateSpaceOptions

_DYNAMICS = OptimHint(lr=1e-3, weight_decay=False)


@dataclass(frozen=True)
class S4DOptions(StateSpaceOptions):
    """The less common choices of the published kernel, beside those of StateSpaceOptions.

    Attributes:
        bandlimit: silence the modes whose frequency is at least this fraction of the Nyquist frequency at rate 1, so
            that a higher rate does not alias.  1 is the Nyquist frequency itself.
        real: A, B and C are real and there are `d_state` modes, an exponential moving average each.
    """

    bandlimit: float | None = None
    real: bool = False


class S4DState(NamedTuple):
    """All that later outputs depend on."""

    modes: Complex[Tensor, "b d n"]
    """The modes of every channel after the last position."""
    window: Float[Tensor, "b d w"]
    """The last inputs, as many as the kernel has taps; none where that is not limited."""


class S4D(SequenceMixer[S4DState]):
    """Diagonal state-space mixer: O(d l log l) on a sequence, O(d n) on a step.

    Args:
        d_model: number of channels.
        d_state: real states of a channel, two for each mode.
        init: where A (and for legs and fourier also B) starts; see longreach.hippo.diagonal.
        init_options: further choices about the start.
        discretisation: how the system is sampled.
        dt_min: least time step at the start; the steps are log-uniform.
        dt_max: greatest time step at the start.  A channel remembers about 1/dt positions.
        causal: whether a position sees only itself and what came before it; otherwise what follows too.
        n_ssm: number of independent pairs of A and B; channel i uses pair i mod n_ssm.  None is one for each channel.
        options: the less common choices.
    """

    optim_hints = {"inv_dt": _DYNAMICS, "A_real": _DYNAMICS, "A_imag": _DYNAMICS, "B": _DYNAMICS}

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        init: Spectrum = "legs",
        init_options: DiagonalInit = DiagonalInit(),  # noqa: B008 (immutable)
        discretisation: Discretisation = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        causal: bool = True,
        n_ssm: int | None = None,
        options: S4DOptions = S4DOptions(),
    ) -> None:
        super().__init__(d_model, causal=causal)
        self.n_ssm = d_model if n_ssm is None else n_ssm
        self.discretisation: Discretisation = discretisation
        self.options = options
        self._check(init)
        self.taps = options.taps
        self._initialise_system(init, d_state, init_options)
        modes = self.A_real.shape[1]
        shape = d_model, 1 if options.dt_tied else modes
        self.inv_dt = nn.Parameter(start_time_steps(shape, dt_min, dt_max, options.dt_transform, options.dt_fast))
        C = torch.randn(1 if causal else 2, d_model, modes, dtype=torch.complex64)  # variance 1/2 a part
        self.C = self._store(C)
        self.D = nn.Parameter(torch.randn(d_model))

    def _check(self, init: Spectrum) -> None:
        self.options.check()
        if self.n_ssm < 1 or self.d_model % self.n_ssm:
            raise InputError(f"n_ssm={self.n_ssm} must divide d_model={self.d_model}")
        if self.options.real and init != "real":
            raise InputError(f"init={init!r} has complex modes; a mixer with real=True needs init='real'")

    def _initialise_system(self, init: Spectrum, d_state: int, init_options: DiagonalInit) -> None:
        options = self.options
        A, B = diagonal_system(init, 2 * d_state if options.real else d_state, self.n_ssm, init_options)
        self.A_real = nn.Parameter(inverse_transform(-A.real, options.real_transform, "real_transform"))
        if options.real:
            self.optim_hints = {name: hint for name, hint in self.optim_hints.items() if name != "A_imag"}
        else:
            self.A_imag = nn.Parameter(inverse_transform(-A.imag, options.imag_transform, "imag_transform"))
        self.B = self._store(B.to(torch.complex64))

    def _store(self, value: Complex[Tensor, "..."]) -> nn.Parameter:
        """A parameter that holds complex numbers as pairs of real ones, or only their real parts."""
        return nn.Parameter(
            value.real.clone() if self.options.real else torch.view_as_real(value.resolve_conj()).clone()
        )

    def _complex(self, parameter: Tensor) -> Tensor:
        if self.options.real:
            return torch.complex(parameter, torch.zeros_like(parameter))
        return torch.view_as_complex(parameter)

    @of_weights
    def _system(self) -> tuple[Complex[Tensor, "d n"], Complex[Tensor, "d n"], Complex[Tensor, "r d n"]]:
        """The sampled system: log abar, bbar and C."""
        options, copies = self.options, self.d_model // self.n_ssm
        dt = time_steps(self.inv_dt, options.dt_transform, options.dt_fast) * options.rate  # (d, 1) or (d, n)
        decay = TRANSFORMS[options.real_transform](self.A_real)
        frequency = torch.zeros_like(decay) if options.real else TRANSFORMS[options.imag_transform](self.A_imag)
        A = torch.complex(-decay, -frequency).repeat(copies, 1)
        log_abar, bbar = discretise(self.discretisation, A, self._complex(self.B).repeat(copies, 1), dt)
        C = self._complex(self.C)
        if options.bandlimit is not None:
            turns = dt / options.rate * A.imag.abs() / (2 * math.pi)  # per sample at rate 1; Nyquist is 1/2
            C = C * (turns < options.bandlimit / 2)
        return log_abar, bbar, C

    def _causal_system(self) -> ops.ModalSystem:
        log_abar, bbar, C = self._system()
        return ops.ModalSystem(log_abar, bbar, C[0])

    @of_weights
    def _recurrence(self) -> ops.ModalRecurrence:
        return self._causal_system().recurrence

    def kernels(self, length: int) -> Float[Tensor, "r d k"]:
        """The impulse responses, past first, of `length` taps or as many as there are; memory O(d n sqrt(length))."""
        log_abar, bbar, C = self._system()
        return ops.vandermonde(C * bbar, log_abar, length if self.taps is None else min(length, self.taps))

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Convolve with the impulse responses, O(d l log l)."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        return ops.transposed(self._convolve(ops.transposed(x)))

    def _convolve(self, u: Float[Tensor, "b d l"]) -> Float[Tensor, "b d l"]:
        past, *future = self.kernels(u.shape[-1])
        return ops.long_conv(u, past, reverse_kernel=future[0] if future else None, skip=self.D)

    def init_state(self, batch_size: int) -> S4DState:
        """A system at rest."""
        if not self.causal:
            raise self._no_recurrent_view()
        modes = torch.view_as_complex(self.D.new_zeros(batch_size, self.d_model, self.A_real.shape[1], 2))
        return S4DState(modes, self.D.new_zeros(batch_size, self.d_model, self.taps or 0))

    def step(self, x: Float[Tensor, "b d"], state: S4DState) -> tuple[Float[Tensor, "b d"], S4DState]:
        """Advance every mode by one sample, O(d n)."""
        if not self.causal:
            raise self._no_recurrent_view()
        u = x.to(state.window.dtype)
        if self.taps is None:
            y, modes = ops.modal_step(u, state.modes, *self._recurrence(), self.D)
            return y.to(x.dtype), S4DState(modes, state.window)
        y, modes, window = ops.modal_window_step(u, state.modes, state.window, self._causal_system())
        return (y + self.D * u).to(x.dtype), S4DState(modes, window)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: S4DState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], S4DState]:
        """The convolution of the chunk, plus the free decay of what the state already held: O(d (l log l + n l))."""
        if not self.causal:
            raise self._no_recurrent_view()
        u, system = x.mT, self._causal_system()
        if self.taps is None:
            y, modes = ops.modal_prefill(u, state.modes, system, mask)
            window = state.window
        else:
            y, modes, window = ops.modal_window_prefill(u, state.window, system, mask)
        return (y + self.D[:, None] * u).mT.to(x.dtype), S4DState(modes, window)
