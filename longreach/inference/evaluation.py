"""Bits per byte over whole documents, the same against how much context is allowed, and what gzip and xz need.

The curve against context compares the same targets under every context.  With C the longest context, the targets are
those of the documents' positions from C/2 on, cut into blocks of C/2, of which at most a given number are taken, evenly
spread.  So every target has at least c/2 tokens before it for each context c of the curve, and a difference between two
contexts is never one between two texts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from longreach.errors import InputError
from longreach.inference.compression import gzip_size, xz_size
from longreach.inference.scoring import Window, document_losses, inputs_and_targets, window_losses, windows
from longreach.models.language_model import LanguageModel
from longreach.tasks.corpora.corpus import HeldOutDocument
from longreach.tasks.corpora.sources import Document
from longreach.tasks.corpora.tokenizers import Tokenizer

FIRST_CONTEXT, CONTEXT_RATIO = 64, 4
LOG_2 = float(np.log(2))

Advance = Callable[[str, int, int], object]
"""Is told what is being done, how many positions of it are done, and how many there are."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured.

    Args:
        contexts: How many tokens of context are allowed, one point of the curve each; by default 64, 256, 1024, 4096
            and so on, as far as the model reads and the documents go.
        context_tokens: Targets of the curve at every context; it costs twice as many positions for each.
        max_documents: Stop after so many documents.
        max_bytes: Stop before the document with which there would be more bytes than this.
    """

    contexts: Sequence[int] | None = None
    context_tokens: int = 65_536
    max_documents: int | None = None
    max_bytes: int = 16_000_000

    def __post_init__(self) -> None:
        if self.contexts is not None and (not self.contexts or min(self.contexts) < 2):
            raise InputError(f"contexts are {list(self.contexts)}; give one or more, each of at least 2 tokens")
        for name in ("context_tokens", "max_documents", "max_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class DocumentScore:
    """What one document costs."""

    name: str
    bytes: int
    tokens: int
    """Targets: the document's tokens and the separator that ends it."""
    bits: float
    gzip_bytes: int
    xz_bytes: int


@dataclass(frozen=True)
class ContextScore:
    """What the targets of the curve cost when so much context is allowed; None is the whole document."""

    context: int | None
    tokens: int
    bytes: int
    bits: float


class Report(NamedTuple):
    """All that was measured."""

    documents: list[DocumentScore]
    contexts: list[ContextScore]
    """Empty where no document is long enough."""
    left_out: bool
    """Whether the limits left documents out."""

    @property
    def total(self) -> DocumentScore:
        """The sum over all documents."""
        names = ("bytes", "tokens", "bits", "gzip_bytes", "xz_bytes")
        return DocumentScore("total", *(sum(getattr(score, name) for score in self.documents) for name in names))


def read_documents(
    source: Iterable[Document], tokenizer: Tokenizer, options: EvaluationOptions
) -> Iterator[HeldOutDocument]:
    """The documents of a source with their tokens, one by one, each read when its turn comes."""
    for document in source:
        if document.size > options.max_bytes:
            raise InputError(
                f"{document.name} has {document.size:,} bytes, more than max_bytes = {options.max_bytes:,}; raise that"
            )
        content = document.read()
        yield HeldOutDocument(document.name, content, tokenizer.encode(content))


def within_limits(source: Iterable[HeldOutDocument], options: EvaluationOptions) -> tuple[list[HeldOutDocument], bool]:
    """The first documents, as many as the limits allow, without empty ones; whether there are others."""
    documents: list[HeldOutDocument] = []
    size = 0
    for document in source:
        size += len(document.content)
        if len(documents) == options.max_documents or (documents and size > options.max_bytes):
            return documents, True
        if document.content:
            documents.append(document)
    if not documents:
        raise InputError("there is no document with anything in it; give a file or folder with text")
    return documents, False


