"""A norm in front of the first layer: h = backbone(norm(x)), as in BERT and in Mega with `normalize_embedding`.

    LanguageModel(256, NormalisedInput(Backbone(..., norm_position="post")))

Axes: b batch, l length, d model width.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from longreach.mixers.base import SequenceMixer, State
from longreach.mixers.norms import Norm, apply_norm, make_norm


class NormalisedInput(SequenceMixer[State]):
    """Normalises the input of `backbone`; the views and the state are those of the backbone.

    Args:
        backbone: the stack of mixers.
        norm: the kind of norm, see longreach.mixers.norms.
        dropout: probability of dropping a channel behind the norm.
    """

    def __init__(self, backbone: SequenceMixer, *, norm: Norm = "layer", dropout: float = 0.0) -> None:
        super().__init__(backbone.d_model, causal=backbone.causal)
        self.inner = backbone
        self.norm = make_norm(norm, backbone.d_model)
        self.dropout = nn.Dropout(dropout)
        self.max_length = backbone.max_length

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """All layers, on the whole sequence."""
        return self.inner(self.normalise(x, mask), mask)

    def init_state(self, batch_size: int) -> State:
        """The backbone at its beginning."""
        return self.inner.init_state(batch_size)

    def step(self, x: Float[Tensor, "b d"], state: State) -> tuple[Float[Tensor, "b d"], State]:
        """All layers, on one position."""
        return self.inner.step(self.normalise(x, None), state)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: State, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], State]:
        """All layers, on a chunk."""
        return self.inner.prefill(self.normalise(x, mask), state, mask)

    def normalise(self, x: Float[Tensor, "b *l d"], mask: Bool[Tensor, "b *l"] | None) -> Float[Tensor, "b *l d"]:
        """What enters the first layer."""
        return self.dropout(apply_norm(self.norm, x, mask))
