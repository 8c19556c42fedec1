"""S5, one state-space system for all channels (Smith, Warrington & Linderman 2023, https://arxiv.org/abs/2208.04933).

Where S4D runs a small system in every channel, S5 runs one with d inputs, d outputs and p complex modes:

    s'(t) = A s(t) + B u(t)           A = A_real + i A_imag, diagonal
    y(t)  = 2 Re(C s(t)) + D u(t)     2 Re(.) supplies the conjugates; without conjugate_pairs it is Re(C s)

sampled with a learned time step for every mode, s_k = abar s_{k-1} + bbar u_k (longreach.hippo.discretise), and run
as a scan over time (longreach.ops.linear_scan).  A second C reads a scan from the end, which starts at the present
position: a bidirectional S5 counts it twice.  With `liquid` the input also moves the transition, as in Liquid-S4
(https://arxiv.org/abs/2209.12951, equation 8):  s_k = (abar + bbar u_k) s_{k-1} + bbar u_k.

A starts as `n_blocks` copies of the normal part of HiPPO-LegS, B and C in its eigenvectors.

Axes: b batch, l length, d channels, p modes (`d_state`, or half of it in conjugate pairs), r directions.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach import ops
from longreach.errors import InputError
from longreach.hippo import Discretisation, discretise, transition
from longreach.hippo.transforms import start_time_steps
from longreach.mixers.base import OptimHint, SequenceMixer
from longreach.mixers.constant_weights import of_weights

CInit = Literal["trunc_standard_normal", "lecun_normal", "complex_normal"]
Groups = Literal["standard", "decay_B", "fast_B", "slow_BCD"]

_SLOW = OptimHint(lr=1e-3, weight_decay=False)
_HINTS: dict[Groups, dict[str, OptimHint]] = {
    "standard": {"B": _SLOW},
    "decay_B": {"B": OptimHint(lr=1e-3)},
    "fast_B": {},
    "slow_BCD": {"B": _SLOW, "C": _SLOW, "D": _SLOW},
}
_GREATEST_REAL = -1e-4


@dataclass(frozen=True)
class S5Options:
    """The less common choices; in parentheses the published names.

    Attributes:
        conjugate_pairs: keep one of each pair of conjugate modes (conj_sym); otherwise all `d_state` are independent.
        clip: keep Re A below -1e-4, so that no mode can grow (clip_eigs).  For sequences of any length.
        C_init: how C starts (C_init): in the eigenvectors of A, with variance 1 / d_state (trunc_standard_normal) or
            1 / (d_state d) (lecun_normal); or of unit variance, in no particular basis (complex_normal).
        rate: multiplies every time step, for input sampled at another rate (step_rescale): 2 for every second sample
            of what the weights were trained on.
        liquid: let the input move the transition.
        groups: what is trained slowly and without weight decay beside A and the time steps (opt_config): B (standard);
            B, but with decay (BandCdecay); nothing (BfastandCdecay); B, C and D (noBCdecay).
        ordinary_dt: train the time steps as ordinary weights (dt_global).
    """

    conjugate_pairs: bool = True
    clip: bool = False
    C_init: CInit = "trunc_standard_normal"
    rate: float = 1.0
    liquid: bool = False
    groups: Groups = "standard"
    ordinary_dt: bool = False


class S5State(NamedTuple):
    """All that later outputs depend on."""

    modes: Complex[Tensor, "b p"]


class S5(SequenceMixer[S5State]):
    """The S5 layer without its nonlinearity: O(l p d) on a sequence, O(p d) on a step.

    Args:
        d_model: number of channels.
        d_state: real states of the system, two for each conjugate pair (ssm_size).
        n_blocks: number of copies of HiPPO-LegS that A starts from, of d_state / n_blocks states each (blocks).
        discretisation: how the system is sampled.
        dt_min: least time step at the start; the steps are log-uniform.
        dt_max: greatest time step at the start.
        causal: whether a position sees only itself and what came before it; otherwise what follows too.
        options: the less common choices.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 256,
        n_blocks: int = 8,
        discretisation: Discretisation = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        causal: bool = True,
        options: S5Options = S5Options(),
    ) -> None:
        super().__init__(d_model, causal=causal)
        self.discretisation: Discretisation = discretisation
        self.options = options
        self._check(d_state, n_blocks)
        frequency, V = _eigenvectors(d_state // n_blocks, half=options.conjugate_pairs)
        self.A_imag = nn.Parameter(frequency.float().repeat(n_blocks))
        self.A_real = nn.Parameter(torch.full_like(self.A_imag, -0.5))
        B = _truncated_normal((n_blocks, d_state // n_blocks, d_model), d_state).to(V.dtype)
        self.B = _store((V.mH @ B).flatten(0, 1))
        C = [self._start_readout(d_state, n_blocks, V) for _ in range(1 if causal else 2)]
        self.C = _store(torch.stack(C))
        self.D = nn.Parameter(torch.randn(d_model))
        self.log_dt = nn.Parameter(start_time_steps((len(self.A_imag), 1), dt_min, dt_max, "exp", fast=False)[:, 0])
        slow = ("A_real", "A_imag") if options.ordinary_dt else ("A_real", "A_imag", "log_dt")
        self.optim_hints = dict.fromkeys(slow, _SLOW) | _HINTS[options.groups]

    def _check(self, d_state: int, n_blocks: int) -> None:
        if n_blocks < 1 or d_state < 1 or d_state % n_blocks:
            raise InputError(f"d_state={d_state} must be a positive multiple of n_blocks={n_blocks}")
        if self.options.conjugate_pairs and d_state // n_blocks % 2:
            raise InputError(
                f"d_state={d_state} in n_blocks={n_blocks} gives blocks of {d_state // n_blocks} states; conjugate "
                "pairs need an even number, or conjugate_pairs=False"
            )
        if self.options.rate <= 0:
            raise InputError(f"rate={self.options.rate} must be positive; 1 is the rate of the training data")

    def _start_readout(self, d_state: int, n_blocks: int, V: Tensor) -> Tensor:
        """A start of the readout of one direction, (d, p)."""
        if self.options.C_init == "complex_normal":
            return torch.randn(self.d_model, n_blocks * V.shape[1], dtype=torch.complex64)
        inputs = d_state * (self.d_model if self.options.C_init == "lecun_normal" else 1)
        real, imag = (_truncated_normal((self.d_model, d_state), inputs) for _ in range(2))
        return (torch.complex(real, imag).to(V.dtype).unflatten(1, (n_blocks, -1)) @ V).flatten(1)

    @of_weights
    def _system(self) -> tuple[Complex[Tensor, " p"], Complex[Tensor, "p d"], Complex[Tensor, "r d p"]]:
        """The sampled system: abar, bbar, and C with the factor of the conjugates."""
        options = self.options
        real = self.A_real.clamp(max=_GREATEST_REAL) if options.clip else self.A_real
        A, dt = torch.complex(real, self.A_imag), self.log_dt.exp() * options.rate
        log_abar, bbar = discretise(self.discretisation, A[:, None], torch.view_as_complex(self.B), dt[:, None])
        C = torch.view_as_complex(self.C)
        return log_abar[:, 0].exp(), bbar, 2 * C if options.conjugate_pairs else C

    @of_weights
    def _maps(self) -> tuple[Complex[Tensor, " p"], Float[Tensor, "p2 d"], Float[Tensor, "d p2"]]:
        """What a step needs: abar, and the maps to the modes and from them on pairs of real numbers."""
        abar, bbar, C = self._system()
        return abar, _write_map(bbar), _read_map(C[0])

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Scan the sequence, once for each direction; O(l p d) time and O(l p) memory for a row."""
        abar, bbar, (past, *future) = self._system()
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        drive = _drive(x, bbar)
        ratio = self._ratio(abar, drive)
        rest = torch.zeros_like(drive[:, 0])
        y = _read(ops.linear_scan(ratio, drive, rest), past)
        for C in future:
            y = y + _read(ops.linear_scan(ratio.flip(1), drive.flip(1), rest).flip(1), C)
        return (y + self.D * x).to(x.dtype)

    def init_state(self, batch_size: int) -> S5State:
        """A system at rest."""
        if not self.causal:
            raise self._no_recurrent_view()
        return S5State(torch.view_as_complex(self.D.new_zeros(batch_size, len(self.A_real), 2)))

    def step(self, x: Float[Tensor, "b d"], state: S5State) -> tuple[Float[Tensor, "b d"], S5State]:
        """Advance every mode by one sample, O(p d)."""
        if not self.causal:
            raise self._no_recurrent_view()
        abar, write, read = self._maps()
        drive = torch.view_as_complex(F.linear(x.to(write.dtype), write).to(write.dtype).unflatten(-1, (-1, 2)))
        modes = self._ratio(abar, drive) * state.modes + drive
        y = F.linear(torch.view_as_real(modes).flatten(-2), read)
        return torch.addcmul(y, self.D, x).to(x.dtype), S5State(modes)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: S5State, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], S5State]:
        """The scan that continues from the state; at padding it stands still."""
        if not self.causal:
            raise self._no_recurrent_view()
        abar, bbar, C = self._system()
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        drive = _drive(x, bbar)
        ratio = self._ratio(abar, drive)
        if mask is not None:
            ratio = ratio.masked_fill(~mask[..., None], 1)
        modes = ops.linear_scan(ratio, drive, state.modes)
        return (_read(modes, C[0]) + self.D * x).to(x.dtype), S5State(modes[:, -1].clone())

    def _ratio(self, abar: Tensor, drive: Tensor) -> Tensor:
        """What every mode is multiplied with, at every position."""
        return abar + drive if self.options.liquid else abar.expand_as(drive)


def _drive(x: Tensor, bbar: Tensor) -> Tensor:
    """bbar u as one real product, (..., d) -> (..., p), in float32 or wider."""
    weight = _write_map(bbar)
    product = F.linear(x.to(weight.dtype), weight)
    return torch.view_as_complex(product.unflatten(-1, (-1, 2)).to(weight.dtype).contiguous())


def _read(modes: Tensor, C: Tensor) -> Tensor:
    """Re(C s) as one real product, (..., p) -> (..., d)."""
    return F.linear(torch.view_as_real(modes).flatten(-2), _read_map(C))


def _write_map(bbar: Tensor) -> Tensor:
    """bbar as a real matrix, (2 p, d)."""
    return torch.view_as_real(bbar).mT.flatten(0, 1)


def _read_map(C: Tensor) -> Tensor:
    """Re(C .) as a real matrix, (d, 2 p)."""
    return torch.view_as_real(C.conj().resolve_conj()).flatten(-2)


def _eigenvectors(size: int, *, half: bool) -> tuple[Tensor, Tensor]:
    """Eigenvalues i f and eigenvectors, (size, modes), of HiPPO-LegS + 1/2 made skew-symmetric, the least f first."""
    A, _ = transition("legs", size)
    frequency, V = torch.linalg.eigh(-1j * (A - A.mT) / 2)
    modes = size // 2 if half else size
    return frequency[:modes], V[:, :modes]


def _truncated_normal(shape: tuple[int, ...], inputs: int) -> Tensor:
    """Of variance 1 / inputs, cut at two standard deviations before it is scaled to that (LeCun's normal in JAX)."""
    std = inputs**-0.5 / 0.87962566103423978
    return nn.init.trunc_normal_(torch.empty(shape), std=std, a=-2 * std, b=2 * std)


def _store(value: Tensor) -> nn.Parameter:
    """A parameter that holds complex numbers as pairs of real ones."""
    return nn.Parameter(torch.view_as_real(value.to(torch.complex64).resolve_conj()).clone())
