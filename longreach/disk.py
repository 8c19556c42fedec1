"""Writing files so that neither a full disk nor a sudden end of the process leaves half of one behind."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longreach.errors import InputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, a refusal of the operating system becomes an InputError that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error}; what was saved before is intact: "
            "make room or mend the disk, then repeat the command (a training goes on with --resume)"
        ) from error


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that at every instant either the old or the new one is there, whole."""
    fresh = path.with_name(f"{path.name}.new")
    with writing(path):
        try:
            fresh.write_text(text)
            flush_to_disk(fresh)
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Return when the file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
