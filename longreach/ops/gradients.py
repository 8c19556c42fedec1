"""Gradients of an operator by its definition, for backends that have formulas of their own for the first ones only."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor


def gradients_by_autograd(
    function: Callable[..., Num[Tensor, "..."] | tuple[Num[Tensor, "..."], ...]],
    arguments: Sequence[Any],
    needed: Sequence[bool],
    grads: Num[Tensor, "..."] | Sequence[Num[Tensor, "..."] | None],
) -> list[Num[Tensor, "..."] | None]:
    """What autograd makes of `function(*arguments)`, given the gradients of its results; None where none is needed.

    Where gradients are recorded, these have derivatives themselves, in the arguments and in `grads`.  Each is taken
    with respect to a view of its argument: of two arguments one may have been computed from the other, and the way
    through it is not the function's, but followed by the autograd that asks.
    """
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        views = [x.view_as(x) if need else x for x, need in zip(arguments, needed, strict=True)]
        results = function(*views)
    wanted = [x for x, need in zip(views, needed, strict=True) if need]
    if not wanted:
        return [None] * len(views)
    found = iter(torch.autograd.grad(results, wanted, grads, create_graph=further, materialize_grads=True))
    return [next(found) if need else None for need in needed]
