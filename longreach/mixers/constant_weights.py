"""What follows from the weights alone, such as a sampled system, and when it may be kept.

Mixers compute it anew at every call, because weights may have changed.  A step of one position takes several times
longer for that than for everything else, so whoever makes many steps with the same weights may promise that they are:

    class Mixer(SequenceMixer):
        @of_weights
        def _system(self): ...                 # depends on parameters, buffers and arguments, on nothing else

    kept = {}
    with torch.no_grad(), constant_weights(kept):
        mixer.step(x, state)                   # computes the system
        mixer.step(x, state)                   # finds it in `kept`

What is kept belongs to the caller and is gone with `kept`; outside of such a block nothing is.  Nor is it where
gradients are recorded, which would go through what was kept.
"""

import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, TypeVarTuple, cast

import torch

Kept = dict[Hashable, Any]
M = TypeVar("M")
A = TypeVarTuple("A")
R = TypeVar("R")

_kept: ContextVar[Kept | None] = ContextVar("kept", default=None)


@contextmanager
def constant_weights(kept: Kept) -> Iterator[None]:
    """Inside the block methods marked with `of_weights` run once for each of their arguments; results go to `kept`.

    The promise is that no parameter and no buffer changes for as long as `kept` is used.
    """
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)


def of_weights(method: Callable[[M, *A], R]) -> Callable[[M, *A], R]:
    """Mark a method of a module whose result depends on its weights and on its arguments, which can be hashed."""

    @functools.wraps(method)
    def once(module: M, *arguments: *A) -> R:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or (kept := _kept.get()) is None:
            return method(module, *arguments)
        key = module, method.__name__, arguments
        if key not in kept:
            kept[key] = method(module, *arguments)
        return cast(R, kept[key])

    return once
