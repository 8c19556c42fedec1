"""The synthetic tasks: what is asked has one answer, who has no memory does not know it, all of it is repeatable."""

import itertools
import math
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers import FNet, Hyena
from longreach.models import MLP, Backbone, LanguageModel
from longreach.tasks import (
    Addition,
    AssociativeRecall,
    Counting,
    InductionHead,
    LinearFunctions,
    Majority,
    MultiQueryRecall,
)
from longreach.tasks.recall import Draws, SyntheticTask, TokenTask
from longreach.tasks.recall.linear_functions import FunctionModel

IGNORED = -100
TASKS: dict[str, Callable[..., TokenTask]] = {
    "associative": lambda **given: AssociativeRecall(40, 10, **given),
    "associative, long keys": lambda **given: AssociativeRecall(41, 10, 2, **given),
    "associative, missing": lambda **given: AssociativeRecall(12, 40, missing=True, **given),
    "multi-query": lambda **given: MultiQueryRecall(64, 32, 6, **given),
    "multi-query, filled": lambda **given: MultiQueryRecall(64, 32, 6, 1.0, fill=True, **given),
    "induction": lambda **given: InductionHead(30, 20, **given),
    "induction, many": lambda **given: InductionHead(30, 20, 3, 4, **given),
    "majority": lambda **given: Majority(31, 6, **given),
    "counting": lambda **given: Counting(30, 5, 7, **given),
    "addition": lambda **given: Addition(4, **given),
}
EVERY: dict[str, Callable[..., SyntheticTask]] = {**TASKS, "functions": lambda **given: LinearFunctions(20, 3, **given)}
UNEVEN = {"associative, missing", "addition"}
"""Some answers are more frequent than others."""


class Oracle(nn.Module):
    """Says the answers that `solve` finds."""

    def __init__(self, task: TokenTask) -> None:
        super().__init__()
        self.task, self.unused = task, nn.Parameter(torch.zeros(()))

    def hidden(self, inputs: Tensor) -> Tensor:
        answers = torch.from_numpy(self.task.solve(inputs.numpy())).clamp(min=0)
        return 100.0 * F.one_hot(answers, self.task.vocab_size)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


class Constant(Oracle):
    """Always says the same token."""

    def __init__(self, task: TokenTask, token: int) -> None:
        super().__init__(task)
        self.token = token

    def hidden(self, inputs: Tensor) -> Tensor:
        return F.one_hot(torch.full_like(inputs, self.token), self.task.vocab_size).float()


def answers(task: TokenTask, inputs: Tensor) -> Tensor:
    return torch.from_numpy(task.solve(inputs.numpy()))


@pytest.mark.parametrize("name", TASKS)
def test_an_oracle_is_always_right(name: str) -> None:
    task = TASKS[name](n_held_out=70)
    metrics = task.evaluate(Oracle(task)).metrics
    assert metrics["accuracy"] == 1.0
    assert metrics["loss"] < 1e-6


@pytest.mark.parametrize("name", TASKS)
def test_a_constant_is_at_chance(name: str) -> None:
    task = TASKS[name](n_held_out=2000)
    rates = [task.evaluate(Constant(task, token)).metrics["accuracy"] for token in range(task.vocab_size)]
    metrics = task.evaluate(Oracle(task)).metrics
    assert max(rates) == metrics["majority"]
    assert math.isclose(sum(rates), 1.0)
    assert metrics["chance"] == 1 / task.n_answers
    assert sum(rate > 0 for rate in rates) == task.n_answers
    if name not in UNEVEN:
        n_asked = 2000
        error = 4 * math.sqrt(metrics["chance"] * (1 - metrics["chance"]) / n_asked)
        assert max(abs(rate - metrics["chance"]) for rate in rates if rate > 0) < error


@pytest.mark.parametrize("name", TASKS)
def test_the_targets_are_the_answers(name: str) -> None:
    """Where something is asked, what is taught is the solution; elsewhere it is the next token, if anything."""
    task = TASKS[name]()
    inputs, targets, _ = task.batch(5, 0, 1)
    assert inputs.shape == targets.shape == (32, task.n_positions)
    assert 0 <= inputs.min() <= inputs.max() < task.vocab_size
    found = answers(task, inputs)
    asked = found != IGNORED
    assert (asked.sum(1) == asked[0].sum()).all()
    assert torch.equal(found[asked], targets[asked])
    other = ~asked[:, :-1] & (targets[:, :-1] != IGNORED)
    assert torch.equal(targets[:, :-1][other], inputs[:, 1:][other])
    assert other.any() == isinstance(task, AssociativeRecall | InductionHead)


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_is_a_function_of_the_step(name: str) -> None:
    task, again, other = EVERY[name](), EVERY[name](), EVERY[name](seed=1)
    first = task.batch(3, 0, 1)
    task.batch(0, 0, 1)
    assert torch.equal(again.batch(3, 0, 1).inputs, first.inputs)
    assert torch.equal(torch.cat([again.batch(3, part, 4).targets for part in range(4)]), first.targets)
    assert not torch.equal(task.batch(4, 0, 1).inputs, first.inputs)
    assert not torch.equal(other.batch(3, 0, 1).inputs, first.inputs)
    held_out = list(EVERY[name](n_held_out=40).held_out())
    assert [len(batch.inputs) for batch in held_out] == [32, 8]
    assert not torch.equal(held_out[0].inputs, task.batch(0, 0, 1).inputs)


