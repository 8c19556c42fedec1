"""`longreach recall`: every system on every task, cells that are trained once, and tables that invent nothing."""

import csv
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from longreach.bench import cell_run, recall
from longreach.bench.recall import Cell, CellResult, RecallOptions, configure, read_results, run_cell
from longreach.cli.main import run
from longreach.errors import InputError
from longreach.training import DivergenceError, read_experiment

ROOT = Path(__file__).parent.parent
TINY = RecallOptions(steps=4, width=8, layers=1, batch_size=4, held_out=8, threads=1, device="cpu")
CELL = Cell("associative", "hyena", 16, 10)


def experiment(config: dict, folder: Path):
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    return read_experiment(path)


@pytest.mark.parametrize("system", recall.SYSTEMS)
def test_every_system_learns_every_task(system: str, tmp_path: Path) -> None:
    for task, kind in recall.TASKS.items():
        cell = Cell(task, system, 32 if task != "addition" else 3, kind.default_size)
        found = experiment(configure(cell, RecallOptions(width=16)), tmp_path)
        model = found.task.build(found.model)
        batch = found.task.batch(0, 0, 1)
        loss = found.task.loss(model, type(batch)(batch.inputs[:1], batch.targets[:1]))
        loss.backward()
        assert torch.isfinite(loss)
        assert len(list(model.parameters())) > 4


@pytest.mark.parametrize("system", recall.SYSTEMS)
def test_the_models_of_a_long_table_build(system: str, tmp_path: Path) -> None:
    found = experiment(configure(Cell("associative", system, 131_072, 30), RecallOptions()), tmp_path)
    with torch.device("meta"):
        model = found.task.build(found.model)
    assert 5e4 < sum(parameter.numel() for parameter in model.parameters()) < 1e6


