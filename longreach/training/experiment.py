"""An experiment as a configuration: a task, a model and how the one is trained on the other.

    task:        a Task by class name, with its arguments
    model:       anything that builds a module from the size of the vocabulary, usually LanguageModel
    training:    TrainingOptions

The signatures of these classes are the schema.  A class of this package is named by its name, any other by its import
path.  Read by jsonargparse: an unknown key or a value of the wrong type is an error that names it.
"""

from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from torch import nn

import longreach.mixers
import longreach.models
import longreach.tasks  # noqa: F401 (these imports make the classes known by their short names)
from longreach.errors import InputError
from longreach.tasks.base import ModelFactory, Task
from longreach.training.options import TrainingOptions

SECTIONS: dict[str, tuple[Any, str]] = {
    "task": (Task, "What is learned, and from which data."),
    "model": (ModelFactory, "What learns it."),
    "training": (TrainingOptions, "How."),
}


class Experiment(NamedTuple):
    """What a configuration says."""

    task: Task
    model: ModelFactory
    training: TrainingOptions
    config: str
    """The whole configuration, every default written out, as YAML."""


def add_experiment_arguments(parser: ArgumentParser) -> None:
    """Add --config, --task, --model and --training, with dotted names for everything in them."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser.add_argument("--config", action="config", help="A YAML file with the sections task, model and training.")
    for name, (kind, text) in SECTIONS.items():
        parser.add_argument(f"--{name}", type=kind, help=text)


def build_experiment(parsed: Namespace) -> Experiment:
    """The objects that parsed arguments describe; the model is built when its factory is called."""
    for name in ("task", "model"):
        if parsed[name] is None:
            raise InputError(f"there is no {name} to train; name a configuration: --config configs/....yaml")

    def build_model(size: int) -> nn.Module:
        """A new model each time, with everything that it is made of, under the caller's seed."""
        return _build_section("model", parsed)(size)

    sections = Namespace({name: parsed[name] for name in SECTIONS})
    return Experiment(
        task=_build_section("task", parsed),
        model=build_model,
        training=_build_section("training", parsed),
        config=_parser().dump(sections, skip_unset=False),
    )


def read_model(section: Mapping[str, Any]) -> ModelFactory:
    """What builds the model of a `model` section; raises InputError if it is not a valid one."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--model", type=ModelFactory)
    try:
        return parser.instantiate(parser.parse_object({"model": dict(section)})).model
    except ArgumentError as error:
        raise InputError(f"this is not a model that can be built: {error}") from error


def read_experiment(path: Path) -> Experiment:
    """The experiment in a file; raises InputError if it is not a valid one."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        return build_experiment(_parser().parse_path(path))
    except ArgumentError as error:
        raise InputError(f"{path} is not a configuration that can be used: {error}") from error


def _build_section(name: str, parsed: Namespace) -> Any:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", type=SECTIONS[name][0])
    return parser.instantiate(Namespace({name: parsed[name]}).clone())[name]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_experiment_arguments(parser)
    return parser
