"""ListOps of the Long Range Arena: the value of a nested expression of 500 to 2,000 symbols, one of ten digits.

    [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]    is 5

(Nangia & Bowman 2018, https://arxiv.org/abs/1804.06028; Tay et al. 2020, https://arxiv.org/abs/2011.04006.)  To name
the most frequent digit is right in 16.5% of all cases.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from longreach.errors import InputError
from longreach.tasks.classification import Classification, Loading
from longreach.tasks.data_files import state_of
from longreach.tasks.encodings import TokenEncoding
from longreach.tasks.labelled import Example
from longreach.tasks.lra.listops_files import FILES, find_files, read_trees, write_trees
from longreach.tasks.lra.listops_trees import SYMBOLS, Tree, TreeLimits, trees

END = len(SYMBOLS)
"""The token behind the last symbol, where there is one."""
TOLD_EVERY = 100
"""Progress is told whenever so many expressions are written."""


@dataclass(frozen=True)
class ListOpsData:
    """Which expressions are made.

    Args:
        train: Examples to learn from.
        validation: Examples that choose the best checkpoint.
        test: Examples that decide on nothing.
        seed: Another seed, other expressions.
        min_length: Expressions have more symbols than this, parentheses not counted.
        max_length: Expressions have fewer symbols than this.
        max_depth: Depth at which there are only digits; the outermost operation is at 1.
        max_args: Most arguments of an operation.
    """

    train: int = 96_000
    validation: int = 2_000
    test: int = 2_000
    seed: int = 0
    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_args: int = 10

    def __post_init__(self) -> None:
        if min(self.sizes.values()) < 1:
            raise InputError(f"every part needs an example, but the sizes are {self.sizes}")

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each part."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def parts(self) -> Iterator[tuple[str, Iterator[Tree]]]:
        """The expressions of each part in turn; each is to be read to its end before the next."""
        found = trees(self.seed, TreeLimits(self.min_length, self.max_length, self.max_depth, self.max_args))
        return ((part, islice(found, size)) for part, size in self.sizes.items())


class ListOps(Classification):
    """The value of an expression.

    Args:
        data: A folder with the release's basic_train.tsv, basic_val.tsv and basic_test.tsv; by default expressions are
            made by the same rules.
        generated: Which expressions are made.
        append_end: Put one more token behind the expression, as the S4 family's pipeline does.
        loading: How examples are put together and where they are kept.
    """

    n_classes = 10

    def __init__(
        self,
        data: Path | None = None,
        generated: ListOpsData = ListOpsData(),
        append_end: bool = False,
        loading: Loading = Loading(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__(loading)
        self.data, self.generated, self.append_end = data, generated, append_end
        self.encoding = TokenEncoding(END + append_end)

    def settings(self) -> dict[str, object]:
        """Where the expressions come from."""
        source = {"generated": asdict(self.generated)} if self.data is None else {"data": str(self.data.absolute())}
        return {**source, "append_end": self.append_end}

    def fingerprint(self) -> str:
        """The state of the files."""
        return "" if self.data is None else state_of(find_files(self.data).values())

    def count(self) -> int | None:
        """The number of expressions that are made."""
        return sum(self.generated.sizes.values()) if self.data is None else None

    def examples(self) -> Iterator[Example]:
        """Made, or read from the files."""
        if self.data is None:
            found = self.generated.parts()
        else:
            found = ((part, read_trees(path)) for part, path in find_files(self.data).items())
        end = np.full(int(self.append_end), END, np.uint8)
        for part, expressions in found:
            for tree in expressions:
                yield Example(part, [np.concatenate([tree.symbols, end])], tree.value)


def write_listops(
    out: Path, data: ListOpsData, advance: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[tuple[str, int]]:
    """Write the release's three files; tells after each its name and number of expressions.

    `advance` hears now and then how many of all expressions are written.
    """
    done, total = 0, sum(data.sizes.values())
    for part, found in data.parts():
        write_trees(out / FILES[part], _told(found, done, total, advance))
        done += data.sizes[part]
        yield FILES[part], data.sizes[part]


def _told(found: Iterator[Tree], done: int, total: int, advance: Callable[[int, int], None]) -> Iterator[Tree]:
    for number, tree in enumerate(found, start=done + 1):
        yield tree
        if number % TOLD_EVERY == 0:
            advance(number, total)
