"""The token cache: exact, complete or absent, rebuilt when it must be, safe among processes, small in memory."""

import errno
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zstandard
from corpus_toys import write_texts

from longreach.errors import InputError
from longreach.tasks import cache_folder
from longreach.tasks.corpora import build, cache
from longreach.tasks.corpora.build import CorpusPlan
from longreach.tasks.corpora.cache import TokenCache, open_or_build
from longreach.tasks.corpora.sources import Reading, Source
from longreach.tasks.corpora.split import Split
from longreach.tasks.corpora.tokenizers import load_tokenizer

N_FILES = 30


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of small files."""
    return write_texts(tmp_path / "texts", N_FILES)


def plan(data: Path, tokenizer: str = "bytes", split: Split | None = None, **options: str) -> CorpusPlan:
    return CorpusPlan(Source(data, Reading(**options)), tokenizer, split or Split(0.2, 0.2))


def contents(found: TokenCache) -> dict[str, bytes]:
    """Every document of every part."""
    return {name: found.tokenizer.decode(tokens) for part in found.parts.values() for name, tokens in part.documents()}


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_every_document_is_in_one_part_behind_a_separator(texts: Path, tmp_path: Path, tokenizer: str) -> None:
    found = open_or_build(plan(texts, tokenizer), tmp_path / "cache")
    assert contents(found) == {path.name: path.read_bytes() for path in texts.iterdir()}
    assert found.parts.keys() == {"train", "validation", "test"}
    for name, part in found.parts.items():
        separators = np.flatnonzero(part.tokens == found.tokenizer.separator)
        np.testing.assert_array_equal(separators, part.starts)
        sizes = [len((texts / file).read_bytes()) for file, _ in part.documents()]
        assert part.sizes.tolist() == sizes
        counts = {"documents": len(part.starts), "tokens": len(part.tokens), "bytes": sum(sizes)}
        assert found.record["parts"][name] == counts
        assert part.n_bytes == sum(sizes) == found.tokenizer.n_bytes[part.tokens].sum()
    assert found.record["source"]["documents"] == N_FILES
    assert found.record["split"] == {"validation": 0.2, "test": 0.2, "seed": 0, "rule": "by the content's digest"}


def test_a_document_of_many_pieces_is_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longreach.tasks.corpora.streams.CHUNK", 64)
    monkeypatch.setattr(build, "ENCODED_AT_ONCE", 200)
    lines = [f"line {i} of a long file\n" * 5 for i in range(100)]
    (tmp_path / "long.txt").write_text("".join(lines))
    found = open_or_build(plan(tmp_path / "long.txt"), tmp_path / "cache")
    assert "position" in found.record["split"]["rule"]
    assert [len(part.starts) for part in found.parts.values()] == [1, 1, 1]
    parts = [found.tokenizer.decode(part.tokens) for part in found.parts.values()]
    assert b"".join(parts).decode() == "".join(lines)


def test_copies_are_counted(texts: Path, tmp_path: Path) -> None:
    shutil.copy(texts / "03.txt", texts / "copy.txt")
    assert open_or_build(plan(texts), tmp_path / "cache").record["source"]["copies"] == 1


def test_byte_pairs_are_trained_on_the_training_part_alone(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for i in range(20):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"word{chr(97 + i) * 5} " * 50)
    split = Split(0.3, 0.3)
    found = open_or_build(plan(tmp_path / "texts", "bpe:20000", split), tmp_path / "cache")
    table = {content.strip() for content in found.tokenizer.table}
    for part, documents in found.parts.items():
        for _, tokens in documents.documents():
            word = found.tokenizer.decode(tokens).split()[0]
            assert (word in table) == (part == "train"), part


def test_too_much_text_for_the_tokenizer_is_sampled_evenly(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    train = build.make_tokenizer

    def watch(spec: str, pieces: object) -> object:
        seen.extend(pieces)
        return train("bytes", [])

    monkeypatch.setattr(build, "make_tokenizer", watch)
    open_or_build(plan(texts, "bpe:300"), tmp_path / "all")
    everything, seen[:] = list(seen), []
    monkeypatch.setattr(build, "TRAINING_BYTES", 900)
    open_or_build(plan(texts, "bpe:300"), tmp_path / "some")
    assert set(seen) < set(everything)
    assert 0.1 * len(everything) < len(seen) < 0.9 * len(everything)


def test_an_up_to_date_cache_is_opened_without_reading_the_source(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_or_build(plan(texts), tmp_path / "cache")
    monkeypatch.setattr(Source, "documents", None)
    again = open_or_build(plan(texts), tmp_path / "cache")
    assert contents(again) == contents(first)
    assert again.record == first.record


def test_a_change_of_the_source_replaces_the_cache(texts: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    before = open_or_build(plan(texts), root)
    old = contents(before)
    path = texts / "00.txt"
    times = path.stat()
    path.write_bytes(path.read_bytes().replace(b"text", b"TEXT"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = open_or_build(plan(texts), root)
    assert b"TEXT" in contents(after)["00.txt"]
    assert after.record["source"]["sha256"] != before.record["source"]["sha256"]
    assert contents(before) == old, "a run that has the old cache open is not disturbed"
    (texts / "new.txt").write_text("new")
    assert contents(open_or_build(plan(texts), root))["new.txt"] == b"new"
    assert len(folders(root)) == 1


def test_other_settings_have_another_cache(texts: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    saved = tmp_path / "t.json"
    open_or_build(plan(texts), root).tokenizer.save(saved)
    plans = [
        plan(texts, "bpe:300"),
        plan(texts, "bpe:301"),
        plan(texts, str(saved)),
        plan(texts, split=Split(0.2, 0.1)),
        plan(texts, split=Split(0.2, 0.2, seed=1)),
        plan(texts, text_field="body"),
        plan(texts / "00.txt"),
    ]
    for one in plans:
        open_or_build(one, root)
    assert len(folders(root)) == 1 + len(plans)
    load_tokenizer(saved).save(saved)
    saved.write_text(saved.read_text() + "\n")
    open_or_build(plan(texts, str(saved)), root)
    assert len(folders(root)) == 2 + len(plans), "another tokenizer in the same file"


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[:-1])
    elif how == "gone":
        path.unlink()
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, how) for name in ("header.json", "tokenizer.json") for how in ("cut", "gone", "flipped")),
        *((f"{part}.tokens", how) for part in ("train", "validation", "test") for how in ("cut", "gone")),
        ("train.documents", "cut"),
        ("train.names", "cut"),
    ],
)
def test_a_damaged_cache_is_made_anew(texts: Path, tmp_path: Path, name: str, how: str) -> None:
    root = tmp_path / "cache"
    expected = contents(open_or_build(plan(texts), root))
    (folder,) = (root / name for name in folders(root))
    before = folder.stat().st_ino
    damage(folder / name, how)
    assert contents(open_or_build(plan(texts), root)) == expected
    changed = folder.stat().st_ino != before
    assert changed or (name, how) == ("tokenizer.json", "flipped")  # a flipped space does no harm


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("header.json", '"copies": 0', '"copies": 9'),
        ("tokenizer.json", '"a": 97,\n      "b": 98', '"a": 98,\n      "b": 97'),
    ],
)
def test_a_false_cache_of_the_right_form_is_made_anew(
    texts: Path, tmp_path: Path, name: str, old: str, new: str
) -> None:
    root = tmp_path / "cache"
    expected = open_or_build(plan(texts), root)
    (folder,) = (root / name for name in folders(root))
    content = (folder / name).read_text()
    assert content.count(old) == 1
    (folder / name).write_text(content.replace(old, new))
    found = open_or_build(plan(texts), root)
    assert contents(found) == contents(expected)
    assert found.record == expected.record


CHILD = """
import sys, time
from pathlib import Path
from longreach.tasks.corpora import build
from longreach.tasks.corpora.cache import open_or_build
from longreach.tasks.corpora.build import CorpusPlan
from longreach.tasks.corpora.sources import Source
from longreach.tasks.corpora.split import Split
texts, root, me = map(Path, sys.argv[1:4])
write = build._PartWriter.begin
def slow(*args):
    (root / "begun").touch()
    (root / f"built-by-{me}").touch()
    time.sleep(0.02)
    write(*args)
