"""A classifier of whole sequences around any backbone: embed, mix, pool, decide.

    h = backbone(E[tokens])                  or backbone(features W + b)
    p = pool(h)                              over the real positions only
    logits = head(p)                         a linear map, behind any number of hidden layers

and for pairs of sequences, as two documents of which one may cite the other, both through the same backbone:

    concatenated     logits = head([p1, p2])
    compared         logits = head([p1, p2, p1 * p2, p1 - p2])

(Long Range Arena, Tay et al. 2020, https://arxiv.org/abs/2011.04006.)  Positions, where a backbone has none, are
longreach.models.LearnedPositions around it.

Axes: b batch, s sequences of an example, l length, d model width, i input features, c classes.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.models.channel_mixers import ACTIVATIONS, Activation

Inputs = Literal["tokens", "features"]
Pool = Literal["mean", "last", "first", "cls"]
Pair = Literal["concatenated", "compared"]

PAIR_PARTS: dict[Pair | None, int] = {None: 1, "concatenated": 2, "compared": 4}
"""How many vectors of the model's width the head sees."""


@dataclass(frozen=True)
class HeadOptions:
    """What decides on the label.

    Args:
        widths: Widths of the hidden layers between the pooled features and the labels; none by default.
        activation: The nonlinearity behind each of them.
        dropout: Probability of dropping a channel of what a layer of the head reads.
    """

    widths: tuple[int, ...] = ()
    activation: Activation = "relu"
    dropout: float = 0.0


class Head(nn.Module):
    """Linear maps with nonlinearities between them."""

    def __init__(self, width: int, n_classes: int, options: HeadOptions) -> None:
        super().__init__()
        widths = [width, *options.widths]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.output = nn.Linear(widths[-1], n_classes)
        self.activation = options.activation
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """The logits."""
        for layer in self.hidden:
            x = ACTIVATIONS[self.activation](layer(self.dropout(x)))
        return self.output(self.dropout(x))


class Classifier(nn.Module):
    """One label for a whole sequence, or for a pair of them.

    Args:
        input_size: number of tokens, or of features of a position.
        backbone: what mixes the positions: a Backbone, LearnedPositions around one, or a single mixer.
        n_classes: number of labels.
        inputs: whether a position is a token, which has an embedding, or a vector of features, which gets a linear map.
        pool: what stands for the sequence: the `mean` over its positions, its `last` or `first` one, or `cls`, a
            learned vector that is put in front of it.
        pair: classify two sequences together, by both their features, or also by products and differences of them.
        head: hidden layers before the labels.
        dropout: probability of dropping a channel of an embedding.
    """

    def __init__(
        self,
        input_size: int,
        backbone: SequenceMixer,
        *,
        n_classes: int,
        inputs: Inputs = "tokens",
        pool: Pool = "mean",
        pair: Pair | None = None,
        head: HeadOptions = HeadOptions(),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if input_size < 1 or n_classes < 2:
            raise InputError(f"{input_size=} must be at least 1, {n_classes=} at least 2")
        if backbone.causal and pool in ("first", "cls"):
            raise InputError(
                f"pool={pool!r} looks at the beginning, where a causal backbone has read nothing yet; "
                "use mean or last, or mixers with causal=False"
            )
        self.input_size, self.n_classes, self.inputs, self.pool, self.pair = input_size, n_classes, inputs, pool, pair
        width = backbone.d_model
        self.embedding = (nn.Embedding if inputs == "tokens" else nn.Linear)(input_size, width)
        self.start = nn.Parameter(torch.zeros(width)) if pool == "cls" else None
        self.dropout = nn.Dropout(dropout)
        self.backbone = backbone
        self.head = Head(PAIR_PARTS[pair] * width, n_classes, head)

    @property
    def max_length(self) -> int | None:
        """The longest sequence that every mixer can read, or None where there is no limit."""
        limit = self.backbone.max_length
        return limit if limit is None or self.start is None else limit - 1

    def forward(
        self,
        inputs: Int[Tensor, "b *s l"] | Float[Tensor, "b *s l i"],
        mask: Bool[Tensor, "b *s l"] | None = None,
    ) -> Float[Tensor, "b c"]:
        """The logits of the labels; pairs have an axis of length 2 behind the batch.

        Where `mask` is False there is padding, on whichever side; with `cls`, on the right.  Every sequence has a real
        position.
        """
        if self.pair is None:
            return self.head(self.pooled(inputs, mask))
        rows = None if mask is None else mask.flatten(0, 1)
        first, second = self.pooled(inputs.flatten(0, 1), rows).unflatten(0, (-1, 2)).unbind(1)
        compared = [first * second, first - second] if self.pair == "compared" else []
        return self.head(torch.cat([first, second, *compared], dim=-1))

    def pooled(
        self, inputs: Int[Tensor, "b l"] | Float[Tensor, "b l i"], mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b d"]:
        """The features of each sequence, from which the head decides."""
        hidden = self.hidden(inputs, mask)
        if self.pool == "cls":
            return hidden[:, 0]
        if mask is None:
            return hidden.mean(1) if self.pool == "mean" else hidden[:, 0 if self.pool == "first" else -1]
        if self.pool == "mean":
            total = hidden.masked_fill(~mask[..., None], 0.0).sum(1)
            return total / mask.sum(1, keepdim=True).clamp(min=1)
        place = torch.arange(mask.shape[1], device=mask.device)
        edge = (mask * (place + 1 if self.pool == "last" else len(place) - place)).argmax(1)
        return hidden[torch.arange(len(hidden), device=mask.device), edge]

    def hidden(
        self, inputs: Int[Tensor, "b l"] | Float[Tensor, "b l i"], mask: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b m d"]:
        """The features of every position; of `cls` first, where that is put in front."""
        self._check(inputs)
        x = self.dropout(self.embedding(inputs))
        if self.start is not None:
            x = torch.cat([self.start.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
            mask = None if mask is None else torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        return self.backbone(x, mask)

    def _check(self, inputs: Tensor) -> None:
        """Raise InputError for tokens that have no embedding; on a GPU the look would wait, and indexing checks."""
        if self.inputs == "tokens" and not inputs.is_cuda and inputs.numel():
            low, high = torch.aminmax(inputs)
            if low < 0 or high >= self.input_size:
                raise InputError(
                    f"token {int(low if low < 0 else high)} is none of the model's {self.input_size}, which start at 0"
                )