def test_the_examples_are_those_of_every_machine() -> None:
    """As they were on the first."""
    assert AssociativeRecall(8, 10).batch(0, 0, 1).inputs[0].tolist() == [2, 6, 1, 6, 3, 7, 2, 6, 9, 3]
    assert Draws("anything").integers(1000, 4).tolist() == [670, 304, 695, 851]


def test_another_process_makes_the_same_examples() -> None:
    program = "from longreach.tasks import Counting; print(Counting(12).batch(7, 0, 1).inputs.tolist())"
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == str(Counting(12).batch(7, 0, 1).inputs.tolist())


def test_draws_are_spread_as_they_should_be() -> None:
    draws = Draws("test", 1)
    counts = np.bincount(draws.integers(7, 70_000), minlength=7)
    assert len(counts) == 7
    assert abs(counts - 10_000).max() < 5 * 100
    uniform, normal = draws.uniform(40_000), draws.normal(40_000)
    assert 0 < uniform.min() < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01
    assert abs(normal.mean()) < 0.03
    assert abs(normal.var() - 1) < 0.05
    assert abs((normal**4).mean() - 3) < 0.3
    rows = draws.distinct(9, 200, 9)
    assert (np.sort(rows, 1) == np.arange(9)).all()
    assert len(set(rows[:, 0].tolist())) == 9


def test_keys_are_asked_for_as_often_whatever_their_frequency() -> None:
    """Among the keys that appeared, each is asked for equally often, as in the published task."""
    task = AssociativeRecall(6, 8, batch_size=4000)
    inputs = task.batch(0, 0, 1).inputs
    keys, asked = inputs[:, :6:2], inputs[:, -1]
    twice = (keys.sort(1).values.diff() == 0).sum(1) == 1  # of three keys, two are the same
    single = torch.stack([k[(k[:, None] == k).sum(1) == 1] for k in keys[twice]])[:, 0]
    assert abs((single == asked[twice]).float().mean() - 0.5) < 0.06


def test_the_value_of_a_missing_key_is_the_blank() -> None:
    task = AssociativeRecall(4, 40, missing=True, batch_size=500)
    inputs, targets, _ = task.batch(0, 0, 1)
    present = (inputs[:, :4:2] == inputs[:, -1:]).any(1)
    assert torch.equal(targets[:, -1] == 0, ~present)
    assert 0.05 < present.float().mean() < 0.2


def test_induction_copies_and_skips_prompts_within_a_copy() -> None:
    task = InductionHead(12, 30, n_copied=3, n_prompts=4, batch_size=300)
    inputs, targets, _ = task.batch(0, 0, 1)
    several = 0
    for row, target in zip(inputs, targets, strict=True):
        places = (row == task.prompt).nonzero().flatten().tolist()
        assert places[-1] == 12
        assert all(b - a > 3 for a, b in itertools.pairwise(places[:-1]))
        copies = {tuple(row[place + 1 : place + 4].tolist()) for place in places[:-1]}
        assert copies == {tuple(target[-3:].tolist())}
        several += len(places) > 2
    assert 0.25 < several / 300 < 0.5  # one prompt in one half, up to four in the other


def test_questions_come_sooner_rather_than_later() -> None:
    def mean_place(power: float) -> float:
        task = MultiQueryRecall(256, 64, 4, power, batch_size=500)
        asked = task.batch(0, 0, 1).targets != IGNORED
        assert (asked.sum(1) == 4).all()
        return asked.nonzero()[:, 1].double().mean().item()

    assert mean_place(0.01) < 70
    assert abs(mean_place(1.0) - (8 + 124)) < 8


def test_a_filled_sequence_binds_no_key_again() -> None:
    task = MultiQueryRecall(64, 32, 4, fill=True)
    inputs = task.batch(0, 0, 1).inputs
    assert (((inputs > 0) & (inputs < 16)).sum(1) == 8).all()
    assert inputs.min() > 0


def test_sums_are_right_at_any_length() -> None:
    task = Addition(40)
    inputs, targets, _ = task.batch(0, 0, 1)
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        a, b, total = (int("".join(map(str, part))) for part in (row[:40], row[40:80], target[79:]))
        assert a + b == total
        assert target[:79] == [IGNORED] * 79


def test_there_is_one_majority() -> None:
    task = Majority(9, 4, batch_size=200)
    for row, answer in zip(*task.batch(0, 0, 1)[:2], strict=True):
        counts = torch.bincount(row[:-1], minlength=4)
        assert counts.argmax() == answer[-1]
        assert (counts == counts.max()).sum() == 1
    assert Majority(1, 2).batch(0, 0, 1).inputs.tolist() == [[1, 0]] * 32


