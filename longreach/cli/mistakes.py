"""A parser's complaint in the words of a user, with the name that was probably meant."""

import difflib
import inspect
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterable

from torch import nn

from longreach.tasks.base import Task
from longreach.training import TrainingOptions

KEY = re.compile(r'Parser key "([\w.]+)":\s*')
OWNER = re.compile(r"class_path='([\w.]+)'|class_path '([\w.]+)':")
WRAPPING = re.compile(
    r"Type \S*Callable\[.*?\] expects a function or a callable class:\s*|Problem with given class_path '[\w.]+':\s*"
)
EXPECTED = re.compile(r"^\s*Expected an? (?:typing\.Literal\[(.*)\]|<class '(\w+)'>)\. Got value: (.*)")
CHOICES = re.compile(r"\(choose from (.*)\)")
DETAILS = re.compile(r" Got value: |\n\s*- |\n\s*Given value")
UNKNOWN_NAME = re.compile(
    r"(?:Option '|option '|invalid choice: '|there is no class |unrecognized arguments: --)([\w.]+)", re.IGNORECASE
)


def explain(error: ArgumentError, names: Iterable[str]) -> str:
    """Where in the configuration the mistake is, what it is, and the closest name that exists.

    `names` are those that may be meant beside classes and their arguments.
    """
    message = str(error)
    where = ".".join(KEY.findall(message))
    innermost = KEY.split(message)[-1]
    owner = OWNER.search(innermost)
    owner_path = next(filter(None, owner.groups())) if owner else None
    complaint = WRAPPING.sub("", innermost)
    complaint = EXPECTED.sub(lambda m: f"{m[3]!r} is " + (f"none of {m[1]}" if m[1] else f"no {m[2]}"), complaint)
    complaint = DETAILS.split(complaint)[0].strip().rstrip(".")
    complaint = re.sub(
        r"Expected a dot import path string: (\S+)",
        r"there is no class \1 here; a class of your own is named by its import path, package.module.Class",
        complaint,
    )
    unknown = UNKNOWN_NAME.search(complaint)
    choices = CHOICES.search(complaint)
    known = set(re.findall(r"[\w-]+", choices[1])) if choices else {*names, *_known_names()}
    if owner_path and complaint.endswith("is not accepted"):
        complaint += f" by {owner_path}"
        known = _arguments(owner_path)
    suggestion = _suggestion(unknown[1], known) if unknown else ""
    return (f"{where}: " if where else "") + complaint + suggestion


def _suggestion(name: str, known: set[str]) -> str:
    """`; did you mean ...?` if one of the known names is close; of a dotted name, its last part counts."""
    parents, dot, last = name.rpartition(".")
    close = difflib.get_close_matches(last, sorted(known), n=1)
    return f"; did you mean {parents + dot + close[0]!r}?" if close else ""


def _known_names() -> set[str]:
    """The classes of this package that a configuration can name, and their arguments."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("longreach.")]
    classes = {item for module in modules for item in vars(module).values() if inspect.isclass(item)}
    classes = {c for c in classes if issubclass(c, nn.Module | Task | TrainingOptions)}
    return {c.__name__ for c in classes} | {argument for c in classes for argument in inspect.signature(c).parameters}


def _arguments(class_path: str) -> set[str]:
    """The arguments of one class."""
    module, _, name = class_path.rpartition(".")
    return set(inspect.signature(getattr(sys.modules[module], name)).parameters)
