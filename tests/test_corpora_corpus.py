"""The corpus as a task: batches, losses, the measures, the held-out documents, the configuration."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus_toys import write_texts
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.tasks import Batch, Corpus, Task
from longreach.tasks.corpora import Reading, Split, Stage, load_tokenizer

N_FILES = 40
SPLIT = Split(0.2, 0.2)


class Spy(nn.Module):
    """A language model whose loss is set by hand, and which remembers what it was asked."""

    def __init__(self, vocab_size: int, max_length: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.vocab_size, self.max_length, self.causal = vocab_size, max_length, True
        self.asked: list[tuple[Tensor, Tensor, bool, bool]] = []

    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The k-th position (from 1) costs k nats, and a separator 1000 more."""
        self.asked.append((inputs, targets, self.training, torch.is_grad_enabled()))
        positions = torch.arange(1, targets.shape[1] + 1) + 0.0 * targets
        return (positions + 1000 * (targets == 256)) * self.scale


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of small files."""
    return write_texts(tmp_path / "texts", N_FILES)


@pytest.fixture
def corpus(texts: Path, tmp_path: Path) -> Corpus:
    """The folder as bytes at a short context."""
    made = Corpus(texts, context=16, batch_size=6, split=SPLIT, reading=Reading(cache=tmp_path / "cache"))
    made.prepare()
    return made


def validation_row(corpus: Corpus) -> np.ndarray:
    return corpus.cache.parts["validation"].tokens.astype(np.int64)


def test_batches_are_windows_of_the_training_part(corpus: Corpus) -> None:
    batch = corpus.batch(3, 1, 2)
    assert batch.inputs.shape == (3, 16)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    row = corpus.cache.parts["train"].tokens.tobytes() * 2
    for inputs, last in zip(batch.inputs, batch.targets[:, -1], strict=True):
        assert np.append(inputs, last).astype("<u2").tobytes() in row


def test_the_options_reach_the_batches(texts: Path, tmp_path: Path) -> None:
    reading = Reading(cache=tmp_path / "cache")
    options = {"split": SPLIT, "reading": reading, "context": 16, "batch_size": 4}
    one, other, short = (
        Corpus(texts, **options, seed=seed, curriculum=stages)
        for seed, stages in [(0, None), (1, None), (0, [Stage(2, 8)])]
    )
    for each in (one, other, short):
        each.prepare()
    assert not torch.equal(one.batch(0, 0, 1).inputs, other.batch(0, 0, 1).inputs)
    assert [tuple(short.batch(step, 0, 1).inputs.shape) for step in (1, 2)] == [(8, 8), (4, 16)]


def test_the_loss_is_the_sum_over_targets(corpus: Corpus) -> None:
    model = Spy(257)
    batch = Batch(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[1, 2, 256], [1, 1, 1]]))
    loss = corpus.loss(model, batch)
    assert loss.dtype == torch.float32
    assert loss.item() == 2 * (1 + 2 + 3) + 1000
    loss.backward()
    assert model.scale.grad is not None


def test_evaluation_asks_for_every_token_once_and_in_order(corpus: Corpus) -> None:
    model = Spy(257).train()
    corpus.evaluate(model)
    row = validation_row(corpus)
    assert len(row) % 16 != 1, "the last window is a short one"
    inputs = np.concatenate([inputs.flatten() for inputs, *_ in model.asked])
    targets = np.concatenate([targets.flatten() for _, targets, *_ in model.asked])
    np.testing.assert_array_equal(inputs, row[:-1])
    np.testing.assert_array_equal(targets, row[1:])
    assert all(len(inputs) <= 6 for inputs, *_ in model.asked)
    assert not any(training or grad for *_, training, grad in model.asked)
    assert model.training


def test_the_measures_are_those_of_the_definition(corpus: Corpus) -> None:
    found = corpus.evaluate(Spy(257).eval())
    targets = validation_row(corpus)[1:]
    positions = np.arange(len(targets)) % 16
    nats = positions + 1 + 1000 * (targets == 256)
    n_bytes = (targets != 256).sum()
    assert (targets == 256).sum() > 0
    assert found.metrics["loss"] == pytest.approx(nats.mean(), rel=1e-12)
    assert found.metrics["bits_per_token"] == pytest.approx(nats.mean() / math.log(2), rel=1e-12)
    assert found.metrics["bits_per_byte"] == pytest.approx(nats.sum() / math.log(2) / n_bytes, rel=1e-12)
    assert found.metrics.keys() >= {Corpus.objective}
    curve = found.curves["bits_per_byte_by_position"]
    bins = [(0, 1), (1, 2), (2, 4), (4, 8), (8, 16)]
    for x, y, (first, stop) in zip(curve.x, curve.y, bins, strict=True):
        here = (positions >= first) & (positions < stop)
        assert x == pytest.approx((positions[here] + 1).mean())
        assert y == pytest.approx(nats[here].sum() / math.log(2) / (targets[here] != 256).sum())


def test_byte_pairs_count_the_bytes_they_stand_for(texts: Path, tmp_path: Path) -> None:
    """A model that knows nothing pays the same bits for a token however many bytes it stands for."""

    class Uniform(Spy):
        def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
            return torch.full(targets.shape, math.log(self.vocab_size), dtype=torch.float64)

    corpus = Corpus(texts, "bpe:300", context=7, split=SPLIT, reading=Reading(cache=tmp_path / "cache"))
    corpus.prepare()
    metrics = corpus.evaluate(corpus.build(Uniform)).metrics
    part = corpus.cache.parts["validation"]
    size, n_targets = part.n_bytes, len(part.tokens) - 1
    assert metrics["bits_per_token"] == pytest.approx(math.log2(corpus.tokenizer.vocab_size), rel=1e-12)
    assert metrics["bits_per_byte"] == pytest.approx(metrics["bits_per_token"] * n_targets / size, rel=1e-12)
    train = corpus.cache.parts["train"]
    described = corpus.describe_loss(1.5)
    assert described["bits_per_token"] == pytest.approx(1.5 / math.log(2))
    assert described["bits_per_byte"] == pytest.approx(1.5 / math.log(2) * len(train.tokens) / train.n_bytes)


def test_the_evaluation_budget_spreads_windows_evenly(texts: Path, tmp_path: Path) -> None:
    reading = Reading(cache=tmp_path / "cache")
    corpus = Corpus(texts, context=16, split=SPLIT, reading=reading, evaluation_tokens=50)
    corpus.prepare()
    model = Spy(257)
    corpus.evaluate(model)
    row = validation_row(corpus)
    inputs = np.concatenate([inputs.numpy() for inputs, *_ in model.asked])
    n_windows = -(-(len(row) - 1) // 16)
    assert inputs.shape == (4, 16)
    for window, found in zip([i * n_windows // 4 for i in range(4)], inputs, strict=True):
        np.testing.assert_array_equal(found, row[window * 16 : window * 16 + 16])
    generous = Corpus(texts, context=16, split=SPLIT, reading=reading, evaluation_tokens=10**9)
    generous.prepare()
    model = Spy(257)
    generous.evaluate(model)
    assert sum(targets.numel() for _, targets, *_ in model.asked) == len(row) - 1


def test_validation_text_shorter_than_the_context_is_one_short_window(texts: Path, tmp_path: Path) -> None:
    reading = Reading(cache=tmp_path / "cache")
    corpus = Corpus(texts, context=1024, split=Split(0.001, 0.0), reading=reading)
    corpus.prepare()
    model = Spy(257)
    corpus.evaluate(model)
    assert [inputs.shape for inputs, *_ in model.asked] == [(1, len(validation_row(corpus)) - 1)]


def test_held_out_documents_are_whole_and_were_never_trained_on(corpus: Corpus, texts: Path) -> None:
    found = list(corpus.held_out())
    assert len(found) == corpus.record()["parts"]["test"]["documents"] > 0
    train = corpus.cache.parts["train"].tokens.tobytes()
    for document in found:
        assert document.content == (texts / document.name).read_bytes()
        assert document.tokens.tolist() == list(document.content)
        assert document.tokens.tobytes() not in train


def test_without_a_test_part_the_validation_part_is_held_out(texts: Path, tmp_path: Path) -> None:
    corpus = Corpus(texts, context=16, split=Split(0.2, 0.0), reading=Reading(cache=tmp_path / "cache"))
    corpus.prepare()
    assert corpus.record()["parts"].keys() == {"train", "validation"}
    names = [name for name, _ in corpus.cache.parts["validation"].documents()]
    assert [document.name for document in corpus.held_out()] == names


def test_the_record_is_json_and_says_what_was_read(corpus: Corpus, texts: Path) -> None:
    record = json.loads(json.dumps(corpus.record()))
    assert record["data"] == [str(texts)]
    assert record["source"]["files"] == N_FILES
    assert record["source"]["bytes"] == sum(path.stat().st_size for path in texts.iterdir())
    assert record["tokenizer"] == {"vocab_size": 257, "fingerprint": corpus.tokenizer.fingerprint}
    assert sum(part["documents"] for part in record["parts"].values()) == N_FILES


def test_the_saved_tokenizer_is_that_of_the_corpus(corpus: Corpus, tmp_path: Path) -> None:
    corpus.save(tmp_path)
    assert load_tokenizer(tmp_path / "tokenizer.json").fingerprint == corpus.tokenizer.fingerprint


def test_build_gives_the_vocabulary_and_refuses_what_does_not_fit(corpus: Corpus) -> None:
    model = corpus.build(lambda vocab_size: Spy(vocab_size, max_length=16))
    assert isinstance(model, Spy)
    assert model.vocab_size == 257
    with pytest.raises(InputError, match="context = 16 is longer than max_length = 15 of Spy"):
        corpus.build(lambda vocab_size: Spy(vocab_size, max_length=15))
    with pytest.raises(InputError, match="Linear has no token_losses"):
        corpus.build(lambda vocab_size: nn.Linear(1, vocab_size))

    class Bidirectional(Spy):
        def __init__(self, vocab_size: int) -> None:
            super().__init__(vocab_size)
            self.causal = False

    with pytest.raises(InputError, match="Bidirectional is not causal"):
        corpus.build(Bidirectional)


def test_options_that_are_none_are_refused(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="evaluation_tokens = 0"):
        Corpus(texts, evaluation_tokens=0)
    with pytest.raises(InputError, match="context = 0"):
        Corpus(texts, context=0)
    corpus = Corpus(texts, context=10**6, reading=Reading(cache=tmp_path / "cache"))
    with pytest.raises(InputError, match=r"call prepare\(\) first"):
        corpus.batch(0, 0, 1)
    with pytest.raises(InputError, match=r"training text has .* too few for context = 1000000"):
        corpus.prepare()


def test_the_signature_is_the_configuration(tmp_path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--task", type=Task)
    (tmp_path / "config.yaml").write_text("""
