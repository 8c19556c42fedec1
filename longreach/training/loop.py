"""The course of a run: step after step, with evaluations, checkpoints, metrics, and an end."""

import math
import resource
import sys
import time
from dataclasses import asdict, dataclass

import torch

from longreach.errors import InputError
from longreach.training.learner import Learner, StepResult
from longreach.training.metrics_log import MetricsLog
from longreach.training.options import MEASURED_STEPS
from longreach.training.progress import TrainingProgress
from longreach.training.run_folder import RunFolder
from longreach.training.schedule import evaluation_interval, lr_factor, steps_within
from longreach.training.stop_request import StopRequest


@dataclass
class Position:
    """How far a run is: with the weights and the optimiser's statistics, all that a checkpoint holds."""

    step: int = 0
    """Steps done."""
    steps: int | None = None
    """Steps to do; None until a budget in minutes has been turned into steps."""
    seconds: float = 0.0
    """Spent on them, evaluations and checkpoints included."""
    tokens: int = 0
    """Positions read; where every position is a target, the targets learned from."""
    best: float | None = None
    """The task's objective at the best evaluation so far."""
    best_step: int | None = None
    """The step of that evaluation."""


class Loop:
    """Takes a learner from a position to the end of its run.  `log` is None in processes that write nothing."""

    def __init__(
        self,
        learner: Learner,
        position: Position,
        folder: RunFolder,
        log: MetricsLog | None,
        progress: TrainingProgress,
    ) -> None:
        self.learner, self.position, self._folder, self._log, self._progress = learner, position, folder, log, progress
        self._unwritten: list[tuple[StepResult, float]] = []
        self._step_seconds: list[float] = []
        self._first_step = position.step
        self._seconds_before, self._started = position.seconds, time.monotonic()

    def run(self) -> bool:
        """Train to the end, or to the first SIGINT or SIGTERM in any process; True if it was the end."""
        position = self.position
        with StopRequest() as stop:
            while position.steps is None or position.step < position.steps:
                self._take_step()
                stopping = bool(self.learner.processes.sum(stop.made))
                if position.steps is None and position.step == MEASURED_STEPS:
                    self._plan()
                elif stopping or position.steps is not None:
                    self._evaluate_and_save_if_due(stopping)
                if stopping:
                    break
        return position.step == position.steps

    def _take_step(self) -> None:
        position, options = self.position, self.learner.options
        factor = lr_factor(position.step, position.steps, options)
        started = time.monotonic()
        result = self.learner.step(position.step, factor)
        seconds = time.monotonic() - started
        if len(self._step_seconds) < MEASURED_STEPS:
            self._step_seconds.append(seconds)
        position.step += 1
        position.tokens += result.tokens
        self._unwritten.append((result, seconds))
        if position.step % options.log_every == 0:
            self._write_line(options.lr * factor)

    def _write_line(self, lr: float) -> None:
        """A line of metrics for the steps since the last one: means, except for totals of the run."""
        position = self.position
        position.seconds = self._elapsed()
        results, seconds = zip(*self._unwritten, strict=True)
        self._unwritten = []
        tokens = sum(result.tokens for result in results)
        loss = sum(result.loss * result.targets for result in results) / sum(result.targets for result in results)
        values = {
            "loss": loss,
            **self.learner.task.describe_loss(loss),
            "lr": lr,
            "grad_norm": sum(result.grad_norm for result in results) / len(results),
            "tokens": position.tokens,
            "seconds": round(position.seconds, 3),
            "tokens_per_second": round(tokens / sum(seconds), 1),
            "memory": peak_memory(),
        }
        if self._log:
            self._log.write("train", position.step, values)
        self._progress.show(position.step, position.steps, values, self._seconds_left())

    def _seconds_left(self) -> float | None:
        """What the rest of the run takes if it goes on as fast as up to now; None while its end is not known."""
        position, work = self.position, self.learner.task.work
        if position.steps is None:
            return None
        pace = (position.seconds - self._seconds_before) / work(self._first_step, position.step)
        return work(position.step, position.steps) * pace

    def _plan(self) -> None:
        """Turn the budget in minutes into a number of steps, from the time that the first steps took."""
        position, options = self.position, self.learner.options
        started = time.monotonic()
        self._evaluate()
        evaluation_seconds = time.monotonic() - started
        steps = position.step + steps_within(
            60 * (options.minutes or 0) - self._elapsed(), self._step_seconds, evaluation_seconds, options
        )
        position.steps = self.learner.processes.share(steps)
        self._progress.say(f"{position.steps:,} steps are planned for {options.minutes:g} minutes")
        self._save()

    def _evaluate_and_save_if_due(self, stopping: bool) -> None:
        position, options = self.position, self.learner.options
        at_end = position.step == position.steps
        interval = evaluation_interval(position.steps, options) if position.steps is not None else None
        if (at_end or (interval and position.step % interval == 0)) and self._evaluate():
            position.steps, at_end = position.step, True
        interval = options.save_every or interval
        if at_end or stopping or (interval and position.step % interval == 0):
            self._save()

    def _evaluate(self) -> bool:
        """Judge the model, and keep it as the best if it is; whether it is as good as `stop_at`."""
        position, task, goal = self.position, self.learner.task, self.learner.options.stop_at
        evaluation = self.learner.evaluate()
        if task.objective not in evaluation.metrics:
            raise InputError(
                f"{type(task).__name__}.objective is {task.objective!r}, which is none of the metrics of its "
                f"evaluation: {', '.join(evaluation.metrics)}"
            )
        value = self.learner.processes.share(evaluation.metrics[task.objective])
        if self._log:
            self._log.write("evaluation", position.step, evaluation.metrics)
        sign = -1 if task.maximise else 1
        better = math.isfinite(value) and (position.best is None or sign * value < sign * position.best)
        remark = ", the best so far" if better else ""
        self._progress.say(f"step {position.step:,}: held-out {task.objective.replace('_', ' ')} {value:.4f}{remark}")
        if better:
            position.best, position.best_step = value, position.step
            curves = {name: curve._asdict() for name, curve in evaluation.curves.items()}
            state = {
                "position": asdict(position),
                "evaluation": {"metrics": evaluation.metrics, "curves": curves},
            }
            self.learner.save(self._folder.checkpoints / "best", state, to_resume=False)
        return goal is not None and sign * value <= sign * goal

    def _save(self) -> None:
        self.position.seconds = self._elapsed()
        if self._log:
            self._log.flush()
        state = {"position": asdict(self.position)}
        self.learner.save(self._folder.checkpoints / "last", state, to_resume=True)

    def _elapsed(self) -> float:
        """Seconds of the run so far, those before it was resumed included."""
        return self._seconds_before + time.monotonic() - self._started


def peak_memory() -> int:
    """The most memory in bytes that this process has held: on the GPU if it uses one, else on the host."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
