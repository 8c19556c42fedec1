"""How a kernel in low precision is judged: by the error of the same operator on torch in the same precision."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longreach.ops import use_backend

FACTOR = 4.0


def widened(x: Tensor) -> Tensor:
    """The same numbers in float64 or complex128, or the same integers."""
    if x.is_complex():
        return x.to(torch.complex128)
    return x.double() if x.is_floating_point() else x


def values_and_gradients(
    operator: str, backend: str, function: Callable[..., Tensor], inputs: Sequence[Tensor], cotangent: Tensor
) -> list[Tensor]:
    """The result of `function`, and the gradients of those `inputs` that can have one, on one backend of `operator`."""
    leaves = [x.detach().requires_grad_(x.is_floating_point() or x.is_complex()) for x in inputs]
    wanted = [x for x in leaves if x.requires_grad]
    with use_backend(**{operator: backend}):
        y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, wanted, cotangent.to(y.dtype))]


def assert_as_exact(ours: Sequence[Tensor], judge: Sequence[Tensor], truth: Sequence[Tensor]) -> None:
    """The largest error of each of ours is at most 4 times that of the judge, or a rounding of the largest number.

    Where the truth is nothing but zeros, differences of equal numbers, roundings of the largest number of all count.
    """
    most = max((float(x.abs().max()) for x in truth if x.numel()), default=0.0)
    for index, (a, b, c) in enumerate(zip(ours, judge, truth, strict=True)):
        assert a.shape == c.shape, f"result {index}: {a.shape} instead of {c.shape}"
        assert a.dtype == b.dtype, f"result {index}: {a.dtype} instead of {b.dtype}"
        if c.numel() == 0:
            continue
        error, theirs = ((widened(x) - c).abs().max() for x in (a, b))
        rounding = torch.finfo(a.dtype).eps * (float(c.abs().max()) or FACTOR * most)
        allowed = max(FACTOR * float(theirs), rounding)
        assert error <= allowed, (
            f"result {index}: error {error:.2e}, of torch {theirs:.2e}, largest {c.abs().max():.2e}"
        )


def assert_like_torch(
    operator: str,
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    judge: str = "reference",
) -> None:
    """Value and gradients of `function(*inputs)` on the backend `triton` of `operator`, against float64."""
    with torch.no_grad(), use_backend(**{operator: "reference"}):
        cotangent = torch.randn_like(function(*inputs))
    wide = [widened(x) for x in inputs]
    assert_as_exact(
        values_and_gradients(operator, "triton", function, inputs, cotangent),
        values_and_gradients(operator, judge, function, inputs, cotangent),
        values_and_gradients(operator, "reference", function, wide, widened(cotangent)),
    )


def repetitions(device: torch.device) -> int:
    """How often a call is made again to see whether its bits stay: races show on a GPU, not in the interpreter."""
    return 20 if device.type == "cuda" else 2
