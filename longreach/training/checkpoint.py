"""Checkpoints: folders that are complete or not there, whenever the process dies.

    model.safetensors       parameters and buffers by name, whole even where they were trained in shards
    optimiser.safetensors   `parameter name:statistic` of AdamW (in `last` only)
    state.json              step, plan, best result, and the SHA-256 of the files above

A folder is written beside the one it replaces, flushed to the disk, then renamed into place; until that is done the
one before stays.  No random state is stored: a step seeds its own (see longreach.training.loop).
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longreach.disk import flush_to_disk
from longreach.errors import InputError
from longreach.training.processes import full_tensor, like_shards

MODEL, OPTIMISER, STATE = "model.safetensors", "optimiser.safetensors", "state.json"
SHOWN_NAMES = 5


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a parameter with several names (tied weights) has its first one."""
    first = {name for name, _ in model.named_parameters()}
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)} - first
    return {name: tensor for name, tensor in model.state_dict().items() if name not in aliases}


def optimiser_tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The statistics that the optimiser keeps of every parameter, as `parameter name:statistic`."""
    return {
        f"{name}:{statistic}": tensor
        for name, parameter in model.named_parameters()
        for statistic, tensor in optimiser.state.get(parameter, {}).items()
    }


def save(folder: Path, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, write: bool) -> None:
    """Replace `folder` by one that holds these files of tensors, and `state`.

    Every process calls it, because shards are gathered here; only the one with `write` touches the disk.  Raises
    InputError if the disk refuses, and leaves the folder as it was.
    """
    gathered = {name: _gather(tensors, keep=write) for name, tensors in files.items()}
    if not write:
        return
    with replacing(folder) as fresh:
        digests = {}
        for name, tensors in gathered.items():
            save_file(tensors, fresh / name)
            digests[name] = digest(fresh / name)
        (fresh / STATE).write_text(json.dumps({**state, "sha256": digests}, indent=1))


def _gather(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    gathered = {}
    for name, tensor in tensors.items():
        whole = full_tensor(tensor)
        if keep:
            gathered[name] = whole
    return gathered


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` when the block ends without an error.

    There is an instant between two renames at which only `<folder>.old` exists; `find` knows.
    """
    fresh, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
        for path in (*fresh.iterdir(), fresh):
            flush_to_disk(path)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        fresh.rename(folder)
        flush_to_disk(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise InputError(
            f"cannot save {folder}: {error}; the checkpoints saved before are intact: "
            "make room or mend the disk, then continue with --resume"
        ) from error
    shutil.rmtree(old, ignore_errors=True)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(folder: Path) -> Path | None:
    """The checkpoint named `folder`, or the one it was about to replace when the process died, or None."""
    for candidate in (folder, folder.with_name(f"{folder.name}.old")):
        if (candidate / STATE).exists():
            return candidate
    return None


def load_state(folder: Path) -> dict[str, Any]:
    """What `save` was given as `state`."""
    try:
        state = json.loads((folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {folder / STATE}: {error}; the checkpoint is damaged, use another") from error
    return state


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """One file of a checkpoint, after a look at its digest."""
    path = folder / name
    expected = load_state(folder).get("sha256", {}).get(name)
    try:
        if digest(path) != expected:
            raise InputError(f"{path} is damaged: it is not the file that was saved; use another checkpoint")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path}: {error}; the checkpoint is damaged, use another") from error


def load_model(model: nn.Module, folder: Path) -> None:
    """Copy the weights of a checkpoint into a model that is not sharded; both must have the same names and shapes."""
    own, saved = model_tensors(model), load_tensors(folder, MODEL)
    _check(folder / MODEL, {name: tensor.shape for name, tensor in own.items()}, saved)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def load_optimiser(optimiser: torch.optim.Optimizer, model: nn.Module, folder: Path) -> None:
    """Restore AdamW's statistics of every parameter that had a gradient, sharded as the parameters are now."""
    saved = load_tensors(folder, OPTIMISER)
    moved = {key.rpartition(":")[0] for key in saved}
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in moved}
    vectors = {f"{name}:{key}": p for name, p in parameters.items() for key in ("exp_avg", "exp_avg_sq")}
    shapes = {key: parameter.shape for key, parameter in vectors.items()}
    _check(folder / OPTIMISER, shapes | {f"{name}:step": torch.Size() for name in parameters}, saved)
    for name, parameter in parameters.items():
        optimiser.state[parameter] = {
            "step": saved[f"{name}:step"].to(parameter.device),
            "exp_avg": like_shards(saved[f"{name}:exp_avg"], parameter),
            "exp_avg_sq": like_shards(saved[f"{name}:exp_avg_sq"], parameter),
        }


def _check(path: Path, expected: Mapping[str, torch.Size], saved: Mapping[str, Tensor]) -> None:
    """Raise InputError listing every tensor that is missing, not expected, or of another shape."""
    problems = {
        "missing": [name for name in expected if name not in saved],
        "unexpected": [name for name in saved if name not in expected],
        "of another shape": [
            f"{name} {tuple(saved[name].shape)} instead of {tuple(shape)}"
            for name, shape in expected.items()
            if name in saved and saved[name].shape != shape
        ],
    }
    found = [f"{kind}: {_shorten(names)}" for kind, names in problems.items() if names]
    if found:
        raise InputError(
            f"{path} does not fit the model: {'; '.join(found)}; "
            "build the model with the options it was trained with (config.yaml of its run)"
        )


def _shorten(names: list[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
