"""DSS, diagonal state spaces (Gupta, Gu & Berant 2022, https://arxiv.org/abs/2203.14343).

Every channel is a linear system whose n complex modes A are shared by all channels.  Its kernel is written down
without B and C, as one weight W for each mode, and there are no conjugate pairs:

    K_l = Re sum_n W_n scale_n exp(dt A_n l)         y = K * u + D u

    softmax         scale = 1 / (A sum_{l < max_length} exp(dt A l))      A = A_real + i A_imag
    exp             scale = (exp(dt A) - 1) / A                           Re A = -exp(A_real)
    exp-re-im       the same                                              and Im A = exp(A_imag)
    exp-no-scale    scale = 1                                             Re A = -exp(A_real)
    clip            scale = (exp(dt A) - 1) / A                           Re A = min(A_real, max_real)
    clip-no-scale   scale = 1                                             Re A = min(A_real, max_real)

With separate_dt, Re A and Im A have time steps of their own.  The softmax lets Re A be positive: such a mode is largest
at the far end of the kernel.  It has one length, `max_length`, whatever is read, so that all views are one function.

The mixer is the bare system: the published GELU and linear map are for the channel mixer that follows.

Axes: b batch, l length, d channels, n modes (`d_state`), r directions.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor, nn

from longreach import ops
from longreach.errors import InputError
from longreach.hippo import normal_form
from longreach.hippo.transforms import start_time_steps
from longreach.mixers.base import OptimHint, SequenceMixer
from longreach.mixers.constant_weights import of_weights

Version = Literal["softmax", "exp", "exp-re-im", "exp-no-scale", "clip", "clip-no-scale"]
_KERNEL = OptimHint(lr=1e-3, weight_decay=False)


@dataclass(frozen=True)
class DSSOptions:
    """The less common choices of the published kernel.

    Attributes:
        separate_dt: Re A and Im A have a time step each (sep_dt_re_im).
        max_real: the bound on Re A in the clipped versions (max_real_Lambda).  Above 0 a mode grows slowly.
        epsilon: where a division would be by less, its denominator is bounded.  This biases the softmax: 1 / x is taken
            as conj(x) / (|x|^2 + epsilon).
    """

    separate_dt: bool = True
    max_real: float = 1e-4
    epsilon: float = 1e-7


class DSSState(NamedTuple):
    """All that later outputs depend on."""

    modes: Complex[Tensor, "b d n"]
    """Of a mode that falls: its present value.  Of one that rises: its value counted from the first position."""
    position: Int[Tensor, " b"]
    """How many positions each row has read."""


class _System(NamedTuple):
    """The modes, none of which grows: one that rises towards the end of the kernel is counted from there."""

    log_ratio: Complex[Tensor, "d n"]
    W: Complex[Tensor, "r d n"]
    rising: Bool[Tensor, " n"]


class DSS(SequenceMixer[DSSState]):
    """Diagonal state spaces: O(d l log l) on a sequence, O(d n) on a step.

    Args:
        d_model: number of channels.
        max_length: the length over which the softmax sums, and the longest sequence; the other versions have none.
        d_state: number of complex modes.
        version: how A is kept and how the kernel is scaled; see above.
        init: where A starts: the normal part of HiPPO-LegS, those eigenvalues with Im A > 0 (hippo_skew_pos_imag); or
            normal (randn), also with Re A > 0, which only a softmax or a clip can take.
        dt_min: least time step at the start; the steps are log-uniform.
        dt_max: greatest time step at the start.
        causal: whether a position sees only itself and what came before it; otherwise what follows too.
        options: the less common choices.
    """

    optim_hints = {"log_dt": _KERNEL, "A_real": _KERNEL, "A_imag": _KERNEL, "W": _KERNEL}

    def __init__(
        self,
        d_model: int,
        *,
        max_length: int | None = None,
        d_state: int = 64,
        version: Version = "softmax",
        init: Literal["hippo", "random"] = "hippo",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        causal: bool = True,
        options: DSSOptions = DSSOptions(),
    ) -> None:
        super().__init__(d_model, causal=causal)
        self.max_length, self.version, self.options = max_length, version, options
        self._check(d_state, init)
        A = torch.randn(d_state, dtype=torch.complex64) if init == "random" else normal_form("legs", 2 * d_state).W
        real, imag = A.real.float(), A.imag.abs().float() if init == "hippo" else A.imag
        self.A_real = nn.Parameter((-real).log() if version.startswith("exp") else real.clone())
        self.A_imag = nn.Parameter(imag.log() if version == "exp-re-im" else imag.clone())
        log_dt = start_time_steps((d_model, 1), dt_min, dt_max, "exp", fast=False)
        self.log_dt = nn.Parameter(log_dt.repeat(1, 2 if options.separate_dt else 1))
        self.W = nn.Parameter(torch.randn(1 if causal else 2, d_model, d_state, 2))
        self.D = nn.Parameter(torch.randn(d_model))

    def _check(self, d_state: int, init: str) -> None:
        if d_state < 1:
            raise InputError(f"d_state={d_state} must be positive")
        if self.options.epsilon < 0:
            raise InputError(f"epsilon={self.options.epsilon} must not be negative")
        if init == "random" and self.version.startswith("exp"):
            raise InputError(f"init='random' has modes with Re A > 0, which version={self.version!r} cannot represent")
        if self.version == "softmax" and (self.max_length is None or self.max_length < 1):
            raise InputError(
                f"max_length={self.max_length}: a softmax sums over a fixed number of positions; give the longest "
                "sequence that will be read, or take version='exp'"
            )
        if self.version != "softmax" and self.max_length is not None:
            raise InputError(f"max_length={self.max_length}: only version='softmax' has one, not {self.version!r}")

    @of_weights
    def _system(self) -> _System:
        """The modes, sampled, and their weights, scaled."""
        real, imag, epsilon = self.A_real, self.A_imag, self.options.epsilon
        if self.version.startswith("exp"):
            real, imag = -real.exp(), imag.exp() if self.version == "exp-re-im" else imag
        elif self.version.startswith("clip"):
            real = real.clamp(max=self.options.max_real)
        A, dt = torch.complex(real, imag), self.log_dt.exp()
        log_abar = torch.complex(dt[:, :1] * real, dt[:, -1:] * imag)  # (d, n)
        W = torch.view_as_complex(self.W)
        if self.version != "softmax":
            if not self.version.endswith("no-scale"):
                W = W * torch.expm1(log_abar) * A.conj() / A.abs().square().clamp(min=epsilon)
            return _System(log_abar, W, torch.zeros_like(real, dtype=torch.bool))
        rising = real > 0
        log_ratio = torch.where(rising, -log_abar, log_abar)
        total = torch.expm1(log_ratio.to(torch.complex128) * self._horizon).to(W.dtype) * A
        W = W * torch.expm1(log_ratio) * total.conj() / (total.abs().square() + epsilon)
        return _System(log_ratio, W, rising)

    @property
    def _horizon(self) -> int:
        """The length of a softmax."""
        return self.max_length or 0

    @of_weights
    def _steps(self) -> tuple[ops.ModalRecurrence, tuple[ops.RisingModes, Int[Tensor, " rising"]] | None]:
        """What a step needs: all modes as if they fell, and where any rise, these and which they are."""
        system = self._system()
        falling, rising = self._recurrences(system)
        if self.version != "softmax" or not bool(system.rising.any()):
            return falling.recurrence, None
        chosen = system.rising.nonzero().flatten()
        return falling.recurrence, (
            ops.RisingModes(rising.log_ratio[:, chosen], rising.C[:, chosen], rising.horizon),
            chosen,
        )

    def _recurrences(self, system: _System) -> tuple[ops.ModalSystem, ops.RisingModes]:
        """The modes that fall and the modes that rise, as two systems whose outputs add up."""
        W = system.W[0]
        falling = W * ~system.rising / 2  # there are no conjugate pairs
        return (
            ops.ModalSystem(system.log_ratio, torch.ones_like(W), falling),
            ops.RisingModes(system.log_ratio, W * system.rising, self._horizon),
        )

    def kernels(self, length: int) -> Float[Tensor, "r d {length}"]:
        """The first taps of the impulse responses, past first; O(d n length) time, O(d n sqrt(length)) memory."""
        return self._taps(self._system(), length)

    def _taps(self, system: _System, length: int) -> Float[Tensor, "r d {length}"]:
        log_ratio, W, rising = system
        falling = ops.vandermonde(W * ~rising / 2, log_ratio, length)
        if self.version != "softmax":
            return falling
        return falling + ops.rising_kernel(ops.RisingModes(log_ratio, W * rising, self._horizon), length)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Convolve with the impulse responses, O(d l log l)."""
        if self.max_length is not None and x.shape[1] > self.max_length:
            raise self._too_long(x.shape[1])
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        past, *future = self.kernels(x.shape[1])
        u = ops.transposed(x)
        y = ops.long_conv(u, past, reverse_kernel=future[0] if future else None, skip=self.D)
        return ops.transposed(y)

    def init_state(self, batch_size: int) -> DSSState:
        """A system at rest."""
        if not self.causal:
            raise self._no_recurrent_view()
        modes = torch.view_as_complex(self.D.new_zeros(batch_size, self.d_model, len(self.A_real), 2))
        return DSSState(modes, torch.zeros(batch_size, dtype=torch.long, device=self.D.device))

    def step(self, x: Float[Tensor, "b d"], state: DSSState) -> tuple[Float[Tensor, "b d"], DSSState]:
        """Advance every mode by one sample, O(d n)."""
        if not self.causal:
            raise self._no_recurrent_view()
        (falling, rising), u, after = self._steps(), x.to(self.D.dtype), state.position + 1
        if self.version == "softmax":
            self._check_position(after)
        y, modes = ops.modal_step(u, state.modes, *falling, self.D)
        if rising is not None:
            system, chosen = rising
            risen, counted = ops.rising_step(u, state.modes[..., chosen], system, state.position)
            y, modes = y + risen, modes.index_copy(-1, chosen, counted)
        return y.to(x.dtype), DSSState(modes, after)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: DSSState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], DSSState]:
        """The convolution of the chunk, plus what the state gives on its own: O(d (l log l + n l))."""
        if not self.causal:
            raise self._no_recurrent_view()
        system, u = self._system(), x.mT
        after = state.position + (x.shape[1] if mask is None else mask.sum(1))
        falling, rising = self._recurrences(system)
        y, modes = ops.modal_prefill(u, state.modes, falling, mask)
        if self.version == "softmax":
            self._check_position(after)
            risen, counted = ops.rising_prefill(u, state.modes, rising, state.position, mask)
            y, modes = y + risen, torch.where(system.rising, counted, modes)
        return (y + self.D[:, None] * u).mT.to(x.dtype), DSSState(modes, after)

    def _check_position(self, after: Tensor) -> None:
        if after.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # nobody can look while a CUDA graph is recorded; who replays one minds the length himself
        if (longest := int(after.max())) > self._horizon:
            raise self._too_long(longest)

    def _too_long(self, length: int) -> InputError:
        return InputError(
            f"a sequence of {length} positions is longer than the softmax of this DSS, which sums over "
            f"max_length={self.max_length}; build and train it with a larger max_length, or read less"
        )
