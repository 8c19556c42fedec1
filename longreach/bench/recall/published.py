"""What the papers report, beside which our cells are shown; nothing here was measured by us."""

from typing import NamedTuple

HYENA = "Hyena, arXiv:2302.10866"
H3 = "H3, arXiv:2212.14052"


class PublishedScore(NamedTuple):
    """A number of a paper."""

    task: str
    system: str
    """A name of SYSTEMS where it is one of them, else the paper's."""
    length: int
    size: int
    score: float
    source: str


def _row(task: str, system: str, source: str, *cells: tuple[int, int, float]) -> list[PublishedScore]:
    """The cells (length, vocabulary, percent) of a row."""
    return [PublishedScore(task, system, length, size, percent / 100, source) for length, size, percent in cells]


def _long(system: str, *percents: float) -> list[PublishedScore]:
    """Hyena's table of two layers of width 64 at vocabulary 30, as far as its rows go."""
    lengths = (30_000, 64_000, 131_072)[: len(percents)]
    return _row("associative", system, HYENA, *((n, 30, p) for n, p in zip(lengths, percents, strict=True)))


def _wide(system: str, *percents: float) -> list[PublishedScore]:
    """Hyena's comparison of operators at length 2,048 with vocabularies of 10 to 40."""
    sizes = (10, 20, 30, 40)
    return _row("associative", system, HYENA, *((2048, n, p) for n, p in zip(sizes, percents, strict=True)))


def _short(system: str, induction: float, recall: float) -> list[PublishedScore]:
    """H3's table of two layers of width 32."""
    return _row("induction", system, H3, (30, 20, induction)) + _row("associative", system, H3, (20, 10, recall))


PUBLISHED: list[PublishedScore] = [
    *_short("s4d", 35.6, 86.0),
    *_short("gss", 6.8, 78.0),
    *_short("h3", 100.0, 99.8),
    *_short("attention", 100.0, 100.0),
    *_wide("attention", 100.0, 100.0, 92.0, 82.0),
    *_wide("hyena", 100.0, 100.0, 98.0, 85.0),
    *_wide("h3", 92.0, 60.0, 13.0, 10.0),
    *_wide("AFT", 55.0, 21.0, 12.0, 10.0),
    *_wide("Conv1d", 32.0, 11.0, 10.0, 8.0),
    *_long("hyena", 100.0, 100.0, 97.2),
    *_long("attention", 32.4, 26.7),
    *_long("gss", 5.3, 2.1, 0.1),
    *_long("h3", 8.4, 4.3, 0.6),
    *_long("AFT", 2.3, 1.2, 0.8),
    *_long("rwkv", 12.4, 6.5, 2.3),
]
