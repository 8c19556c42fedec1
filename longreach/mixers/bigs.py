"""BiGS, bidirectional gated state spaces (Wang, Yan, Gu & Rush 2022, https://arxiv.org/abs/2212.10544).

One state-space model reads forwards, another backwards; their outputs are multiplied and gate a wide layer:

    v = act(x W_v)                                       wide: e channels
    f = s4d_f(act(x W_f)) W_cf                           from the first position to the last
    b = s4d_b(act(x W_b)) W_cb                           from the last to the first
    y = (act((f * b) W_l) * v) W_out                     every map has a bias

    s4d: y_t = sum_{j>=0} K_j u_{t-j} + D u_t,    K_j = Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(j dt A_n)

All channels share one kernel a direction, with N complex modes that come in no conjugate pairs,
A = min(A_real, -1e-4) + i A_imag.  The position itself is seen by both directions.

Axes: b batch, l length, d model width, n modes, r directions (forwards, backwards).
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn
from torch.nn import functional as F

from longreach import ops
from longreach.errors import InputError
from longreach.hippo import discretise, normal_form
from longreach.mixers.base import OptimHint, SequenceMixer

Start = Literal["hippo", "inv", "lin"]

SLOWEST = -1e-4
"""The greatest Re A, so that no mode grows."""
_DYNAMICS = OptimHint(lr_scale=0.1, weight_decay=False)


class BiGS(SequenceMixer[tuple]):
    """Bidirectional gated state spaces: O(d (e + log l)) a position; in parentheses the published names.

    Args:
        d_model: width of the model (hidden_size).
        d_inner: width of the gated layer; None is 3 * d_model (intermediate_size).
        d_state: number of complex modes of each direction (num_ssm).
        init: where the frequencies start: those of HiPPO-LegS, inverse or linear (scaling).
        activation: `gelu_tanh` as in the published weights, `gelu` as in the authors' port to PyTorch.
        dt_min: least time step at the start; both steps are log-uniform.
        dt_max: greatest time step at the start.
    """

    keeps_its_start = True
    optim_hints = dict.fromkeys(("log_dt", "A_real", "A_imag"), _DYNAMICS)

    def __init__(
        self,
        d_model: int,
        *,
        d_inner: int | None = None,
        d_state: int = 64,
        init: Start = "hippo",
        activation: Literal["gelu_tanh", "gelu"] = "gelu_tanh",
        dt_min: float = 0.01,
        dt_max: float = 1.0,
    ) -> None:
        super().__init__(d_model, causal=False)
        inner = 3 * d_model if d_inner is None else d_inner
        if inner < 1 or d_state < 1 or not 0 < dt_min <= dt_max:
            raise InputError(
                f"{d_inner=}, {d_state=}, {dt_min=}, {dt_max=}: sizes must be at least 1 and 0 < dt_min <= dt_max"
            )
        self.approximation = "tanh" if activation == "gelu_tanh" else "none"
        self.wide = nn.Linear(d_model, inner)
        self.enter_forward, self.enter_backward = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.leave_forward, self.leave_backward = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.gate = nn.Linear(d_model, inner)
        self.out = nn.Linear(inner, d_model)
        for linear in self.children():
            assert isinstance(linear, nn.Linear)
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.log_dt = nn.Parameter(torch.empty(2).uniform_(math.log(dt_min), math.log(dt_max)))
        self.A_real = nn.Parameter(torch.full((2, d_state), -0.5))
        self.A_imag = nn.Parameter(_frequencies(init, d_state).float().repeat(2, 1))
        self.C = nn.Parameter(torch.randn(2, d_state, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.ones(2))

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Convolve both ways, O(d l (e + log l))."""
        forwards, backwards = self.kernels(x.shape[1])
        u, w = self._act(self.enter_forward(x)), self._act(self.enter_backward(x))
        if mask is not None:
            padding = ~mask[..., None]
            u, w = u.masked_fill(padding, 0), w.masked_fill(padding, 0)
        u, w = ops.transposed(u), ops.transposed(w.flip(1))
        f = self.leave_forward(ops.transposed(convolve(u, forwards, self.D[:1])))
        b = self.leave_backward(ops.transposed(convolve(w, backwards, self.D[1:])).flip(1))
        return self.out(self._act(self.gate(f * b)) * self._act(self.wide(x)))

    def kernels(self, length: int) -> Float[Tensor, "2 {length}"]:
        """The impulse response of each direction without D, O(n length)."""
        return ops.modal_kernel(self.system(), length)

    def system(self) -> ops.ModalSystem:
        """Both directions as two channels in the form of longreach.ops.modal, which counts every mode twice."""
        A = torch.complex(self.A_real.clamp(max=SLOWEST), self.A_imag)
        log_abar, bbar = discretise("zoh", A, torch.ones_like(A), self.log_dt.exp()[:, None])
        return ops.ModalSystem(log_abar, bbar, torch.view_as_complex(self.C) / 2)

    def _act(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return F.gelu(x, approximate=self.approximation)


def convolve(
    u: Float[Tensor, "b d l"], kernel: Float[Tensor, " k"], skip: Float[Tensor, " 1"]
) -> Float[Tensor, "b d l"]:
    """Every channel of `u` with the one kernel, whose spectrum is made once; O(b d l log l)."""
    return ops.long_conv(u.flatten(0, 1)[:, None], kernel[None], skip=skip).view_as(u)


def _frequencies(init: Start, count: int) -> Float64[Tensor, " n"]:
    """Im A at the start."""
    n = torch.arange(count, dtype=torch.float64)
    if init == "lin":
        return math.pi * n
    if init == "inv":
        return count / math.pi * (count / (2 * n + 1) - 1)
    half = normal_form("legs", count).W.imag
    return torch.cat([half, -half.flip(0)])
