"""Whole runs of a toy: what a step computes, how runs stop and go on, what they leave behind."""

import json
import math
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_toys import (
    CountingTask,
    ExplodingModel,
    SignallingTask,
    TableModel,
    TrapTask,
    assert_same_run,
    metrics,
    small_run,
    tensors,
)

from longreach.errors import InputError
from longreach.tasks.base import Batch, Evaluation
from longreach.training import DivergenceError, loop, whole_run
from longreach.training.metrics_log import MetricsLog, read_metrics


class ScriptedTask(CountingTask):
    """Evaluations as they are given."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = iter(values)

    def evaluate(self, model: nn.Module) -> Evaluation:
        return Evaluation({"bits": next(self.values)}, {})


class HighestTask(ScriptedTask):
    """The same, more is better."""

    maximise = True


@pytest.fixture(autouse=True)
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of a toy run; test_training_run draws them."""
    monkeypatch.setattr(whole_run, "plot_loss", lambda *arguments: None)
    monkeypatch.setattr(whole_run, "plot_curve", lambda *arguments: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy run that others are compared with."""
    return small_run(tmp_path_factory.mktemp("runs") / "undisturbed").run


def test_the_log_has_a_line_for_every_step_and_every_evaluation(undisturbed: Path) -> None:
    lines = read_metrics(undisturbed / "metrics.jsonl")
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 13))
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [4, 8, 12]
    assert [line["tokens"] for line in train] == [64 * step for step in range(1, 13)]
    assert [line["lr"] for line in train[:3]] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01])
    assert train[0]["bits"] == pytest.approx(train[0]["loss"] / math.log(2))
    assert train[0]["loss"] == pytest.approx(math.log(8), abs=0.5)
    assert all(line["memory"] > 2**20 and line["tokens_per_second"] > 0 and line["grad_norm"] > 0 for line in train)


def test_lines_are_means_over_the_steps_between_them(tmp_path: Path, undisturbed: Path) -> None:
    every = [line for line in metrics(undisturbed) if line["kind"] == "train"]
    third = [line for line in metrics(small_run(tmp_path / "run", log_every=3).run) if line["kind"] == "train"]
    assert [line["step"] for line in third] == [3, 6, 9, 12]
    assert third[1]["loss"] == pytest.approx(sum(line["loss"] for line in every[3:6]) / 3)
    assert third[1]["grad_norm"] == pytest.approx(sum(line["grad_norm"] for line in every[3:6]) / 3)
    assert third[1]["tokens"] == every[5]["tokens"]


def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path: Path, undisturbed: Path) -> None:
    assert_same_run(small_run(tmp_path / "same").run, undisturbed)
    other = tensors(small_run(tmp_path / "other", seed=1).run)
    assert not torch.equal(
        other["model.safetensors:head.weight"], tensors(undisturbed)["model.safetensors:head.weight"]
    )


def test_accumulation_does_not_change_the_result(tmp_path: Path) -> None:
    model = partial(TableModel, dropout=0.0)
    whole, parts = (tensors(small_run(tmp_path / str(n), model=model, accumulate=n, steps=4).run) for n in (1, 4))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-6)


class UnevenTask(CountingTask):
    """Most targets of the first half of a batch do not count."""

    def batch(self, step: int, part: int, parts: int) -> Batch:
        tokens = self._sequences(step, self.batch_size)
        targets = tokens[:, 1:].clone()
        targets[: self.batch_size // 2, 1:] = -100
        return Batch(tokens[:, :-1].chunk(parts)[part], targets.chunk(parts)[part])


def test_every_target_counts_the_same_however_the_batch_is_cut(tmp_path: Path) -> None:
    model = partial(TableModel, dropout=0.0)
    runs = [small_run(tmp_path / str(n), task=UnevenTask(), model=model, accumulate=n, steps=4).run for n in (1, 2)]
    losses = [[line["loss"] for line in metrics(run) if line["kind"] == "train"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert metrics(runs[0])[0]["tokens"] == 8 * 8  # all that is read, targets or not


def test_the_gradient_is_clipped_to_its_limit(tmp_path: Path) -> None:
    """With a limit of almost nothing AdamW's epsilon is no longer small, so the weights hardly move."""
    free, clipped = (
        tensors(small_run(tmp_path / str(limit), grad_clip=limit, steps=1, lr=0.1, warmup_steps=0).run)
        for limit in (None, 1e-10)
    )
    start = torch.ones(8)
    name = "model.safetensors:norm.weight"
    assert (free[name] - start).abs().max() > 0.09
    assert (clipped[name] - start).abs().max() < 0.005


@pytest.mark.parametrize("at", [0, 3, 4, 6, 10])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_resumes_bit_for_bit(tmp_path: Path, undisturbed: Path, at: int, number: int) -> None:
    before = signal.getsignal(number)
    stopped = small_run(tmp_path / "run", task=SignallingTask(at, number))
    assert not stopped.finished
    assert signal.getsignal(number) is before
    assert json.loads((tmp_path / "run/checkpoints/last/state.json").read_text())["position"]["step"] == at + 1
    resumed = small_run(tmp_path / "run", resume=True)
    assert resumed.finished
    assert_same_run(tmp_path / "run", undisturbed)
    assert tensors(tmp_path / "run", "best").keys() == tensors(undisturbed, "best").keys()
    record, expected = (json.loads((run / "record.json").read_text()) for run in (tmp_path / "run", undisturbed))
    assert record["result"]["best"] == expected["result"]["best"]
    assert record["started"]


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "run", task=SignallingTask(6, times=2))
    assert json.loads((tmp_path / "run/checkpoints/last/state.json").read_text())["position"]["step"] == 4


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(small_run(tmp_path / "run", steps=2)))
    thread.start()
    thread.join()
    assert results[0].finished


