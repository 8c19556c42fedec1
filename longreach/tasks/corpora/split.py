"""Which documents are for training, for validation and for the final test.

Every document has a rank, a number in [0, 2^64) from the digest of its content and the seed:

    rank < validation * 2^64                        validation
    rank < (validation + test) * 2^64               test
    otherwise                                       train

So the split does not depend on the order of the files nor on their names, a document stays where it is when others
come or go, and copies of one text never stand on both sides.  Where this leaves a part of a small corpus empty, the
bounds move to ranks between the documents, so that each part gets its share of the documents and at least one.  Where
there are fewer different documents than parts, every document is cut by position: training, then validation, then test.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt64
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.corpora.sources import Document
from longreach.tasks.corpora.streams import whole_characters

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """How much of the corpus is held out.

    Args:
        validation: Share of the documents for judging checkpoints during the run.
        test: Share of the documents that nothing is chosen by; 0 for none.
        seed: Another seed holds out other documents.
    """

    validation: float = 0.05
    test: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.validation > 0 and self.test >= 0 and self.validation + self.test < 1):
            raise InputError(
                f"split.validation = {self.validation} and split.test = {self.test} must be shares of the documents: "
                "validation above 0, test at least 0, together below 1"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts that are asked for."""
        return PARTS if self.test else PARTS[:2]

    def rank(self, document: Document) -> int:
        """The document's place among all possible documents."""
        digest = hashlib.sha256(str(self.seed).encode() + document.digest)
        return int.from_bytes(digest.digest()[:8], "big")

    def divide(self, ranks: UInt64[ndarray, " n"]) -> "Division":
        """The division of a corpus whose documents have these ranks."""
        distinct = np.unique(ranks)
        n = len(distinct)
        if n < len(self.parts):
            return Division(self, None)
        bounds = int(self.validation * 2**64), int((self.validation + self.test) * 2**64)
        below = np.searchsorted(distinct, np.array(bounds, np.uint64))
        counts = {"validation": below[0], "test": below[1] - below[0], "train": n - below[1]}
        if any(counts[part] == 0 for part in self.parts):
            n_test = max(1, round(self.test * n)) if self.test else 0
            n_validation = max(1, min(round(self.validation * n), n - n_test - 1))
            n_test = min(n_test, n - n_validation - 1)
            bounds = int(distinct[n_validation]), int(distinct[n_validation + n_test])
        return Division(self, bounds)


class Division(NamedTuple):
    """A split applied to one corpus."""

    split: Split
    bounds: tuple[int, int] | None
    """Ranks below the first are validation, below the second test; None: every document is cut by position."""

    @property
    def rule(self) -> str:
        """In words, for the run's record."""
        return "by the content's digest" if self.bounds else "by position: too few different documents"

    def parts(self, document: Document) -> Iterator[tuple[str, Iterator[bytes]]]:
        """The parts that the document belongs to, with what each gets of its content."""
        if self.bounds:
            rank = self.split.rank(document)
            held_out = "validation" if rank < self.bounds[0] else "test"
            yield ("train" if rank >= self.bounds[1] else held_out), document.pieces()
            return
        first = round((1 - self.split.validation - self.split.test) * document.size)
        second = round((1 - self.split.test) * document.size)
        cuts = [0, _cut(document, first, second), _cut(document, second, document.size), document.size]
        for part, start, stop in zip(PARTS, cuts, cuts[1:], strict=False):
            if start < stop:
                yield part, _span(document, start, stop)


def _cut(document: Document, position: int, limit: int) -> int:
    """The first place after a line break from `position` on, below `limit`; if there is none, between characters."""
    offset, between = 0, document.size
    for piece in document.pieces():
        local = position - offset
        if 0 <= local < len(piece):
            between = offset + whole_characters(piece[:local])
        after = piece.find(b"\n", max(local - 1, 0)) + 1
        if after:
            return offset + after if offset + after < limit else between
        offset += len(piece)
    return between


def _span(document: Document, start: int, stop: int) -> Iterator[bytes]:
    """The bytes of the document from `start` to `stop`."""
    offset = 0
    for piece in document.pieces():
        wanted = piece[max(start - offset, 0) : max(stop - offset, 0)]
        offset += len(piece)
        if wanted:
            yield wanted
