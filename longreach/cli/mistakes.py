"""A parser's complaint in the words of a user, with the name that was probably meant."""

import difflib
import inspect
import re
import sys
from argparse import ArgumentError

from torch import nn

from longreach.tasks.base import Task
from longreach.training import TrainingOptions

UNKNOWN_NAME = re.compile(
    r"(?:Option|option|key|choice:?|import path string:|Unrecognized arguments:) '?(?:-{0,2})([\w.]+)'?"
)


def explain(error: ArgumentError) -> str:
    """Where in the configuration the mistake is, what it is, and the closest name that exists."""
    message = str(error)
    keys = re.findall(r'Parser key "([\w.]+)":', message)
    core = re.split(r'Parser key "[\w.]+":\s*', message)[-1]
    core = re.sub(r"Type typing\.\S+ expects a function or a callable class: ", "", core)
    core, _, given = core.partition(" Got value: ")
    where = ".".join(keys)
    owner = re.match(r"Namespace\(class_path='([\w.]+)'", given)
    owned = f" by {owner[1]}" if owner else ""
    return f"{where + ': ' if where else ''}{core.strip().rstrip('.')}{owned}{_suggestion(core)}"


def _suggestion(message: str) -> str:
    """`; did you mean ...?` if a name in the message is close to one that exists."""
    found = UNKNOWN_NAME.search(message)
    if not found:
        return ""
    *_, name = found[1].split(".")
    close = difflib.get_close_matches(name, sorted(_known_names()), n=1)
    return f"; did you mean {close[0]!r}?" if close and close[0] != name else ""


def _known_names() -> set[str]:
    """The classes that a configuration can name, and all their arguments."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("longreach.")]
    classes = {item for module in modules for item in vars(module).values() if inspect.isclass(item)}
    ours = {c for c in classes if issubclass(c, nn.Module | Task | TrainingOptions)}
    names = {parameter for c in ours for parameter in inspect.signature(c).parameters}
    return names | {c.__name__ for c in ours}