def evaluate_documents(
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Sequence[HeldOutDocument],
    options: EvaluationOptions,
    advance: Advance = lambda stage, done, total: None,
) -> tuple[list[DocumentScore], list[ContextScore]]:
    """Score every document as a whole, and the targets of the curve under every context.

    Holds the tokens and 4 bytes a token for the losses of all documents.
    """
    lengths = [len(document.tokens) + 1 for document in documents]
    contexts = choose_contexts(lengths, model.max_length, options.contexts)
    losses, scores = [], []
    for document in documents:
        report = _counter(advance, "whole documents", sum(lengths), sum(len(loss) for loss in losses))
        loss = document_losses(model, document.tokens, tokenizer.separator, report)
        losses.append(loss)
        bits = float(loss.double().sum()) / LOG_2
        sizes = gzip_size(document.content), xz_size(document.content)
        scores.append(DocumentScore(document.name, len(document.content), len(loss), bits, *sizes))
    if not contexts:
        return scores, []
    blocks = choose_blocks(lengths, max(contexts) // 2, options.context_tokens)
    n_bytes = _bytes_of(blocks, documents, tokenizer)
    whole = torch.cat([losses[index][first:stop] for index, first, stop in blocks])
    curve = []
    for context in contexts:
        loss = _losses_within(context, model, tokenizer, documents, blocks, advance)
        curve.append(ContextScore(context, len(loss), n_bytes, float(loss.double().sum()) / LOG_2))
    return scores, [*curve, ContextScore(None, len(whole), n_bytes, float(whole.double().sum()) / LOG_2)]


def choose_contexts(lengths: Sequence[int], max_length: int | None, wanted: Sequence[int] | None) -> list[int]:
    """The contexts of the curve, in increasing order: the wanted ones, or powers of 4 for which there are targets."""
    if wanted is not None:
        longest = max(wanted)
        if max_length is not None and longest > max_length:
            raise InputError(f"a context of {longest:,} tokens is more than the {max_length:,} that the model reads")
        if max(lengths) - 1 <= longest // 2:
            raise InputError(
                f"a context of {longest:,} tokens needs a document of more than half of that; the longest has "
                f"{max(lengths):,}; give longer documents or smaller contexts"
            )
        return sorted(set(wanted))
    contexts, context = [], FIRST_CONTEXT
    while context <= min(max_length or context, max(lengths)):
        if sum(max(0, length - context // 2) for length in lengths) < context // 2:
            break
        contexts.append(context)
        context *= CONTEXT_RATIO
    return contexts


def choose_blocks(lengths: Sequence[int], size: int, budget: int) -> list[tuple[int, int, int]]:
    """(document, first, stop) of blocks of `size` positions, evenly spread, as many as the budget allows or one.

    None is at a document's beginning, and none is only the separator at its end.
    """
    blocks = [
        (index, first, min(first + size, length))
        for index, length in enumerate(lengths)
        for first in range(size, length - 1, size)
    ]
    count = min(len(blocks), max(1, budget // size))
    return [blocks[i * len(blocks) // count] for i in range(count)]


def _losses_within(
    context: int,
    model: LanguageModel,
    tokenizer: Tokenizer,
    documents: Sequence[HeldOutDocument],
    blocks: Sequence[tuple[int, int, int]],
    advance: Advance,
) -> torch.Tensor:
    """The losses of the blocks' targets where the model sees `context` tokens, document after document."""
    chosen: dict[int, list[Window]] = {}
    for index, first, stop in blocks:
        chosen.setdefault(index, []).extend(windows(first, stop, context))
    total = context * sum(map(len, chosen.values()))
    losses, report = [], _counter(advance, f"context {context:,}", total, 0)
    for index, of_document in chosen.items():
        inputs, targets = inputs_and_targets(documents[index].tokens, tokenizer.separator)
        losses.append(window_losses(model, inputs, targets, of_document, report))
    return torch.cat(losses)


def _bytes_of(
    blocks: Sequence[tuple[int, int, int]], documents: Sequence[HeldOutDocument], tokenizer: Tokenizer
) -> int:
    """How many bytes of the documents the targets of the blocks stand for; the separator stands for none."""
    return sum(int(tokenizer.n_bytes[documents[index].tokens[first:stop]].sum()) for index, first, stop in blocks)


def _counter(advance: Advance, stage: str, total: int, done: int) -> Callable[[int], None]:
    def report(read: int) -> None:
        nonlocal done
        done += read
        advance(stage, done, total)

    return report
