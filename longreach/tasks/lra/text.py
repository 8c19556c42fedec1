"""Text of the Long Range Arena: is a film review of IMDB, read byte by byte, positive or negative?

(Maas et al. 2011, https://aclanthology.org/P11-1015; Tay et al. 2020, https://arxiv.org/abs/2011.04006.)  Half of all
reviews are of either label.  The published pipelines have no part to validate on: they choose by the test part.  Here
a tenth of the training part is held out, unless `held_out` is 0.

    the original     text: {unit: bytes, max_length: 1000}           its article has 4000
    as S4            text: {unit: characters, max_length: 4096, append_end: true}
"""

from collections.abc import Iterator
from pathlib import Path

from longreach.errors import InputError
from longreach.tasks.classification import Loading
from longreach.tasks.hugging_face import hub_name, load_rows, source_name
from longreach.tasks.lra.imdb_files import find_imdb, imdb_state, read_reviews
from longreach.tasks.lra.texts import Document, TextClassification, TextOptions
from longreach.tasks.orders import split


class Text(TextClassification):
    """Whether a review is positive (label 1) or negative (label 0).

    Args:
        data: The folder aclImdb, the archive aclImdb_v1.tar.gz, a folder with one of them, or hf:stanfordnlp/imdb.
        text: How a review becomes a sequence.
        held_out: The share of the training part on which checkpoints are chosen; 0 to choose them by the test part as
            published, which then measures too well.
        split_seed: Decides which reviews are held out.
        loading: How examples are put together and where they are kept.
    """

    n_classes = 2

    def __init__(
        self,
        data: Path = Path("data"),
        text: TextOptions = TextOptions(),  # noqa: B008 (immutable)
        held_out: float = 0.1,
        split_seed: int = 42,
        loading: Loading = Loading(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__(text, loading)
        self.data, self.held_out, self.split_seed = data, held_out, split_seed

    def settings(self) -> dict[str, object]:
        """Where the reviews come from and what is made of them."""
        return {
            **super().settings(),
            "data": source_name(self.data),
            "held_out": self.held_out,
            "split_seed": self.split_seed,
        }

    def fingerprint(self) -> str:
        """The state of the files; that of the hub is not watched."""
        return "" if hub_name(self.data) else imdb_state(find_imdb(self.data))

    def documents(self) -> Iterator[Document]:
        """Reviews, those of the training part first."""
        found = self._reviews()
        n = sum(part == "train" for part, _, _ in found)
        held_out = {"validation": self.held_out} if self.held_out else {}
        parts = iter(split(n, held_out, self.split_seed, "text"))
        for part, text, label in found:
            yield Document(next(parts) if part == "train" else part, [text], label)
            if part == "test" and not self.held_out:
                yield Document("validation", [text], label)

    def _reviews(self) -> list[tuple[str, bytes, int]]:
        name = hub_name(self.data)
        if name is None:
            found = read_reviews(find_imdb(self.data))
            return [
                (review.part, review.text, review.label)
                for part in ("train", "test")
                for review in found
                if review.part == part
            ]
        rows = ((part, row) for part in ("train", "test") for row in load_rows(name, part, ("text", "label")))
        return [(part, row["text"].encode(errors="replace"), _label(row["label"], name)) for part, row in rows]


def _label(value: object, name: str) -> int:
    if value not in (0, 1):
        raise InputError(f"hf:{name} has the label {value!r} instead of 0 or 1; name a data set of two labels")
    return int(value == 1)