@pytest.mark.parametrize("path", sorted((ROOT / "configs/recall").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_configuration_is_a_cell(path: Path, tmp_path: Path) -> None:
    ours = configure(Cell("associative", path.stem, 128, 20), RecallOptions())
    assert read_experiment(path).config == experiment(ours, tmp_path).config


def test_every_system_has_a_configuration() -> None:
    assert {path.stem for path in (ROOT / "configs/recall").glob("*.yaml")} == set(recall.SYSTEMS)


def test_a_finished_cell_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_cell(CELL, TINY, tmp_path)
    assert result is not None
    assert result.cell == CELL
    assert result.steps == 4
    assert result.chance == 1 / 4
    assert 0 <= result.score <= 1
    assert result.options["lr"] == recall.SYSTEMS["hyena"].lr
    assert (tmp_path / CELL.name / "checkpoints/best").exists()

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(cell_run, "train", refuse)
    assert run_cell(CELL, TINY, tmp_path) == result == read_results(tmp_path)[0]
    (tmp_path / CELL.name / "result.json").write_text("{}")
    with pytest.raises(InputError, match=r"result\.json is damaged.*trained again"):
        read_results(tmp_path)


def test_a_cell_that_was_stopped_goes_on_as_it_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_cell(CELL, TINY, tmp_path / "whole")
    train = cell_run.train

    def stop(*arguments: object, **options: object):
        return train(*arguments, **options)._replace(finished=False)

    monkeypatch.setattr(cell_run, "train", stop)
    assert run_cell(CELL, TINY, tmp_path / "stopped") is None
    assert read_results(tmp_path / "stopped") == []
    assert cell_run.progress_of(tmp_path / "stopped" / CELL.name) == " goes on as it was begun"
    monkeypatch.setattr(cell_run, "train", train)
    again = run_cell(CELL, RecallOptions(steps=9), tmp_path / "stopped")
    assert again is not None
    assert whole is not None
    assert (again.steps, again.score) == (4, whole.score)


def test_what_failed_before_the_first_step_is_asked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise InputError("there are no data here")

    monkeypatch.setattr(cell_run, "train", fail)
    with pytest.raises(InputError, match="there are no data here"):
        run_cell(CELL, RecallOptions(steps=9), tmp_path)
    monkeypatch.undo()
    assert cell_run.progress_of(tmp_path / CELL.name) == ""
    again = run_cell(CELL, TINY, tmp_path)
    assert again is not None
    assert again.steps == 4
    assert "is finished; to train it anew, remove" in cell_run.progress_of(tmp_path / CELL.name)


def test_a_cell_that_diverges_is_empty_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = cell_run.train

    def diverge(*arguments: object, **options: object) -> None:
        train(*arguments, **options)
        (arguments[3] / "record.json").write_text(json.dumps({"model": {"parameters": 5}}))
        raise DivergenceError("the loss is nan")

    monkeypatch.setattr(cell_run, "train", diverge)
    result = run_cell(CELL, TINY, tmp_path)
    assert result is not None
    assert result.score is None
    assert "the loss is nan" in recall.markdown([result])
    assert "| hyena |  |" in recall.markdown([result])


def result(system: str, length: int, size: int | None, score: float | None, task: str = "associative") -> CellResult:
    return CellResult(task, system, length, size, score, 0.25, 0.3, 10, 20, 1.5, 1000, {}, {})


def test_tables_show_ours_and_below_them_the_published(capsys: pytest.CaptureFixture[str]) -> None:
    found = [result("h3", 64, 10, 0.5), result("attention", 2048, 20, 1.0), result("attention", 64, 10, 0.875)]
    text = recall.markdown(found)
    ours, h3, hyena = text.split("\n\nassociative: published in ")
    assert ours.splitlines()[2:] == [
        "|  | 64 / 10 | 2,048 / 20 |",
        "| --- | --: | --: |",
        "| attention | 87.5 | 100.0 |",
        "| h3 | 50.0 |  |",
        "| chance | 25.0 | 25.0 |",
        "| most frequent answer | 30.0 | 30.0 |",
    ]
    assert h3.startswith("H3, arXiv:2212.14052 (length / vocabulary)")
    assert "| s4d | 86.0 |" in h3
    assert "| attention | 100.0 | 100.0 | 92.0 | 82.0 | 32.4 | 26.7 |  |" in hyena
    Console(width=200).print(recall.tables(found))
    told = capsys.readouterr().out
    assert "87.5" in told
    assert "97.2" in told


def test_a_task_without_sizes_or_publications_has_a_table_too() -> None:
    lines = recall.markdown([result("rwkv", 3, None, 0.1, "addition")]).splitlines()
    assert lines[0] == "addition: percent right, best held-out evaluation (length)"
    assert lines[2] == "|  | 3 |"
    lines = recall.markdown([result("h3", 12, 2, 0.1, "functions")._replace(majority=None)]).splitlines()
    assert lines[0] == "functions: percent of the variance explained, best held-out evaluation (length / dimension)"
    assert lines[-1] == "| chance | 25.0 |", "numbers have no most frequent one"


@pytest.mark.parametrize(("length", "expected"), [(16, 32), (128, 32), (512, 8), (16384, 4)])
def test_steps_have_about_as_many_positions(length: int, expected: int) -> None:
    cell = CELL._replace(length=length)
    assert configure(cell, RecallOptions())["task"]["init_args"]["batch_size"] == expected
    assert configure(cell, RecallOptions(batch_size=5))["task"]["init_args"]["batch_size"] == 5
    assert configure(cell, RecallOptions(precision="bfloat16"))["training"]["precision"] == "bfloat16"


def test_published_numbers_are_of_known_tasks() -> None:
    assert {score.task for score in recall.PUBLISHED} <= set(recall.TASKS)
    assert all(0 <= score.score <= 1 for score in recall.PUBLISHED)
    assert len({score[:4] for score in recall.PUBLISHED}) == len(recall.PUBLISHED)


def test_the_command_trains_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = {"steps": 2, "width": 8, "layers": 1, "batch-size": 4, "held-out": 8, "threads": 1, "device": "cpu"}
    options = [f"--{name}={value}" for name, value in tiny.items()]
    command = ["recall", "counting", "--systems", "s4d,rwkv", "--vocabulary", "4", "--out", str(tmp_path / "new")]
    assert run([*command, "--lengths", "16,12", *options]) == 0
    told = capsys.readouterr()
    assert "cell 4 of 4: counting-rwkv-length-16-vocabulary-4" in told.err
    assert "12 / 4" in told.out
    with (tmp_path / "new/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted((row["system"], row["length"]) for row in rows) == [
        ("rwkv", "12"), ("rwkv", "16"), ("s4d", "12"), ("s4d", "16"),
    ]  # fmt: skip
    assert (tmp_path / "new/counting.png").read_bytes().startswith(b"\x89PNG")
    assert "| 12 / 4 |" in (tmp_path / "new/table.md").read_text()
    assert run(["recall", "counting", "--table", "--out", str(tmp_path / "new")]) == 0
    assert run(["recall", "counting", "--table", "--out", str(tmp_path / "none")]) == 0
    assert "no cell is finished" in capsys.readouterr().out


def test_a_signal_stops_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(recall, "run_cell", lambda cell, options, out: asked.append(cell))
    assert run(["recall", "induction", "--lengths", "8", "--out", str(tmp_path)]) == 130
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing"], "there is no task 'nothing'; choose from associative"),
        (["induction", "--systems", "h3,lstm"], "there is no system 'lstm'; choose from attention"),
        (["induction", "--lengths", "12,1e3"], "--lengths takes whole numbers"),
        (["addition", "--vocabulary", "10"], "leave --vocabulary out"),
        (["functions", "--lengths", "64", "--vocabulary", "32"], "length = 64 has 32 points"),
        (["induction", "--steps", "5", "--minutes", "1"], "give exactly one of the two"),
        (["majority", "--lengths", "0"], "length = 0 must be at least 1"),
        (["majority", "--systems", ","], "--systems ',' names nothing"),
        (["majority", "--batch-size", "0"], "batch_size = 0 must be at least 1"),
        (["majority", "--lr", "0"], "training.lr is 0"),
        (["majority", "--width", "0"], "width = 0 must be at least 1"),
        (["majority", "--device", "cud"], "device"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["recall", *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
