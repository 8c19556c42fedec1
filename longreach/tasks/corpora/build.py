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
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from longreach.errors import InputError
from longreach.tasks.corpora.sources import Report, Source
from longreach.tasks.corpora.split import Division, Split
from longreach.tasks.corpora.tokenizers import Tokenizer, file_digest, make_tokenizer

TRAINING_BYTES = 1 << 28
"""A tokenizer is trained on about this much text at most."""
ENCODED_AT_ONCE = 8
"""Pieces of text that are handed to the tokenizer together, which spreads them over the cores."""


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
        return json.dumps([where, reading, file_digest(self.tokenizer), asdict(self.split)])


class _PartWriter:
    """The three files of one part, see `cache`."""

    def __init__(self, folder: Path, part: str, stack: ExitStack) -> None:
        self.tokens, self.documents, self.names = (
            stack.enter_context((folder / f"{part}.{kind}").open("wb")) for kind in ("tokens", "documents", "names")
        )
        self.counts = {"documents": 0, "tokens": 0, "bytes": 0}

    def add(self, name: str, pieces: Iterable[bytes], tokenizer: Tokenizer) -> None:
        """Append one document."""
        start, size = self.counts["tokens"], 0
        self._write(np.array([tokenizer.separator], tokenizer.dtype))
        for group in _grouped(pieces):
            size += sum(map(len, group))
            for tokens in tokenizer.encode_all(group):
                self._write(tokens)
        self.names.write(name.encode(errors="surrogateescape"))
        self.documents.write(np.array([start, size, self.names.tell()], "<i8").tobytes())
        self.counts["documents"] += 1
        self.counts["bytes"] += size

    def _write(self, tokens: np.ndarray) -> None:
        self.tokens.write(tokens.tobytes())
        self.counts["tokens"] += len(tokens)


def write_corpus(plan: CorpusPlan, folder: Path) -> dict[str, Any]:
    """Write the tokenizer and the files of all parts; returns what there is to record of them."""
    progress = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with progress, ExitStack() as stack:
        report, division, n_copies = _survey(plan, progress)
        tokenizer = make_tokenizer(plan.tokenizer, _training_text(plan, division, report, progress))
        tokenizer.save(folder / "tokenizer.json")
        writers = {part: _PartWriter(folder, part, stack) for part in plan.split.parts}
        bar = progress.add_task("writing tokens", total=report.size)
        for document in plan.source.documents(Report()):
            for part, pieces in division.parts(document):
                writers[part].add(document.name, pieces, tokenizer)
            progress.advance(bar, document.size)
    counts = {part: writer.counts for part, writer in writers.items()}
    for part, count in counts.items():
        if not count["bytes"]:
            raise InputError(
                f"{plan.source.data} holds {report.size} bytes, too little to give the {part} part any; add text"
            )
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


def _grouped(pieces: Iterable[bytes]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    for piece in pieces:
        group.append(piece)
        if len(group) == ENCODED_AT_ONCE:
            yield group
            group = []
    if group:
        yield group
