"""Texts as sequences of bytes or characters, as the Long Range Arena and the S4 family read them.

    bytes         0..255 as they are in UTF-8; 256 is the end, where one is put behind
    characters    0..n-1 the n most frequent of the training part, n any other one; n+1 is the end

(https://arxiv.org/abs/2011.04006; https://arxiv.org/abs/2111.00396.)  No number stands for padding, which is told by a
mask.  A text that is too long is cut; where an end is put behind it, the whole is no longer than `max_length`.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt32
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.cache_folder import Header
from longreach.tasks.classification import Classification, Loading
from longreach.tasks.encodings import TokenEncoding
from longreach.tasks.labelled import Example

CODE_POINTS = 0x110000
COUNTED_AT_A_TIME = 1 << 22
BYTES_OF_A_CHARACTER = 4
"""At most, in UTF-8."""


@dataclass(frozen=True)
class TextOptions:
    """How a text becomes a sequence.

    Args:
        unit: Whether a token is a byte, as in the Long Range Arena, or a character, as in the S4 family's pipelines.
        max_length: Longer texts are cut; published are 1000, 2000, 4000 and 4096.
        keep: Which side of a text that is cut remains; all published pipelines keep the beginning.
        append_end: Put one more token behind the text, as the S4 family's pipelines do.
        n_characters: So many different characters are told apart. With 132, an unknown one, the end and S4's padding
            there are S4's 135 tokens for IMDB.
    """

    unit: Literal["bytes", "characters"] = "bytes"
    max_length: int = 4096
    keep: Literal["beginning", "end"] = "beginning"
    append_end: bool = False
    n_characters: int = 132

    def __post_init__(self) -> None:
        if self.kept < 1:
            raise InputError(f"text.max_length = {self.max_length} leaves nothing of a text; raise it")
        if self.n_characters < 1:
            raise InputError(f"text.n_characters = {self.n_characters} must be at least 1")

    @property
    def kept(self) -> int:
        """The longest text that is not cut, in tokens."""
        return self.max_length - self.append_end

    @property
    def end(self) -> int:
        """The token behind the text, where there is one."""
        return 256 if self.unit == "bytes" else self.n_characters + 1

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.end + self.append_end

    def cut(self, units: Integer[ndarray, " l"]) -> Integer[ndarray, " m"]:
        """What is kept."""
        return units[: self.kept] if self.keep == "beginning" else units[-self.kept :]


class Document(NamedTuple):
    """A text, or several, with a label."""

    part: str
    texts: Sequence[bytes]
    label: int


class TextClassification(Classification):
    """The base of tasks whose examples are texts: it turns what `documents` yields into tokens.

    The characters that are told apart are kept in the cache and in a run's record, most frequent first.
    """

    def __init__(self, text: TextOptions, loading: Loading) -> None:
        super().__init__(loading)
        self.text = text
        self.encoding = TokenEncoding(text.vocab_size)
        self._alphabet = ""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """All texts, the same each time; read twice, where characters are counted."""

    def settings(self) -> dict[str, object]:
        """How texts become sequences."""
        return {"text": asdict(self.text)}

    def examples(self) -> Iterator[Example]:
        """Every document as tokens."""
        text = self.text
        if text.unit == "characters":
            learned = (each for document in self.documents() if document.part == "train" for each in document.texts)
            self._alphabet = alphabet((text.cut(code_points(each, text)) for each in learned), text.n_characters)
        table = np.full(CODE_POINTS, len(self._alphabet) and text.n_characters, np.uint32)
        table[[ord(character) for character in self._alphabet]] = np.arange(len(self._alphabet))
        end = np.full(int(text.append_end), text.end, np.uint32)
        for part, texts, label in self.documents():
            if text.unit == "bytes":
                found = [text.cut(np.frombuffer(each, np.uint8)) for each in texts]
            else:
                found = [table[text.cut(code_points(each, text))] for each in texts]
            yield Example(part, [np.concatenate([each, end]) for each in found], label)

    def record(self) -> dict[str, object]:
        """What the examples depend on, what is in each part, and the characters in the order of their tokens."""
        return {**super().record(), "alphabet": self._ready().header["alphabet"]}

    def _write(self, folder: Path) -> Header:
        header = super()._write(folder)
        return {**header, "alphabet": self._alphabet}


def code_points(text: bytes, options: TextOptions) -> UInt32[ndarray, " l"]:
    """The characters of a text in UTF-8 as numbers; what is not UTF-8 becomes the replacement character."""
    if options.keep == "beginning":  # what is beyond can be left out before it is decoded
        text = text[: (options.kept + 1) * BYTES_OF_A_CHARACTER]
    return np.frombuffer(text.decode(errors="replace").encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint32)


def alphabet(texts: Iterable[Integer[ndarray, " _"]], size: int) -> str:
    """The most frequent characters, most frequent first, equally frequent ones in the order of their numbers."""
    counts, waiting, n_waiting = np.zeros(CODE_POINTS, np.int64), [], 0
    for text in texts:
        waiting.append(text)
        n_waiting += len(text)
        if n_waiting > COUNTED_AT_A_TIME:
            counts += np.bincount(np.concatenate(waiting), minlength=CODE_POINTS)
            waiting, n_waiting = [], 0
    if waiting:
        counts += np.bincount(np.concatenate(waiting), minlength=CODE_POINTS)
    order = np.argsort(-counts, kind="stable")[:size]
    return "".join(map(chr, order[counts[order] > 0].tolist()))
