"""One label for a whole sequence, or for a pair of sequences: what every task of the Long Range Arena is.

A task of this kind says where its examples come from (`settings`, `fingerprint`, `examples`) and what they are made of
(`n_classes`, `encoding`, `sequences`); the rest is here: they are kept on disk as small numbers, batches put sequences
of similar length together, a mask tells padding from data whatever its value, and every accuracy comes with that of a
predictor that always names the most frequent label.

    loss = - sum_examples log softmax(logits)[label]

Axes: b batch, s sequences of an example (absent where there is one), l length, f features of a position.
"""

import json
import math
import sys
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Integer
from numpy import ndarray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.models.classifier import Classifier
from longreach.tasks.base import Batch, Evaluation, ModelFactory, Task
from longreach.tasks.cache_folder import Header, Recipe, default_cache, folder_name, open_or_make
from longreach.tasks.encodings import FeatureEncoding, TokenEncoding
from longreach.tasks.epochs import Epochs
from longreach.tasks.labelled import Example, Format, LabelledPart, part_writer

FORMAT = 2
PARTS = ("train", "validation", "test")
SHOWN_EVERY = 100
"""The bar moves whenever so many examples are written."""


@dataclass(frozen=True)
class Loading:
    """How examples are put together and where they are kept.

    Args:
        batch_size: Examples per step, over all processes.
        seed: Another seed visits the examples in another order.
        pool: So many batches are sorted by length together, so that sequences of a batch have similar lengths and need
            little padding; 1 for batches as they come.
        evaluation_examples: Judge on so many validation examples while training, spread evenly; null for all of them.
        cache: Where prepared examples are kept; by default $LONGREACH_CACHE or ~/.cache/longreach.
    """

    batch_size: int = 32
    seed: int = 0
    pool: int = 50
    evaluation_examples: int | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "pool", "evaluation_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"loading.{name} = {value} must be at least 1")


class _Prepared(NamedTuple):
    """What there is after `prepare`."""

    header: Header
    parts: dict[str, LabelledPart]
    epochs: Epochs


