"""Functions that treat every position by itself, applied to a few positions at a time.

What a network keeps of a position for the gradient is many times as large as its input and output.  Piece by piece,
only one piece of it exists at any time: nothing within a piece is kept, and the gradient computes it again (Chen et al.
2016, https://arxiv.org/abs/1604.06174).  Results and gradients are written where they belong, so that all a piece
needs is free again before the next one.

torch.utils.checkpoint around each piece does the same, but keeps the results of all pieces until they are joined: of
memory that the allocator had to split, most is lost then (half as much again for a network of six layers).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def piecewise(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    size: int,
    *,
    cut: int = 1,
    join: int = 1,
    whole: Sequence[Tensor] = (),
) -> Float[Tensor, "..."]:
    """`function(*inputs, *whole)`, `size` positions at a time, which costs one more call of it in the gradient.

    Args:
        function: treats every position by itself; what is random in it may differ from one call to the next.
        inputs: tensors whose axis `cut` holds the positions.
        parameters: at least those that `function` uses without being given them.
        size: positions in a piece.
        cut: the axis of positions of the inputs.
        join: the axis of positions of the result.
        whole: tensors that all pieces need, and may have been computed: the gradients of pieces are added up.

    A gradient that is itself to be differentiated keeps everything.  Under torch.compile, which plans memory itself,
    all positions are taken at once.
    """
    if inputs[0].shape[cut] <= size or torch.compiler.is_compiling():
        return function(*inputs, *whole)
    device = inputs[0].device
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    settings = _Settings(
        function,
        trained,
        len(inputs),
        size,
        cut,
        join,
        device,
        torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None,
        int(torch.randint(2**62, ())),
    )
    return _Piecewise.apply(settings, *inputs, *whole, *trained)


@dataclass(frozen=True)
class _Settings:
    """What a call and its gradient have in common."""

    function: Callable[..., Tensor]
    parameters: Sequence[Tensor]
    n_inputs: int
    size: int
    cut: int
    join: int
    device: torch.device
    autocast: torch.dtype | None
    seed: int

    def pieces(self, inputs: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
        """Start and length of every piece."""
        length = inputs[0].shape[self.cut]
        for start in range(0, length, self.size):
            yield start, min(self.size, length - start)

    @contextmanager
    def applied(self, start: int) -> Iterator[None]:
        """Within, everything that is not an argument is the same each time for the piece at `start`."""
        device = self.device
        enabled = self.autocast is not None
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            # what is cached would be reused with the graph, or without the graph, of another piece
            torch.autocast(device.type, self.autocast, enabled=enabled, cache_enabled=False),
        ):
            torch.manual_seed(self.seed + start)
            yield


class _Piecewise(torch.autograd.Function):
    """Loops over the pieces, twice where there is a gradient."""

    @staticmethod
    def forward(ctx: Any, settings: _Settings, *tensors: Tensor) -> Tensor:
        given, y = tensors[: len(tensors) - len(settings.parameters)], torch.empty(0)
        inputs, whole = given[: settings.n_inputs], given[settings.n_inputs :]
        for start, length in settings.pieces(inputs):
            with settings.applied(start):
                part = settings.function(*(x.narrow(settings.cut, start, length) for x in inputs), *whole)
            if start == 0:
                shape = list(part.shape)
                shape[settings.join] = inputs[0].shape[settings.cut]
                y = part.new_empty(shape)
            y.narrow(settings.join, start, length).copy_(part)
        ctx.settings = settings
        ctx.save_for_backward(*given)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        settings, given, parameters = ctx.settings, ctx.saved_tensors, ctx.settings.parameters
        needed = ctx.needs_input_grad[1 : 1 + len(given)]
        if torch.is_grad_enabled():
            found = _DifferentiableGradients.apply(settings, grads[0], *given, *parameters)
            return None, *(x if need else None for x, need in zip(found, ctx.needs_input_grad[1:], strict=True))
        inputs, n = given[: settings.n_inputs], settings.n_inputs
        input_grads = [torch.empty_like(x) if need else None for x, need in zip(inputs, needed, strict=False)]
        whole = [x.detach().requires_grad_(need) for x, need in zip(given[n:], needed[n:], strict=True)]
        summed = [*whole, *parameters]
        sums: list[Tensor | None] = [None] * len(summed)
        for start, length in settings.pieces(inputs):
            parts = [x.narrow(settings.cut, start, length).detach() for x in inputs]
            wanted = [part.requires_grad_() for part, need in zip(parts, needed, strict=False) if need]
            wanted += [x for x in summed if x.requires_grad]
            with torch.enable_grad(), settings.applied(start):
                y = settings.function(*parts, *whole)
            grad = grads[0].narrow(settings.join, start, length)
            found = iter(torch.autograd.grad(y, wanted, grad, allow_unused=True))
            for total in input_grads:
                if total is not None:
                    total.narrow(settings.cut, start, length).copy_(next(found))
            sums = [
                _sum(total, next(found) if x.requires_grad else None) for total, x in zip(sums, summed, strict=True)
            ]
        return None, *input_grads, *sums


def _sum(total: Tensor | None, add: Tensor | None) -> Tensor | None:
    """The sum of what is there; a new tensor, because gradients of several parameters may be one and the same."""
    return total if add is None else add if total is None else total + add


class _DifferentiableGradients(torch.autograd.Function):
    """The gradients as functions of the arguments, the parameters and the gradient of the result.

    Arguments may have been computed from the parameters.  That way is followed by the autograd that asks; here they
    are leaves of a graph of their own.
    """

    @staticmethod
    def forward(ctx: Any, settings: _Settings, grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        n = len(tensors) - len(settings.parameters)
        leaves = [x.detach().requires_grad_(x.is_floating_point() or x.is_complex()) for x in (grad, *tensors[:n])]
        inputs, whole, results = leaves[1 : 1 + settings.n_inputs], leaves[1 + settings.n_inputs :], []
        with torch.enable_grad():
            for start, length in settings.pieces(inputs):
                with settings.applied(start):
                    parts = (x.narrow(settings.cut, start, length) for x in inputs)
                    results.append(settings.function(*parts, *whole))
            y = torch.cat(results, dim=settings.join)
            ctx.arguments = [*leaves, *settings.parameters]
            wanted = [x for x in ctx.arguments[1:] if x.requires_grad]
            found = torch.autograd.grad(y, wanted, leaves[0], create_graph=True, materialize_grads=True)
        ctx.gradients = found
        every = iter(found)
        return tuple(next(every).detach() if x.requires_grad else x.new_zeros(()) for x in ctx.arguments[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        given = [g for g, x in zip(grads, ctx.arguments[1:], strict=True) if x.requires_grad]
        further = [(y, g) for y, g in zip(ctx.gradients, given, strict=True) if y.requires_grad]
        wanted = [x for x in ctx.arguments if x.requires_grad]
        results, weights = zip(*further, strict=True)
        found = iter(torch.autograd.grad(results, wanted, weights, retain_graph=True, allow_unused=True))
        return None, *(next(found) if x.requires_grad else None for x in ctx.arguments)
