"""A folder of prepared data: made once, read by every later run, complete or absent.

    header.json     what it was made from, the size of every file, and a checksum of all that
    ...             files that are memory-mapped

The folder's name stands for the settings.  A header that does not match the source as it is now, a wrong checksum or
a file of the wrong size means that the cache is made anew.  It is made in a folder of its own, flushed to the disk and
then renamed; of several processes that need the same one, one makes it and the others wait.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy import ndarray

from longreach.disk import flush_to_disk
from longreach.errors import InputError

HEADER = "header.json"

Header = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Recipe(Generic[T]):
    """How a cache is made and opened."""

    source: str
    """What it is made from, as messages call it."""
    fingerprint: Callable[[], str]
    """The state of the source now; a cache made from another state is not used."""
    write: Callable[[Path], Header]
    """Writes all files into an empty folder; returns what the header is to hold."""
    open: Callable[[Path, Header], T]
    """The cache in a folder whose files have the sizes in the header; a ValueError means that it is not complete."""
    kind: str
    """What messages call the cache."""
    option: str
    """The option that says where caches are."""


def default_cache() -> Path:
    """Where caches are kept unless an option says otherwise."""
    return Path(os.environ.get("LONGREACH_CACHE") or Path.home() / ".cache" / "longreach")


def folder_name(prefix: str, settings: str) -> str:
    """The name of the folder for these settings."""
    return f"{prefix}-{hashlib.sha256(settings.encode()).hexdigest()[:24]}"


def open_or_make(folder: Path, recipe: Recipe[T]) -> T:
    """The cache in `folder`, made first if there is none, or none that is complete and up to date.

    Raises InputError where the source or the disk does not allow it; then nothing is left behind.
    """
    fingerprint, root = recipe.fingerprint(), folder.parent
    with _explained(root, recipe):
        root.mkdir(parents=True, exist_ok=True)
        found = _open(folder, fingerprint, recipe)
        if found is None:
            with _lock(root / f"{folder.name}.lock"):  # another process may have made it while we waited
                found = _open(folder, fingerprint, recipe) or _make(folder, fingerprint, recipe)
    return found


def map_file(path: Path, dtype: np.dtype) -> ndarray:
    """The numbers in a file, memory-mapped."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)


def _open(folder: Path, fingerprint: str, recipe: Recipe[T]) -> T | None:
    """The cache in `folder` if it is complete and made from the source as it is now."""
    try:
        header = json.loads((folder / HEADER).read_bytes())
        checksum = header.pop("checksum")
        if checksum != _checksum(header) or header["fingerprint"] != fingerprint:
            return None
        if any((folder / name).stat().st_size != size for name, size in header["sizes"].items()):
            return None
        return recipe.open(folder, header)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _make(folder: Path, fingerprint: str, recipe: Recipe[T]) -> T:
    """Make the cache beside its place and move it there; the caller holds the lock."""
    for remains in folder.parent.glob(f"{folder.name}.part-*"):  # of a process that was killed
        shutil.rmtree(remains)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
    try:
        header = {**recipe.write(unfinished), "fingerprint": fingerprint}
        if recipe.fingerprint() != fingerprint:
            raise InputError(
                f"files of {recipe.source} changed while they were read; start again when they are at rest"
            )
        header["sizes"] = {path.name: path.stat().st_size for path in sorted(unfinished.iterdir())}
        (unfinished / HEADER).write_text(json.dumps({**header, "checksum": _checksum(header)}, indent=1))
        for path in [*unfinished.iterdir(), unfinished]:
            flush_to_disk(path)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
        flush_to_disk(folder.parent)
        return recipe.open(folder, header)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _explained(root: Path, recipe: Recipe[T]) -> Iterator[None]:
    """Turn what the disk refuses into a message that says what to do, of the cache or of what it is made from."""
    try:
        yield
    except OSError as error:
        file = Path(os.fsdecode(error.filename or root)).absolute()
        if not file.is_relative_to(root.absolute()) and not root.absolute().is_relative_to(file):
            raise InputError(f"cannot read {file}: {error.strerror}; copy it again, or allow it to be read") from error
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = "the disk is full; free some space, or" if full else f"{error.strerror or error};"
        remedy = f"set {recipe.option} (or LONGREACH_CACHE) to a folder elsewhere"
        raise InputError(f"cannot use the {recipe.kind} in {root}: {what} {remedy}") from error


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock.  The system lets go of it when its holder ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _checksum(header: Header) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
