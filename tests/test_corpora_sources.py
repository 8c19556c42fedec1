"""Documents from files: what is read, what is left out and counted, and what is refused with a message that helps."""

import gzip
import hashlib
import json
import os
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from longreach.errors import InputError
from longreach.tasks.corpora import streams
from longreach.tasks.corpora.sources import Reading, Report, Source
from longreach.tasks.corpora.streams import lines, pieces

TEXTS = ["first text\nwith two lines\n", "naïve 漢字 🙂", 'quotes " and \\ backslashes']


def read(data: str | Path | list[str], **options: str) -> tuple[dict[str, bytes], dict]:
    """All documents by name, and the report."""
    report = Report()
    found = {document.name: document for document in Source(data, Reading(**options)).documents(report)}
    for document in found.values():
        content = document.read()
        assert len(content) == document.size
        assert hashlib.sha256(content).digest() == document.digest
        assert document.read() == content, "a document can be read again"
    return {name: document.read() for name, document in found.items()}, report.summary()


def json_lines(texts: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({"meta": {"n": 1}, field: text}) + "\n" for text in texts).encode()


def compress(content: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    return zstandard.ZstdCompressor().compress(content) if suffix == ".zst" else content


def test_a_folder_gives_its_text_files_in_order_and_counts_the_rest(tmp_path: Path) -> None:
    files = {
        "b.txt": b"b",
        "a.py": b"a\n",
        "sub/deep/c.md": "ç".encode(),
        "sub/zero.txt": b"",
        "image.png": b"\x89PNG\0\0",
        "latin.txt": "é".encode("latin-1"),
        ".hidden.txt": b"x",
        ".git/config": b"x",
        "__pycache__/a.pyc": b"x",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    found, summary = read(tmp_path)
    assert found == {"a.py": b"a\n", "b.txt": b"b", "sub/deep/c.md": "ç".encode()}
    assert list(found) == ["a.py", "b.txt", "sub/deep/c.md"]
    assert summary["skipped"] == {
        "binary": {"count": 1, "first": "image.png"},
        "empty": {"count": 1, "first": "sub/zero.txt"},
        "hidden": {"count": 3, "first": ".git"},
        "link to a folder": {"count": 1, "first": "loop"},
        "not UTF-8": {"count": 1, "first": "latin.txt"},
        "unreadable": {"count": 1, "first": "dangling"},
    }
    assert (summary["files"], summary["documents"], summary["bytes"]) == (4, 3, 5)


def test_the_digest_is_of_contents_and_names_only(tmp_path: Path) -> None:
    digests = []
    for folder, name, content in [("x", "a", b"1"), ("y", "a", b"1"), ("z", "b", b"1"), ("w", "a", b"2")]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(content)
        digests.append(read(tmp_path / folder)[1]["sha256"])
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".txt", ""])
def test_every_format_gives_the_same_text(tmp_path: Path, suffix: str, compression: str) -> None:
    path = tmp_path / f"file{suffix}{compression}"
    if suffix in (".jsonl", ".ndjson"):
        content, expected = json_lines(TEXTS), {f"{path.name}:{i + 1}": t.encode() for i, t in enumerate(TEXTS)}
    else:
        content, expected = "".join(TEXTS).encode(), {path.name: "".join(TEXTS).encode()}
    path.write_bytes(compress(content, compression))
    assert read(path)[0] == expected


