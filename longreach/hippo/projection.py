"""Online projection: the coefficients of everything seen so far, at every position of a signal.

    time-invariant   c_t = abar c_{t-1} + bbar u_t                  sampled once with the time step dt
    scaled LegS      c_t = abar_t c_{t-1} + bbar_t u_t              x' = (A x + B u) / t, sampled at every t = 1, 2 ...

The past is `basis(measure, size, age) @ c_t` (longreach.hippo.basis).  A time-invariant measure whose window is W long
remembers the last W / dt samples; scaled LegS has no time scale and remembers all of them (HiPPO,
https://arxiv.org/abs/2008.07669, sections 2.3 and 3).

Axes: l length, n states, ... any batch axes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longreach.errors import InputError
from longreach.hippo.discretise import MatrixDiscretisation, SampledMatrix, discretise_matrix
from longreach.hippo.measures import Laguerre, Measure, transition

BLOCK = 64
"""So many steps of scaled LegS are sampled together."""


def project(
    signal: Float[Tensor, "... l"],
    measure: Measure,
    size: int,
    *,
    dt: float,
    rule: MatrixDiscretisation = "bilinear",
    laguerre: Laguerre = Laguerre(),  # noqa: B008 (immutable)
) -> Float[Tensor, "... l n"]:
    """The coefficients of a time-invariant measure after every sample, O(l n^2), in the dtype of the signal.

    Raises InputError if `dt` is not positive.
    """
    if dt <= 0:
        raise InputError(f"dt={dt} must be positive; 1 / (length to remember) is a good choice")
    A, B = transition(measure, size, laguerre)
    system = discretise_matrix(rule, A, B, torch.tensor(dt, dtype=torch.float64))
    abar, bbar = (matrix.to(signal) for matrix in system)
    state, states = signal.new_zeros(*signal.shape[:-1], size), []
    for u in signal.unbind(-1):
        state = state @ abar.mT + u[..., None] * bbar
        states.append(state)
    return torch.stack(states, dim=-2)


def project_scaled(
    signal: Float[Tensor, "... l"], size: int, *, rule: MatrixDiscretisation = "bilinear"
) -> Float[Tensor, "... l n"]:
    """The coefficients of scaled LegS after every sample, O(l n^3) of which O(l n^2) depend on the signal."""
    state, states = signal.new_zeros(*signal.shape[:-1], size), []
    for times in torch.arange(1, signal.shape[-1] + 1).split(BLOCK):
        block = signal[..., len(states) : len(states) + len(times)]
        for abar, bbar, u in zip(*scaled_legs(size, rule, times), block.unbind(-1), strict=True):
            state = state @ abar.mT.to(signal) + u[..., None] * bbar.to(signal)
            states.append(state)
    return torch.stack(states, dim=-2)


def scaled_legs(size: int, rule: MatrixDiscretisation, time: Int[Tensor, "..."]) -> SampledMatrix:
    """x' = (A x + B u) / t for LegS from `time` (at least 1) on, for one sample; O(size^3) for each time.

    Held input is exact over [t, t+1], which in the logarithm of time has the length log(1 + 1/t); the other rules take
    1/t at the start.
    """
    A, B = (matrix.to(time.device) for matrix in transition("legs", size))
    dt = 1 / time.double()
    return discretise_matrix(rule, A, B, dt.log1p() if rule == "zoh" else dt)
