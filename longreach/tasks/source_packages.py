"""Which package does a stretch of source code come from?  Long, text-like, and on data that every machine has.

By default the packages are those of the running interpreter's standard library, without its test suites: `asyncio`,
`email`, `tkinter` and other folders of source, the largest first.  Every file is in one part only.  A stretch is a
piece of the files of a package and a part, one file after another: to learn from they begin anywhere, to judge by they
are spread evenly.  Every package has as many stretches as every other: a guess is right once in `n_packages`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from longreach.errors import InputError
from longreach.tasks.cache_folder import Header
from longreach.tasks.classification import PARTS, Classification, Loading
from longreach.tasks.corpora.sources import STDLIB, Report, Source
from longreach.tasks.encodings import TokenEncoding
from longreach.tasks.labelled import Example
from longreach.tasks.orders import random_order

HELD_OUT = 0.1
"""The share of a package's bytes in its validation part, and that in its test part."""
LEAST_STRETCHES = 2
"""Every part of a package has at least so many times the length of a stretch."""


class _File(NamedTuple):
    name: str
    content: bytes


Package = Mapping[str, bytes]
"""Part -> all of its files, one after another."""


class SourcePackages(Classification):
    """The package of a stretch of source, byte by byte.

    Args:
        data: A folder whose own folders are the packages, or "stdlib" for the standard library.
        n_packages: So many of them are told apart: the largest that have files enough for three parts.
        length: Bytes of a stretch.
        train: Stretches of a package to learn from; they begin anywhere and overlap.
        held_out: Stretches of a package to choose the best checkpoint by, and as many to test on.
        seed: Decides which files are of which part, and where stretches begin.
        loading: How examples are put together and where they are kept.
    """

    def __init__(
        self,
        data: str = STDLIB,
        n_packages: int = 10,
        length: int = 4096,
        train: int = 1000,
        held_out: int = 40,
        seed: int = 0,
        loading: Loading = Loading(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__(loading)
        for name, value, least in (("n_packages", n_packages, 2), ("length", length, 1), ("train", train, 1)):
            if value < least:
                raise InputError(f"{name} = {value} must be at least {least}")
        if held_out < 1:
            raise InputError(f"held_out = {held_out} must be at least 1")
        self.data, self.n_classes, self.length, self.train, self.held_out = data, n_packages, length, train, held_out
        self.seed = seed
        self.encoding = TokenEncoding(256)
        self._names: list[str] = []

    def settings(self) -> dict[str, object]:
        """Which packages and which stretches of them."""
        numbers = {"n_packages": self.n_classes, "length": self.length, "train": self.train, "held_out": self.held_out}
        return {"data": self.data, **numbers, "seed": self.seed}

    def fingerprint(self) -> str:
        """The state of the files."""
        return Source(self.data).fingerprint()

    def count(self) -> int:
        """The number of stretches of all packages."""
        return self.n_classes * (self.train + 2 * self.held_out)

    def examples(self) -> Iterator[Example]:
        """The stretches, package after package in the order of their names."""
        packages = self._packages()
        self._names = sorted(packages)
        for label, name in enumerate(self._names):
            for part in PARTS:
                text = np.frombuffer(packages[name][part], np.uint8)
                for start in self._starts(name, part, len(text) - self.length):
                    yield Example(part, [text[start : start + self.length]], label)

    def record(self) -> dict[str, object]:
        """What the examples depend on, what is in each part, and the packages in the order of their labels."""
        return {**super().record(), "packages": self._ready().header["packages"]}

    def _write(self, folder: Path) -> Header:
        header = super()._write(folder)
        return {**header, "packages": self._names}

    def _starts(self, package: str, part: str, last: int) -> list[int]:
        """Where stretches begin, the last possible place being `last`."""
        if part != "train":
            return np.linspace(0, last, self.held_out).round().astype(int).tolist()
        n = self.train
        return (random_order(n, self.seed, package, "starts") * last // max(1, n - 1)).tolist()

    def _packages(self) -> dict[str, Package]:
        """The largest packages that have enough in every part; raises InputError where there are too few."""
        found: dict[str, list[_File]] = {}
        for document in Source(self.data).documents(Report()):
            package, inside, _ = document.name.partition("/")
            if inside:
                found.setdefault(package, []).append(_File(document.name, document.read()))
        fit: dict[str, Package] = {}
        for name, files in sorted(found.items(), key=lambda item: (-sum(len(f.content) for f in item[1]), item[0])):
            package = split_files(files, self.seed, name)
            if min(map(len, package.values())) >= LEAST_STRETCHES * self.length:
                fit[name] = package
            if len(fit) == self.n_classes:
                return fit
        raise InputError(
            f"{self.data} has {len(fit)} packages with files enough for three parts, not n_packages = "
            f"{self.n_classes}; lower n_packages or length, or name a folder with more"
        )


def split_files(files: list[_File], seed: int, name: str) -> dict[str, bytes]:
    """All files of a package by part, in a random order: each of them whole, in one part.

    The held-out parts are filled first, but not by files that would more than fill them, which are to learn from.
    """
    wanted = HELD_OUT * sum(len(file.content) for file in files)
    parts: dict[str, list[bytes]] = {part: [] for part in PARTS}
    sizes: dict[str, int] = dict.fromkeys(PARTS, 0)
    for index in random_order(len(files), seed, name, "files"):
        content = files[index].content
        fits = (part for part in ("test", "validation") if sizes[part] < wanted and len(content) <= wanted)
        part = next(fits, "train")
        parts[part].append(content)
        sizes[part] += len(content)
    return {part: b"".join(contents) for part, contents in parts.items()}
