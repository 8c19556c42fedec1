"""A language model around any backbone: embed tokens, mix, predict the next token.

    h = backbone(scale E[tokens]),   logits = h W^T,   W = E if tied

The views are those of the mixers (see longreach.mixers.base).  Training and scoring never hold the logits of a whole
sequence: `token_losses` and `score` fuse the last projection with the loss (longreach.ops.cross_entropy).

Axes: b batch, l length, d model width, v vocabulary.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers.base import OptimHint, SequenceMixer, State
from longreach.models.backbone import Block
from longreach.ops.cross_entropy import linear_cross_entropy


class LanguageModel(nn.Module):
    """Predicts every token from those before it (or, with a bidirectional backbone, every masked one from all others).

    Args:
        vocab_size: number of tokens.
        backbone: what mixes the tokens: a Backbone, LearnedPositions around one, or a single mixer.
        tied: use the embedding as the output projection too.
        dropout: probability of dropping a channel of an embedding.
        init_std: standard deviation of embeddings and linear maps at the start, 0.02 as in GPT-2; linear maps that
            end a residual branch get `init_std / sqrt(2 n_layers)`.  A mixer that `keeps_its_start` is left as it is.
        embedding_scale: what embeddings are multiplied with; sqrt(d) in the Transformer and in Mega.
    """

    def __init__(
        self,
        vocab_size: int,
        backbone: SequenceMixer,
        *,
        tied: bool = True,
        dropout: float = 0.0,
        init_std: float = 0.02,
        embedding_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.backbone = backbone
        self.embedding = nn.Embedding(vocab_size, backbone.d_model)
        self.head = None if tied else nn.Linear(backbone.d_model, vocab_size, bias=False)
        self.embedding_scale = embedding_scale
        self.dropout = nn.Dropout(dropout)
        self._initialise(init_std)

    @property
    def max_length(self) -> int | None:
        """The longest sequence that every mixer can read, or None where there is no limit."""
        return self.backbone.max_length

    @property
    def causal(self) -> bool:
        """Whether the model can generate."""
        return self.backbone.causal

    def forward(self, tokens: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l v"]:
        """The logits of the token after every position."""
        return self.logits(self.hidden(tokens, mask))

    def hidden(self, tokens: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """The features of every position, from which the logits are made."""
        return self.backbone(self._embed(tokens), mask)

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """The logits that features, as `hidden` gives them, stand for."""
        return F.linear(hidden, self._output_weight())

    def token_losses(
        self, tokens: Int[Tensor, "b l"], targets: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b l"]:
        """The cross-entropy of every target in nats, float32; 0 where the target is -100."""
        return self._losses(self.hidden(tokens, mask), targets)

    def init_state(self, batch_size: int) -> State:
        """The state before the first token."""
        return self.backbone.init_state(batch_size)

    def step(self, token: Int[Tensor, " b"], state: State) -> tuple[Float[Tensor, "b v"], State]:
        """Read one token; the logits of the next."""
        hidden, state = self.backbone.step(self._embed(token), state)
        return F.linear(hidden, self._output_weight()), state

    def prefill(
        self, tokens: Int[Tensor, "b l"], state: State, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l v"], State]:
        """Read a chunk; the logits after every one of its positions."""
        hidden, state = self.backbone.prefill(self._embed(tokens), state, mask)
        return F.linear(hidden, self._output_weight()), state

    def read(
        self, tokens: Int[Tensor, "b l"], state: State, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b v"], State]:
        """Read a chunk; the logits after its last position only, as a long prompt needs."""
        hidden, state = self.backbone.prefill(self._embed(tokens), state, mask)
        return F.linear(hidden[:, -1], self._output_weight()), state

    def score(
        self, tokens: Int[Tensor, "b l"], targets: Int[Tensor, "b l"], state: State
    ) -> tuple[Float[Tensor, "b l"], State]:
        """Read a chunk; the cross-entropy of every target in nats, with all that `state` holds as context."""
        hidden, state = self.backbone.prefill(self._embed(tokens), state)
        return self._losses(hidden, targets), state

    def optim_hints(self) -> dict[str, OptimHint]:
        """Parameter name -> how the optimiser should treat it, for those that a mixer declares special."""
        return {
            f"{prefix}.{name}": hint
            for prefix, module in self.named_modules()
            if isinstance(module, SequenceMixer)
            for name, hint in module.optim_hints.items()
        }

    def _embed(self, tokens: Tensor) -> Tensor:
        if not tokens.is_cuda and tokens.numel():  # on a GPU the look would wait for the device, which checks anyway
            low, high = torch.aminmax(tokens)
            if low < 0 or high >= self.vocab_size:
                wrong = int(low if low < 0 else high)
                raise InputError(
                    f"token {wrong} is outside the vocabulary of {self.vocab_size} tokens, which start at 0; "
                    "encode the text with the tokenizer that the model was trained with"
                )
        return self.dropout(self.embedding_scale * self.embedding(tokens))

    def _output_weight(self) -> Tensor:
        return self.embedding.weight if self.head is None else self.head.weight

    def _losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        losses = linear_cross_entropy(hidden.flatten(0, 1), self._output_weight(), targets.flatten())
        return losses.view_as(targets)

    def _initialise(self, std: float) -> None:
        nn.init.normal_(self.embedding.weight, std=std)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=std)
        blocks = [module for module in self.backbone.modules() if isinstance(module, Block)]
        for block in blocks:
            branch_std = std / math.sqrt(2 * len(blocks))
            for name, linear in _projections(block):
                nn.init.normal_(linear.weight, std=branch_std if name in ("out", "down") else std)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)


def _projections(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear maps inside, each with the last part of its name, but for those of modules that keep their start."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            yield name, child
        elif not getattr(child, "keeps_its_start", False):
            yield from _projections(child)
