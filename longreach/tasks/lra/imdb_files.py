"""The film reviews of IMDB (Maas et al. 2011, https://aclanthology.org/P11-1015) as they are distributed.

    aclImdb/train/pos/<number>_<rating>.txt        12,500 reviews; likewise train/neg, test/pos and test/neg

as a folder, or in the archive aclImdb_v1.tar.gz, which need not be unpacked.  Reviews of each of the four folders are
numbered from 0 without gaps, and there are as many in each: by that incomplete copies are found out.
"""

import re
from pathlib import Path
from typing import NamedTuple

from longreach.errors import InputError
from longreach.tasks.data_files import first_present, read_archive, state_of

PLACES = ("aclImdb", "aclImdb_v1.tar.gz", "aclImdb_v1.tar", "aclImdb.tar.gz")
FOLDERS = {(part, name): label for part in ("train", "test") for name, label in {"neg": 0, "pos": 1}.items()}
NAME = re.compile(r"(?:.*/)?(train|test)/(neg|pos)/(\d+)_\d+\.txt")
AGAIN = "copy or unpack it again"


class Review(NamedTuple):
    """A review; the order of these tuples is the order of the examples."""

    part: str
    number: int
    label: int
    text: bytes


def find_imdb(data: Path) -> Path:
    """The folder aclImdb or its archive, where it or the folder around it is named."""
    found = data if (data / "train").is_dir() or data.is_file() else first_present(data, PLACES)
    if found is None:
        raise InputError(
            f"{data} has no aclImdb and no aclImdb_v1.tar.gz; name one of them or the folder that they are in, "
            "or hf:stanfordnlp/imdb"
        )
    return found


def imdb_state(found: Path) -> str:
    """A digest that changes when a review or the archive does."""
    return state_of([found] if found.is_file() else _files(found))


def read_reviews(found: Path) -> list[Review]:
    """All labelled reviews, positive and negative ones in turn; raises InputError where they are not all there."""
    if found.is_file():
        named = read_archive(found, lambda name: NAME.fullmatch(name) is not None)
    else:
        named = ((path.as_posix(), path.read_bytes()) for path in _files(found))
    reviews = sorted(_review(name, text, found) for name, text in named)
    numbers = {
        folder: [r.number for r in reviews if (r.part, r.label) == (folder[0], n)] for folder, n in FOLDERS.items()
    }
    size = max(map(len, numbers.values()))
    if not size:
        raise InputError(f"{found} has no reviews such as train/pos/0_9.txt; name aclImdb or aclImdb_v1.tar.gz")
    for folder, present in numbers.items():
        if present != list(range(size)):
            raise InputError(
                f"{'/'.join(folder)} of {found} is incomplete: its {len(present)} reviews are not numbered from 0 to "
                f"{size - 1}; {AGAIN}"
            )
    return reviews


def _files(found: Path) -> list[Path]:
    for part, name in FOLDERS:
        if not (found / part / name).is_dir():
            raise InputError(f"{found} has no folder {part}/{name}; {AGAIN}")
    return sorted(path for part, name in FOLDERS for path in (found / part / name).glob("*.txt"))


def _review(name: str, text: bytes, found: Path) -> Review:
    match = NAME.fullmatch(name)
    if match is None:
        raise InputError(f"{name} is not named like a review, <number>_<rating>.txt; {AGAIN}")
    if not text.strip():
        raise InputError(f"{name} of {found} is empty; {AGAIN}")
    part, folder, number = match.groups()
    return Review(part, int(number), FOLDERS[part, folder], text)
