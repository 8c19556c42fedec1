"""Masked language modelling: what is hidden, what counts, and that any bidirectional model can be trained."""

import math
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from test_corpora_corpus import SPLIT, Spy, corpus, texts  # noqa: F401 (fixtures)
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers import S4D, BiGS
from longreach.models import MLP, Backbone, LanguageModel, MaskedLanguageModel
from longreach.tasks import Corpus, MaskedCorpus, Task
from longreach.tasks.corpora import Masking

MASK = 257
"""The token behind the 256 bytes and the separator."""


@pytest.fixture
def task(corpus: Corpus) -> MaskedCorpus:  # noqa: F811
    return MaskedCorpus(corpus)


def test_hidden_tokens_are_the_targets_and_nothing_else_is(task: MaskedCorpus) -> None:
    original = task.corpus.batch(3, 0, 1).inputs
    batch = task.batch(3, 0, 1)
    asked = batch.targets != -100
    assert (asked.sum(1) == round(0.15 * 16)).all()
    assert torch.equal(batch.targets[asked], original[asked])
    assert torch.equal(batch.inputs[~asked], original[~asked])
    assert batch.weight == asked.sum()


@pytest.mark.parametrize(
    ("masking", "expected"),
    [
        (Masking(), (0.8, 0.1)),
        (Masking(share=0.4, masked=0.5, random=0.5), (0.5, 0.5)),
        (Masking(share=1.0, masked=0.0, random=0.0), (0.0, 0.0)),
    ],
)
def test_the_shares_are_as_asked(corpus: Corpus, masking: Masking, expected: tuple[float, float]) -> None:  # noqa: F811
    task = MaskedCorpus(corpus, masking)
    tokens = torch.arange(200).repeat(60, 1)
    batch = task.hide(tokens, [str(row) for row in range(60)])
    asked = batch.targets != -100
    assert (asked.sum(1) == round(masking.share * 200)).all()
    masked = (batch.inputs == MASK) & asked
    changed = (batch.inputs != tokens) & asked & ~masked
    count = int(asked.sum())
    for part, share in zip((masked, changed), expected, strict=True):
        assert abs(part.sum() / count - share) < 4 * math.sqrt(share * (1 - share) / count) + 1 / 257
    positions = asked.float().mean(0)  # every place is chosen as often
    assert (positions - masking.share).abs().max() < 5 * math.sqrt(masking.share / 60)


def test_separators_are_never_chosen(task: MaskedCorpus) -> None:
    row = torch.full((1, 20), 256)
    batch = task.hide(row, ["only separators"])
    assert batch.weight == 0
    assert torch.equal(batch.inputs, row)
    row[0, 7] = 65
    assert (task.hide(row, ["one letter"]).targets[0] != -100).nonzero().tolist() == [[7]]


def test_what_is_hidden_depends_on_step_and_example_only(task: MaskedCorpus) -> None:
    whole = task.batch(5, 0, 1)
    parts = [task.batch(5, part, 3) for part in range(3)]
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    assert not torch.equal(whole.targets != -100, task.batch(6, 0, 1).targets != -100)


class Oracle(nn.Module):
    """Knows that a hidden token is the one of the true text, with a logit of 3 for it and 0 for all others."""

    max_length, causal = None, False

    def __init__(self, truth: dict[bytes, Tensor]) -> None:
        super().__init__()
        self.truth = truth

    def hidden(self, inputs: Tensor) -> Tensor:
        """The true tokens as features, one wrong in each row."""
        return torch.stack([self.truth[row.numpy().tobytes()] for row in inputs]).float()[..., None]

    def logits(self, hidden: Tensor) -> Tensor:
        return 3.0 * nn.functional.one_hot(hidden[..., 0].long(), 258)

    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.ones_like(inputs, dtype=torch.float32) * (targets != -100)


