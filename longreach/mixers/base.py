"""The interface that every sequence system implements.

A mixer maps a sequence of vectors to a sequence of vectors of the same width.  A causal mixer has three views of that
one function, and they agree to rounding error:

    forward(x)            the whole sequence at once         training
    step(x_t, state)      one position, carrying a state     generation
    prefill(x, state)     a chunk, carrying a state          prompts, streaming, truncated back-propagation

All three are pure: they change nothing that they are given, no parameter and no buffer, and a state stays valid after
it was used.  States share the tensors that they have in common, so that a step never copies what did not change.

Axes: b batch, l length, d model width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from longreach.errors import InputError

State = tuple[Any, ...]
"""A NamedTuple of tensors, or of States, or of tuples of them.  The first axis of every tensor is the batch."""

S = TypeVar("S", bound=State)


class OptimHint(NamedTuple):
    """How the optimiser should treat a parameter that is not an ordinary weight."""

    lr_scale: float = 1.0
    """Multiplies the learning rate of the run."""
    lr: float | None = None
    """Replaces the learning rate of the run (before the schedule), where the published system fixes one."""
    weight_decay: bool = True


class SequenceMixer(nn.Module, ABC, Generic[S]):
    """Base class of all mixers; see the module docstring for the contract and tests/laws.py for its exact statement."""

    optim_hints: dict[str, OptimHint] = {}
    """Parameter name within the module -> hint, for the parameters that need one."""

    max_length: int | None = None
    """The longest sequence that the mixer can read, or None where there is no limit."""

    keeps_its_start: bool = False
    """Whether the linear maps inside start as the paper says.  Otherwise they are ordinary projections, and a language
    model draws them anew with its `init_std`.  A module inside of a mixer may say so for itself."""

    normalises_itself: bool = False
    """Whether the mixer has the norm of its input inside, as a gate towards the unnormalised input needs it."""

    def __init__(self, d_model: int, *, causal: bool) -> None:
        super().__init__()
        self.d_model = d_model
        self.causal = causal

    @abstractmethod
    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Mix the whole sequence.  Where `mask` is False there is padding: it must not influence any real position."""

    def init_state(self, batch_size: int) -> S:
        """The state before the first position."""
        raise self._no_recurrent_view()

    def step(self, x: Float[Tensor, "b d"], state: S) -> tuple[Float[Tensor, "b d"], S]:
        """Mix one position.  Returns a new state and leaves `x` and `state` as they were."""
        raise self._no_recurrent_view()

    def prefill(
        self, x: Float[Tensor, "b l d"], state: S, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], S]:
        """Mix a chunk that continues from `state`.  Override where a chunk is cheaper than its steps one by one.

        Where `mask` is False there is padding, which leaves the state as if it had not been there: prompts of different
        lengths are read together by padding the shorter ones on the left.  What is returned at padding is undefined.
        """
        outputs = []
        for t, x_t in enumerate(x.unbind(1)):
            y_t, after = self.step(x_t, state)
            state = after if mask is None else select_rows(mask[:, t], after, state)
            outputs.append(y_t)
        return torch.stack(outputs, dim=1), state

    def _check_length(self, length: int) -> None:
        """Raise InputError for a sequence of more than `max_length` positions."""
        if self.max_length is not None and length > self.max_length:
            raise InputError(
                f"a sequence of {length} positions is longer than max_length={self.max_length} of this "
                f"{type(self).__name__}; build and train it with a larger max_length, or read less"
            )

    def _no_recurrent_view(self) -> InputError:
        return InputError(
            f"{type(self).__name__} with causal={self.causal} reads the future, so it cannot run step by step; "
            "use forward on the whole sequence, or build it as a causal mixer"
        )


def map_state(function: Callable[..., Tensor], state: S, *others: S) -> S:
    """Apply `function` to every tensor of a state (or to the matching tensors of several), keeping its structure."""
    leaves = [
        function(*leaf) if isinstance(leaf[0], Tensor) else map_state(function, *leaf)
        for leaf in zip(state, *others, strict=True)
    ]
    rebuild = getattr(type(state), "_make", tuple)  # a NamedTuple stays what it was
    return cast(S, rebuild(leaves))


def select_rows(choose: Bool[Tensor, " b"], state: S, otherwise: S) -> S:
    """Rows of `state` where `choose` is True, rows of `otherwise` elsewhere; both states have tensors of one shape."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(choose.view(-1, *[1] * (a.ndim - 1)), a, b)

    return map_state(pick, state, otherwise)
