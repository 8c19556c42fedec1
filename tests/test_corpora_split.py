"""Which documents are held out: stable, without leaks, never an empty part."""

import hashlib
import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longreach.errors import InputError
from longreach.tasks.corpora.sources import Document
from longreach.tasks.corpora.split import Split


def document(content: bytes, pieces: list[bytes] | None = None) -> Document:
    return Document("name", len(content), hashlib.sha256(content).digest(), lambda: iter(pieces or [content]))


def divide(split: Split, contents: list[bytes]) -> dict[str, list[bytes]]:
    """The documents of each part."""
    documents = [document(content) for content in contents]
    division = split.divide(np.array([split.rank(d) for d in documents], np.uint64))
    found: dict[str, list[bytes]] = {"train": [], "validation": [], "test": []}
    for d in documents:
        for part, pieces in division.parts(d):
            found[part].append(b"".join(pieces))
    return found


def numbered(n: int) -> list[bytes]:
    return [f"document {i}".encode() for i in range(n)]


def test_the_shares_are_kept() -> None:
    found = divide(Split(0.1, 0.2), numbered(5000))
    assert len(found["validation"]) == pytest.approx(500, abs=70)
    assert len(found["test"]) == pytest.approx(1000, abs=100)
    assert sorted(itertools.chain(*found.values())) == sorted(numbered(5000))


def test_the_order_does_not_matter_and_the_seed_does() -> None:
    shuffled = numbered(300)
    random.Random(0).shuffle(shuffled)
    first, again, other = (
        {part: sorted(content) for part, content in divide(split, documents).items()}
        for split, documents in [(Split(), numbered(300)), (Split(), shuffled), (Split(seed=1), shuffled)]
    )
    assert first == again
    assert first["validation"] != other["validation"]


def test_documents_stay_where_they_are_when_others_come() -> None:
    before, after = divide(Split(), numbered(300)), divide(Split(), numbered(600))
    for part, contents in before.items():
        assert set(contents) <= set(after[part])


def test_copies_never_stand_on_both_sides() -> None:
    found = divide(Split(0.3, 0.3), numbered(40) * 3)
    assert not set(found["train"]) & set(found["validation"]) | set(found["train"]) & set(found["test"])


@given(st.integers(1, 40), st.floats(1e-6, 0.6), st.floats(0, 0.39), st.integers(0, 5))
def test_no_part_is_empty_where_there_are_enough_documents(n: int, validation: float, test: float, seed: int) -> None:
    split = Split(validation, test, seed)
    found = divide(split, numbered(n) + numbered(1))
    if n >= len(split.parts):
        assert all(found[part] for part in split.parts)
        assert sum(map(len, found.values())) == n + 1
    assert bool(found["test"]) <= (test > 0)


def test_a_single_document_is_cut_at_line_breaks() -> None:
    lines = [f"line {i}\n".encode() for i in range(100)]
    found = divide(Split(0.1, 0.2), [b"".join(lines)])
    train, validation, test = (content for contents in found.values() for content in contents)
    assert train + validation + test == b"".join(lines)
    assert train.endswith(b"\n")
    assert validation.endswith(b"\n")
    assert (len(train), len(validation)) == pytest.approx((553, 79), abs=8)


def test_two_documents_do_not_fill_three_parts() -> None:
    found = divide(Split(0.3, 0.3), [b"a\n" * 50, b"b\n" * 50])
    assert [len(contents) for contents in found.values()] == [2, 2, 2]


def test_a_long_last_line_is_cut_between_characters() -> None:
    for text in ("x" * 1000, "漢" * 1000, "a\n" + "🙂" * 1000):
        content = text.encode()
        found = divide(Split(0.1, 0.1), [content])
        sizes = [len(contents[0]) for contents in found.values()]
        assert sizes == pytest.approx([0.8 * len(content), 0.1 * len(content), 0.1 * len(content)], abs=5)
        for contents in found.values():
            contents[0].decode()


@given(st.text(alphabet="ab\né🙂", min_size=1), st.lists(st.integers(0, 400)), st.floats(0, 0.4))
def test_cutting_loses_nothing_however_the_text_comes(text: str, cuts: list[int], test: float) -> None:
    places = sorted({0, len(text), *(cut % len(text) for cut in cuts)})
    pieces = [text[start:stop].encode() for start, stop in itertools.pairwise(places)]
    split = Split(0.3, test)
    whole = document(text.encode(), pieces)
    division = split.divide(np.array([split.rank(whole)], np.uint64))
    found = [(part, b"".join(content).decode()) for part, content in division.parts(whole)]
    assert "".join(content for _, content in found) == text
    assert [part for part, _ in found] == [part for part in split.parts if part in dict(found)]
    assert all(content for _, content in found)


@pytest.mark.parametrize(
    ("validation", "test"), [(0.0, 0.1), (-0.1, 0.1), (0.1, -0.1), (0.5, 0.5), (float("nan"), 0.0)]
)
def test_shares_that_are_none_are_refused(validation: float, test: float) -> None:
    with pytest.raises(InputError, match="must be shares of the documents"):
        Split(validation, test)