task:
  class_path: longreach.tasks.Corpus
  init_args:
    data: [one.txt, two]
    tokenizer: bpe:4096
    context: 1024
    split: {validation: 0.1}
    reading: {on_bad_line: skip}
    curriculum: [{until_step: 100, context: 256}]
""")
    arguments = ["--config", str(tmp_path / "config.yaml"), "--task.reading.text_field=body"]
    task = parser.instantiate(parser.parse_args(arguments)).task
    assert isinstance(task, Corpus)
    assert task.plan.source.data == ["one.txt", "two"]
    assert task.plan.source.reading == Reading("body", "skip")
    assert (task.plan.tokenizer, task.plan.split, task.context) == ("bpe:4096", Split(0.1), 1024)
    assert task.curriculum == [Stage(100, 256)]
    plain = parser.parse_args(["--task=longreach.tasks.Corpus", "--task.data=folder"])
    assert parser.instantiate(plain).task.plan.source.data == ["folder"]


def test_the_default_corpus_needs_nothing_but_python(tmp_path: Path) -> None:
    corpus = Corpus(reading=Reading(cache=tmp_path / "cache"))
    corpus.prepare()
    batch = corpus.batch(0, 0, 8)
    assert batch.inputs.shape == (1, 8192)
    source = corpus.record()["source"]
    assert source["files"] > 500
    assert source["bytes"] > 8e6
    assert len(source["sha256"]) == 64
    assert b"import " in corpus.tokenizer.decode(corpus.batch(0, 0, 1).inputs.flatten().numpy())
