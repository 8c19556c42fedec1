"""Every configuration that is shipped reads, builds, and fits its task."""

from pathlib import Path

import pytest
import torch

from longreach.tasks.corpora import Corpus, MaskedCorpus
from longreach.training import read_experiment

CONFIGS = sorted((Path(__file__).parent.parent / "configs").rglob("*.yaml"))
CORPUS_CONFIGS = [path for path in CONFIGS if path.parent.name == "corpus"]
"""Those of other tasks are built in the tests of these tasks."""
VOCABULARY = 4096


def test_there_are_configurations() -> None:
    assert {path.stem for path in CONFIGS} >= {"hyena", "s4d", "attention", "hybrid"}


@pytest.mark.parametrize("path", CORPUS_CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_builds(path: Path) -> None:
    experiment = read_experiment(path)
    with torch.device("meta"):  # shapes only: no memory, whatever the size
        model = experiment.model(VOCABULARY)
    masked = isinstance(experiment.task, MaskedCorpus)
    corpus = experiment.task.corpus if masked else experiment.task
    assert isinstance(corpus, Corpus)
    assert model.causal != masked
    assert model.max_length is None or model.max_length >= corpus.context
    stages = corpus.curriculum
    assert experiment.training.steps is not None
    assert not stages or stages[-1].until_step < experiment.training.steps, "the full context is never trained"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_says_where_it_comes_from(path: Path) -> None:
    head = path.read_text().split("task:")[0]
    assert head.startswith("# ")
    assert "arXiv:" in head or "configs/" in head