def test_only_a_compressed_json_file_is_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{\n "k": 1\n}')
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json_lines(["one", "two"])))
    assert read(tmp_path)[0] == {"a.json": b'{\n "k": 1\n}', "b.json.gz:1": b"one", "b.json.gz:2": b"two"}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_may_be_joined(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.txt{suffix}"
    path.write_bytes(compress(b"one ", suffix) + compress(b"", suffix) + compress(b"two", suffix))
    assert list(read(path)[0].values()) == [b"one two"]


@pytest.mark.parametrize("kind", [".jsonl", ".txt"])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_a_damaged_archive_is_refused_wherever_it_is_cut(
    tmp_path: Path, kind: str, suffix: str, in_folder: bool
) -> None:
    whole = compress(json_lines([os.urandom(30).hex() for _ in range(300)]), suffix)
    path = tmp_path / f"x{kind}{suffix}"
    damaged = [whole[:stop] for stop in (1, 5, len(whole) // 2, len(whole) - 1)] + [b"no archive at all"]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"x{kind}{suffix} is damaged or incomplete"):
            read(tmp_path if in_folder else path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", r"empty\.txt is empty"),
        ("empty.txt.gz", gzip.compress(b"", mtime=0), r"empty\.txt\.gz is empty"),
        ("blank.jsonl", b"\n\n", "no text in"),
        ("binary", b"text\0more", r"binary: a zero byte at offset 4"),
        ("latin.txt", b"abc\xe9", "not UTF-8: unexpected end of data at byte offset 3"),
        ("latin.txt", b"abc\xe9de", "not UTF-8: invalid continuation byte at byte offset 3"),
    ],
)
def test_a_file_that_is_named_has_to_be_text(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_the_offset_of_a_bad_byte_is_right_far_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "CHUNK", 5)
    (tmp_path / "x").write_bytes("漢".encode() * 33 + b"\xff")
    with pytest.raises(InputError, match="byte offset 99;"):
        read(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"a" * 8191 + b"\0")
    with pytest.raises(InputError, match="zero byte at offset 8191"):
        read(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"a" * 8192 + b"\0")
    assert len(read(tmp_path / "x")[0]["x"]) == 8193


def test_what_is_missing_or_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'nowhere does not exist; data must be a folder, a file, or "stdlib"'):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no text in .*found: no files"):
        read(tmp_path)
    (tmp_path / "x.png").write_bytes(b"\0")
    with pytest.raises(InputError, match=r"found: 1 binary"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: unreadable: not a regular file"):
        read(tmp_path / "pipe")
    with pytest.raises(InputError, match="empty list"):
        read([])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused_or_counted(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "secret").chmod(0)
    with pytest.raises(InputError, match="secret: unreadable: Permission denied"):
        read(tmp_path / "secret")
    assert read(tmp_path)[1]["skipped"] == {"unreadable": {"count": 1, "first": "secret"}}


BAD_LINES = {
    b"{": "Expecting property name",
    b'{"text": "a"} {"text": "b"}': "Extra data",
    b'["text"]': "a JSON object is expected, this is a list",
    b'{"body": "x", "meta": 1}': r"no field 'text' among \['body', 'meta'\]",
    b'{"text": null}': "field 'text' is a NoneType, not a string",
    b'{"text": "\xff"}': "codec can't decode byte 0xff",
    b'{"text": "\\ud800"}': "surrogates not allowed",
    b"[" * 100_000: "recursion",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=BAD_LINES.values())
def test_a_bad_line_is_named_or_skipped_and_counted(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(json_lines(["good"]) + b"\n" + line + b"\n" + json_lines(["too"]))
    with pytest.raises(InputError, match=rf"x\.jsonl, line 3: .*{BAD_LINES[line]}.*on_bad_line"):
        read(path)
    found, summary = read(path, on_bad_line="skip")
    assert found == {"x.jsonl:1": b"good", "x.jsonl:4": b"too"}
    assert summary["skipped"] == {"bad line": {"count": 1, "first": "x.jsonl:3"}}


def test_json_lines_of_every_shape(tmp_path: Path) -> None:
    """A byte order mark, Windows' line ends, an empty text, no line break at the end, another field."""
    path = tmp_path / "x.jsonl"
    entries = [b'{"body": "a"}', b"  ", b'{"body": ""}', b'{"body": "\\u00e7\\n"}']
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(entries))
    found, summary = read(path, text_field="body")
    assert found == {"x.jsonl:1": b"a", "x.jsonl:4": "ç\n".encode()}
    assert summary["skipped"] == {"empty": {"count": 1, "first": "x.jsonl:3"}}


def test_several_sources_are_told_apart_and_none_is_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one/src/a.txt", "two/src/a.txt", "c.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    names = ["one/src/a.txt", "two/src/a.txt", "c.txt"]
    assert read(["one/src", "two/src", "c.txt"])[0] == {name: name.encode() for name in names}
    with pytest.raises(InputError, match=r"one/src/a\.txt is named twice"):
        read(["one", "./one/src/a.txt"])


def test_names_that_are_not_unicode_do_no_harm(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.txt", "wb") as file:
        file.write(b"x")
    assert read(tmp_path)[0] == {"\ufffd.txt": b"x"}


def test_the_standard_library_without_its_tests() -> None:
    found, summary = read("stdlib")
    assert {"os.py", "json/decoder.py", "doctest.py"} <= found.keys()
    folders = {part for name in found for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages"}
    assert all(name.endswith(".py") for name in found)
    if sys.version_info[:3] == (3, 11, 7):
        assert summary["files"] == 734
        assert summary["bytes"] == pytest.approx(12.1e6, rel=5e-3)  # one file holds the settings of the interpreter


def test_the_fingerprint_sees_every_change(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc")
    source = Source(tmp_path)
    seen = [source.fingerprint()]
    assert source.fingerprint() == seen[0]
    before = path.stat()
    path.write_text("abd")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    seen.append(source.fingerprint())
    (tmp_path / "b.txt").write_text("")
    seen.append(source.fingerprint())
    path.rename(tmp_path / "c.txt")
    seen.append(source.fingerprint())
    seen.append(Source(tmp_path, Reading(text_field="body")).fingerprint())
    assert len(set(seen)) == len(seen)


def cut_up(content: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    return [content[start:stop] for start, stop in pairwise(places)]


@given(st.text(alphabet="ab\né漢🙂"), st.lists(st.integers(0, 1000)))
def test_pieces_are_whole_characters_and_lose_nothing(text: str, cuts: list[int]) -> None:
    content = text.encode()
    found = list(pieces(iter(cut_up(content, cuts))))
    assert b"".join(found) == content
    assert "".join(piece.decode() for piece in found) == text
    assert all(found)


def test_pieces_end_with_a_line_where_they_can() -> None:
    assert list(pieces(iter([b"ab\ncd", b"ef\n\ngh", b"ij"]))) == [b"ab\n", b"cdef\n\n", b"ghij"]


@given(st.binary(max_size=60).map(lambda b: b.replace(b"\1", b"\n")), st.lists(st.integers(0, 1000)))
def test_lines_do_not_depend_on_the_chunks(content: bytes, cuts: list[int]) -> None:
    expected = content.split(b"\n")
    found = list(lines(iter(cut_up(content, cuts))))
    assert found == (expected if expected[-1] else expected[:-1])
