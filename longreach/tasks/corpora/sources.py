"""Documents from files: folders of text or code, single files, JSON lines, compressed or not, read as a stream.

What counts as what, by the end of the file's name:

    *.jsonl  *.ndjson              JSON lines: of the object in each line, `text_field` is a document (as in The Pile)
    *.json.gz  *.json.zst          JSON lines too (as in C4); an uncompressed *.json is text
    anything else                  text: the whole file is one document
    ... followed by .gz or .zst    the same, compressed

Text is UTF-8.  In a folder, which is read recursively in the order of its names, a file that is not text is left out
and counted with the reason.  A file that was named by the user must be text, and a damaged file is an error everywhere,
because the loss would go unnoticed.  Memory does not grow with the size of a file: a long text file is read twice in
pieces (once to check and to digest it, once for its content), and of JSON lines one line is held at a time.

The default corpus, "stdlib", is the source of the running interpreter's standard library without its test suites.
"""

import hashlib
import json
import os
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from longreach.errors import InputError
from longreach.tasks.corpora.streams import CHUNK, NotTextError, check_text, chunks, lines, pieces

STDLIB = "stdlib"
LEFT_OUT = frozenset({"__pycache__"})
NOT_STDLIB = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"}) | LEFT_OUT
JSON_LINES = (".jsonl", ".ndjson")


class Document(NamedTuple):
    """One text.  Its content is read when it is asked for, as often as it is asked for."""

    name: str
    """The path within the source, with the line's number for JSON lines."""
    size: int
    """The number of bytes."""
    digest: bytes
    """The SHA-256 of the content."""
    pieces: Callable[[], Iterator[bytes]]
    """The content in pieces of bounded size, cut after line breaks where there are any and never within a character."""

    def read(self) -> bytes:
        """The whole content at once."""
        return b"".join(self.pieces())


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Args:
        text_field: Where the text is in an object of JSON lines.
        on_bad_line: A line that is not a JSON object with that field: "raise" stops and names it, "skip" counts it.
        cache: Folder for the tokens of corpora; default: $LONGREACH_CACHE, or ~/.cache/longreach.
    """

    text_field: str = "text"
    on_bad_line: Literal["raise", "skip"] = "raise"
    cache: Path | None = None


@dataclass
class Report:
    """What was read and what was left out, filled while documents are read."""

    files: int = 0
    documents: int = 0
    size: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    _digest: Any = field(default_factory=hashlib.sha256, repr=False)

    def count(self, document: Document) -> Document:
        """Note a document that was read."""
        self.documents += 1
        self.size += document.size
        self._digest.update(f"{document.digest.hex()}  {json.dumps(document.name)}\n".encode())
        return document

    def skip(self, reason: str, name: str) -> None:
        """Note something that was left out; the first of each reason is remembered by name."""
        self.skipped[reason] += 1
        self.examples.setdefault(reason, name)

    def summary(self) -> dict[str, object]:
        """Plain JSON values.  `sha256` digests the digests and names of all documents in the order of reading."""
        skipped = {reason: {"count": n, "first": self.examples[reason]} for reason, n in sorted(self.skipped.items())}
        totals = {"files": self.files, "documents": self.documents, "bytes": self.size}
        return {**totals, "sha256": self._digest.hexdigest(), "skipped": skipped}


class _File(NamedTuple):
    name: str
    path: Path
    named: bool
    """Given by the user, not found in a folder: it has to be readable."""


class Source:
    """The documents of a folder, a file, several of them, or the standard library."""

    def __init__(self, data: str | Path | Sequence[str | Path], reading: Reading | None = None) -> None:
        self.reading = reading or Reading()
        self.data = [data] if isinstance(data, str | Path) else list(data)
        if not self.data:
            raise InputError('data is an empty list; name a folder, a file, several of them, or "stdlib"')

    def __str__(self) -> str:
        return ", ".join(map(str, self.data))

    def fingerprint(self) -> str:
        """A digest that changes when a file is added, removed, renamed or written to; contents are not read.

        The time of the last status change is part of it: unlike the time of modification it cannot be set back.
        """
        digest = hashlib.sha256(f"{self.reading.text_field!r} {self.reading.on_bad_line}\n".encode())
        for file in self._files(Report()):
            try:
                about = os.stat(file.path)
                facts = [about.st_size, about.st_mtime_ns, about.st_ctime_ns]
            except OSError:
                facts = []
            digest.update(f"{json.dumps(file.name)} {facts}\n".encode())
        return digest.hexdigest()

    def documents(self, report: Report) -> Iterator[Document]:
        """Every document that is not empty, always in the same order.

        Raises InputError for what is missing, damaged or (where named by the user) not text, and for bad lines.
        """
        for file in self._files(report):
            try:
                found = _json_documents if _is_json_lines(file.path) else _text_document
                for document in found(file, self.reading, report):
                    yield report.count(document)
            except NotTextError as problem:
                if file.named:
                    raise InputError(
                        f"{file.path}: {problem}{problem.detail}; data must be readable UTF-8 text"
                    ) from None
                report.skip(str(problem), file.name)
        if not report.documents:
            found = ", ".join(f"{n} {reason}" for reason, n in report.skipped.items()) or "no files"
            raise InputError(f"no text in {self} (found: {found}); data needs files with text")

    def _files(self, report: Report) -> Iterator[_File]:
        """All files, sorted within each folder; what is given twice would be counted twice and is refused."""
        roots = [Path(sysconfig.get_path("stdlib")) if item == STDLIB else Path(item) for item in self.data]
        seen = set()
        for item, root in zip(self.data, roots, strict=True):
            prefix = f"{item}/" if len(roots) > 1 else ""
            if not os.path.exists(root):
                raise InputError(f'{root} does not exist; data must be a folder, a file, or "{STDLIB}"')
            if not root.is_dir():
                found = iter([_File(_unicode(str(item) if prefix else root.name), root, named=True)])
            elif item == STDLIB:
                found = (f for f in _walk(root, prefix, NOT_STDLIB, Report()) if f.path.suffix == ".py")
            else:
                found = _walk(root, prefix, LEFT_OUT, report)
            for file in found:
                location = os.path.abspath(file.path)
                if location in seen:
                    raise InputError(f"{file.path} is named twice by data = {self}; name it once")
                seen.add(location)
                yield file


def _walk(root: Path, prefix: str, left_out: frozenset[str], report: Report) -> Iterator[_File]:
    """The files below a folder, each folder's own before those of its folders, in the order of their names."""

    def named_in(folder: str) -> str:
        return _unicode(prefix + "".join(f"{part}/" for part in Path(folder).relative_to(root).parts))

    for folder, folders, names in os.walk(root, onerror=lambda e: report.skip("unreadable", named_in(e.filename))):
        inside = named_in(folder)
        kept = {True: [], False: []}
        for name in sorted(folders + names):
            kept[name.startswith(".") or name in left_out].append(name)
        for name in kept[True]:
            report.skip("hidden", inside + _unicode(name))
        visible = set(kept[False])
        folders[:] = sorted(visible.intersection(folders))
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                report.skip("link to a folder", inside + _unicode(name))
        yield from (
            _File(inside + _unicode(name), Path(folder, name), named=False)
            for name in sorted(visible.intersection(names))
        )