def test_what_was_logged_after_the_checkpoint_is_forgotten(tmp_path: Path, undisturbed: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "run", task=SignallingTask(6, times=2))
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "kind": "tr')
    small_run(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_run_without_a_checkpoint_resumes_from_the_beginning(tmp_path: Path, undisturbed: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "run", task=SignallingTask(2, times=2))
    small_run(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", undisturbed)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, undisturbed: Path) -> None:
    first = small_run(tmp_path / "run")
    again = small_run(tmp_path / "run", resume=True)
    assert again.best == first.best
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", steps=1).run
    with pytest.raises(InputError, match=r"begun on other data: vocab_size differ .*begin a new run"):
        small_run(run, task=CountingTask(vocab_size=9), model=lambda size: TableModel(8), steps=2, resume=True)


def test_more_steps_go_on_where_the_run_ended(tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    assert small_run(tmp_path / "run", steps=20, resume=True).finished
    assert metrics(tmp_path / "run")[-1]["step"] == 20


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = small_run(tmp_path / "empty", steps=1).run
    with pytest.raises(InputError, match=r"empty exists already.*--resume"):
        small_run(run)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file exists already"):
        small_run(tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot make .*--run"):
        small_run(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("task", "best"), [(ScriptedTask, [math.nan, 1.0, 3.0, 2.0]), (HighestTask, [math.nan, 3.0, 1.0, 2.0])]
)
def test_the_best_checkpoint_is_that_of_the_best_evaluation(tmp_path: Path, task: type, best: list[float]) -> None:
    result = small_run(tmp_path / "run", task=task(best), evaluate_every=1, steps=4)
    assert result.best.metrics == {"bits": best[1]}
    state = json.loads((tmp_path / "run/checkpoints/best/state.json").read_text())
    assert state["position"]["best_step"] == 2
    assert state["position"]["best"] == best[1]
    weight = "model.safetensors:head.weight"
    second = small_run(tmp_path / "second", steps=4, task=ScriptedTask([1.0, 2.0]), evaluate_every=2)
    assert torch.equal(tensors(result.run, "best")[weight], tensors(second.run, "best")[weight])


def test_checkpoints_and_evaluations_keep_their_own_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    monkeypatch.setattr(MetricsLog, "flush", lambda self: saved.append("flush"))
    monkeypatch.setattr(
        loop.Learner,
        "save",
        lambda self, folder, state, to_resume: saved.append((folder.name, state["position"]["step"])),
    )
    small_run(tmp_path / "run", task=ScriptedTask([3.0, 2.0, 1.0]), steps=10, evaluate_every=4, save_every=3)
    assert saved == [
        "flush", ("last", 3), ("best", 4), "flush", ("last", 6), ("best", 8), "flush", ("last", 9), ("best", 10),
        "flush", ("last", 10),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "values"), [(ScriptedTask, [3.0, 2.5, 2.0, 9.0]), (HighestTask, [1.0, 1.5, 2.0, 0.0])]
)
def test_a_run_ends_where_its_objective_is_as_good_as_wanted(tmp_path: Path, task: type, values: list[float]) -> None:
    result = small_run(tmp_path / "run", task=task(values), evaluate_every=2, steps=10, stop_at=2.0)
    assert result.finished
    assert metrics(tmp_path / "run")[-1]["step"] == 6
    state = json.loads((tmp_path / "run/checkpoints/last/state.json").read_text())
    assert state["position"]["step"] == state["position"]["steps"] == 6


def test_an_objective_that_is_not_measured_is_named(tmp_path: Path) -> None:
    task = CountingTask()
    task.objective = "accuracy"
    with pytest.raises(InputError, match=r"accuracy.*bits"):
        small_run(tmp_path / "run", task=task)


class NoTargets(CountingTask):
    """Nothing to learn from at step 2."""

    def batch(self, step: int, part: int, parts: int) -> Batch:
        inputs, targets, _ = super().batch(step, part, parts)
        return Batch(inputs, torch.full_like(targets, -100) if step == 1 else targets)


def test_a_step_without_targets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="step 1 has no targets"):
        small_run(tmp_path / "run", task=NoTargets())


@pytest.mark.parametrize(
    ("where", "layer"),
    [("forward", r"the output of trap \(Trap\)"), ("backward", r"the gradient that reaches the output of norm")],
)
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run(
    tmp_path: Path, undisturbed: Path, where: str, layer: str
) -> None:
    with pytest.raises(DivergenceError, match=rf"^step 7: the loss is .* {layer}"):
        small_run(tmp_path / "run", task=TrapTask(), model=partial(ExplodingModel, where=where))
    state = json.loads((tmp_path / "run/checkpoints/last/state.json").read_text())
    assert state["position"]["step"] == 4
    assert all(bool(tensor.isfinite().all()) for tensor in tensors(tmp_path / "run").values())


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    class Broken(TableModel):
        def __init__(self, vocab_size: int) -> None:
            super().__init__(vocab_size)
            nn.init.constant_(self.head.bias, math.inf)

    with pytest.raises(DivergenceError, match=r"the weight head\.bias"):
        small_run(tmp_path / "run", model=Broken)


def test_a_gradient_too_large_for_its_norm_is_named(tmp_path: Path) -> None:
    class Steep(TableModel):
        def __init__(self, vocab_size: int) -> None:
            super().__init__(vocab_size)
            self.head.bias.register_hook(lambda gradient: torch.full_like(gradient, 1e30))

    with pytest.raises(DivergenceError, match=r"the norm of the gradient of head\.bias, whose numbers are finite"):
        small_run(tmp_path / "run", model=Steep)


class FakeClock:
    """A tenth of a second for every look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.1
        return self.now


def test_a_budget_in_minutes_becomes_a_number_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "time", FakeClock())
    budget = {"steps": None, "minutes": 0.2, "warmup_steps": 10, "evaluate_every": None}
    stopped = small_run(tmp_path / "run", task=SignallingTask(14), **budget)
    assert not stopped.finished
    planned = json.loads((tmp_path / "run/checkpoints/last/state.json").read_text())["position"]["steps"]
    assert 30 < planned < 110  # a look at the clock before and after every step, and some for the log: 0.3 s a step
    monkeypatch.undo()
    assert small_run(tmp_path / "run", resume=True, **budget).finished
    lines = metrics(tmp_path / "run")
    assert lines[-1]["step"] == planned
    assert next(line["step"] for line in lines if line["kind"] == "evaluation") == 10
    small_run(tmp_path / "steps", steps=planned, warmup_steps=10, evaluate_every=None)
    ours, theirs = tensors(tmp_path / "run"), tensors(tmp_path / "steps")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_budget_that_is_used_up_at_once_still_ends_well(tmp_path: Path) -> None:
    result = small_run(tmp_path / "run", steps=None, minutes=1e-6, warmup_steps=10)
    assert result.finished
    assert result.best is not None
    assert metrics(tmp_path / "run")[-1]["step"] == 10


def test_a_run_stopped_before_its_budget_is_planned_can_go_on(tmp_path: Path) -> None:
    budget = {"steps": None, "minutes": 1e-6, "warmup_steps": 10}
    small_run(tmp_path / "run", task=SignallingTask(8), **budget)
    assert small_run(tmp_path / "run", resume=True, **budget).finished


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_is_that_of_dense_products(tmp_path: Path, precision: str) -> None:
    seen = set()

    class Spy(TableModel):
        def forward(self, tokens: Tensor) -> Tensor:
            logits = super().forward(tokens)
            seen.add((self.training, torch.is_grad_enabled(), logits.dtype))
            return logits.float()

    small_run(tmp_path / "run", model=Spy, precision=precision, steps=4)
    assert seen == {(True, True, getattr(torch, precision)), (False, False, getattr(torch, precision))}
    assert {tensor.dtype for tensor in tensors(tmp_path / "run").values()} == {torch.float32}