def test_functions_are_solved_exactly_and_zero_explains_nothing() -> None:
    task = LinearFunctions(21, 3, n_held_out=100)
    batch = task.batch(0, 0, 1)
    assert batch.inputs.shape == (32, task.n_positions, 3)
    assert torch.allclose(task.solve(batch.inputs), batch.targets[:, -1].double(), atol=1e-4)
    assert ((batch.targets != IGNORED).sum(1) == 10).all()

    class Says(nn.Module):
        def __init__(self, solve: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.solve, self.unused = solve, nn.Parameter(torch.zeros(()))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.solve(inputs)[:, None]

    assert task.evaluate(Says(task.solve)).metrics["explained"] > 1 - 1e-8
    assert task.evaluate(Says(lambda inputs: torch.zeros(len(inputs)))).metrics["explained"] == 0.0
    assert task.evaluate(Says(lambda inputs: torch.ones(len(inputs)))).metrics["explained"] < 0.0


def test_functions_train_the_backbone_of_a_language_model() -> None:
    task = LinearFunctions(8, 2)
    model = task.build(language_model(7))
    assert isinstance(model, FunctionModel)
    batch = task.batch(0, 0, 1)
    loss = task.loss(model, batch)
    asked = batch.targets[:, 0::2]
    assert torch.allclose(loss, (model(batch.inputs)[:, 0::2] - asked).square().sum())
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def language_model(max_length: int, causal: bool = True) -> Callable[[int], LanguageModel]:
    def mixer(width: int) -> nn.Module:
        return Hyena(width, max_length=max_length) if causal else FNet(width)

    return lambda vocab: LanguageModel(vocab, Backbone(8, n_layers=1, mixers=[mixer], channel_mixer=MLP))


def test_training_learns_from_all_that_is_taught() -> None:
    task = AssociativeRecall(20, 10)
    model = task.build(language_model(22))
    batch = task.batch(0, 0, 1)
    whole = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten(), reduction="sum")
    assert torch.allclose(task.loss(model, batch), whole)
    assert batch.weight == batch.targets.numel()
    model.train()
    metrics = task.evaluate(model).metrics
    assert model.training
    assert 0 <= metrics["accuracy"] < 0.6


@pytest.mark.parametrize("make", EVERY.values())
def test_a_model_that_is_too_short_is_refused(make: Callable[..., SyntheticTask]) -> None:
    task = make()
    task.prepare()
    task.build(language_model(task.n_positions))
    with pytest.raises(InputError, match="max_length = "):
        task.build(language_model(task.n_positions - 1))
    with pytest.raises(InputError, match="not causal"):
        task.build(language_model(0, causal=False))
    with pytest.raises(InputError, match="wrap it in a LanguageModel"):
        task.build(lambda vocab: nn.Linear(vocab, vocab))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AssociativeRecall(0), "length = 0"),
        (lambda: AssociativeRecall(batch_size=0), "batch_size = 0"),
        (lambda: AssociativeRecall(n_held_out=0), "n_held_out = 0"),
        (lambda: AssociativeRecall(vocabulary=3), "vocabulary = 3"),
        (lambda: AssociativeRecall(1), "no room for a pair"),
        (lambda: AssociativeRecall(key_length=0), "key_length = 0"),
        (lambda: AssociativeRecall(vocabulary=1000, key_length=3), "keys of 3"),
        (lambda: InductionHead(2), "no room for a prompt"),
        (lambda: InductionHead(vocabulary=2), "vocabulary=2"),
        (lambda: InductionHead(n_copied=0), "n_copied=0"),
        (lambda: MultiQueryRecall(31, n_pairs=8), "at least 32"),
        (lambda: MultiQueryRecall(vocabulary=17), "at least 18"),
        (lambda: MultiQueryRecall(power=0.0), "power = 0.0"),
        (lambda: Majority(vocabulary=1), "vocabulary = 1"),
        (lambda: Counting(8), "largest=9"),
        (lambda: Counting(vocabulary=1), "vocabulary=1"),
        (lambda: LinearFunctions(10), "at least 12"),
        (lambda: AssociativeRecall(batch_size=3).batch(0, 0, 2), "equally into 2 parts"),
    ],
)
def test_mistakes_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("name", EVERY)
def test_the_record_tells_examples_apart(name: str) -> None:
    record = EVERY[name](seed=3).record()
    assert record["seed"] == 3
    assert record == EVERY[name](seed=3).record()
    assert record != EVERY[name](seed=4).record()
    assert all(isinstance(value, int | float) for value in record.values())


def test_long_examples_are_made_fast() -> None:
    """131,072 tokens take about 10 ms an example on one core of a laptop; slower by ten is a loop over positions."""
    task = AssociativeRecall(131_072, 30, batch_size=4)
    started = time.process_time()
    task.batch(0, 0, 1)
    assert time.process_time() - started < 1.0
