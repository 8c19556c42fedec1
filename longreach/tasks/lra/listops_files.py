"""ListOps as text: the .tsv files of the Long Range Arena release.

    Source <TAB> Target                        the head
    ( ( ( [MAX 2 ) 9 ) ] ) <TAB> 9             an expression and its value

The expression is a binary tree that folds from the left: of an operation with its first argument, of that with the next
one, and at last of all that with the closing bracket; every pair is in parentheses.  They say nothing that the brackets
do not, and readers drop them.  Lines end in CR LF, as Python's csv writer has it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from longreach.disk import writing
from longreach.errors import InputError
from longreach.tasks.lra.listops_trees import CLOSE, FIRST_OPERATION, SYMBOLS, Tree

FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
"""The file of each part."""
FOLDERS = ("", "listops-1000", "lra_release/listops-1000")
"""Where the files may be below what is named."""
HEAD = b"Source\tTarget"
CODES = {symbol.encode(): code for code, symbol in enumerate(SYMBOLS)}


def find_files(folder: Path) -> dict[str, Path]:
    """The file of each part; raises InputError where they are not all there."""
    if folder.is_file():
        raise InputError(f"{folder} is a file; name the folder that has {', '.join(FILES.values())}, unpacked")
    missing: dict[Path, list[str]] = {}
    for place in [folder / name for name in FOLDERS]:
        found = {part: place / name for part, name in FILES.items()}
        absent = [path.name for path in found.values() if not path.is_file()]
        if not absent:
            return found
        if len(absent) < len(FILES):
            missing[place] = absent
    for place, names in missing.items():
        raise InputError(f"{place} has no {', '.join(names)}; copy the whole folder of the release")
    raise InputError(
        f"{folder} has no {', '.join(FILES.values())}; name the folder listops-1000 of the Long Range Arena release, "
        "or one as made by `longreach make-data listops`"
    )


def read_trees(path: Path) -> Iterator[Tree]:
    """The expressions of a file with the values that it gives them.

    Quotes around a field, LF and CR LF, a byte order mark and values like 1.0 are understood.  Raises
    InputError that names the line where something else is.
    """
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            fields = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").replace(b'"', b"").split(b"\t")
            if number == 1:
                if b"\t".join(fields) != HEAD:
                    raise InputError(f"{path} does not begin with {HEAD.decode()!r}; it is not a file of ListOps")
            elif fields != [b""]:
                yield _read_line(fields, f"{path}, line {number}")
    if not number:
        raise InputError(f"{path} is empty; copy it again")


def _read_line(fields: list[bytes], where: str) -> Tree:
    if len(fields) != 2:
        raise InputError(
            f"{where}: {len(fields)} fields instead of an expression and its value; the file may be cut off, copy it "
            "again"
        )
    try:
        codes = [CODES[symbol] for symbol in fields[0].translate(None, b"()").split()]
    except KeyError as error:
        raise InputError(f"{where}: {error.args[0].decode(errors='replace')!r} is no symbol of ListOps") from None
    symbols = np.array(codes, np.uint8)
    depth = np.cumsum((symbols >= FIRST_OPERATION) * 1 - (symbols == CLOSE))
    if not len(depth) or depth[-1] or (depth[:-1] < 1).any():
        raise InputError(f"{where}: the expression does not end where its brackets do; the file may be damaged")
    try:
        value = float(fields[1])
    except ValueError:
        value = -1.0
    if value not in range(10):
        raise InputError(f"{where}: {fields[1].decode(errors='replace')!r} is no value, which is a digit")
    return Tree(symbols, int(value))


def write_trees(path: Path, trees: Iterable[Tree]) -> None:
    """Write a file of the release's format, which is there when it is whole.

    Raises InputError where the disk does not allow it.
    """
    unfinished = path.with_name(f"{path.name}.part")
    try:
        with writing(path):
            with unfinished.open("wb") as file:
                file.write(HEAD + b"\r\n")
                for tree in trees:
                    file.write(source_text(tree.symbols) + b"\t%d\r\n" % tree.value)
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def source_text(symbols: UInt8[ndarray, " k"]) -> bytes:
    """The expression with all its parentheses."""
    pieces: list[bytes] = []
    opened: list[list[int]] = []  # of every operation that is not closed: its place among the pieces, its arguments
    for symbol in symbols.tolist():
        if symbol >= FIRST_OPERATION:
            opened.append([len(pieces), 0])
            pieces.append(b"")
            continue
        if symbol == CLOSE:
            place, count = opened.pop()
            pieces[place] = b"( " * (count + 1) + SYMBOLS[symbols[place]].encode() + b" "
            pieces.append(b"] )")
        else:
            pieces.append(b"%d" % symbol)
        if opened:
            opened[-1][1] += 1
            pieces[-1] += b" ) "
    return b"".join(pieces)