def test_an_evaluation_looks_at_hidden_tokens_only(task: MaskedCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, asked, wrong = {}, 0, 0
    hide = task.hide

    def spying(windows: Tensor, names: list[str]):
        nonlocal asked, wrong
        batch = hide(windows, names)
        for inputs, targets, window in zip(batch.inputs, batch.targets, windows, strict=True):
            guess = window.clone()
            chosen = (targets != -100).nonzero()[:, 0]
            if len(chosen) > 1:  # be wrong about one of them, and about all that is not asked for
                guess[chosen[0]] = (guess[chosen[0]] + 1) % 256
                wrong += 1
            guess[targets == -100] = 0
            truth[inputs.numpy().tobytes()] = guess
            asked += len(chosen)
        return batch

    monkeypatch.setattr(task, "hide", spying)
    metrics = task.evaluate(Oracle(truth)).metrics
    assert asked > 40
    assert metrics["masked_accuracy"] == pytest.approx(1 - wrong / asked)
    normaliser = math.log(math.exp(3) + 257)
    assert metrics["masked_loss"] == pytest.approx(normaliser - 3 * (1 - wrong / asked), rel=1e-5)
    assert metrics["masked_perplexity"] == pytest.approx(math.exp(metrics["masked_loss"]))


def test_evaluations_hide_the_same_tokens(task: MaskedCorpus) -> None:
    torch.manual_seed(0)
    model = masked_model(258).train()
    first, second = task.evaluate(model), task.evaluate(model)
    assert first == second
    assert model.training


def masked_model(vocab_size: int) -> MaskedLanguageModel:
    backbone = Backbone(8, n_layers=2, mixers=[lambda d: BiGS(d, d_state=4)], channel_mixer=nn.Identity, layout="joint")
    return MaskedLanguageModel(vocab_size, backbone)


def language_model(vocab_size: int) -> LanguageModel:
    backbone = Backbone(8, n_layers=1, mixers=[lambda d: S4D(d, d_state=4, causal=False)], channel_mixer=MLP)
    return LanguageModel(vocab_size, backbone)


@pytest.mark.parametrize("factory", [masked_model, language_model])
def test_any_bidirectional_model_learns(task: MaskedCorpus, factory) -> None:
    torch.manual_seed(0)
    model = task.build(factory)
    assert model.vocab_size == MASK + 1
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = task.evaluate(model).metrics["masked_loss"]
    for step in range(60):
        batch = task.batch(step, 0, 1)
        loss = task.loss(model, batch) / batch.weight
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = task.evaluate(model).metrics
    assert after["masked_loss"] < 0.8 * before
    assert task.describe_loss(loss.item())["masked_loss"] == loss.item()


def test_models_that_do_not_fit_are_refused(task: MaskedCorpus) -> None:
    with pytest.raises(InputError, match="Spy has no hidden"):
        task.build(Spy)
    with pytest.raises(InputError, match="LanguageModel is causal"):
        task.build(lambda size: LanguageModel(size, Backbone(8, n_layers=1, mixers=[S4D], channel_mixer=MLP)))
    short = masked_model(258)
    short.backbone.max_length = 5
    with pytest.raises(InputError, match="longer than max_length = 5"):
        task.build(lambda size: short)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("share = 0.0", {"share": 0.0}),
        ("share = 1.5", {"share": 1.5}),
        ("masked = -0.1", {"masked": -0.1}),
        ("random = 0.3", {"random": 0.3}),
    ],
)
def test_maskings_that_make_no_sense_are_refused(message: str, options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=message):
        Masking(**options)


def test_it_can_be_configured(tmp_path: Path, task: MaskedCorpus) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--task", type=Task)
    value = {
        "class_path": "MaskedCorpus",
        "init_args": {"corpus": {"class_path": "Corpus", "init_args": {"context": 64}}, "masking": {"share": 0.3}},
    }
    made = parser.instantiate(parser.parse_object({"task": value}))["task"]
    assert (made.corpus.context, made.masking) == (64, Masking(share=0.3))
    assert task.record()["masking"] == {"share": 0.15, "masked": 0.8, "random": 0.1, "mask_token": MASK}
    assert "documents" in str(task.record())
    task.save(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    assert task.work(2, 5) == task.corpus.work(2, 5)
