"""Text and Retrieval: the files that people have, both published pipelines, and what is refused."""

import gzip
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from known_answers import FakeHub, FakeRows, everything, judge, prepared, small, stored

from longreach.errors import InputError
from longreach.tasks import Retrieval, Text, TextOptions
from longreach.tasks.lra.texts import alphabet, code_points

REVIEWS = {
    (
        part,
        folder,
        number,
    ): f"{part} {folder} {number}: a {'great' if folder == 'pos' else 'dull'} film<br />ä{'!' * number}"
    for part in ("train", "test")
    for folder in ("neg", "pos")
    for number in range(10)
}
CHARACTERS = TextOptions(unit="characters", append_end=True, n_characters=30)


@pytest.fixture
def imdb(tmp_path: Path) -> Path:
    """A folder as it is distributed, with what else is in it."""
    for (part, folder, number), text in REVIEWS.items():
        path = tmp_path / "aclImdb" / part / folder / f"{number}_{7 + number % 3}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (tmp_path / "aclImdb" / "train" / "unsup").mkdir()
    (tmp_path / "aclImdb" / "train" / "unsup" / "0_0.txt").write_text("no label")
    (tmp_path / "aclImdb" / "README").write_text("read me")
    return tmp_path / "aclImdb"


def text(data: Path, cache: Path, **options: object) -> Text:
    return Text(data, **{"held_out": 0.2, "loading": small(cache), **options})


def byte_answers() -> dict[tuple[tuple[int, ...], ...], int]:
    return {(tuple(text.encode()),): int(folder == "pos") for (_, folder, _), text in REVIEWS.items()}


def test_reviews_are_read_as_bytes(imdb: Path, tmp_path: Path) -> None:
    task = prepared(text(imdb, tmp_path / "cache"))
    judge(task, byte_answers())
    assert everything(task) == sorted(byte_answers().items())
    assert [len(task.part(part)) for part in ("train", "validation", "test")] == [16, 4, 20]
    assert {sequence for (sequence,), _ in stored(task, "test")} == {
        tuple(text.encode()) for (part, _, _), text in REVIEWS.items() if part == "test"
    }
    assert task.encoding.size == 256
    other = prepared(text(imdb, tmp_path / "cache", split_seed=1))
    assert stored(other, "validation") != stored(task, "validation")
    assert everything(other) == everything(task)


@pytest.mark.parametrize("name", ["aclImdb_v1.tar.gz", "aclImdb_v1.tar"])
def test_an_archive_is_the_same_as_its_folder(imdb: Path, tmp_path: Path, name: str) -> None:
    archive = tmp_path / "elsewhere" / name
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz" if name.endswith("gz") else "w") as file:
        file.add(imdb, "aclImdb")
    expected = prepared(text(imdb.parent, tmp_path / "cache"))
    for data in (archive, archive.parent):
        task = prepared(text(data, tmp_path / "cache"))
        assert all(stored(task, part) == stored(expected, part) for part in ("train", "validation", "test"))


def test_as_published_the_test_part_validates(imdb: Path, tmp_path: Path) -> None:
    task = prepared(text(imdb, tmp_path, held_out=0.0))
    assert stored(task, "validation") == stored(task, "test")
    assert len(task.part("train")) == 20


