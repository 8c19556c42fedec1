"""StripedHyena, Hyena with filters that generate (Massaroli, Poli et al. 2023, https://arxiv.org/abs/2310.18780).

A Hyena operator of order 2 whose long filter is not implicit but a sum of modes, so that it is also a recurrence:

    x2, x1, v = short_conv(x W + b)
    y = x2 (h * (x1 v) + D x1 v)
    out = y W_out + b_out

    complex   h_t = Re sum_n R_n p_n^t         StripedHyena 1:  s_t = p s_{t-1} + x1 v,  h * (x1 v) = Re(R s_t)
    real      h_t = sum_n R_n p_n^t, p > 0     StripedHyena 2 (https://arxiv.org/abs/2503.01868), its long filter (LI)
    explicit  h_t a parameter for each tap     the same, its short (SE, 7 taps, no D) and medium filters (MR, 128 taps)

Groups of neighbouring channels can share a filter.  The models stripe such layers with attention.

Axes: b batch, l length, d width, c = 3 d projected channels, f filters, n modes, k taps, w window.
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from longreach import ops
from longreach.errors import InputError
from longreach.mixers.base import OptimHint, SequenceMixer
from longreach.mixers.constant_weights import of_weights

STEPS = (1e-3, 1e-1)
"""Between these the time steps of modal filters start, log-uniformly: a filter remembers about 1 / step positions."""
POLES_LR_SCALE = 0.01
"""How much slower poles learn than the rest."""


class StripedHyenaState(NamedTuple):
    """All that later outputs depend on."""

    tail: Float[Tensor, "b c {short_width-1}"]
    """The projections that the short convolution still needs."""
    modes: Complex[Tensor, "b d n"]
    """The modes of a modal filter; none of an explicit one."""
    window: Float[Tensor, "b d w"]
    """The last inputs of a filter that ends; none of one that does not."""


class StripedHyena(SequenceMixer[StripedHyenaState]):
    """A gated convolution with a recurrence: O(d l (log l + d)) on a sequence, O(d (d + n + w)) on a step.

    Args:
        d_model: width of the model.
        filter: what the filters are made of.
        d_state: number of modes of a modal filter.
        kernel_length: number of taps; None, which only modal filters can have, is no end.
        n_filters: number of different filters, each for a group of neighbouring channels; None: one for each channel.
        skip: add the input of the filter, scaled for each channel, to its output (D).
        short_width: number of taps of the short convolution.
        short_bias: whether the short convolution has a bias.
        bias: whether the projections have a bias.
        out_bias: whether the output projection has a bias.
    """

    def __init__(
        self,
        d_model: int,
        *,
        filter: Literal["complex", "real", "explicit"] = "complex",
        d_state: int = 16,
        kernel_length: int | None = None,
        n_filters: int | None = None,
        skip: bool = True,
        short_width: int = 3,
        short_bias: bool = True,
        bias: bool = True,
        out_bias: bool = True,
    ) -> None:
        super().__init__(d_model, causal=True)
        n_filters = d_model if n_filters is None else n_filters
        if n_filters < 1 or d_model % n_filters:
            raise InputError(f"n_filters={n_filters} must divide d_model={d_model}")
        if min(d_state, short_width) < 1 or (kernel_length is not None and kernel_length < 1):
            raise InputError(f"{d_state=}, {short_width=}, {kernel_length=}: each must be at least 1")
        self.kernel_length, self.short_width = kernel_length, short_width
        self.projections = nn.Linear(d_model, 3 * d_model, bias=bias)
        bound = short_width**-0.5  # as torch initialises a depthwise convolution
        self.short_weight = nn.Parameter(torch.empty(3 * d_model, short_width).uniform_(-bound, bound))
        self.short_bias = nn.Parameter(torch.empty(3 * d_model).uniform_(-bound, bound)) if short_bias else None
        if filter != "explicit":
            self._initialise_modes(n_filters, d_state, real=filter == "real")
            # decays start between 1e-3 and 1e-1: a step of Adam must not pass 0, where a mode no longer fades
            self.optim_hints = {"log_poles": OptimHint(lr_scale=POLES_LR_SCALE, weight_decay=False)}
        elif kernel_length is not None:
            self.taps = nn.Parameter(torch.randn(n_filters, kernel_length) * kernel_length**-0.5)
        else:
            raise InputError("filter='explicit' has a parameter for each tap; set kernel_length to their number")
        self.modal = filter != "explicit"
        self.skip = nn.Parameter(torch.zeros(d_model)) if skip else None
        self.out = nn.Linear(d_model, d_model, bias=out_bias)

    def _initialise_modes(self, n_filters: int, d_state: int, *, real: bool) -> None:
        """As the S4D models Lin and Real start (https://arxiv.org/abs/2206.11893); the published start is not known."""
        step = torch.empty(n_filters, 1).uniform_(*(math.log(bound) for bound in STEPS)).exp()
        n = torch.arange(d_state)
        log_poles = -step * (n + 1)
        residues = step * torch.randn(n_filters, d_state)
        if not real:
            log_poles = torch.stack([-step / 2 * torch.ones(d_state), step * math.pi * n], dim=-1)
            residues = step[..., None] * torch.randn(n_filters, d_state, 2)
        self.log_poles, self.residues = nn.Parameter(log_poles), nn.Parameter(residues)

    def kernel(self, length: int) -> Float[Tensor, "f k"]:
        """The taps of the filters, `length` or as many as there are."""
        if self.modal:
            return ops.modal_kernel(self._system(), min(length, self.kernel_length or length))
        return self.taps

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Two convolutions, the second between gates."""
        projected = self._project(x, mask)
        branches = ops.short_conv(projected, self.short_weight, self.short_bias)
        if mask is not None:  # the bias would fill the padding
            branches = branches.masked_fill(~mask[:, None], 0.0)
        after, before, value = branches.chunk(3, dim=1)
        kernel = self._spread(self.kernel(x.shape[1]))
        return self._finish(ops.long_conv(value, kernel, skip=self.skip, gate_before=before, gate_after=after))

    def init_state(self, batch_size: int) -> StripedHyenaState:
        """Nothing has been read."""
        weight, d = self.short_weight, self.d_model
        width = (self.kernel_length or 0) if self.modal else self.taps.shape[1] - 1
        return StripedHyenaState(
            weight.new_zeros(batch_size, 3 * d, self.short_width - 1),
            torch.view_as_complex(weight.new_zeros(batch_size, d, self.log_poles.shape[1] if self.modal else 0, 2)),
            weight.new_zeros(batch_size, d, width),
        )

    def step(self, x: Float[Tensor, "b d"], state: StripedHyenaState) -> tuple[Float[Tensor, "b d"], StripedHyenaState]:
        """Advance the short convolution and the filter by one sample."""
        projected = self._project(x[:, None], None)[..., 0].to(state.tail.dtype)
        branches, tail = ops.filter_step(
            projected, state.tail, self._short_taps(), self.short_width - 1, self.short_bias
        )
        after, before, value = branches.chunk(3, dim=1)
        u, modes, window = before * value, state.modes, state.window
        if not self.modal:
            y, window = ops.filter_step(u, window, self._spread(self.taps), window.shape[-1])
        elif self.kernel_length is None:
            y, modes = ops.modal_step(u, modes, *self._recurrence())
        else:
            y, modes, window = ops.modal_window_step(u, modes, window, self._systems())
        y = after * (y if self.skip is None else torch.addcmul(y, self.skip, u))
        return self._finish(y.to(x.dtype)[..., None])[:, 0], StripedHyenaState(tail, modes, window)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: StripedHyenaState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], StripedHyenaState]:
        """Both convolutions behind what the state holds."""
        branches, tail = ops.window_prefill(
            lambda inputs: ops.short_conv(inputs, self.short_weight, self.short_bias),
            self._project(x, None), state.tail, mask,
        )  # fmt: skip
        after, before, value = branches.chunk(3, dim=1)
        u, modes, window = before * value, state.modes, state.window
        if not self.modal:
            kernel = self._spread(self.taps)
            y, window = ops.window_prefill(lambda inputs: ops.long_conv(inputs, kernel), u, window, mask)
        elif self.kernel_length is None:
            y, modes = ops.modal_prefill(u, modes, self._systems(), mask)
        else:
            y, modes, window = ops.modal_window_prefill(u, window, self._systems(), mask)
        y = after * (y if self.skip is None else y + self.skip[:, None] * u)
        return self._finish(y), StripedHyenaState(tail, modes, window)

    def _project(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None) -> Float[Tensor, "b c l"]:
        """Gates and value, channels first; zero at padding."""
        projected = ops.linear_to_channels(x, self.projections.weight, self.projections.bias)
        return projected if mask is None else projected.masked_fill(~mask[:, None], 0.0)

    def _finish(self, y: Float[Tensor, "b d l"]) -> Float[Tensor, "b l d"]:
        return ops.linear_from_channels(y, self.out.weight, self.out.bias)

    def _system(self) -> ops.ModalSystem:
        """The filters as linear systems; they have no conjugate pairs, hence the half (see longreach.ops.modal)."""
        if self.log_poles.ndim == 3:
            log_poles, residues = torch.view_as_complex(self.log_poles), torch.view_as_complex(self.residues)
        else:
            nothing = torch.zeros_like(self.log_poles)
            log_poles, residues = torch.complex(self.log_poles, nothing), torch.complex(self.residues, nothing)
        return ops.ModalSystem(log_poles, torch.ones_like(log_poles), residues / 2)

    @of_weights
    def _short_taps(self) -> Float[Tensor, "c k"]:
        """The taps of the short convolution, backwards in time."""
        return self.short_weight.flip(-1)

    @of_weights
    def _recurrence(self) -> ops.ModalRecurrence:
        return self._systems().recurrence

    @of_weights
    def _systems(self) -> ops.ModalSystem:
        """The same for every channel."""
        return ops.ModalSystem(*(self._spread(tensor) for tensor in self._system()))

    def _spread(self, rows: Tensor) -> Tensor:
        """Rows of the filters for all their channels."""
        return rows.repeat_interleave(self.d_model // len(rows), dim=0)
