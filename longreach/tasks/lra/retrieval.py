"""Retrieval of the Long Range Arena: of two scientific papers, does one cite the other?

    1.0 <TAB> id <TAB> id <TAB> text of one paper <TAB> text of the other          a line of new_aan_pairs.train.tsv

(The ACL Anthology Network, Radev et al. 2013, https://aclanthology.org/W09-3607; Tay et al. 2020,
https://arxiv.org/abs/2011.04006.)  147,086 pairs to train, 18,090 to validate and 17,437 to test, half of either label.
Every line is a pair.  Quotes within a text are text; those around a whole field are not, and two of them in such a
field stand for one.

    the original     text: {unit: bytes, max_length: 4000}
    as S4            text: {unit: characters, max_length: 4000, append_end: true, n_characters: 95}
"""

from collections.abc import Iterator
from pathlib import Path

from longreach.errors import InputError
from longreach.tasks.classification import Loading
from longreach.tasks.data_files import state_of
from longreach.tasks.lra.texts import Document, TextClassification, TextOptions

FILES = {"train": "new_aan_pairs.train.tsv", "validation": "new_aan_pairs.eval.tsv", "test": "new_aan_pairs.test.tsv"}
"""The file of each part."""
FOLDERS = ("", "tsv_data", "lra_release/tsv_data", "lra_release/lra_release/tsv_data")
"""Where the files may be below what is named."""
FIELDS = ("a label", "two names", "two texts")


class Retrieval(TextClassification):
    """Whether two papers are linked (label 1) or not (label 0).

    Args:
        data: A folder with the release's new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv and new_aan_pairs.test.tsv, or
            one that has the release in it.
        text: How a paper becomes a sequence.
        loading: How examples are put together and where they are kept.
    """

    n_classes = 2
    sequences = 2

    def __init__(
        self,
        data: Path = Path("data"),
        text: TextOptions = TextOptions(max_length=4000),  # noqa: B008 (immutable)
        loading: Loading = Loading(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__(text, loading)
        self.data = data

    def settings(self) -> dict[str, object]:
        """Where the papers come from and what is made of them."""
        return {**super().settings(), "data": str(self.data.absolute())}

    def fingerprint(self) -> str:
        """The state of the files."""
        return state_of(find_pairs(self.data).values())

    def documents(self) -> Iterator[Document]:
        """Pairs of papers."""
        for part, path in find_pairs(self.data).items():
            yield from read_pairs(path, part)


def find_pairs(data: Path) -> dict[str, Path]:
    """The file of each part; raises InputError where they are not all there."""
    if data.is_file():
        raise InputError(f"{data} is a file; name the folder that has {', '.join(FILES.values())}, unpacked")
    found = [{part: data / place / name for part, name in FILES.items()} for place in FOLDERS]
    best = max(found, key=lambda files: sum(path.is_file() for path in files.values()))
    absent = [path.name for path in best.values() if not path.is_file()]
    if absent:
        raise InputError(
            f"{best['train'].parent} has no {', '.join(absent)}; name the folder tsv_data of the Long Range Arena "
            "release (lra_release.gz, a tar archive: unpack it first)"
        )
    return best


def read_pairs(path: Path, part: str) -> Iterator[Document]:
    """The pairs of a file; raises InputError that names the line where something else is."""
    number, line = 0, b""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            fields = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").split(b"\t")
            if fields == [b""]:
                continue
            where = f"{path}, line {number}"
            if len(fields) != 5:
                raise InputError(
                    f"{where}: {len(fields)} fields instead of {', '.join(FIELDS)}; the file may be cut off, copy it "
                    "again"
                )
            label, _, _, *texts = map(unquoted, fields)
            if not all(texts):
                raise InputError(f"{where}: a text is empty; remove the line")
            yield Document(part, texts, _label(label, where))
    if not number:
        raise InputError(f"{path} is empty; copy it again")
    if not line.endswith(b"\n"):
        raise InputError(
            f"{path} ends in the middle of line {number}, so more may be missing; copy it again, or put a line end "
            "behind it if it is complete"
        )


def unquoted(field: bytes) -> bytes:
    """A field without the quotes that a writer of tables has put around it."""
    if len(field) > 1 and field.startswith(b'"') and field.endswith(b'"'):
        return field[1:-1].replace(b'""', b'"')
    return field


def _label(text: bytes, where: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value not in (0, 1):
        raise InputError(f"{where}: the label is {text.decode(errors='replace')!r}, neither 0 nor 1")
    return int(value)
