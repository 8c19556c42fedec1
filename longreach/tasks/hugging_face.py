"""Data sets of the Hugging Face hub by name, through the optional package `datasets`.

data: hf:stanfordnlp/imdb
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longreach.errors import InputError

PREFIX = "hf:"


def hub_name(data: Path) -> str | None:
    """The name of a data set on the hub, or None for a path."""
    text = str(data)
    return text.removeprefix(PREFIX) if text.startswith(PREFIX) else None


def source_name(data: Path) -> str:
    """What data are called in settings, from whichever folder they are named."""
    return str(data) if hub_name(data) else str(data.absolute())


def load_rows(name: str, split: str, columns: Sequence[str]) -> Any:
    """The rows of a split, a datasets.Dataset.

    Raises InputError where the package, the network, the split or a column is missing.
    """
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise InputError(
            f"{PREFIX}{name} needs the package datasets: pip install 'longreach[hf]', or name a folder with the files"
        ) from None
    try:
        rows = datasets.load_dataset(name, split=split)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"cannot load the {split} split of {PREFIX}{name} ({reason}); check the name and the network, or name a "
            "folder with the files"
        ) from None
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise InputError(
            f"the {split} split of {PREFIX}{name} has no column {', '.join(missing)}, only "
            f"{', '.join(rows.column_names)}; it is another data set"
        )
    return rows
