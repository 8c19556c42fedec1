"""The tokens of a corpus on disk, memory-mapped: made once, read by every later run.

A cache is a folder, see `longreach.tasks.cache_folder`:

    header.json                what it was made from, the size of every file, and a checksum of all that
    tokenizer.json             also where the tokenizer was trained on the corpus itself
    <part>.tokens              all documents of train, validation or test in one row, a separator before each
    <part>.documents           for each document: where it starts among the tokens, its bytes, where its name ends
    <part>.names               the names of all documents in one row

Memory does not grow with the corpus, apart from 8 bytes per document.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Integer
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.cache_folder import Header, Recipe, default_cache, folder_name, map_file, open_or_make
from longreach.tasks.corpora.build import CorpusPlan, write_corpus
from longreach.tasks.corpora.tokenizers import Tokenizer, load_tokenizer

__all__ = ["TokenCache", "TokenizedPart", "default_cache", "open_or_build"]

FORMAT = 1
TOKENIZER = "tokenizer.json"


class TokenizedPart:
    """The documents of one part of the corpus, memory-mapped."""

    def __init__(self, folder: Path, part: str, dtype: np.dtype) -> None:
        self.tokens: Integer[ndarray, " t"] = map_file(folder / f"{part}.tokens", dtype)
        table = map_file(folder / f"{part}.documents", np.dtype("<i8")).reshape(-1, 3)
        self.starts: Int64[ndarray, " n"] = table[:, 0]
        """Where each document starts: the index of its separator."""
        self.sizes: Int64[ndarray, " n"] = table[:, 1]
        """The number of bytes of each document."""
        self._name_ends = table[:, 2]
        self._names = map_file(folder / f"{part}.names", np.dtype(np.uint8))

    @property
    def n_bytes(self) -> int:
        """The number of bytes of all documents."""
        return int(self.sizes.sum())

    def documents(self) -> Iterator[tuple[str, Integer[ndarray, " l"]]]:
        """The name and the tokens, without the separator, of each document."""
        name_start = 0
        for i, (start, name_end) in enumerate(zip(self.starts, self._name_ends, strict=True)):
            stop = self.starts[i + 1] if i + 1 < len(self.starts) else len(self.tokens)
            name = self._names[name_start:name_end].tobytes().decode()
            yield name, self.tokens[start + 1 : stop]
            name_start = name_end


class TokenCache:
    """A complete cache, opened."""

    def __init__(self, folder: Path, header: Header) -> None:
        self.tokenizer: Tokenizer = load_tokenizer(folder / TOKENIZER)
        if self.tokenizer.fingerprint != header["tokenizer"]:
            raise InputError(f"{folder / TOKENIZER} does not belong to its cache")
        self.parts = {part: TokenizedPart(folder, part, self.tokenizer.dtype) for part in header["parts"]}
        self.record: Header = {key: header[key] for key in ("source", "split", "tokenizer", "parts")}


def open_or_build(plan: CorpusPlan, root: Path) -> TokenCache:
    """The cache of a corpus below `root`, made first if there is none, or none that is complete and up to date.

    Raises InputError where the source, the tokenizer or the disk does not allow it; then nothing is left behind.
    """
    _require_outside(root, plan)
    recipe = Recipe(
        source=str(plan.source),
        fingerprint=plan.source.fingerprint,
        write=lambda folder: {**write_corpus(plan, folder), "format": FORMAT},
        open=TokenCache,
        kind="token cache",
        option="reading.cache",
    )
    return open_or_make(root / folder_name("corpus", f"{FORMAT} {plan.settings()}"), recipe)


def _require_outside(root: Path, plan: CorpusPlan) -> None:
    """Raise InputError where the cache would become part of the corpus that it is made from."""
    for item in plan.source.data:
        place, corpus = root.resolve(), Path(item).resolve()
        if place.is_relative_to(corpus) and not any(part[0] == "." for part in place.relative_to(corpus).parts):
            raise InputError(
                f"the token cache {root} lies within the data, {item}; set reading.cache to a folder elsewhere"
            )
