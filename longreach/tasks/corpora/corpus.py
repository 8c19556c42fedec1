"""Language modelling on a corpus: the next token of any folder of text or code.

Losses are nats per target.  A separator between documents is a target like any other: its cost counts, and it stands
for no bytes of text.  So with nats_i for what target i costs,

    bits per token = sum_i nats_i / ln 2 / (number of targets)
    bits per byte  = sum_i nats_i / ln 2 / (number of bytes that the targets stand for)

and bits per byte compares models with different tokenizers, and models with compressors.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from jaxtyping import Int64, Integer
from numpy import ndarray
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.base import State, map_state
from longreach.tasks.base import Batch, Curve, Evaluation, ModelFactory, Task
from longreach.tasks.corpora.build import CorpusPlan
from longreach.tasks.corpora.cache import TokenCache, default_cache, open_or_build
from longreach.tasks.corpora.packing import Packer, Stage, check_sizes
from longreach.tasks.corpora.sources import Reading, Source
from longreach.tasks.corpora.split import Split
from longreach.tasks.corpora.tokenizers import Tokenizer

DEFAULT_SPLIT = Split()
DEFAULT_READING = Reading()


class HeldOutDocument(NamedTuple):
    """A document that was not trained on."""

    name: str
    content: bytes
    tokens: Integer[ndarray, " l"]
    """Without the separator that goes before it."""


class _Prepared(NamedTuple):
    """What there is after `prepare`."""

    cache: TokenCache
    packer: Packer


class _Predictor(Protocol):
    """What a corpus asks of a model, see `longreach.models.LanguageModel`."""

    max_length: int | None
    token_losses: Callable[[Tensor, Tensor], Tensor]
    init_state: Callable[[int], State]
    score: Callable[[Tensor, Tensor, State], tuple[Tensor, State]]


class Corpus(Task):
    """Predict the next token of text or code.

    Args:
        data: A folder (read recursively), a file, or a list of them: text, code, JSON lines, plain or .gz or .zst;
            or "stdlib", the source of the running Python's standard library without its tests, which needs no download.
        tokenizer: "bytes"; "dna", single bases as in HyenaDNA; "bpe:4096" for a byte-pair encoding of that size
            trained on the training part; or the path of a Hugging Face tokenizer.json (byte-level).
        context: Tokens that the model sees at once.
        batch_size: Sequences of that length per step, over all processes.
        seed: Another seed visits the text in another order.
        split: Which documents are held out.
        reading: How the files are read, and where their tokens are kept.
        curriculum: Stages with shorter contexts to begin with.
        evaluation_tokens: About how many held-out tokens an evaluation reads, spread evenly; null for all of them.
        truncation: Read the context in pieces of so many tokens, carrying the model's state from each to the next, and
            let gradients flow within a piece only (truncated back-propagation through time).  The loss is that of the
            whole context, what is learned of it reaches as far as a piece; the memory is that of a piece and a state.
    """

    objective = "bits_per_byte"

    def __init__(
        self,
        data: list[str] | str | Path = "stdlib",
        tokenizer: str = "bytes",
        context: int = 8192,
        batch_size: int = 8,
        seed: int = 0,
        split: Split = DEFAULT_SPLIT,
        reading: Reading = DEFAULT_READING,
        curriculum: list[Stage] | None = None,
        evaluation_tokens: int | None = None,
        truncation: int | None = None,
    ) -> None:
        check_sizes(context, batch_size, curriculum or [])
        if truncation is not None and truncation < 1:
            raise InputError(
                f"truncation = {truncation} must be at least 1, or null for gradients over all the context"
            )
        if evaluation_tokens is not None and evaluation_tokens < 1:
            raise InputError(f"evaluation_tokens = {evaluation_tokens} must be at least 1, or null for all")
        self.reading = reading
        self.plan = CorpusPlan(Source(data, reading), tokenizer, split)
        self.context = context
        self.batch_size = batch_size
        self.seed = seed
        self.curriculum = curriculum or []
        self.evaluation_tokens, self.truncation = evaluation_tokens, truncation
        self._prepared: _Prepared | None = None

    def prepare(self) -> None:
        """Open the token cache, making it first where it is missing or out of date."""
        cache = open_or_build(self.plan, self.reading.cache or default_cache())
        train = cache.parts["train"].tokens
        self._prepared = _Prepared(cache, Packer(train, self.context, self.batch_size, self.seed, self.curriculum))

    @property
    def cache(self) -> TokenCache:
        """The tokens of all parts, after `prepare`."""
        return self._ready().cache

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, after `prepare`."""
        return self.cache.tokenizer

    def _ready(self) -> "_Prepared":
        if self._prepared is None:
            raise InputError("the corpus is not read yet; call prepare() first")
        return self._prepared

    def build(self, model: ModelFactory) -> nn.Module:
        """The model for this vocabulary; raises InputError unless it predicts tokens over the whole context."""
        built = model(self.tokenizer.vocab_size)
        name = type(built).__name__
        if not hasattr(built, "token_losses"):
            raise InputError(f"a corpus trains language models; {name} has no token_losses: wrap it in a LanguageModel")
        if not getattr(built, "causal", True):
            raise InputError(f"{name} is not causal: it would read the tokens that it is to predict; use causal mixers")
        if self.truncation is not None and not hasattr(built, "score"):
            raise InputError(f"truncation = {self.truncation} carries a state, but {name} has no score; set it to null")
        self.require_context(built)
        return built

    def require_context(self, model: nn.Module) -> None:
        """Raise InputError unless the model reads the whole context."""
        limit = cast(_Predictor, model).max_length
        if limit is not None and limit < self.context:
            raise InputError(
                f"context = {self.context} is longer than max_length = {limit} of {type(model).__name__}; "
                "lower task.context or raise the model's max_length"
            )

    def batch(self, step: int, part: int, parts: int) -> Batch:
        """Windows of the training text, see `packing`."""
        return self._ready().packer.batch(step, part, parts)

    def work(self, first_step: int, stop_step: int) -> int:
        """The number of targets, of which the stages of a curriculum have different numbers per step."""
        return self._ready().packer.n_targets(first_step, stop_step)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the targets' losses in nats."""
        return cast(_Predictor, model).token_losses(batch.inputs, batch.targets).float().sum()

    def pieces(self, batch: Batch) -> list[Batch]:
        """The batch, or its pieces of `truncation` tokens."""
        length = self.truncation or self.context
        return [
            Batch(*both) for both in zip(batch.inputs.split(length, 1), batch.targets.split(length, 1), strict=True)
        ]

    def loss_after(self, model: nn.Module, piece: Batch, state: State | None) -> tuple[Tensor, State | None]:
        """The sum of a piece's losses, given the state after the piece before; no gradient flows through the state."""
        if self.truncation is None:
            return self.loss(model, piece), None
        losses, state = _score(model, piece, state)
        return losses.float().sum(), map_state(Tensor.detach, state)

    def describe_loss(self, loss: float) -> dict[str, float]:
        """Bits per token, and per byte at the average of the training text."""
        train = self.cache.parts["train"]
        bits = loss / math.log(2)
        return {"bits_per_token": bits, "bits_per_byte": bits * len(train.tokens) / train.n_bytes}

    def evaluate(self, model: nn.Module) -> Evaluation:
        """The loss on the validation part, in windows side by side that each begin with an empty memory."""
        tally = _Tally(self.context, self.tokenizer)
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for batch in self.evaluation_batches():
                    losses = self._losses(model, Batch(batch.inputs.to(device), batch.targets.to(device)))
                    tally.add(batch.targets, losses)
        finally:
            model.train(was_training)
        return tally.result()

    def _losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """The losses of all targets, read at once or in pieces as in training."""
        if self.truncation is None:
            return cast(_Predictor, model).token_losses(batch.inputs, batch.targets)
        losses, state = [], None
        for piece in self.pieces(batch):
            of_piece, state = _score(model, piece, state)
            losses.append(of_piece)
        return torch.cat(losses, dim=1)

    def held_out(self) -> Iterator[HeldOutDocument]:
        """The documents of the test part (of the validation part where there is no test part), one by one."""
        part = self.cache.parts.get("test", self.cache.parts["validation"])
        for name, tokens in part.documents():
            yield HeldOutDocument(name, self.tokenizer.decode(tokens), tokens)

    def record(self) -> dict[str, object]:
        """What was read: files, documents, bytes and digest of the source; tokenizer; sizes of the parts."""
        tokenizer = {"vocab_size": self.tokenizer.vocab_size, "fingerprint": self.tokenizer.fingerprint}
        return {"data": [str(item) for item in self.plan.source.data], **self.cache.record, "tokenizer": tokenizer}

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, with which the model's tokens can be read anywhere."""
        self.tokenizer.save(folder / "tokenizer.json")

    def evaluation_batches(self) -> Iterator[Batch]:
        """Windows of the validation part in order: all, or as many as the budget allows at equal distances."""
        part = self.cache.parts["validation"]
        n_targets = len(part.tokens) - 1
        n_windows = -(-n_targets // self.context)
        budget = n_windows if self.evaluation_tokens is None else -(-self.evaluation_tokens // self.context)
        chosen = [i * n_windows // budget for i in range(budget)] if budget < n_windows else list(range(n_windows))
        n_full = sum((window + 1) * self.context <= n_targets for window in chosen)
        groups = [chosen[i : min(i + self.batch_size, n_full)] for i in range(0, n_full, self.batch_size)]
        for group in [*groups, *([window] for window in chosen[n_full:])]:
            rows = [part.tokens[w * self.context : (w + 1) * self.context + 1] for w in group]
            windows = torch.from_numpy(np.stack(rows).astype(np.int64))
            yield Batch(windows[:, :-1], windows[:, 1:])


def _score(model: nn.Module, piece: Batch, state: State | None) -> tuple[Tensor, State]:
    """The losses of a piece's targets after what came before, and the state after them."""
    predictor = cast(_Predictor, model)
    state = predictor.init_state(len(piece.inputs)) if state is None else state
    return predictor.score(piece.inputs, piece.targets, state)


class _Tally:
    """Sums of bits and bytes at every position of the context."""

    def __init__(self, context: int, tokenizer: Tokenizer) -> None:
        self.nats, self.targets, self.bytes = np.zeros((3, context))
        self.n_bytes = tokenizer.n_bytes

    def add(self, targets: Int64[Tensor, "b l"], losses: Tensor) -> None:
        length = targets.shape[1]
        self.nats[:length] += losses.double().sum(0).cpu().numpy()
        self.targets[:length] += len(targets)
        self.bytes[:length] += self.n_bytes[targets.numpy()].sum(0)

    def result(self) -> Evaluation:
        nats, bits = float(self.nats.sum()), self.nats / math.log(2)
        metrics = {
            "loss": nats / float(self.targets.sum()),
            "bits_per_token": float(bits.sum() / self.targets.sum()),
            "bits_per_byte": float(bits.sum() / self.bytes.sum()),
        }
        edges = [1 << k for k in range((len(bits) - 1).bit_length() + 1)]
        x, y = [], []
        for first, stop in zip([0, *edges], edges, strict=False):
            if self.bytes[first:stop].sum() > 0:
                x.append(float(np.average(np.arange(len(bits))[first:stop] + 1, weights=self.targets[first:stop])))
                y.append(float(bits[first:stop].sum() / self.bytes[first:stop].sum()))
        curve = Curve("position in the context (tokens)", "bits per byte", x, y)
        return Evaluation(metrics, {"bits_per_byte_by_position": curve})
