"""Options of a command from a dataclass: its fields are the names, types and defaults, its docstring the help."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from docstring_parser import parse
from jsonargparse import ArgumentParser, Namespace

T = TypeVar("T")


def add_options(parser: ArgumentParser, options: type, lists: Mapping[str, Mapping[str, Any]]) -> None:
    """Add `--name` for every field, with dashes; `lists` says how those are written that take several values."""
    help_of = {parameter.arg_name: parameter.description for parameter in parse(options.__doc__ or "").params}
    types = get_type_hints(options)
    for field in fields(options):
        how = lists.get(field.name, {"type": types[field.name]})
        default = None if field.name in lists else field.default
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=default, help=help_of[field.name], **how)


def build_options(parsed: Namespace, options: type[T]) -> T:
    """The dataclass with the parsed values; lists that were not given keep their default."""
    given = {field.name: parsed[field.name] for field in fields(options)}  # type: ignore[arg-type]
    return options(**{name: value for name, value in given.items() if value is not None})
