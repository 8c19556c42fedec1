"""Judging the model of a run: on the documents held out from its training, or on any others."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from longreach.errors import InputError
from longreach.inference.evaluation import (
    Advance,
    EvaluationOptions,
    Report,
    evaluate_documents,
    read_documents,
    within_limits,
)
from longreach.inference.report import write_report
from longreach.inference.trained import TrainedModel
from longreach.tasks.corpora.corpus import HeldOutDocument
from longreach.tasks.corpora.sources import Report as ReadingReport
from longreach.tasks.corpora.sources import Source
from longreach.tasks.corpora.tokenizers import require_match

HELD_OUT = "held-out"


class RunEvaluation(NamedTuple):
    """What was measured, and the files it was written to."""

    report: Report
    files: list[Path]


def evaluate_run(
    trained: TrainedModel,
    data: Sequence[Path],
    options: EvaluationOptions,
    about: dict[str, object],
    advance: Advance = lambda stage, done, total: None,
) -> RunEvaluation:
    """Judge a trained model on the documents in `data`, or on the held-out ones where it is empty.

    Writes the numbers and the plot into the run's folder `evaluation`, with `about` at the head of the JSON file.
    """
    documents, left_out = within_limits(_documents(trained, data, options), options)
    scores, contexts = evaluate_documents(trained.model, trained.tokenizer, documents, options, advance)
    report = Report(scores, contexts, left_out)
    name = "+".join(re.sub(r"[^\w.-]+", "-", path.name or "root") for path in data)[:80] or HELD_OUT
    try:
        return RunEvaluation(report, write_report(report, about, trained.folder.evaluation, name))
    except OSError as error:
        raise InputError(f"cannot write into {trained.folder.evaluation}: {error.strerror}; make room for it") from None


def _documents(trained: TrainedModel, data: Sequence[Path], options: EvaluationOptions) -> Iterable[HeldOutDocument]:
    if data:
        source = Source([str(path) for path in data], trained.corpus.reading)
        return read_documents(source.documents(ReadingReport()), trained.tokenizer, options)
    trained.corpus.prepare()
    require_match(trained.corpus.tokenizer, trained.folder.path / "tokenizer.json")
    return trained.corpus.held_out()
