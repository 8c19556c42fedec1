"""An experiment as a configuration: a task, a model and how the one is trained on the other.

    task:        a Task by class name, with its arguments
    model:       anything that builds a module from the size of the vocabulary, usually LanguageModel
    training:    TrainingOptions

The signatures of these classes are the schema.  A class of this package is named by its name, any other by its import
path.  Read by jsonargparse: an unknown key or a value of the wrong type is an error that names it.
"""

from pathlib import Path
from typing import NamedTuple

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from torch import nn

import longreach.mixers
import longreach.models
import longreach.tasks  # noqa: F401 (these imports make the classes known by their short names)
from longreach.errors import InputError
from longreach.tasks.base import ModelFactory, Task
from longreach.training.options import TrainingOptions


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
    parser.add_argument("--task", type=Task, required=True, help="What is learned, and from which data.")
    parser.add_argument("--model", type=ModelFactory, required=True, help="What learns it.")
    parser.add_argument("--training", type=TrainingOptions, help="How.")


def build_experiment(parsed: Namespace) -> Experiment:
    """The objects that parsed arguments describe."""
    sections = Namespace({name: parsed[name] for name in ("task", "model", "training")})
    parser = _parser()
    built = parser.instantiate(sections.clone())

    def build_model(size: int) -> nn.Module:
        """A new model each time: what the model is made of is built now, under the caller's seed."""
        return parser.instantiate(sections.clone()).model(size)

    return Experiment(built.task, build_model, built.training, parser.dump(sections, skip_unset=False))


def read_experiment(path: Path) -> Experiment:
    """The experiment in a file; raises InputError if it is not a valid one."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    return build_experiment(_parser().parse_path(path))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_experiment_arguments(parser)
    return parser
