"""Bytes of files as streams of bounded size: decompression, lines, pieces of text, and the check that it is text."""

import codecs
import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from longreach.errors import InputError

CHUNK = 1 << 18
COMPRESSED_CHUNK = 1 << 10
"""Small, because 4 bytes of zstandard can stand for 128 KiB."""
SNIFFED = 1 << 13
"""As in git, a file with a zero byte among its first 8,192 is binary."""


class NotTextError(Exception):
    """A file that cannot be read as text; the message is the reason in one or two words."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


def chunks(path: Path) -> Iterator[bytes]:
    """The content of a file, decompressed where its name ends in .gz or .zst, as chunks of about 256 KiB.

    Raises NotTextError where the file cannot be opened and InputError where it is damaged or ends too early.
    """
    if not os.path.isfile(path):
        raise NotTextError("unreadable", ": not a regular file")
    try:
        file = path.open("rb")
    except OSError as error:
        raise NotTextError("unreadable", f": {error.strerror}") from None
    with file:
        try:
            if path.suffix == ".gz":
                yield from _gzip_chunks(file)
            elif path.suffix == ".zst":
                yield from _gathered(_zstandard_chunks(file))
            else:
                yield from iter(lambda: file.read(CHUNK), b"")
        except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
            raise InputError(f"{path} is damaged or incomplete ({error}); fetch or compress it again") from error


def _gzip_chunks(file: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as stream:
        yield from iter(lambda: stream.read(CHUNK), b"")


def _zstandard_chunks(file: BinaryIO) -> Iterator[bytes]:
    """All frames of the file.  (The library's own reader takes a truncated frame for a complete one.)"""
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = None
    for compressed in iter(lambda: file.read(COMPRESSED_CHUNK), b""):
        while compressed:
            if frame is None or frame.eof:
                frame = decompressor.decompressobj()
            if content := frame.decompress(compressed):
                yield content
            compressed = frame.unused_data
    if frame is not None and not frame.eof:
        raise EOFError("the compressed stream ends before its end marker")


def _gathered(stream: Iterator[bytes]) -> Iterator[bytes]:
    """Small chunks joined to chunks of the usual size."""
    waiting: list[bytes] = []
    size = 0
    for chunk in stream:
        waiting.append(chunk)
        size += len(chunk)
        if size >= CHUNK:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


def check_text(stream: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks; raises NotTextError at the first sign that they are not UTF-8 text."""
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    for chunk in stream:
        if b"\0" in chunk[: max(0, SNIFFED - position)]:
            raise NotTextError("binary", f": a zero byte at offset {position + chunk.index(0)}")
        _decode(decoder, chunk, position)
        position += len(chunk)
        yield chunk
    _decode(decoder, b"", position, final=True)


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, position: int, final: bool = False) -> None:
    pending = len(decoder.getstate()[0])
    try:
        decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        offset = position - pending + error.start
        raise NotTextError("not UTF-8", f": {error.reason} at byte offset {offset}") from None


def lines(stream: Iterator[bytes]) -> Iterator[bytes]:
    """The lines of a stream, without their line breaks."""
    begun: list[bytes] = []
    for chunk in stream:
        first, *rest = chunk.split(b"\n")
        begun.append(first)
        if rest:
            yield b"".join(begun)
            yield from rest[:-1]
            begun = [rest[-1]]
    if any(begun):
        yield b"".join(begun)


def pieces(stream: Iterator[bytes]) -> Iterator[bytes]:
    """UTF-8 text cut anew: after the last line break of each chunk, or where there is none between two characters."""
    carried = b""
    for chunk in stream:
        chunk = carried + chunk
        cut = chunk.rfind(b"\n") + 1 or whole_characters(chunk)
        carried = chunk[cut:]
        if cut:
            yield chunk[:cut]
    if carried:
        yield carried


def whole_characters(text: bytes) -> int:
    """The length of the longest beginning that is not cut within a character, less the last one if it is not ASCII."""
    last = len(text) - 1
    while last > 0 and text[last] & 0xC0 == 0x80:
        last -= 1
    return last if last >= 0 and text[last] >= 0xC0 else len(text)
