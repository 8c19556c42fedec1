"""GSS, gated state spaces (Mehta, Gupta, Cutkosky & Neyshabur 2022, https://arxiv.org/abs/2206.13947).

A diagonal state-space model runs in few channels, between a narrowing and a widening linear map, and gates the wide
ones:

    u = gelu(x W_u)                                     wide: e = expand * d channels
    v = layer_norm(gelu(x W_v))                         narrow: s channels
    y_t = sum_j K_j v_{t-j} + D v_t                     the state-space model
    out = ((y W_gate) * u) W_out + b_out

with one of two kernels, both sums of decaying modes that channels share:

    dss   K_l = Re sum_n C_n (exp(A_n) - 1) / A_n exp(A_n l)        A = -exp(A_real) + i imag_transform(A_imag)
    ema   K_l = a ((1 - a) f)^l,  a = sigmoid(alpha), f = sigmoid(damping)        one mode for a head of channels

The first is DSS with time step 1, no conjugate pairs and a random start; the second an exponential moving average, as
in ETSformer (https://arxiv.org/abs/2202.01381).

Axes: b batch, l length, d model width, s channels of the state-space model, n modes.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach import ops
from longreach.errors import InputError
from longreach.hippo.transforms import TRANSFORMS
from longreach.mixers.base import SequenceMixer
from longreach.mixers.constant_weights import of_weights


class GSSState(NamedTuple):
    """All that later outputs depend on."""

    modes: Complex[Tensor, "b s n"]
    """The modes of every channel after the last position."""


class GSS(SequenceMixer[GSSState]):
    """Gated state spaces: O(d^2 + s log l) a position on a sequence, O(d^2 + s n) on a step; in parentheses the
    published names.

    Args:
        d_model: width of the model (dim).
        expand: width of the gated layer in multiples of `d_model`, rounded down (dim_expansion_factor).
        d_ssm: channels of the state-space model (dss_kernel_H, dim_mhesa).
        kernel: `dss` or `ema`, see above.
        d_state: modes of the `dss` kernel (dss_kernel_N).
        imag_transform: how the frequencies of `dss` follow from their parameter: `exp` as in the paper, or `none`
            (dss_kernel_lambda_imag_exp).
        n_heads: number of moving averages of `ema`; each serves d_ssm / n_heads neighbouring channels (heads).
        reverse: read from the last position to the first, so that outputs see the future only (reverse_seq).  Such a
            mixer has no recurrent view.
    """

    def __init__(
        self,
        d_model: int,
        *,
        expand: float = 4.0,
        d_ssm: int = 256,
        kernel: Literal["dss", "ema"] = "dss",
        d_state: int = 512,
        imag_transform: Literal["exp", "none"] = "exp",
        n_heads: int = 8,
        reverse: bool = False,
    ) -> None:
        super().__init__(d_model, causal=not reverse)
        inner = int(expand * d_model)
        if inner < 1 or d_ssm < 1 or d_state < 1:
            raise InputError(f"{expand=}, {d_ssm=}, {d_state=}: each must leave at least one channel or mode")
        if kernel == "ema" and (n_heads < 1 or d_ssm % n_heads):
            raise InputError(f"n_heads={n_heads} must divide d_ssm={d_ssm}")
        self.kernel = kernel
        self.imag_transform: Literal["exp", "none"] = imag_transform
        self.wide = nn.Linear(d_model, inner, bias=False)
        self.narrow = nn.Linear(d_model, d_ssm, bias=False)
        self.norm = nn.LayerNorm(d_ssm)
        if kernel == "dss":
            self.A_real = nn.Parameter(torch.randn(d_state))
            self.A_imag = nn.Parameter(torch.randn(d_state))
            self.C = nn.Parameter(torch.randn(d_ssm, d_state, 2))
        else:
            self.alpha = nn.Parameter(torch.randn(n_heads))
            self.damping = nn.Parameter(torch.randn(n_heads))
        self.D = nn.Parameter(torch.randn(d_ssm))
        self.gate = nn.Linear(d_ssm, inner, bias=False)
        self.out = nn.Linear(inner, d_model)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Convolve with the impulse response, O(d^2 l + s l log l)."""
        v = self._enter(x)
        if mask is not None:
            v = v.masked_fill(~mask[..., None], 0)
        u = ops.transposed(v if self.causal else v.flip(1))
        y = ops.long_conv(u, ops.modal_kernel(self._system(), x.shape[1]), skip=self.D)
        y = ops.transposed(y)
        return self._leave(x, y if self.causal else y.flip(1))

    def init_state(self, batch_size: int) -> GSSState:
        """A system at rest."""
        if not self.causal:
            raise self._no_recurrent_view()
        n_modes = self.C.shape[1] if self.kernel == "dss" else 1
        modes = self.D.new_zeros(batch_size, len(self.D), n_modes, 2)
        return GSSState(torch.view_as_complex(modes))

    def step(self, x: Float[Tensor, "b d"], state: GSSState) -> tuple[Float[Tensor, "b d"], GSSState]:
        """Advance every mode by one sample, O(d^2 + s n)."""
        if not self.causal:
            raise self._no_recurrent_view()
        v = self._enter(x).to(self.D.dtype)
        y, modes = ops.modal_step(v, state.modes, *self._recurrence(), self.D)
        return self._leave(x, y), GSSState(modes)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: GSSState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], GSSState]:
        """The convolution of the chunk, plus the free decay of what the state held, O(d^2 l + s (l log l + n l))."""
        if not self.causal:
            raise self._no_recurrent_view()
        v = self._enter(x)
        y, modes = ops.modal_prefill(v.mT, state.modes, self._system(), mask)
        return self._leave(x, y.mT + self.D * v), GSSState(modes)

    def _enter(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b s"]:
        return self.norm(F.gelu(self.narrow(x)))

    def _leave(self, x: Float[Tensor, "*b d"], y: Float[Tensor, "*b s"]) -> Float[Tensor, "*b d"]:
        return self.out(self.gate(y) * F.gelu(self.wide(x)))

    @of_weights
    def _recurrence(self) -> ops.ModalRecurrence:
        return self._system().recurrence

    @of_weights
    def _system(self) -> ops.ModalSystem:
        """The system in the form of longreach.ops.modal, which counts every mode twice."""
        if self.kernel == "dss":
            A = torch.complex(-self.A_real.exp(), TRANSFORMS[self.imag_transform](self.A_imag))[None]
            return ops.ModalSystem(A, torch.expm1(A) / A, torch.view_as_complex(self.C) / 2)
        decay = F.logsigmoid(-self.alpha) + F.logsigmoid(self.damping)  # of 1 - a and of f
        heads = torch.stack([decay, self.alpha.sigmoid() / 2]).repeat_interleave(len(self.D) // len(decay), dim=1)
        log_abar, C = torch.complex(heads, torch.zeros_like(heads))[..., None].unbind()
        return ops.ModalSystem(log_abar, torch.ones_like(C), C)
