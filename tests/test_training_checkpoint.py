"""Checkpoints: exact, complete or not there, and clear about what is wrong with them."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from training_toys import TableModel, start_process

from longreach.errors import InputError
from longreach.training import TrainingOptions, checkpoint
from longreach.training.optimiser import make_optimiser


def trained(model: nn.Module, steps: int = 3) -> torch.optim.Optimizer:
    """An optimiser that has moved the model."""
    optimiser = make_optimiser(model, TrainingOptions(steps=1))
    for _ in range(steps):
        model.token_losses(torch.arange(8)[None], torch.arange(8)[None]).sum().backward()
        optimiser.step()
    return optimiser


def save_model(folder: Path, model: nn.Module, **state: object) -> None:
    checkpoint.save(folder, {checkpoint.MODEL: checkpoint.model_tensors(model)}, state, write=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "last"


def test_weights_and_statistics_come_back_bit_for_bit(folder: Path) -> None:
    model = TableModel(8)
    optimiser = trained(model)
    files = {
        checkpoint.MODEL: checkpoint.model_tensors(model),
        checkpoint.OPTIMISER: checkpoint.optimiser_tensors(model, optimiser),
    }
    checkpoint.save(folder, files, {"step": 3}, write=True)

    other = TableModel(8)
    other_optimiser = make_optimiser(other, TrainingOptions(steps=1))
    checkpoint.load_model(other, folder)
    checkpoint.load_optimiser(other_optimiser, other, folder)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        before, after = optimiser.state[ours], other_optimiser.state[theirs]
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before), name
    assert checkpoint.load_state(folder)["step"] == 3


def test_parameters_that_never_had_a_gradient_have_no_statistics(folder: Path) -> None:
    model = TableModel(8)
    model.spare = nn.Linear(3, 3)
    optimiser = trained(model)
    checkpoint.save(folder, {checkpoint.OPTIMISER: checkpoint.optimiser_tensors(model, optimiser)}, {}, write=True)
    fresh = make_optimiser(model, TrainingOptions(steps=1))
    checkpoint.load_optimiser(fresh, model, folder)
    assert model.spare.weight not in fresh.state
    assert model.head.weight in fresh.state


def test_tied_weights_are_stored_once_and_stay_tied(folder: Path) -> None:
    model, other = TableModel(8, width=8), TableModel(8, width=8)
    for network in (model, other):
        network.head.weight = network.embedding.weight
    save_model(folder, model)
    assert "head.weight" not in load_file(folder / checkpoint.MODEL)
    checkpoint.load_model(other, folder)
    assert torch.equal(other.head.weight, model.head.weight)
    assert other.head.weight is other.embedding.weight


def test_buffers_are_kept_if_they_are_persistent(folder: Path) -> None:
    class Buffers(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.register_buffer("kept", torch.tensor([value]))
            self.register_buffer("derived", torch.tensor([value]), persistent=False)

    save_model(folder, Buffers(1.0))
    other = Buffers(2.0)
    checkpoint.load_model(other, folder)
    assert other.kept.item() == 1.0
    assert other.derived.item() == 2.0


class _PowerCutError(BaseException):
    """Nothing may catch it, as nothing catches the end of the process."""


def _dying_at(call: int, calls: Iterator[int], function: Callable) -> Callable:
    def wrapped(*arguments: object, **options: object) -> object:
        if next(calls) == call:
            raise _PowerCutError
        return function(*arguments, **options)

    return wrapped


def test_whenever_the_process_dies_a_complete_checkpoint_is_left(folder: Path) -> None:
    """Die before every single operation on the disk, one after the other."""
    outcomes = []
    for call in range(100):
        shutil.rmtree(folder.parent, ignore_errors=True)
        save_model(folder, TableModel(8), step=1)
        calls = iter(range(1000))
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in [
                (checkpoint, "save_file"), (checkpoint, "flush_to_disk"), (checkpoint, "digest"), (shutil, "rmtree"),
                (Path, "rename"), (Path, "mkdir"), (Path, "write_text"),
            ]:  # fmt: skip
                patch.setattr(owner, name, _dying_at(call, calls, getattr(owner, name)))
            try:
                save_model(folder, TableModel(8), step=2)
            except _PowerCutError:
                died = True
            else:
                died = False
        found = checkpoint.find(folder)
        checkpoint.load_model(TableModel(8), found)
        outcomes.append(checkpoint.load_state(found)["step"])
        save_model(folder, TableModel(8), step=3)
        assert checkpoint.load_state(checkpoint.find(folder))["step"] == 3
        assert [path.name for path in folder.parent.iterdir()] == ["last"]
        if not died:
            break
    assert len(outcomes) > 10
    assert outcomes == sorted(outcomes)
    assert outcomes[0] == 1
    assert outcomes[-1] == 2


def test_a_full_disk_leaves_the_checkpoint_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(folder, TableModel(8), step=1)

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(InputError, match=r"cannot save .*last.* No space left .* intact.*--resume"):
        save_model(folder, TableModel(8), step=2)
    assert checkpoint.load_state(folder)["step"] == 1
    checkpoint.load_model(TableModel(8), folder)
    assert [path.name for path in folder.parent.iterdir()] == ["last"]


def _save_with_no_room(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        save_model(folder, TableModel(8, width=4096), step=2)
    except InputError as error:
        (folder.parent.parent / "message").write_text(str(error))


def test_the_operating_system_refusing_to_write_is_reported(folder: Path) -> None:
    """The real thing, by a limit on the size of files."""
    save_model(folder, TableModel(8), step=1)
    process = start_process(_save_with_no_room, folder)
    process.join(30)
    assert process.exitcode == 0
    assert "File too large" in (folder.parent.parent / "message").read_text()
    assert checkpoint.load_state(checkpoint.find(folder))["step"] == 1


def test_a_model_of_another_shape_is_refused_with_every_difference(folder: Path) -> None:
    save_model(folder, TableModel(8))
    other = TableModel(9)
    other.spare = nn.Linear(2, 2, bias=False)
    del other.norm
    with pytest.raises(InputError) as caught:
        checkpoint.load_model(other, folder)
    message = str(caught.value)
    assert "missing: spare.weight" in message
    assert "unexpected: norm.bias, norm.weight" in message
    assert "head.weight (8, 8) instead of (9, 8)" in message


def test_statistics_of_another_shape_are_refused(folder: Path) -> None:
    model = TableModel(8)
    statistics = checkpoint.optimiser_tensors(model, trained(model))
    statistics["head.bias:exp_avg"] = torch.zeros(3)
    del statistics["head.bias:step"]
    checkpoint.save(folder, {checkpoint.OPTIMISER: statistics}, {}, write=True)
    with pytest.raises(InputError, match=r"missing: head.bias:step; .*head.bias:exp_avg \(3,\) instead of \(8,\)"):
        checkpoint.load_optimiser(make_optimiser(model, TrainingOptions(steps=1)), model, folder)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed", "foreign", "no state", "broken state"])
def test_damage_is_noticed(folder: Path, damage: str) -> None:
    save_model(folder, TableModel(8))
    path = folder / checkpoint.MODEL
    if damage == "flipped":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "removed":
        path.unlink()
    elif damage == "foreign":
        save_file({"a": torch.zeros(1)}, path)
    elif damage == "no state":
        (folder / checkpoint.STATE).unlink()
    else:
        (folder / checkpoint.STATE).write_text('{"step": 1')
    with pytest.raises(InputError, match=r"(model.safetensors|state.json).*another"):
        checkpoint.load_model(TableModel(8), folder)


def test_a_file_that_is_what_was_saved_but_not_safetensors_is_refused(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / checkpoint.MODEL).write_bytes(b"not tensors")
    digests = {checkpoint.MODEL: checkpoint.digest(folder / checkpoint.MODEL)}
    (folder / checkpoint.STATE).write_text(json.dumps({"sha256": digests}))
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load_model(TableModel(8), folder)
