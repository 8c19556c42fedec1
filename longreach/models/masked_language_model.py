"""A masked language model around any bidirectional backbone: restore the tokens that were hidden, as in BERT.

    h = backbone(E[tokens] + T[types])
    logits = layer_norm(gelu(h W + b)) E^T + c             the embedding is the output projection

(Devlin et al. 2018, https://arxiv.org/abs/1810.04805; BiGS, https://arxiv.org/abs/2212.10544, has the same head.)
Positions and the norm of the sum are longreach.models.LearnedPositions and NormalisedInput.

Axes: b batch, l length, d model width, v vocabulary.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.ops.cross_entropy import linear_cross_entropy


class MaskedLanguageModel(nn.Module):
    """Predicts every token from all others; a loss is asked for where tokens were hidden.

    Args:
        vocab_size: number of tokens, that which stands for a hidden one included.
        backbone: what mixes the tokens; every mixer in it bidirectional, or it will not see what follows.
        n_types: number of token types, such as the two segments of BERT; 0 for none.
        init_std: standard deviation of the embeddings and of the head's map at the start.
    """

    def __init__(self, vocab_size: int, backbone: SequenceMixer, *, n_types: int = 0, init_std: float = 0.02) -> None:
        super().__init__()
        if vocab_size < 1 or n_types < 0:
            raise InputError(f"{vocab_size=} must be at least 1, {n_types=} at least 0")
        self.vocab_size, self.backbone = vocab_size, backbone
        self.embedding = nn.Embedding(vocab_size, backbone.d_model)
        self.types = nn.Embedding(n_types, backbone.d_model) if n_types else None
        self.transform = nn.Linear(backbone.d_model, backbone.d_model)
        self.norm = nn.LayerNorm(backbone.d_model)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        for module in (self.embedding, self.types, self.transform):
            if module is not None:
                nn.init.normal_(module.weight, std=init_std)
        nn.init.zeros_(self.transform.bias)

    @property
    def max_length(self) -> int | None:
        """The longest sequence that every mixer can read, or None where there is no limit."""
        return self.backbone.max_length

    @property
    def causal(self) -> bool:
        """Whether the backbone is blind to what follows, which makes a poor masked language model."""
        return self.backbone.causal

    def forward(
        self,
        tokens: Int[Tensor, "b l"],
        mask: Bool[Tensor, "b l"] | None = None,
        types: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l v"]:
        """The logits of every token; all are of type 0 if no types are given."""
        return self.logits(self.hidden(tokens, mask, types))

    def hidden(
        self,
        tokens: Int[Tensor, "b l"],
        mask: Bool[Tensor, "b l"] | None = None,
        types: Int[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """The features of every position, from which the logits are made."""
        self._check(tokens, types)
        x = self.embedding(tokens)
        if self.types is not None:
            x = x + self.types(torch.zeros_like(tokens) if types is None else types)
        return self.norm(F.gelu(self.transform(self.backbone(x, mask))))

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """The logits that features, as `hidden` gives them, stand for."""
        return F.linear(hidden, self.embedding.weight, self.bias)

    def token_losses(
        self, tokens: Int[Tensor, "b l"], targets: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l"]:
        """The cross-entropy of every target in nats; 0 where the target is -100."""
        hidden = self.hidden(tokens, mask).flatten(0, 1)
        return linear_cross_entropy(hidden, self.embedding.weight, targets.flatten(), self.bias).view_as(targets)

    def _check(self, tokens: Tensor, types: Tensor | None) -> None:
        """Raise InputError for what the tables do not hold; on a GPU indexing itself checks."""
        n_types = 0 if self.types is None else self.types.num_embeddings
        for name, index, size in (("token", tokens, self.vocab_size), ("token type", types, n_types)):
            if index is not None and not index.is_cuda and index.numel():
                low, high = torch.aminmax(index)
                if low < 0 or high >= size:
                    wrong = int(low if low < 0 else high)
                    raise InputError(f"{name} {wrong} is none of the model's {size}, which start at 0")