def _unicode(name: str) -> str:
    """The name with a substitute for bytes that are not UTF-8, which some file systems allow."""
    return os.fsencode(name).decode(errors="replace")


def _is_json_lines(path: Path) -> bool:
    compressed = path.suffix in (".gz", ".zst")
    suffix = Path(path.stem).suffix if compressed else path.suffix
    return suffix in JSON_LINES or (compressed and suffix == ".json")


def _text_document(file: _File, reading: Reading, report: Report) -> Iterator[Document]:
    """The whole file as one document; a file of one chunk is kept from the check, a longer one is read again."""
    digest, size, first, n_chunks = hashlib.sha256(), 0, b"", 0
    for chunk in check_text(chunks(file.path)):
        digest.update(chunk)
        first, size, n_chunks = first or chunk, size + len(chunk), n_chunks + 1
    report.files += 1
    if size == 0:
        if file.named:
            raise InputError(f"{file.path} is empty; data must be UTF-8 text")
        report.skip("empty", file.name)
        return
    again = (lambda: iter([first])) if n_chunks == 1 else (lambda: pieces(chunks(file.path)))
    yield Document(file.name, size, digest.digest(), again)


def _json_documents(file: _File, reading: Reading, report: Report) -> Iterator[Document]:
    """One document per line; blank lines are nothing, empty texts are counted as left out."""
    report.files += 1
    for number, line in enumerate(lines(chunks(file.path)), 1):
        if not line.strip():
            continue
        name = f"{file.name}:{number}"
        try:
            text = _field_of(line, reading.text_field)
        except (ValueError, RecursionError) as problem:
            if reading.on_bad_line == "raise":
                remedy = 'mend the line, set text_field, or set on_bad_line to "skip"'
                raise InputError(f"{file.path}, line {number}: {problem}; {remedy}") from None
            report.skip("bad line", name)
            continue
        if text:
            yield Document(name, len(text), hashlib.sha256(text).digest(), lambda text=text: pieces(_blocks(text)))
        else:
            report.skip("empty", name)


def _field_of(line: bytes, text_field: str) -> bytes:
    """The text of a line of JSON; ValueError or RecursionError says what is wrong with it."""
    entry = json.loads(line.decode("utf-8-sig"))
    if not isinstance(entry, dict):
        raise ValueError(f"a JSON object is expected, this is a {type(entry).__name__}")
    if text_field not in entry:
        raise ValueError(f"no field {text_field!r} among {sorted(entry)[:8]}")
    if not isinstance(entry[text_field], str):
        raise ValueError(f"field {text_field!r} is a {type(entry[text_field]).__name__}, not a string")
    return entry[text_field].encode()


def _blocks(text: bytes) -> Iterator[bytes]:
    return (text[start : start + CHUNK] for start in range(0, len(text), CHUNK))