def test_characters_are_counted_in_the_training_part_and_recorded(imdb: Path, tmp_path: Path) -> None:
    task = prepared(text(imdb, tmp_path, text=CHARACTERS, held_out=0.0))
    learned = "".join(text for (part, _, _), text in REVIEWS.items() if part == "train")
    known = sorted(set(learned), key=lambda character: (-learned.count(character), character))[:30]
    assert len(set(learned)) > 30
    assert task.record()["alphabet"] == "".join(known)
    assert task.encoding.size == 32
    answers = {
        ((*(known.index(each) if each in known else 30 for each in text), 31),): int(folder == "pos")
        for (_, folder, _), text in REVIEWS.items()
    }
    assert {token for (sequence,) in answers for token in sequence} >= {0, 29, 30, 31}
    judge(task, answers)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (TextOptions(max_length=4), [0, 99, 195, 164]),
        (TextOptions(max_length=4, append_end=True), [0, 99, 195, 256]),
        (TextOptions(max_length=4, keep="end"), [164, 33, 33, 33]),
        (TextOptions(max_length=100, append_end=True), [0, 99, 195, 164, 33, 33, 33, 256]),
        (TextOptions("characters", max_length=4, n_characters=3), [2, 3, 1, 0]),
        (TextOptions("characters", max_length=4, keep="end", append_end=True, n_characters=9), [0, 0, 0, 10]),
    ],
)
def test_texts_are_cut_and_ended(tmp_path: Path, options: TextOptions, expected: list[int]) -> None:
    (tmp_path / "tsv_data").mkdir()
    for part in ("train", "eval", "test"):
        (tmp_path / "tsv_data" / f"new_aan_pairs.{part}.tsv").write_bytes("1\ta\tb\t\0cä!!!\tä!!\n".encode())
    task = prepared(Retrieval(tmp_path, options, small(tmp_path, 1)))
    (((first, second), label),) = stored(task, "test")
    assert (list(first), label) == (expected, 1)
    assert len(second) <= options.max_length


def test_a_vocabulary_has_as_many_tokens_as_there_can_be() -> None:
    sizes = [TextOptions(unit, append_end=end).vocab_size for unit in ("bytes", "characters") for end in (False, True)]
    assert sizes == [256, 257, 133, 134]


def test_what_is_not_utf8_is_replaced() -> None:
    options = TextOptions("characters", max_length=3)
    assert code_points(b"a\xff\xf0\x9f\x98\x80bcd", options)[:4].tolist() == [97, 0xFFFD, 0x1F600, 98]
    whole = TextOptions("characters", max_length=3, keep="end")
    assert whole.cut(code_points("äöüß".encode(), whole)).tolist() == [ord(each) for each in "öüß"]


def test_equally_frequent_characters_are_in_the_order_of_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [np.array([ord(each) for each in text], np.uint32) for text in ("bab", "ca", "zzz")]
    assert alphabet(texts, 3) == "zab"
    monkeypatch.setattr("longreach.tasks.lra.texts.COUNTED_AT_A_TIME", 3)
    assert alphabet(texts, 10) == "zabc"


def damage(path: Path, how: str) -> None:
    if how == "no folder":
        shutil.rmtree(path / "test" / "pos")
    elif how == "gap":
        (path / "train" / "neg" / "4_8.txt").unlink()
    elif how == "fewer":
        (path / "test" / "neg" / "9_7.txt").unlink()
    elif how == "empty":
        (path / "test" / "neg" / "9_7.txt").write_text("")
    elif how == "name":
        (path / "test" / "neg" / "notes.txt").write_text("x")
    elif how == "no file":
        (path / "test" / "neg" / "10_7.txt").mkdir()


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("no folder", "aclImdb has no folder test/pos; copy or unpack"),
        ("gap", "train/neg of .*aclImdb is incomplete: its 9 reviews are not numbered from 0 to 9"),
        ("fewer", "test/neg of .*aclImdb is incomplete: its 9 reviews"),
        ("empty", "test/neg/9_7.txt of .* is empty"),
        ("name", "test/neg/notes.txt is not named like a review"),
        ("no file", "cannot read .*test/neg/10_7.txt: Is a directory; copy it again"),
    ],
)
def test_incomplete_reviews_are_refused(imdb: Path, tmp_path: Path, how: str, complaint: str) -> None:
    damage(imdb, how)
    with pytest.raises(InputError, match=complaint):
        text(imdb, tmp_path / "cache").prepare()


