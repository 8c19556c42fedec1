"""A sequence mixer and the channel mixer behind it as one mixer, without residual connection or norm: S4's block.

Axes: b batch, l length, d model width.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from longreach.mixers.base import SequenceMixer, State


class Joint(SequenceMixer[State]):
    """`channel_mixer(mixer(x))` with the views of the mixer.

    Args:
        mixer: what mixes positions.
        channel_mixer: what acts on every position by itself.
    """

    def __init__(self, mixer: SequenceMixer, channel_mixer: nn.Module) -> None:
        super().__init__(mixer.d_model, causal=mixer.causal)
        self.mixer = mixer
        self.channel_mixer = channel_mixer
        self.max_length = mixer.max_length
        self.optim_hints = {f"mixer.{name}": hint for name, hint in mixer.optim_hints.items()}

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """The whole sequence."""
        return self.channel_mixer(self.mixer(x, mask))

    def init_state(self, batch_size: int) -> State:
        """The state of the mixer before the first position."""
        return self.mixer.init_state(batch_size)

    def step(self, x: Float[Tensor, "b d"], state: State) -> tuple[Float[Tensor, "b d"], State]:
        """One position."""
        y, state = self.mixer.step(x, state)
        return self.channel_mixer(y), state

    def prefill(
        self, x: Float[Tensor, "b l d"], state: State, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], State]:
        """A chunk."""
        y, state = self.mixer.prefill(x, state, mask)
        return self.channel_mixer(y), state
