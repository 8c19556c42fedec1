"""Two processes that train together come to what one comes to alone."""

import os
import shutil
import signal
import socket
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from training_toys import (
    CountingTask,
    ExplodingModel,
    SignallingTask,
    TrapTask,
    assert_same_run,
    metrics,
    small_run,
    start_process,
    tensors,
)

from longreach.errors import InputError
from longreach.mixers import S4D, Attention
from longreach.models import MLP, Backbone, LanguageModel
from longreach.training import DivergenceError, TrainingOptions
from longreach.training.learner import Learner
from longreach.training.processes import choose_device, join_processes

SECONDS = 120
"""More than any of these runs needs on a busy machine; a hang is a failure, not a wait."""


def language_model(vocab_size: int) -> nn.Module:
    """Blocks to cut into shards, and dropout, whose masks must not depend on the number of processes."""
    backbone = Backbone(8, n_layers=2, mixers=[S4D, partial(Attention, n_heads=2)], channel_mixer=MLP, dropout=0.1)
    return LanguageModel(vocab_size, backbone)


def run_in_one_of_two(run: Path, changes: dict[str, object]) -> None:
    """What each of the processes does."""
    try:
        small_run(run, **({"model": language_model} | changes))
    except DivergenceError as error:
        (run / f"error-{os.environ['RANK']}").write_text(str(error))


def start_two(target: object, *arguments: object) -> list[BaseProcess]:
    """Start two processes as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    return [start_process(target, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **where) for rank in range(2)]


def run_in_two(run: Path, **changes: object) -> None:
    """Train in two processes to the end."""
    processes = start_two(run_in_one_of_two, run, changes)
    for process in processes:
        process.join(SECONDS)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that cuts every step into four parts."""
    return small_run(tmp_path_factory.mktemp("runs") / "alone", model=language_model, accumulate=4).run


def assert_close(run: Path, other: Path) -> None:
    """The checkpoints are the same but for rounding."""
    ours, theirs = tensors(run), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run) if line["kind"] == "train"]


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Two processes, each with two of those parts."""
    run = tmp_path_factory.mktemp("runs") / request.param
    run_in_two(run, parallel=request.param, accumulate=2)
    return request.param, run


@pytest.mark.slow
def test_two_processes_train_as_one(alone: Path, together: tuple[str, Path]) -> None:
    _, run = together
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    assert metrics(run)[-1]["bits"] == pytest.approx(metrics(alone)[-1]["bits"], rel=1e-5)
    assert_close(run, alone)


@pytest.mark.slow
def test_a_signal_to_one_stops_both_and_both_or_one_resume(
    tmp_path: Path, alone: Path, together: tuple[str, Path]
) -> None:
    parallel, undisturbed = together
    run_in_two(tmp_path / "both", parallel=parallel, accumulate=2, task=SignallingTask(5, signal.SIGTERM, rank="1"))
    assert len(losses(tmp_path / "both")) == 6
    shutil.copytree(tmp_path / "both", tmp_path / "one")
    run_in_two(tmp_path / "both", parallel=parallel, accumulate=2, resume=True)
    assert_same_run(tmp_path / "both", undisturbed)
    small_run(tmp_path / "one", model=language_model, accumulate=4, resume=True)
    assert len(losses(tmp_path / "one")) == 12
    assert_close(tmp_path / "one", alone)


def evaluate_in_one_of_two(done: Path) -> None:
    """Every parameter is in shards before and after an evaluation, which gathers them."""
    options = TrainingOptions(steps=1, device="cpu", parallel="fsdp")
    with join_processes("cpu") as processes:
        learner = Learner(CountingTask(), language_model(8), options, processes)
        assert all(isinstance(parameter, DTensor) for parameter in learner.model.parameters())
        learner.evaluate()
        assert all(isinstance(parameter, DTensor) for parameter in learner.model.parameters())
        del learner
    (done / os.environ["RANK"]).touch()


@pytest.mark.slow
def test_an_evaluation_gives_back_what_it_gathered(tmp_path: Path) -> None:
    processes = start_two(evaluate_in_one_of_two, tmp_path)
    for process in processes:
        process.join(SECONDS)
        process.kill()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_what_goes_wrong_in_one_is_told_by_both(tmp_path: Path, parallel: str) -> None:
    model = partial(ExplodingModel, where="forward")
    run_in_two(tmp_path / "run", parallel=parallel, model=model, task=TrapTask())
    for rank in range(2):
        assert "the output of trap (Trap)" in (tmp_path / f"run/error-{rank}").read_text()


def test_a_gpu_that_is_not_there_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="torch finds no GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto", 1) == torch.device("cuda", 1)
    assert choose_device("cpu") == torch.device("cpu")
