"""Options of a command from a dataclass: its fields are the names, types and defaults, its docstring the help."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from docstring_parser import parse
from jsonargparse import ArgumentParser, Namespace

from longreach.errors import InputError

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


def listed_words(name: str, values: list[str] | None) -> list[str]:
    """Words between commas or blanks; none if the option is not there, an InputError if there is nothing in it."""
    words = [word for value in values or [] for word in value.split(",") if word]
    if values and not words:
        raise InputError(f"--{name} {' '.join(values)!r} names nothing; leave it out, or name something")
    return words


def listed_numbers(name: str, values: list[str] | None) -> list[int]:
    """Whole numbers between commas or blanks; raises InputError, which names the first that is none."""
    words = listed_words(name, values)
    if wrong := [word for word in words if not word.isdecimal()]:
        raise InputError(f"--{name} takes whole numbers, like 128,512; {wrong[0]!r} is none")
    return [int(word) for word in words]
