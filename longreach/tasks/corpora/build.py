"""From documents to files of tokens, in three passes over the source, each of them a stream.

1. Every document is checked and digested; the ranks of all of them fix the split.
2. Where the tokenizer is trained on the spot: the training documents, or an even sample of them, are read for it.
3. Every document is encoded and appended to the files of its part.
"""

import json
import random
import sys
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer
from numpy import ndarray
from rich.console import Console
from rich.progress import Progress

from longreach.errors import InputError
from longreach.tasks.corpora.sources import Report, Source
from longreach.tasks.corpora.split import Division, Split
from longreach.tasks.corpora.tokenizers import make_tokenizer, tokenizer_identity

TRAINING_BYTES = 1 << 28
"""A tokenizer is trained on about this much text at most."""
ENCODED_AT_ONCE = 1 << 21
"""The tokenizer gets about so many bytes at once, and spreads them over the cores."""


@dataclass(frozen=True)
class CorpusPlan:
    """What is to be read and how: all that the tokens of a corpus depend on."""

    source: Source
    tokenizer: str
    split: Split

    def settings(self) -> str:
        """A description that is equal for equal plans; what the files contain is not part of it."""
        where = [str(Path(item).absolute()) if item != "stdlib" else item for item in self.source.data]
        reading = [self.source.reading.text_field, self.source.reading.on_bad_line]
        return json.dumps([where, reading, tokenizer_identity(self.tokenizer), asdict(self.split)])


class _Piece(NamedTuple):
    """A piece of a document on its way to the tokenizer."""

    part: str
    name: str | None
    """The document's name if this is its first piece."""
    text: bytes


class _PartWriter:
    """The three files of one part, see `cache`."""

    def __init__(self, folder: Path, part: str, stack: ExitStack) -> None:
        self.tokens, self.documents, self.names = (
            stack.enter_context((folder / f"{part}.{kind}").open("wb")) for kind in ("tokens", "documents", "names")
        )
        self.n_documents = self.n_tokens = self.n_bytes = 0
        self._start = self._bytes_before = 0

    def begin(self, name: str, separator: Integer[ndarray, "1"]) -> None:
        """Start a document with a separator."""
        self.end()
        self._start, self._bytes_before = self.n_tokens, self.n_bytes
        self.n_documents += 1
        self.names.write(name.encode())
        self.add(b"", separator)

    def add(self, text: bytes, tokens: Integer[ndarray, " l"]) -> None:
        """Append to the document."""
        self.tokens.write(tokens.tobytes())
        self.n_tokens += len(tokens)
        self.n_bytes += len(text)

    def end(self) -> None:
        """Note where the last document starts, its bytes, and where its name ends."""
        if self.n_documents:
            row = [self._start, self.n_bytes - self._bytes_before, self.names.tell()]
            self.documents.write(np.array(row, "<i8").tobytes())

    def counts(self) -> dict[str, int]:
        """What was written, for the record."""
        return {"documents": self.n_documents, "tokens": self.n_tokens, "bytes": self.n_bytes}


def write_corpus(plan: CorpusPlan, folder: Path) -> dict[str, Any]:
    """Write the tokenizer and the files of all parts; returns what there is to record of them."""
    progress = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with progress, ExitStack() as stack:
        report, division, n_copies = _survey(plan, progress)
        tokenizer = make_tokenizer(plan.tokenizer, _training_text(plan, division, report, progress))
        tokenizer.save(folder / "tokenizer.json")
        writers = {part: _PartWriter(folder, part, stack) for part in plan.split.parts}
        separator = np.array([tokenizer.separator], tokenizer.dtype)
        bar = progress.add_task("writing tokens", total=report.size)
        for group in _groups(_pieces(plan, division)):
            for piece, tokens in zip(group, tokenizer.encode_all([piece.text for piece in group]), strict=True):
                if piece.name is not None:
                    writers[piece.part].begin(piece.name, separator)
                writers[piece.part].add(piece.text, tokens)
                progress.advance(bar, len(piece.text))
        for writer in writers.values():
            writer.end()
    counts = {part: writer.counts() for part, writer in writers.items()}
    for part, count in counts.items():
        if not count["bytes"]:
            what = f"{plan.source} holds {report.size} bytes of text"
            raise InputError(f"{what}, too little to give the {part} part any; add text")
    source = {**report.summary(), "copies": n_copies}
    split = {**asdict(plan.split), "rule": division.rule}
    return {"source": source, "split": split, "tokenizer": tokenizer.fingerprint, "parts": counts}


def _survey(plan: CorpusPlan, progress: Progress) -> tuple[Report, Division, int]:
    """What there is, how it is divided, and how many documents are exact copies of earlier ones."""
    report, ranks = Report(), array("Q")
    bar = progress.add_task("reading the source", total=None)
    for document in plan.source.documents(report):
        ranks.append(plan.split.rank(document))
        progress.advance(bar)
    progress.remove_task(bar)
    found = np.array(ranks, np.uint64)
    return report, plan.split.divide(found), len(found) - len(np.unique(found))


def _training_text(plan: CorpusPlan, division: Division, report: Report, progress: Progress) -> Iterator[str]:
    """The text of the training documents, or an even sample of its pieces where there is too much."""
    share = min(1.0, TRAINING_BYTES / report.size)
    bar = progress.add_task("training the tokenizer", total=report.size)
    for document in plan.source.documents(Report()):
        draw = random.Random(document.digest)
        for part, pieces in division.parts(document):
            if part == "train":
                yield from (piece.decode() for piece in pieces if draw.random() < share)
        progress.advance(bar, document.size)
    progress.remove_task(bar)


def _pieces(plan: CorpusPlan, division: Division) -> Iterator[_Piece]:
    """All text of the corpus with the part it belongs to."""
    for document in plan.source.documents(Report()):
        for part, pieces in division.parts(document):
            name = document.name
            for text in pieces:
                yield _Piece(part, name, text)
                name = None


def _groups(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Neighbouring pieces together, up to the size that the tokenizer is given at once."""
    group: list[_Piece] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece.text)
        if size >= ENCODED_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group