def test_a_changed_review_is_read_again(imdb: Path, tmp_path: Path) -> None:
    prepared(text(imdb, tmp_path / "cache"))
    (imdb / "train" / "neg" / "0_7.txt").write_text("other")
    task = prepared(text(imdb, tmp_path / "cache"))
    assert any(sequence == tuple(b"other") for (sequence,), _ in everything(task))


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.98])
@pytest.mark.parametrize("name", ["aclImdb_v1.tar.gz", "aclImdb_v1.tar"])
def test_half_a_download_is_refused(imdb: Path, tmp_path: Path, name: str, kept: float) -> None:
    with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as file:
        file.add(imdb, "aclImdb")
    content = (tmp_path / name).read_bytes()
    if name.endswith("tar"):
        content = content.rstrip(b"\0")  # what is behind the last member may be long
    (tmp_path / name).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=f"{name} is no complete tar archive .*download or copy it again"):
        text(tmp_path / name, tmp_path / "cache").prepare()


def test_an_archive_cut_between_two_members_is_refused(imdb: Path, tmp_path: Path) -> None:
    path = tmp_path / "aclImdb_v1.tar"
    with tarfile.open(path, "w") as file:
        file.add(imdb, "aclImdb")
        end = file.offset
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(InputError, match="it ends too early"):
        text(path, tmp_path / "cache").prepare()


def test_what_is_no_archive_or_has_no_reviews_is_refused(tmp_path: Path) -> None:
    (tmp_path / "aclImdb_v1.tar.gz").write_text("<html>not found</html>")
    with pytest.raises(InputError, match="no complete tar archive"):
        text(tmp_path, tmp_path / "cache").prepare()
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as file:
        file.add(tmp_path / "aclImdb_v1.tar.gz", "file.txt")
    with pytest.raises(InputError, match=r"other.tar.gz has no reviews such as"):
        text(tmp_path / "other.tar.gz", tmp_path / "cache").prepare()
    with pytest.raises(InputError, match=r"nowhere has no aclImdb and no aclImdb_v1.tar.gz; name one"):
        text(tmp_path / "nowhere", tmp_path / "cache").prepare()


def fake_hub(name: str, split: str) -> FakeRows:
    assert name == "stanfordnlp/imdb"
    found = {text: int(folder == "pos") for (part, folder, _), text in REVIEWS.items() if part == split}
    return FakeRows(text=list(found), label=list(found.values()))


def test_reviews_of_the_hub_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(fake_hub))
    task = prepared(text(Path("hf:stanfordnlp/imdb"), tmp_path))
    judge(task, byte_answers())
    assert task.settings()["data"] == "hf:stanfordnlp/imdb"


def unreachable(name: str, split: str) -> FakeRows:
    raise ConnectionError("no route")


@pytest.mark.parametrize(
    ("hub", "complaint"),
    [
        (None, r"hf:some/name needs the package datasets: pip install 'longreach\[hf\]', or name a folder"),
        (
            FakeHub(unreachable),
            r"cannot load the train split of hf:some/name \(no route\); check the name and the network",
        ),
        (FakeHub(lambda name, split: FakeRows(words=[1])), "has no column text, label, only words"),
        (
            FakeHub(lambda name, split: FakeRows(text=["a"], label=[-1])),
            "hf:some/name has the label -1 instead of 0 or 1",
        ),
    ],
)
def test_what_the_hub_has_not_is_explained(
    hub: FakeHub | None, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", hub)
    with pytest.raises(InputError, match=complaint):
        text(Path("hf:some/name"), tmp_path).prepare()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"held_out": 0.7}, "held_out = 0.7 must be more than 0 and less than 0.5"),
        ({"held_out": 0.01}, "20 examples are too few to hold out 0.01"),
    ],
)
def test_impossible_shares_are_refused(imdb: Path, tmp_path: Path, options: dict[str, float], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        text(imdb, tmp_path / "cache", **options).prepare()


@pytest.mark.parametrize("options", [{"max_length": 0}, {"max_length": 1, "append_end": True}, {"n_characters": 0}])
def test_impossible_sequences_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"text\.(max_length|n_characters) = [01]"):
        TextOptions(**options)