build._PartWriter.begin = slow
(root / f"ready-{me}").touch()
while not (root / "go").exists():
    time.sleep(0.002)
found = open_or_build(CorpusPlan(Source(texts), "bytes", Split(0.2, 0.2)), root)
print(sum(int(part.tokens.sum()) for part in found.parts.values()))
"""


def child(texts: Path, root: Path, name: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(texts), str(root), name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.005)


def test_of_two_processes_one_builds_and_both_read(texts: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    root.mkdir()
    children = [child(texts, root, name) for name in ("a", "b")]
    for name in ("a", "b"):
        wait_for(root / f"ready-{name}")
    (root / "go").touch()
    results = [process.communicate(timeout=60) for process in children]
    assert [process.returncode for process in children] == [0, 0], results
    assert len(list(root.glob("built-by-*"))) == 1
    expected = sum(int(part.tokens.sum()) for part in open_or_build(plan(texts), root).parts.values())
    assert [int(out) for out, _ in results] == [expected] * 2
    assert len(folders(root)) == 1


def test_what_a_killed_process_left_is_cleared_away(texts: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    root.mkdir()
    (root / "go").touch()
    with child(texts, root, "a") as process:
        wait_for(root / "begun")
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert ["part" in name for name in folders(root)] == [True]
    assert len(contents(open_or_build(plan(texts), root))) == N_FILES
    assert ["part" in name for name in folders(root)] == [False]


def test_a_full_disk_leaves_no_half_cache(texts: Path, tmp_path: Path) -> None:
    """The system itself refuses to write more than some bytes of a file."""
    root = tmp_path / "cache"
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(
            InputError, match=r"cannot use the token cache in .*cache: the disk is full; free some space"
        ):
            open_or_build(plan(texts), root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert folders(root) == []
    assert len(contents(open_or_build(plan(texts), root))) == N_FILES


def test_a_disk_that_is_full_later_keeps_the_earlier_cache(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "cache"
    before = open_or_build(plan(texts), root)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (texts / "new.txt").write_text("new")
    with monkeypatch.context() as patch:
        patch.setattr(cache_folder, "flush_to_disk", full)
        with pytest.raises(InputError, match="the disk is full"):
            open_or_build(plan(texts), root)
    (texts / "new.txt").unlink()
    assert contents(open_or_build(plan(texts), root)) == contents(before)
    assert len(folders(root)) == 1


def test_a_place_that_cannot_hold_a_cache_is_named(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/cache: Not a directory; .*reading\.cache \(or LONGREACH_CACHE\)"):
        open_or_build(plan(texts), tmp_path / "file" / "cache")


def test_a_cache_within_the_data_would_be_read_as_data(texts: Path) -> None:
    with pytest.raises(InputError, match=r"lies within the data, .*texts; set reading\.cache to a folder elsewhere"):
        open_or_build(plan(texts), texts / "deep" / "cache")
    assert len(contents(open_or_build(plan(texts), texts / ".cache" / "longreach"))) == N_FILES


def test_files_that_change_while_they_are_read_are_noticed(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = cache.write_corpus

    def disturbed(*args: object) -> object:
        found = write(*args)
        (texts / "00.txt").write_text("other")
        return found

    monkeypatch.setattr(cache, "write_corpus", disturbed)
    with pytest.raises(InputError, match="changed while they were read"):
        open_or_build(plan(texts), tmp_path / "cache")
    assert folders(tmp_path / "cache") == []


def test_too_little_text_for_all_parts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="holds 1 bytes of text, too little to give the validation part any"):
        open_or_build(plan(tmp_path / "a.txt"), tmp_path / "cache")
    assert folders(tmp_path / "cache") == []


def test_the_default_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGREACH_CACHE", "/somewhere")
    assert cache.default_cache() == Path("/somewhere")
    monkeypatch.delenv("LONGREACH_CACHE")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache.default_cache() == Path("/home/me/.cache/longreach")


def peak_memory(path: Path, n_blocks: int, root: Path) -> int:
    """The most that Python and numpy held while a compressed file of so many blocks of 20 KB was read."""
    blocks = (random.Random(i).randbytes(10_000).hex() + "\n" for i in range(n_blocks))
    if path.suffix == ".zst":
        lines = (json.dumps({"text": block}) + "\n" for block in blocks)
        stream = io.BufferedWriter(zstandard.ZstdCompressor(level=1).stream_writer(path.open("wb")))
    else:
        lines, stream = blocks, gzip.GzipFile(path, "wb", compresslevel=1)
    with stream:
        stream.writelines(line.encode() for line in lines)
    tracemalloc.start()
    try:
        found = open_or_build(plan(path), root)
        assert found.record["source"]["bytes"] == n_blocks * 20_001
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [".jsonl.zst", ".txt.gz"])
def test_memory_does_not_grow_with_the_source(tmp_path: Path, kind: str) -> None:
    """Neither with the number of documents nor with the size of one."""
    small = peak_memory(tmp_path / f"small{kind}", 250, tmp_path / "cache")
    large = peak_memory(tmp_path / f"large{kind}", 1000, tmp_path / "cache")
    assert large < small + (1 << 20), (small, large)
    assert large < 15 << 20