class Classification(Task):
    """The base of tasks with one label for each example; see the module docstring."""

    objective = "accuracy"
    maximise = True
    has_test = True
    n_classes: int
    """Labels are from 0 to less than this."""
    encoding: TokenEncoding | FeatureEncoding
    """What a position is."""
    sequences: int = 1
    """Sequences of an example: 2 where pairs are classified."""

    def __init__(self, loading: Loading = Loading()) -> None:
        self.loading = loading
        self._prepared: _Prepared | None = None

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """All that the stored examples depend on except for the content of files: plain JSON values."""

    def fingerprint(self) -> str:
        """The state of the files that are read, so that a cache made from others is not used; "" where there are none.

        Raises InputError where they cannot be used.
        """
        return ""

    @abstractmethod
    def examples(self) -> Iterator[Example]:
        """All examples, in the same order each time, parts mixed or one after another; read once, to fill the cache."""

    def count(self) -> int | None:
        """About how many examples there will be, for the progress bar; None if nobody knows."""
        return None

    def prepare(self) -> None:
        """Open the cache of the examples, making it first where it is missing or out of date."""
        loading, name = self.loading, type(self).__name__
        settings = {**self.settings(), "format": FORMAT, "stored": self._format.dtype.str}
        recipe = Recipe(
            source=name,
            fingerprint=self.fingerprint,
            write=self._write,
            open=lambda folder, header: (folder, header),
            kind=f"cache of {name}",
            option="loading.cache",
        )
        root = loading.cache or default_cache()
        folder, header = open_or_make(root / folder_name(name.lower(), json.dumps(settings, sort_keys=True)), recipe)
        parts = {part: LabelledPart(folder, part, self._format) for part in PARTS}
        lengths = parts["train"].lengths.max(1)
        self._prepared = _Prepared(header, parts, Epochs(lengths, loading.batch_size, loading.pool, loading.seed))

    def part(self, name: str) -> LabelledPart:
        """The examples of `train`, `validation` or `test`, after `prepare`."""
        return self._ready().parts[name]

    def build(self, model: ModelFactory) -> nn.Module:
        """The model for these inputs and labels; raises InputError unless it fits them."""
        built, task = model(self.encoding.size), type(self).__name__
        self.require_fit(built)
        longest = max(part["longest"] for part in self._ready().header["parts"].values())
        limit = cast(Classifier, built).max_length
        if limit is not None and limit < longest:
            raise InputError(
                f"the longest sequence of {task} has {longest} positions, more than max_length = {limit} "
                f"of this {type(built).__name__}; raise the model's max_length"
            )
        return built

    def require_fit(self, built: nn.Module) -> None:
        """Raise InputError unless a model reads such inputs and knows as many labels; nothing has to be prepared."""
        name, task = type(built).__name__, type(self).__name__
        if not isinstance(built, Classifier):
            raise InputError(f"{task} has one label for a sequence; {name} is no Classifier: put its backbone into one")
        inputs = "tokens" if isinstance(self.encoding, TokenEncoding) else "features"
        facts = {
            "n_classes": (built.n_classes, self.n_classes),
            "inputs": (built.inputs, inputs),
            "pair": (built.pair or "null", "null" if self.sequences == 1 else built.pair or "concatenated or compared"),
        }
        for fact, (given, needed) in facts.items():
            if given != needed:
                raise InputError(f"model.{fact} is {given}, but {task} needs {needed}")

    def batch(self, step: int, part: int, parts: int) -> Batch:
        """Examples of the training part, of similar lengths if `loading.pool` says so."""
        if self.loading.batch_size % parts:
            raise InputError(
                f"loading.batch_size = {self.loading.batch_size} cannot be divided equally into {parts} parts, one for "
                f"each process; use a multiple of {parts}"
            )
        return self._batch("train", self.epochs.rows(step)[part::parts])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The sum of the cross-entropies in nats."""
        return F.cross_entropy(model(batch.inputs, batch.mask).float(), batch.targets, reduction="sum")

    def describe_loss(self, loss: float) -> dict[str, float]:
        """The loss in bits; to know nothing of n equally frequent labels costs log2 n."""
        return {"bits": loss / math.log(2)}

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Accuracy, loss, and the accuracy of naming the most frequent label, on the validation part."""
        return Evaluation(self.judge(model, "validation", self.loading.evaluation_examples), {})

    def test(self, model: nn.Module) -> dict[str, float]:
        """The same on the test part, which decided on nothing."""
        return {f"test_{name}": value for name, value in self.judge(model, "test").items()}

    def judge(self, model: nn.Module, part: str, limit: int | None = None) -> dict[str, float]:
        """How well a model does on all examples of a part, or on `limit` of them, spread evenly."""
        found = self.part(part)
        n = min(limit or len(found), len(found))
        rows = np.arange(n) * len(found) // n
        rows = rows[np.argsort(found.lengths[rows].max(1), kind="stable")]  # little padding
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        nats, right, was_training = 0.0, 0, model.training
        model.eval()
        try:
            with torch.no_grad():
                for first in range(0, n, self.loading.batch_size):
                    batch = self._batch(part, rows[first : first + self.loading.batch_size]).to(device)
                    logits = model(batch.inputs, batch.mask).float()
                    nats += float(F.cross_entropy(logits, batch.targets, reduction="sum"))
                    right += int((logits.argmax(-1) == batch.targets).sum())
        finally:
            model.train(was_training)
        majority = int(np.bincount(found.labels[rows]).max())
        return {"accuracy": right / n, "majority_accuracy": majority / n, "loss": nats / n}

    def record(self) -> dict[str, object]:
        """What the examples depend on, and how many of each label there are in each part."""
        header = self._ready().header
        return {**self.settings(), "fingerprint": header["fingerprint"], "parts": header["parts"]}

    def _batch(self, part: str, rows: Integer[ndarray, " n"]) -> Batch:
        found = self.part(part)
        values, lengths = found.padded(rows)
        if self.sequences == 1:
            values, lengths = values[:, 0], lengths[:, 0]
        length = values.shape[lengths.ndim]
        mask = None if (lengths == length).all() else torch.from_numpy(np.arange(length) < lengths[..., None])
        return Batch(self.encoding(values), torch.from_numpy(found.labels[rows].astype(np.int64)), mask)

    @property
    def epochs(self) -> Epochs:
        """Which examples each step learns from, after `prepare`."""
        return self._ready().epochs

    def _check(self, example: Example, number: int) -> None:
        """Raise InputError for an example that could not be learned, or would be stored as something else."""
        where = f"example {number} of the {example.part} part of {type(self).__name__}"
        for sequence in example.sequences:
            if not len(sequence):
                raise InputError(f"{where} has an empty sequence")
            if isinstance(self.encoding, TokenEncoding):
                low, high, size = sequence.min(), sequence.max(), self.encoding.size
                if low < 0 or high >= size:
                    wrong = low if low < 0 else high
                    raise InputError(f"{where} has the token {wrong}, but there are {size}, which start at 0")

    @property
    def _format(self) -> Format:
        features = () if isinstance(self.encoding, TokenEncoding) else (self.encoding.size,)
        return Format(self.encoding.dtype, features, self.sequences)

    def _ready(self) -> _Prepared:
        if self._prepared is None:
            raise InputError(f"the examples of {type(self).__name__} are not read yet; call prepare() first")
        return self._prepared

    def _write(self, folder: Path) -> Header:
        """Write the files of all parts; returns what there is to record of them."""
        name = type(self).__name__
        progress = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        with progress, ExitStack() as stack:
            bar = progress.add_task(f"preparing {name}", total=self.count())
            writers = {part: stack.enter_context(part_writer(folder, part, self._format)) for part in PARTS}
            for number, example in enumerate(self.examples(), start=1):
                self._check(example, number)
                writers[example.part].add(example)
                if number % SHOWN_EVERY == 0:
                    progress.update(bar, completed=number)
        found = {part: writer.summary() for part, writer in writers.items()}
        for part, summary in found.items():
            if not summary["examples"]:
                raise InputError(
                    f"{type(self).__name__} has no example in its {part} part; check its options and files"
                )
            if len(cast(list[int], summary["labels"])) > self.n_classes:
                raise InputError(f"the {part} part of {type(self).__name__} has labels beyond {self.n_classes - 1}")
        return {"parts": found}
