"""A classifier of token sequences around any backbone: embed, mix, average, project.

    logits = mean_t backbone(E[tokens])_t W^T + b          the mean over the real positions only

Axes: b batch, l length, d model width, c classes.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.models.language_model import LanguageModel


class Classifier(nn.Module):
    """One label for a whole sequence.

    Args:
        n_classes: number of labels.
        encoder: embedding and backbone are those of this language model, which has a tied head.
    """

    def __init__(self, n_classes: int, encoder: LanguageModel) -> None:
        super().__init__()
        if encoder.head is not None:
            raise InputError("a classifier does not use the head of its encoder; build the encoder with tied=True")
        self.encoder = encoder
        self.output = nn.Linear(encoder.backbone.d_model, n_classes)

    def forward(self, tokens: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b c"]:
        """The logits of the labels."""
        hidden = self.encoder.hidden(tokens, mask)
        if mask is None:
            return self.output(hidden.mean(1))
        total = hidden.masked_fill(~mask[..., None], 0.0).sum(1)
        return self.output(total / mask.sum(1, keepdim=True).clamp(min=1))
