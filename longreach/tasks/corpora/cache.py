"""The tokens of a corpus on disk, memory-mapped: made once, read by every later run.

A cache is a folder:

    header.json                what it was made from, the size of every file, and a checksum of all that
    tokenizer.json             also where the tokenizer was trained on the corpus itself
    <part>.tokens              all documents of train, validation or test in one row, a separator before each
    <part>.documents           for each document: where it starts among the tokens, its bytes, where its name ends
    <part>.names               the names of all documents in one row

The folder's name stands for the settings.  A header that does not match the source as it is now, a wrong checksum or
a file of the wrong size means that the cache is made anew.  It is made in a folder of its own, flushed to the disk and
then renamed, so a cache is either complete or absent; of several processes that need the same one, one makes it and
the others wait.  Memory does not grow with the corpus, apart from 8 bytes per document.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer
from numpy import ndarray

from longreach.disk import flush_to_disk
from longreach.errors import InputError
from longreach.tasks.corpora.build import CorpusPlan, write_corpus
from longreach.tasks.corpora.tokenizers import Tokenizer, load_tokenizer

FORMAT = 1
HEADER = "header.json"
TOKENIZER = "tokenizer.json"


class TokenizedPart:
    """The documents of one part of the corpus, memory-mapped."""

    def __init__(self, folder: Path, part: str, dtype: np.dtype) -> None:
        self.tokens: Integer[ndarray, " t"] = _map(folder / f"{part}.tokens", dtype)
        table = _map(folder / f"{part}.documents", np.dtype("<i8")).reshape(-1, 3)
        self.starts: Int64[ndarray, " n"] = table[:, 0]
        """Where each document starts: the index of its separator."""
        self.sizes: Int64[ndarray, " n"] = table[:, 1]
        """The number of bytes of each document."""
        self._name_ends = table[:, 2]
        self._names = _map(folder / f"{part}.names", np.dtype(np.uint8))

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

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self.tokenizer: Tokenizer = load_tokenizer(folder / TOKENIZER)
        if self.tokenizer.fingerprint != header["tokenizer"]:
            raise InputError(f"{folder / TOKENIZER} does not belong to its cache")
        self.parts = {part: TokenizedPart(folder, part, self.tokenizer.dtype) for part in header["parts"]}
        self.record: dict[str, Any] = {key: header[key] for key in ("source", "split", "tokenizer", "parts")}


def default_cache() -> Path:
    """Where caches are kept unless an option says otherwise."""
    return Path(os.environ.get("LONGREACH_CACHE") or Path.home() / ".cache" / "longreach")


def open_or_build(plan: CorpusPlan, root: Path) -> TokenCache:
    """The cache of a corpus below `root`, made first if there is none, or none that is complete and up to date.

    Raises InputError where the source, the tokenizer or the disk does not allow it; then nothing is left behind.
    """
    _require_outside(root, plan)
    name = hashlib.sha256(f"{FORMAT} {plan.settings()}".encode()).hexdigest()[:24]
    folder = root / f"corpus-{name}"
    fingerprint = plan.source.fingerprint()
    with _explained(root):
        root.mkdir(parents=True, exist_ok=True)
        found = _open(folder, fingerprint)
        if found is None:
            with _lock(root / f"{folder.name}.lock"):  # another process may have made it while we waited
                found = _open(folder, fingerprint) or _build(plan, folder, fingerprint)
    return found


def _require_outside(root: Path, plan: CorpusPlan) -> None:
    """Raise InputError where the cache would become part of the corpus that it is made from."""
    for item in plan.source.data:
        place, corpus = root.resolve(), Path(item).resolve()
        if place.is_relative_to(corpus) and not any(part[0] == "." for part in place.relative_to(corpus).parts):
            raise InputError(
                f"the token cache {root} lies within the data, {item}; set reading.cache to a folder elsewhere"
            )


def _open(folder: Path, fingerprint: str) -> TokenCache | None:
    """The cache in `folder` if it is complete and made from the source as it is now."""
    try:
        header = json.loads((folder / HEADER).read_bytes())
        checksum = header.pop("checksum")
        if checksum != _checksum(header) or header["fingerprint"] != fingerprint:
            return None
        if any((folder / name).stat().st_size != size for name, size in header["sizes"].items()):
            return None
        return TokenCache(folder, header)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _build(plan: CorpusPlan, folder: Path, fingerprint: str) -> TokenCache:
    """Make the cache beside its place and move it there; the caller holds the lock."""
    for remains in folder.parent.glob(f"{folder.name}.part-*"):  # of a process that was killed
        shutil.rmtree(remains)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
    try:
        header = {**write_corpus(plan, unfinished), "format": FORMAT, "fingerprint": fingerprint}
        if plan.source.fingerprint() != fingerprint:
            raise InputError(f"files of {plan.source} changed while they were read; start again when they are at rest")
        header["sizes"] = {path.name: path.stat().st_size for path in sorted(unfinished.iterdir())}
        (unfinished / HEADER).write_text(json.dumps({**header, "checksum": _checksum(header)}, indent=1))
        for path in [*unfinished.iterdir(), unfinished]:
            flush_to_disk(path)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
        flush_to_disk(folder.parent)
        return TokenCache(folder, header)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Turn what the disk refuses into a message that says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = "the disk is full; free some space, or" if full else f"{error.strerror or error};"
        remedy = "set reading.cache (or LONGREACH_CACHE) to a folder elsewhere"
        raise InputError(f"cannot use the token cache in {root}: {what} {remedy}") from error


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock.  The system lets go of it when its holder ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _checksum(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _map(path: Path, dtype: np.dtype) -> ndarray:
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
