"""Files of data sets as their users have them: folders, and tar archives that need not be unpacked."""

import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from longreach.errors import InputError


def state_of(paths: Iterable[Path]) -> str:
    """A digest of paths, sizes and times of change."""
    digest = hashlib.sha256()
    for path in paths:
        found = path.stat()
        digest.update(f"{path} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def first_present(data: Path, places: Iterable[str]) -> Path | None:
    """The first of these places in a folder where there is something."""
    return next((data / place for place in places if (data / place).exists()), None)


def read_archive(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of those files of a tar archive, compressed or not, that are wanted; nothing is unpacked.

    Raises InputError where the archive is damaged or ends too early, as after half a download.
    """
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() and wanted(member.name) else None
                if file is not None:
                    yield member.name, file.read()
            if not _ends_as_it_should(archive):
                raise EOFError("it ends too early")
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is no complete tar archive ({reason}); download or copy it again") from None


def _ends_as_it_should(archive: tarfile.TarFile) -> bool:
    """Whether there is a block of zeros behind the last member; what was cut off between two members has none."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    return archive.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
