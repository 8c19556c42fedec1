"""The second table of the Long Range Arena: training steps a second and peak memory on bytes of text, by length.

The models have the paper's sizes: 4 layers of 256 channels, 4 heads, MLPs of four times the width (state-space blocks:
the gated linear map of their papers).  A step is forward, backward and Adam, on random bytes.  Each system is measured
in a process of its own, from the shortest length up; what takes too long, or more memory than there is, costs its own
longer lengths and nothing else.  Every cell is kept as it is found, and not measured again.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch.nn import functional as F

from longreach.bench.lra.recipes import Size
from longreach.bench.lra.systems import SYSTEMS
from longreach.bench.memory import peak_bytes
from longreach.bench.own_process import own_process
from longreach.bench.timing import median_seconds
from longreach.disk import replace_text, writing
from longreach.errors import InputError
from longreach.training import read_model
from longreach.training.run_folder import machine

LENGTHS = (1024, 2048, 3072, 4096, 16384)
SIZE = Size(layers=4, width=256, heads=4, expand=4)
WARM_UP_LENGTH = 64
START_SECONDS, PATIENCE = 60.0, 6
"""A cell may take so long, and so many times its limit, before its process is stopped."""
CELLS = "speed.json"


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """How steps are measured.

    Attributes:
        batch_size: Sequences of a step; the paper has 32 on 16 chips.
        threads: Processor threads; 0 for torch's own choice.
        limit: Seconds for a step; a system that takes longer is not tried on longer sequences. With another limit
            cells that were given up are tried again.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.
    """

    batch_size: int = 1
    threads: int = 0
    limit: float = 8.0
    device: Literal["auto", "cpu", "cuda"] = "auto"


class SpeedCell(NamedTuple):
    """What a training step of a system costs at a length; None where it was not measured."""

    system: str
    length: int
    seconds: float | None = None
    bytes: int | None = None
    """Beyond weights and the optimiser's numbers."""
    parameters: int | None = None
    note: str = ""
    """Why nothing was measured."""


def measure_speed(
    systems: Sequence[str], lengths: Sequence[int], options: SpeedOptions, out: Path
) -> Iterator[SpeedCell]:
    """Measure the cells that are not in the folder yet; yields all of them, as they are known.

    Raises InputError for what is no system or length, and if cells in the folder were measured otherwise.
    """
    if unknown := [name for name in systems if name not in SYSTEMS]:
        raise InputError(f"there is no system {unknown[0]!r}; choose from {', '.join(SYSTEMS)}")
    if not lengths or min(lengths) < 1 or options.batch_size < 1 or options.limit <= 0:
        raise InputError(f"lengths {list(lengths)} and batch_size must be at least 1, and limit more than 0")
    cells = {(cell.system, cell.length): cell for cell in _known_cells(out, options)}
    for system in systems:
        wanted = sorted(set(lengths))
        yield from (cells[system, length] for length in wanted if (system, length) in cells)
        missing = [length for length in wanted if (system, length) not in cells]
        for cell in _in_own_process(system, missing, options):
            cells[cell.system, cell.length] = cell
            _write_cells(out, list(cells.values()), options)
            yield cell


class SpeedFile(NamedTuple):
    """What speed.json holds."""

    options: dict[str, Any]
    machine: dict[str, Any]
    cells: list[SpeedCell]


def read_speed(out: Path) -> SpeedFile | None:
    """What was measured in a folder, where and how; None if nothing was.  Raises InputError if the file is damaged."""
    path = out / CELLS
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        return SpeedFile(found["options"], found["machine"], [SpeedCell(**cell) for cell in found["cells"]])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}; remove it, and everything is measured again") from error


def _known_cells(out: Path, options: SpeedOptions) -> list[SpeedCell]:
    """The cells in a folder, which must have been measured with these options, but for the limit."""
    found = read_speed(out)
    if found is None:
        return []
    asked = asdict(options)
    if {**found.options, "limit": options.limit} != asked:
        raise InputError(
            f"{out / CELLS} was measured with {found.options}; use the same options, or another folder with --out"
        )
    return [cell for cell in found.cells if found.options == asked or cell.seconds is not None]


def _write_cells(out: Path, cells: list[SpeedCell], options: SpeedOptions) -> None:
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    found = {"options": asdict(options), "machine": machine(), "cells": [cell._asdict() for cell in cells]}
    replace_text(out / CELLS, json.dumps(found, indent=1) + "\n")


def _in_own_process(system: str, lengths: list[int], options: SpeedOptions) -> Iterator[SpeedCell]:
    if not lengths:
        return
    note = ""
    with own_process(measure_system, system, lengths, options) as receive:
        for length in lengths:
            answer = note or receive(START_SECONDS + PATIENCE * options.limit)
            cell = SpeedCell(system, length, note=answer) if isinstance(answer, str) else answer
            note = cell.note
            yield cell


def measure_system(system: str, lengths: list[int], options: SpeedOptions, answers: Connection) -> None:
    """Measure one system at all lengths; runs in the process of its own."""
    if options.threads:
        torch.set_num_threads(options.threads)
    for length in lengths:
        cell = _measure(system, length, options)
        answers.send(cell)
        if cell.seconds is not None and cell.seconds > options.limit and length != lengths[-1]:
            note = f"a step takes more than {options.limit:g} s at length {length:,}"
            for longer in lengths[lengths.index(length) + 1 :]:
                answers.send(SpeedCell(system, longer, note=note))
            return


def training_step(system: str, length: int, batch_size: int, device: str) -> tuple[Callable[[int], None], int]:
    """A step on so many of `length` bytes, and the number of parameters."""
    torch.manual_seed(0)
    model = read_model(SYSTEMS[system].recipe("text", SIZE._replace(length=length)).model)(256).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    bytes_read = torch.randint(256, (batch_size, length), device=device)
    labels = torch.randint(2, (batch_size,), device=device)

    def step(read: int) -> None:
        optimiser.zero_grad()
        F.cross_entropy(model(bytes_read[:, :read]), labels).backward()
        optimiser.step()

    return step, sum(parameter.numel() for parameter in model.parameters())


def _measure(system: str, length: int, options: SpeedOptions) -> SpeedCell:
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        step, parameters = training_step(system, length, options.batch_size, device)
        step(min(WARM_UP_LENGTH, length))
        needed = peak_bytes(lambda: step(length), device)
        seconds = median_seconds(lambda: step(length), device)
    except (InputError, RuntimeError, MemoryError) as error:
        return SpeedCell(system, length, note=str(error).splitlines()[0])
    return SpeedCell(system, length, seconds, needed, parameters)
