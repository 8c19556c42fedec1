"""A whole run: prepare the data, build the model, train it, and leave a folder that tells the story."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from longreach.disk import replace_text, writing
from longreach.errors import InputError
from longreach.tasks.base import Curve, Evaluation, ModelFactory, Task
from longreach.training import checkpoint
from longreach.training.learner import Learner
from longreach.training.loop import Loop, Position, peak_memory
from longreach.training.metrics_log import MetricsLog, read_metrics
from longreach.training.options import TrainingOptions
from longreach.training.plots import plot_curve, plot_loss
from longreach.training.processes import Processes, join_processes
from longreach.training.progress import TrainingProgress
from longreach.training.run_folder import RunFolder, machine
from longreach.training.starting_point import StartingPoint


class TrainingResult(NamedTuple):
    """What a run has come to."""

    run: Path
    finished: bool
    """False if it was stopped by a signal; `train` with `resume=True` continues it."""
    best: Evaluation | None
    """Of the best checkpoint, with the task's test metrics if the run is finished; None before the first evaluation."""
    plots: list[Path]
    leads: bool
    """Whether this process is the one that talks to the user."""


def train(
    task: Task,
    model: ModelFactory,
    options: TrainingOptions,
    run: Path,
    *,
    resume: bool = False,
    config: str | None = None,
) -> TrainingResult:
    """Train a model on a task and leave everything that belongs to the run in the folder `run`.

    Args:
        task: what is learned.
        model: builds the model; called once.
        options: how.
        run: the folder, which must not exist or be empty, unless `resume`.
        resume: continue from the last checkpoint, or from the beginning if there is none yet.
        config: the configuration as YAML, kept in the folder so that the model can be loaded again.

    Raises InputError if something given cannot be used, or the disk is full; DivergenceError if the loss or the
    gradient is not finite.  Checkpoints saved before stay.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with join_processes(options.device) as processes, TrainingProgress(quiet=not processes.leads) as progress:
        folder = RunFolder(processes.share(run))
        if processes.leads and not resume:
            folder.require_new()
        return _train(task, model, options, folder, processes, progress, resume=resume, config=config)


def _train(
    task: Task,
    model: ModelFactory,
    options: TrainingOptions,
    folder: RunFolder,
    processes: Processes,
    progress: TrainingProgress,
    *,
    resume: bool,
    config: str | None,
) -> TrainingResult:
    start = StartingPoint(options.start_from) if options.start_from else None
    task.prepare()
    factory = _RecordedFactory(model)
    torch.manual_seed(options.seed)
    network = task.build(factory)
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    last = checkpoint.find(folder.checkpoints / "last") if resume else None
    if start and last is None:
        start.give_to(network, task)
    position = Position(**checkpoint.load_state(last)["position"]) if last else Position()
    position.steps = options.steps or position.steps
    learner = Learner(task, network, options, processes, resume_from=last)
    if processes.leads:
        _begin(folder, learner, config, {"input_size": factory.size, "parameters": n_parameters})
        progress.say(f"{folder.path}: {n_parameters:,} parameters, from step {position.step:,}")
    with _log(folder, processes, position.step) as log:
        finished = Loop(learner, position, folder, log, progress).run()
    if not processes.leads:
        return TrainingResult(folder.path, finished, None, [], leads=False)
    tested = _test_best(folder, learner, factory) if finished and task.has_test else {}
    return _finish(folder, task, position, tested, finished=finished)


class _RecordedFactory:
    """Builds what the factory builds and remembers the size it was asked for: with it, weights can be loaded later."""

    def __init__(self, factory: ModelFactory) -> None:
        self._factory = factory
        self.size: int | None = None

    def __call__(self, size: int) -> nn.Module:
        self.size = size
        return self._factory(size)


def _log(folder: RunFolder, processes: Processes, step: int) -> AbstractContextManager[MetricsLog | None]:
    return MetricsLog(folder.metrics, folder.tensorboard, step=step) if processes.leads else nullcontext()


def _begin(folder: RunFolder, learner: Learner, config: str | None, model: Mapping[str, int | None]) -> None:
    """Write all that is known before the first step; raises InputError if the data of a resumed run has changed."""
    data = json.loads(json.dumps(learner.task.record()))
    before = folder.read_record().get("data", data)
    changed = [name for name in {**before, **data} if before.get(name) != data.get(name)]
    if changed:
        raise InputError(
            f"{folder.path} was begun on other data: {', '.join(changed)} differ from its record.json; "
            f"restore the data, or begin a new run: longreach train --config {folder.config}"
        )
    folder.create()
    if config is not None:
        replace_text(folder.config, config)
    with writing(folder.path):
        learner.task.save(folder.path)
    options, processes = learner.options, learner.processes
    folder.add_to_record(
        {
            "started": folder.read_record().get("started", f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"),
            "machine": machine(),
            "device": str(processes.device),
            "processes": processes.count,
            "parallel": options.parallel if processes.count > 1 else None,
            "seed": options.seed,
            "start_from": str(options.start_from) if options.start_from else None,
            "model": {"class": type(learner.model).__name__, **model},
            "task": type(learner.task).__name__,
            "data": data,
        }
    )


def _test_best(folder: RunFolder, learner: Learner, factory: ModelFactory) -> dict[str, float]:
    """The best checkpoint on the test data; in a model of its own, for the trained one may lie in shards."""
    best = checkpoint.find(folder.checkpoints / "best")
    if best is None:
        return {}
    model = learner.task.build(factory)
    checkpoint.load_model(model, best)
    return learner.test(model)


def _finish(
    folder: RunFolder, task: Task, position: Position, tested: Mapping[str, float], *, finished: bool
) -> TrainingResult:
    """Write the results and draw the plots."""
    best = read_best(folder)
    if best:
        best = best._replace(metrics={**best.metrics, **tested})
    folder.add_to_record(
        {
            "result": {
                "finished": finished,
                **asdict(position),
                "memory": peak_memory(),
                "metrics": best.metrics if best else None,
            }
        }
    )
    plots = [folder.plots / "loss.png"]
    plot_loss(plots[0], read_metrics(folder.metrics), task.objective)
    for name, curve in best.curves.items() if best else ():
        plots.append(folder.plots / f"{name}.png")
        plot_curve(plots[-1], curve)
    return TrainingResult(folder.path, finished, best, plots, leads=True)


def read_best(folder: RunFolder) -> Evaluation | None:
    """The evaluation of the best checkpoint, as it was made when that was saved."""
    found = checkpoint.find(folder.checkpoints / "best")
    if found is None:
        return None
    saved = checkpoint.load_state(found)["evaluation"]
    return Evaluation(saved["metrics"], {name: Curve(**curve) for name, curve in saved["curves"].items()})