PAIRS = {f"paper {number} on parsing": f"paper {number * 7 % 12} on tagging" for number in range(12)}


@pytest.fixture
def aan(tmp_path: Path) -> Path:
    """The release's three files."""
    folder = tmp_path / "lra_release" / "tsv_data"
    folder.mkdir(parents=True)
    for place, part in enumerate(("train", "eval", "test")):
        pairs = list(PAIRS.items())[place * 4 : place * 4 + 4]
        rows = [f"{i % 2}.0\tP{i}\tQ{i}\t{a}\t{b}\r\n" for i, (a, b) in enumerate(pairs)]
        (folder / f"new_aan_pairs.{part}.tsv").write_text("".join(rows), newline="")
    return folder


def test_pairs_are_read(aan: Path, tmp_path: Path) -> None:
    answers = {(tuple(a.encode()), tuple(b.encode())): i % 2 for i, (a, b) in enumerate(PAIRS.items())}
    for data in (aan, tmp_path):
        task = prepared(Retrieval(data, loading=small(tmp_path / "cache")))
        judge(task, answers)
        assert everything(task) == sorted(answers.items())
        assert [len(task.part(part)) for part in ("train", "validation", "test")] == [4, 4, 4]
    assert task.text.max_length == 4000


@pytest.mark.parametrize(
    "row",
    [
        b'1\ta\tb\tsay "no" twice\tyes',
        b'"1.0"\t"a"\t"b"\t"say ""no"" twice"\tyes\r',
        b'\xef\xbb\xbf1.0\ta\tb\t"say ""no"" twice"\t"yes"',
    ],
)
def test_quotes_labels_and_line_ends_are_understood(aan: Path, tmp_path: Path, row: bytes) -> None:
    (aan / "new_aan_pairs.test.tsv").write_bytes(row + b"\n\n")
    task = prepared(Retrieval(aan, loading=small(tmp_path / "cache")))
    assert stored(task, "test") == [((tuple(b'say "no" twice'), tuple(b"yes")), 1)]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty; copy it again"),
        (b"1\ta\tb\tone\ttwo\n0\ta\tb\tone\n", "line 2: 4 fields instead of"),
        (b"1\ta\tb\tone\ttwo\n0\ta\tb\tone\ttw", "ends in the middle of line 2"),
        (b"2\ta\tb\tone\ttwo\n", "line 1: the label is '2', neither 0 nor 1"),
        (b"x\ta\tb\tone\ttwo\n", "the label is 'x'"),
        (b"nan\ta\tb\tone\ttwo\n", "the label is 'nan'"),
        (b"1\ta\tb\t\ttwo\n", "line 1: a text is empty"),
    ],
)
def test_what_is_no_pair_is_refused_by_its_line(aan: Path, tmp_path: Path, content: bytes, complaint: str) -> None:
    (aan / "new_aan_pairs.eval.tsv").write_bytes(content)
    with pytest.raises(InputError, match=complaint) as raised:
        Retrieval(aan, loading=small(tmp_path / "cache")).prepare()
    assert str(aan / "new_aan_pairs.eval.tsv") in str(raised.value)


def test_missing_pairs_are_refused_by_name(aan: Path, tmp_path: Path) -> None:
    (aan / "new_aan_pairs.eval.tsv").unlink()
    with pytest.raises(InputError, match=r"tsv_data has no new_aan_pairs.eval.tsv; name the folder tsv_data"):
        Retrieval(tmp_path, loading=small(tmp_path / "cache")).prepare()
    with gzip.open(tmp_path / "lra_release.gz", "wb") as file:
        file.write(b"")
    with pytest.raises(InputError, match=r"lra_release.gz is a file; name the folder .* unpacked"):
        Retrieval(tmp_path / "lra_release.gz", loading=small(tmp_path / "cache")).prepare()
