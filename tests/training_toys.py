"""A task and models so small that a whole run takes a fraction of a second, and tools to compare runs."""

import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.tasks.base import Batch, Curve, Evaluation, ModelFactory, Task
from longreach.training import TrainingOptions, TrainingResult, train

PRELOADED = ["longreach.training", "torch.utils.tensorboard", "matplotlib.backends.backend_agg"]
TIMES = ("seconds", "tokens_per_second", "memory")


class CountingTask(Task):
    """Predict the next number of a noisy count.

    Args:
        vocab_size: where the count starts again.
        length: of a sequence.
        batch_size: sequences in a step.
    """

    objective = "bits"

    def __init__(self, vocab_size: int = 8, length: int = 8, batch_size: int = 8) -> None:
        self.vocab_size, self.length, self.batch_size = vocab_size, length, batch_size

    def prepare(self) -> None:
        """Nothing to do."""

    def build(self, model: ModelFactory) -> nn.Module:
        """A model of the vocabulary."""
        return model(self.vocab_size)

    def batch(self, step: int, part: int, parts: int) -> Batch:
        """Sequences drawn for this step."""
        tokens = self._sequences(step, self.batch_size).chunk(parts)[part]
        return Batch(tokens[:, :-1], tokens[:, 1:])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of cross-entropies."""
        return model.token_losses(batch.inputs, batch.targets).sum()

    def evaluate(self, model: nn.Module) -> Evaluation:
        """On sequences of their own."""
        assert not model.training
        tokens = self._sequences(10**6, 32)
        bits = model.token_losses(tokens[:, :-1], tokens[:, 1:]).mean(0) / math.log(2)
        curve = Curve("position", "bits", [float(i + 1) for i in range(self.length)], bits.tolist())
        return Evaluation({"bits": float(bits.mean())}, {"bits_by_position": curve})

    def describe_loss(self, loss: float) -> dict[str, float]:
        """Nats as bits."""
        return {"bits": loss / math.log(2)}

    def record(self) -> dict[str, object]:
        """The options."""
        return {"vocab_size": self.vocab_size}

    def save(self, folder: Path) -> None:
        """Something to find in the folder."""
        (folder / "tokenizer.json").write_text("{}")

    def _sequences(self, seed: int, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randint(self.vocab_size, (count, 1), generator=generator)
        tokens = (start + torch.arange(self.length + 1)) % self.vocab_size
        noise = torch.rand(tokens.shape, generator=generator) < 0.1
        return torch.where(noise, torch.randint(self.vocab_size, tokens.shape, generator=generator), tokens)


class TableModel(nn.Module):
    """Predicts a token from the one before.

    Args:
        vocab_size: number of tokens.
        width: of the embedding.
        dropout: probability.
    """

    def __init__(self, vocab_size: int, *, width: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.dropout(self.norm(self.embedding(tokens))))

    def token_losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of every target."""
        losses = F.cross_entropy(self(tokens).flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(targets.shape)


class SignallingTask(CountingTask):
    """Sends itself a signal in the middle of a step, in one process of a run."""

    def __init__(self, at: int, number: int = signal.SIGINT, times: int = 1, rank: str = "0") -> None:
        super().__init__()
        self.at, self.number, self.times, self.rank = at, number, times, rank

    def batch(self, step: int, part: int, parts: int) -> Batch:
        """As ever."""
        if step == self.at and os.environ.get("RANK", "0") == self.rank:
            while self.times:
                self.times -= 1
                signal.raise_signal(self.number)
        return super().batch(step, part, parts)


class TrapTask(CountingTask):
    """Token 0 everywhere in the last part of step 7."""

    def batch(self, step: int, part: int, parts: int) -> Batch:
        """As ever, but for that."""
        inputs, targets, _ = super().batch(step, part, parts)
        return Batch(torch.zeros_like(inputs) if step == 6 and part == parts - 1 else inputs, targets)


class ExplodingModel(TableModel):
    """Goes wrong at a sequence of zeros, as TrapTask has them."""

    def __init__(self, vocab_size: int, where: str) -> None:
        super().__init__(vocab_size, dropout=0.0)
        self.trap = Trap(where)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, if all goes well."""
        hidden = self.trap(self.norm(self.embedding(tokens)), armed=bool((tokens == 0).all()))
        return self.head(hidden)


class Trap(nn.Module):
    """Not finite in the forward or in the backward pass only."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: Tensor, armed: bool) -> Tensor:
        """What comes in, unless armed."""
        if not armed:
            return x
        return x / 0 if self.where == "forward" else x + (x * 0).abs().sqrt()


def small_run(
    run: Path, *, task: Task | None = None, model: ModelFactory = TableModel, **changes: object
) -> TrainingResult:
    """Train a toy; `resume` and `config` go to `train`, the other changes to the options."""
    to_train = {name: changes.pop(name) for name in ("resume", "config") if name in changes}
    options = {"steps": 12, "warmup_steps": 3, "lr": 0.01, "evaluate_every": 4, "device": "cpu", "threads": 1}
    return train(task or CountingTask(), model, TrainingOptions(**(options | changes)), run, **to_train)


def tensors(run: Path, checkpoint: str = "last") -> dict[str, Tensor]:
    """Everything in a checkpoint, by file and name."""
    folder = run / "checkpoints" / checkpoint
    return {
        f"{path.name}:{name}": value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()
    }


def metrics(run: Path) -> list[dict[str, object]]:
    """The lines of metrics.jsonl without those numbers that depend on the machine."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_same_run(run: Path, other: Path) -> None:
    """Weights, optimiser and metrics are the same bit for bit."""
    ours, theirs = tensors(run), tensors(other)
    assert ours.keys() == theirs.keys()
    assert ours
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert metrics(run) == metrics(other)


def start_process(target: Callable[..., object], *arguments: object, **environment: str) -> BaseProcess:
    """Start `target` in a process of its own, which has imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_in_environment, args=(target, arguments, environment), daemon=True)
    process.start()
    return process


def _in_environment(target: Callable[..., object], arguments: tuple[object, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    target(*arguments)
