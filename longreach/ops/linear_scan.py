"""The elementwise linear recurrence, the common core of S5, Liquid-S4, Mega's moving average and RWKV.

    h_t = a_t * h_{t-1} + x_t            t = 0 .. l-1,   h_{-1} = initial

Axes: b batch, l length, n channels (real or complex; every channel is independent).
"""

import torch
from jaxtyping import Num
from torch import Tensor

from longreach.ops.backend import op


@op
def linear_scan(
    a: Num[Tensor, "b l n"],
    x: Num[Tensor, "b l n"],
    initial: Num[Tensor, "b n"],
) -> Num[Tensor, "b l n"]:
    """All states h_0 .. h_{l-1} of h_t = a_t * h_{t-1} + x_t, starting from h_{-1} = `initial`."""
    h, states = initial, []
    for a_t, x_t in zip(a.unbind(1), x.unbind(1), strict=True):
        h = a_t * h + x_t
        states.append(h)
    return torch.stack(states, dim=1)
