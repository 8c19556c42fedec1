"""Maps that keep the real parameters of a state-space system in their range: time steps and decay rates are positive.

    value = transform(parameter)        exp, softplus, sigmoid, relu (+ 1e-4), none

The published kernels of S4 and S4D (https://arxiv.org/abs/2206.11893, section 4) offer them for dt, -Re A and -Im A.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor
from torch.nn import functional as F

from longreach.errors import InputError

Transform = Literal["exp", "softplus", "sigmoid", "relu", "none"]

FLOOR = 1e-4
"""The least value that a transformed parameter starts from; HiPPO-Fourier has Re A = 0."""

TRANSFORMS: dict[Transform, Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]] = {
    "exp": torch.exp,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "relu": lambda x: F.relu(x) + FLOOR,
    "none": lambda x: x,
}
_INVERSES: dict[Transform, Callable[[Tensor], Tensor]] = {
    "exp": torch.log,
    "softplus": lambda y: y + torch.log(-torch.expm1(-y)),
    "sigmoid": torch.logit,
    "relu": lambda y: y,
    "none": lambda y: y,
}


def inverse_transform(value: Float64[Tensor, "..."], transform: Transform, option: str) -> Float32[Tensor, "..."]:
    """The parameter that `transform` takes to `value`, or to the least value allowed.

    Raises InputError, with the name of the `option` that chose the transform, if there is no such parameter.
    """
    parameter = _INVERSES[transform](value.clamp(min=FLOOR))
    if not parameter.is_meta and not parameter.isfinite().all():
        raise InputError(f"{option}={transform!r} cannot give {value.max():.3g}; use exp or softplus")
    return parameter.float()


def start_time_steps(
    shape: tuple[int, int], dt_min: float, dt_max: float, transform: Transform, fast: bool
) -> Float32[Tensor, "d n"]:
    """The parameter of time steps that are log-uniform between the two; see `time_steps`.

    Raises InputError unless 0 < dt_min <= dt_max.
    """
    if not 0 < dt_min <= dt_max:
        raise InputError(f"dt_min={dt_min} and dt_max={dt_max} must be positive, and the first not the greater")
    log_dt = torch.empty(shape).uniform_(math.log(dt_min), math.log(dt_max))
    parameter = inverse_transform(log_dt.double().exp(), transform, "dt_transform")
    return parameter.asinh() if fast else parameter


def time_steps(parameter: Float[Tensor, "d n"], transform: Transform, fast: bool) -> Float[Tensor, "d n"]:
    """Time steps from their parameter; if `fast`, that is asinh of what `transform` reads (gradients grow with dt)."""
    return TRANSFORMS[transform](parameter.sinh() if fast else parameter)
