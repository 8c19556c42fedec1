"""H3, two state-space models between multiplicative gates (Fu, Dao et al. 2022, https://arxiv.org/abs/2212.14052).

Queries, keys and values as in attention, but instead of a softmax there are two linear systems:

    q, k, v = x W + b
    k' = shift(k) + E k                s_t = (s_{t-1} moved down by one) + B' k_t        shift_t = C' s_t
    y  = q (diag(k' v) + D k' v)       s_t = abar s_{t-1} + bbar k'_t v_t                diag_t = 2 Re(C s_t)
    out = y W_out + b_out

The shift finds the key before a value, the product k' v writes the pair into the diagonal system, and q reads it.  As
filters, the shift has `d_state` taps, h_t = sum_j B'_j C'_{j+t}, and the diagonal system is that of S4D.

With heads of width e the product is an outer one: y_f = sum_g q_g (diag + D)(k'_g v_f), f and g from 1 to e.

Axes: b batch, l length, d width, h heads, e head width, c = e d products (g h f), n modes, s independent systems,
w taps of the shift, k taps of the kernel.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Complex, Float, Inexact
from torch import Tensor, nn
from torch.nn import functional as F

from longreach import ops
from longreach.errors import InputError
from longreach.hippo import DiagonalInit, Discretisation, diagonal_system, discretise
from longreach.hippo.transforms import TRANSFORMS, Transform, inverse_transform
from longreach.mixers.base import OptimHint, SequenceMixer
from longreach.mixers.constant_weights import of_weights


@dataclass(frozen=True)
class H3Options:
    """The less common choices; in parentheses the name in the published code.

    Attributes:
        kernel_length: taps of both filters; what is longer ago is not seen (l_max).  None is no limit.
        n_ssm: number of independent pairs of A and B; head i uses pair i mod n_ssm (n_ssm).  None is one for each head.
        real_transform: how -Re A follows from its parameter (real_type).
        bandlimit: silence the modes whose frequency is at least this fraction of the Nyquist frequency (bandlimit).
    """

    kernel_length: int | None = None
    n_ssm: int | None = None
    real_transform: Transform = "exp"
    bandlimit: float | None = None


class H3State(NamedTuple):
    """All that later outputs depend on."""

    keys: Float[Tensor, "b d {w-1}"]
    """The last keys, which the shift still holds."""
    modes: Complex[Tensor, "b c n"]
    """The modes of the diagonal system after the last position."""
    products: Float[Tensor, "b c k"]
    """The last products of keys and values, as many as the kernel has taps; none where that is not limited."""


class H3(SequenceMixer[H3State]):
    """The H3 layer: O(d l (log l + d)) on a sequence, O(d (d + n)) on a step; in parentheses the published names.

    Args:
        d_model: width of the model.
        d_state: taps of the shift, and twice the number of modes of the diagonal system (d_state).
        head_dim: width of a head, within which all keys are multiplied with all values (head_dim).
        init: where A starts, see longreach.hippo.diagonal (measure: diag-lin, ...; diag).  B starts at one.
        discretisation: how the diagonal system is sampled (disc).
        dt_min: least time step at the start (dt_min); the steps are log-uniform.
        dt_max: greatest time step at the start (dt_max).  A head remembers about 1/dt positions.
        lr: learning rate of time steps, A, B and B', instead of that of the run (lr).
        options: the less common choices.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        head_dim: int = 1,
        init: Literal["lin", "inv", "inv2", "quad", "real", "legs", "diag"] = "lin",
        discretisation: Discretisation = "bilinear",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        lr: float | None = None,
        options: H3Options = H3Options(),
    ) -> None:
        super().__init__(d_model, causal=True)
        _check(d_model, head_dim, dt_min, dt_max, options)
        n_heads = d_model // head_dim
        n_ssm = options.n_ssm or n_heads
        self.head_dim, self.options = head_dim, options
        self.discretisation: Discretisation = discretisation
        self.taps = min(d_state, options.kernel_length or d_state)
        A, _ = diagonal_system(init, d_state, n_ssm, DiagonalInit())
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.shift_B = nn.Parameter(F.pad(torch.ones(d_model, 1), (0, d_state - 1)))
        self.shift_C = nn.Parameter(torch.empty(d_model, d_state).uniform_(-(d_state**-0.5), d_state**-0.5))
        self.shift_D = nn.Parameter(torch.randn(d_model))
        self.log_dt = nn.Parameter(torch.empty(n_heads).uniform_(math.log(dt_min), math.log(dt_max)))
        self.A_real = nn.Parameter(inverse_transform(-A.real, options.real_transform, "real_transform"))
        self.A_imag = nn.Parameter(-A.imag.float())
        self.B = nn.Parameter(torch.view_as_real(torch.ones(n_ssm, d_state // 2, dtype=torch.complex64)).clone())
        self.C = nn.Parameter(torch.view_as_real(torch.randn(n_heads, d_state // 2, dtype=torch.complex64)))
        self.D = nn.Parameter(torch.randn(n_heads))
        self.out = nn.Linear(d_model, d_model)
        dynamics = ("log_dt", "A_real", "A_imag", "B", "shift_B")
        self.optim_hints = dict.fromkeys(dynamics, OptimHint(lr=lr, weight_decay=False))

    @of_weights
    def shift_kernel(self) -> Float[Tensor, "d w"]:
        """The taps of the shift, the correlation of B' and C', O(d w log w)."""
        size = 2 * self.shift_B.shape[1]
        spectrum = torch.fft.rfft(self.shift_B, n=size).conj() * torch.fft.rfft(self.shift_C, n=size)
        return torch.fft.irfft(spectrum, n=size)[:, : self.taps]

    @of_weights
    def _shift_taps(self) -> Float[Tensor, "d w"]:
        """The same, and what goes past the shift."""
        return self.shift_kernel() + F.pad(self.shift_D[:, None], (0, self.taps - 1))

    def kernel(self, length: int) -> Float[Tensor, "h k"]:
        """The impulse response of the diagonal system, of `length` taps or as many as there are."""
        return ops.modal_kernel(self._system(), min(length, self.options.kernel_length or length))

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Two convolutions, the second with its gates, O(d l (log l + d)); memory O(d l), times e for heads."""
        query, key, value = self._project(x, mask)
        key = ops.long_conv(key, self.shift_kernel(), skip=self.shift_D)
        kernel, skip = self._spread(self.kernel(x.shape[1])), self._spread(self.D)
        query, key, value = self._pair(query, key, value)
        return self._finish(ops.long_conv(value, kernel, skip=skip, gate_before=key, gate_after=query))

    def init_state(self, batch_size: int) -> H3State:
        """Two systems at rest."""
        products, modes = self.head_dim * self.d_model, self.A_real.shape[1]
        return H3State(
            self.D.new_zeros(batch_size, self.d_model, self.taps - 1),
            torch.view_as_complex(self.D.new_zeros(batch_size, products, modes, 2)),
            self.D.new_zeros(batch_size, products, self.options.kernel_length or 0),
        )

    def step(self, x: Float[Tensor, "b d"], state: H3State) -> tuple[Float[Tensor, "b d"], H3State]:
        """Advance both systems by one sample."""
        query, key, value = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, dim=1)
        key, keys = ops.filter_step(key.to(state.keys.dtype), state.keys, self._shift_taps(), self.taps - 1)
        if self.head_dim > 1:
            query, key, value = (part[..., 0] for part in self._pair(*(z[..., None] for z in (query, key, value))))
        u, products = key * value, state.products
        if self.options.kernel_length is None:
            y, modes = ops.modal_step(u, state.modes, *self._recurrence())
        else:
            y, modes, products = ops.modal_window_step(u, state.modes, state.products, self._systems())
            y = y + self._spread(self.D) * u
        y = query * y
        if self.head_dim > 1:
            y = y.unflatten(1, (self.head_dim, self.d_model)).sum(1)
        return F.linear(y.to(query.dtype), self.out.weight, self.out.bias), H3State(keys, modes, products)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: H3State, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], H3State]:
        """The convolutions of the chunk behind the last keys, plus what the modes give when left alone."""
        query, key, value = self._project(x, None)
        taps = self.shift_kernel()
        shifted, keys = ops.window_prefill(lambda inputs: ops.long_conv(inputs, taps), key, state.keys, mask)
        query, key, value = self._pair(query, shifted + self.shift_D[:, None] * key, value)
        u, system = key * value, self._systems()
        if self.options.kernel_length is None:
            y, modes = ops.modal_prefill(u, state.modes, system, mask)
            products = state.products
        else:
            y, modes, products = ops.modal_window_prefill(u, state.products, system, mask)
        y = query * (y + self._spread(self.D)[:, None] * u)
        return self._finish(y), H3State(keys, modes, products)

    def _project(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None) -> tuple[Tensor, ...]:
        """Query, key and value, channels first; zero at padding, which the biases would otherwise fill."""
        projected = ops.linear_to_channels(x, self.qkv.weight, self.qkv.bias)
        if mask is not None:
            projected = projected.masked_fill(~mask[:, None], 0.0)
        return projected.chunk(3, dim=1)

    def _pair(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Copies (b, c, l) in which every key of a head stands at every value; without a copy if e = 1."""
        width = self.head_dim
        heads, length = self.d_model // width, key.shape[-1]

        def over_values(x: Tensor) -> Tensor:
            by_key = x.unflatten(1, (heads, width)).transpose(1, 2)
            return by_key[:, :, :, None].expand(-1, -1, -1, width, -1).reshape(len(x), -1, length)

        return over_values(query), over_values(key), value.repeat(1, width, 1) if width > 1 else value

    def _spread(self, rows: Inexact[Tensor, "h *n"]) -> Inexact[Tensor, "c *n"]:
        """Rows of the heads for all products."""
        return rows.repeat_interleave(self.head_dim, dim=0).repeat(self.head_dim, *[1] * (rows.ndim - 1))

    def _finish(self, y: Float[Tensor, "b c l"]) -> Float[Tensor, "b l d"]:
        """Sum over the keys of a head, then the output projection."""
        y = y.unflatten(1, (self.head_dim, self.d_model)).sum(1) if self.head_dim > 1 else y
        return ops.linear_from_channels(y, self.out.weight, self.out.bias)

    def _system(self) -> ops.ModalSystem:
        """The sampled diagonal system of every head."""
        dt = self.log_dt.exp()[:, None]
        copies = len(dt) // len(self.A_real)
        A = torch.complex(-TRANSFORMS[self.options.real_transform](self.A_real), -self.A_imag).repeat(copies, 1)
        C = torch.view_as_complex(self.C)
        if self.options.bandlimit is not None:
            C = C * (dt * A.imag.abs() / math.pi < self.options.bandlimit)  # 1 is the Nyquist frequency
        B = torch.view_as_complex(self.B).repeat(copies, 1)
        return ops.ModalSystem(*discretise(self.discretisation, A, B, dt), C)

    @of_weights
    def _recurrence(self) -> tuple[Inexact[Tensor, "..."], ...]:
        """What steps need of the diagonal system and of what goes past it."""
        return *self._systems().recurrence, self._spread(self.D)

    @of_weights
    def _systems(self) -> ops.ModalSystem:
        """The same for every product."""
        return ops.ModalSystem(*(self._spread(tensor) for tensor in self._system()))


def _check(d_model: int, head_dim: int, dt_min: float, dt_max: float, options: H3Options) -> None:
    if head_dim < 1 or d_model % head_dim:
        raise InputError(f"head_dim={head_dim} must divide d_model={d_model}")
    n_heads = d_model // head_dim
    if options.n_ssm is not None and (options.n_ssm < 1 or n_heads % options.n_ssm):
        raise InputError(f"n_ssm={options.n_ssm} must divide the number of heads, d_model / head_dim = {n_heads}")
    if not 0 < dt_min <= dt_max:
        raise InputError(f"dt_min={dt_min} and dt_max={dt_max} must be positive, and the first not the greater")
    if options.kernel_length is not None and options.kernel_length < 1:
        raise InputError(f"kernel_length={options.kernel_length} must be at least 1, or None for no limit")
