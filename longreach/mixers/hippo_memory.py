"""A recurrent network with a HiPPO memory (Gu, Dao, Ermon, Rudra & Re 2020, https://arxiv.org/abs/2008.07669).

A small network decides what to write, the memory keeps the best approximation of all that was written, and the network
reads it:

    u_t = W_write [x_t, h_{t-1}]                          each of its signals is projected on n functions
    m_t = abar_t m_{t-1} + bbar_t u_t                     longreach.hippo: a measure, sampled
    h_t = (1 - g_t) h_{t-1} + g_t tanh(W_read [x_t, m_t])
    g_t = sigmoid(W_gate [x_t, m_t])

A time-invariant measure has a time scale, 1 / dt.  Scaled LegS has none: x' = (A x + B u) / t, so that abar depends on
the number of positions read, and the first position is remembered as the constant that it is.  With both feedbacks, no
gate and `measure="lmu"` it is the Legendre Memory Unit (Voelker, Kajic & Eliasmith 2019, NeurIPS).

Axes: b batch, l length, d model width, s signals, n functions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.hippo import Laguerre, MatrixDiscretisation, Measure, discretise_matrix, transition
from longreach.hippo.projection import scaled_legs
from longreach.mixers.base import OptimHint, SequenceMixer, select_rows

BLOCK_ELEMENTS = 1 << 22
"""Scaled LegS is sampled at so many positions at a time that their matrices hold about so many numbers."""


@dataclass(frozen=True)
class HiPPOMemoryOptions:
    """The less common choices of the published cells.

    Attributes:
        gate: keep part of the hidden state, as g_t says; without, g_t = 1.
        memory_feedback: what is written also depends on the memory: u_t += sum_n V_n m_{t-1,n}.
        hidden_feedback: what is read, and the gate, also depend on h_{t-1}.
        dynamics_lr_scale: train abar and bbar of a time-invariant memory, at this multiple of the learning rate; with 0
            they stay what they are.
        laguerre: parameters of the Laguerre measures.
    """

    gate: bool = True
    memory_feedback: bool = False
    hidden_feedback: bool = False
    dynamics_lr_scale: float = 0.0
    laguerre: Laguerre = field(default_factory=Laguerre)


class HiPPOMemoryState(NamedTuple):
    """All that later outputs depend on."""

    hidden: Float[Tensor, "b d"]
    memory: Float[Tensor, "b s n"]
    position: Int[Tensor, " b"]
    """How many positions were read."""


class HiPPOMemory(SequenceMixer[HiPPOMemoryState]):
    """Recurrent network that reads and writes a HiPPO memory: O(d (d + s n) + s n^2) a position, one after the other.

    Args:
        d_model: width of input, output and hidden state.
        d_state: number of functions n.
        n_signals: number of signals that are remembered.
        measure: which past matters: `scaled-legs` is all of it, at a resolution that falls as it grows; the others are
            in longreach.hippo.measures.
        discretisation: how the system is sampled.
        dt: time step of a time-invariant measure; about 1 / (the number of positions to remember).
        options: the less common choices.
    """

    keeps_its_start = True
    change: Tensor
    bbar: Tensor

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 32,
        n_signals: int = 1,
        measure: Measure | Literal["scaled-legs"] = "scaled-legs",
        discretisation: MatrixDiscretisation = "bilinear",
        dt: float = 0.01,
        options: HiPPOMemoryOptions = HiPPOMemoryOptions(),
    ) -> None:
        super().__init__(d_model, causal=True)
        if min(d_state, n_signals) < 1 or dt <= 0:
            raise InputError(f"d_state={d_state} and n_signals={n_signals} must be at least 1, and dt={dt} positive")
        self.d_state, self.n_signals, self.options = d_state, n_signals, options
        self.discretisation: MatrixDiscretisation = discretisation
        self.scaled = measure == "scaled-legs"
        if measure != "scaled-legs":
            self._set_dynamics(measure, dt)
        elif options.dynamics_lr_scale:
            raise InputError("measure='scaled-legs' changes with time and cannot be trained; use dynamics_lr_scale=0")
        read_width = d_model + n_signals * d_state + options.hidden_feedback * d_model
        self.write, self.read = nn.Linear(2 * d_model, n_signals), nn.Linear(read_width, d_model)
        nn.init.kaiming_uniform_(self.write.weight, nonlinearity="linear")
        nn.init.xavier_normal_(self.read.weight)
        self.gate = nn.Linear(read_width, d_model) if options.gate else None
        if self.gate is not None:
            nn.init.kaiming_normal_(self.gate.weight, nonlinearity="linear")
        self.feedback = nn.Parameter(torch.zeros(n_signals, d_state)) if options.memory_feedback else None

    def _set_dynamics(self, measure: Measure, dt: float) -> None:
        """abar - 1, which keeps more digits than abar, and bbar."""
        system = transition(measure, self.d_state, self.options.laguerre)
        abar, bbar = discretise_matrix(self.discretisation, *system, torch.tensor(dt, dtype=torch.float64))
        for name, value in (("change", abar - torch.eye(self.d_state)), ("bbar", bbar)):
            if self.options.dynamics_lr_scale:
                self.register_parameter(name, nn.Parameter(value.float()))
                hint = OptimHint(lr_scale=self.options.dynamics_lr_scale)
                self.optim_hints = self.optim_hints | {name: hint}
            else:
                self.register_buffer(name, value, persistent=False)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """All positions, in order."""
        return self._run(x, self.init_state(len(x)), mask, together=True)[0]

    def init_state(self, batch_size: int) -> HiPPOMemoryState:
        """Nothing written."""
        weight = self.read.weight
        memory = weight.new_zeros(batch_size, self.n_signals, self.d_state)
        position = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        return HiPPOMemoryState(weight.new_zeros(batch_size, self.d_model), memory, position)

    def step(self, x: Float[Tensor, "b d"], state: HiPPOMemoryState) -> tuple[Float[Tensor, "b d"], HiPPOMemoryState]:
        """One position."""
        y, state = self._run(x[:, None], state, None)
        return y[:, 0], state

    def prefill(
        self, x: Float[Tensor, "b l d"], state: HiPPOMemoryState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], HiPPOMemoryState]:
        """A chunk, position by position; what depends on its inputs alone is computed for all of them together."""
        return self._run(x, state, mask)

    def _run(
        self, x: Tensor, state: HiPPOMemoryState, mask: Tensor | None, *, together: bool = False
    ) -> tuple[Tensor, HiPPOMemoryState]:
        """`together` says that no row has read anything yet, so that without a mask all of them have the same time."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        d, outputs = self.d_model, []
        readers = [self.read] if self.gate is None else [self.read, self.gate]
        given = torch.cat([F.linear(x, layer.weight[:, :d], layer.bias) for layer in (self.write, *readers)], dim=-1)
        weight = torch.cat([layer.weight[:, d:] for layer in readers])
        with torch.autocast(x.device.type, enabled=False):  # the recurrence has the precision of the state
            given = given.to(state.hidden.dtype)
            for t, (given_t, change, bbar) in enumerate(self._dynamics(given, state, mask, together)):
                after = self._advance(given_t, weight, state, change, bbar)
                state = after if mask is None else select_rows(mask[:, t], after, state)
                outputs.append(after.hidden)
        return torch.stack(outputs, dim=1).to(x.dtype), state

    def _dynamics(
        self, given: Tensor, state: HiPPOMemoryState, mask: Tensor | None, together: bool
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For every position what its input gives, abar - 1 and bbar."""
        dtype = given.dtype
        if not self.scaled:
            change, bbar = self.change.to(dtype), self.bbar.to(dtype)
            yield from ((given_t, change, bbar) for given_t in given.unbind(1))
            return
        if mask is None:
            before = torch.arange(given.shape[1], device=given.device)[None]
        else:
            before = mask.cumsum(1) - mask.long()
        times = before if together and mask is None else state.position[:, None] + before  # (b or 1, l)
        block = max(1, BLOCK_ELEMENTS // (len(times) * self.d_state**2))
        unit = torch.eye(self.d_state, dtype=torch.float64, device=given.device)
        for given_block, time in zip(given.split(block, dim=1), times.split(block, dim=1), strict=True):
            abar, bbar = scaled_legs(self.d_state, self.discretisation, time.clamp(min=1))
            bbar = torch.where(time[..., None] == 0, unit[0], bbar)  # one position is a constant, the first function
            inputs = bbar.to(dtype)[:, :, None]
            yield from zip(given_block.unbind(1), (abar - unit).to(dtype).unbind(1), inputs.unbind(1), strict=True)

    def _advance(
        self, given: Tensor, weight: Tensor, state: HiPPOMemoryState, change: Tensor, bbar: Tensor
    ) -> HiPPOMemoryState:
        """One position, from what its input gives to the linear maps; `weight` is the rest of those that read."""
        d, (hidden, memory, position) = self.d_model, state
        u = given[:, : self.n_signals] + F.linear(hidden, self.write.weight[:, d:])
        if self.feedback is not None:
            u = u + (memory * self.feedback).sum(-1)
        memory = memory + memory @ change.mT + u[..., None] * bbar
        seen = memory.flatten(1)
        if self.options.hidden_feedback:
            seen = torch.cat([seen, hidden], dim=-1)
        read = given[:, self.n_signals :] + F.linear(seen, weight)
        after = torch.tanh(read[:, :d])
        if self.gate is not None:
            after = torch.lerp(hidden, after, torch.sigmoid(read[:, d:]))
        return HiPPOMemoryState(after, memory, position + 1)
