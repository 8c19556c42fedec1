"""What a system says for a task: the data it reads, the model, how it is trained, and who says so.

Sections of configurations are plain dictionaries, put together here from the parts that models share.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from longreach.bench.lra.tasks import Config, Pipeline, Reading, task_of


class Size(NamedTuple):
    """How large a model is, where it is not as large as published."""

    layers: int
    width: int
    heads: int = 4
    expand: int = 2
    """Width of a Transformer's MLPs in multiples of its own."""
    length: int | None = None
    """The longest sequence, where it is not the task's."""


@dataclass(frozen=True)
class Recipe:
    """All that a configuration holds apart from the task's own arguments.

    Attributes:
        model: the `model` section.
        pipeline: how the task's data are read.
        batch_size: examples per step.
        training: the `training` section, with the number of steps.
        source: where the hyperparameters are from.
        published: whether they were published for this system on this task; else they are a neighbour's.
        said_of: the task that they were published for, where it is another one.
        differences: what is not as published.
    """

    model: Config
    pipeline: Pipeline
    batch_size: int
    training: Config
    source: str
    published: bool
    said_of: str
    differences: tuple[str, ...] = ()


def reading_of(task: str, pipeline: Pipeline, size: Size | None) -> Reading:
    """What a model has to read."""
    found = task_of(task).readings[pipeline]
    return found if size is None or size.length is None else found._replace(length=size.length)


def of(name: str, arguments: Mapping[str, object] = {}) -> Config:
    """A class by its name, with what its constructor is given."""
    return {"class_path": name, "init_args": dict(arguments)} if arguments else {"class_path": name}


def classifier(reading: Reading, backbone: Config, options: Mapping[str, object] = {}) -> Config:
    """A `model` section; `options` are those of Classifier."""
    facts: Config = {"n_classes": reading.n_classes, "inputs": reading.inputs}
    if reading.pair:
        facts["pair"] = "compared"
    return of("Classifier", {**facts, **options, "backbone": backbone})


def stack(size: tuple[int, int], mixer: Config, channel_mixer: Config, options: Mapping[str, object]) -> Config:
    """A Backbone of so many layers and channels; `options` are its own."""
    layers, width = size
    parts = {"d_model": width, "n_layers": layers, "mixers": [mixer], "channel_mixer": channel_mixer}
    return of("Backbone", {**parts, **options})


def training(steps: int, warmup: int, lr: float, decay: float, options: Mapping[str, object]) -> Config:
    """A `training` section."""
    return {"steps": steps, "warmup_steps": warmup, "lr": lr, "weight_decay": decay, **options}
