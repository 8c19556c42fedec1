"""`longreach lra`: every system on every task, runs that are trained once, tables that invent nothing, and speed."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
import yaml

from longreach.bench import cell_run, lra
from longreach.bench.lra import ArenaResult, RunOptions, Size, SpeedCell, SpeedOptions, speed, systems, tasks
from longreach.bench.lra.published import PUBLISHED_SPEED_LENGTHS
from longreach.bench.lra.speed_report import grids as speed_grids
from longreach.bench.lra.state_spaces import S4_ROWS, STATE_SPACES
from longreach.cli.main import run
from longreach.errors import InputError
from longreach.tasks import Classification, TokenEncoding
from longreach.training import DivergenceError, Experiment, read_experiment, read_model

PIPELINES = ("arena", "s4")
FAST = SpeedOptions(threads=1, device="cpu")


def experiment(text: str, folder: Path) -> Experiment:
    path = folder / "config.yaml"
    path.write_text(text)
    return read_experiment(path)


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def arena_tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Classification]:
    """Every task as each pipeline reads it."""
    folder, found = tmp_path_factory.mktemp("configs"), {}
    for task in lra.TASKS:
        for system, pipeline in (("transformer", "arena"), ("s4d", "s4")):
            built = experiment(lra.config_text(task, system, RunOptions(budget="published")), folder).task
            assert isinstance(built, Classification)
            found[task, pipeline] = built
    return found


@pytest.mark.parametrize(
    ("task", "system", "pool"), [("listops", "s4d", 1), ("image", "s4d", None), ("text", "mega", None)]
)
def test_batch_norm_sees_lengths_as_they_come(task: str, system: str, pool: int | None) -> None:
    for budget in ("small", "published"):
        loading = lra.configure(task, system, RunOptions(budget=budget))["task"]["init_args"]["loading"]
        assert loading.get("pool") == pool


def test_readings_are_those_of_the_tasks(arena_tasks: dict[tuple[str, str], Classification]) -> None:
    for (name, pipeline), task in arena_tasks.items():
        reading = lra.TASKS[name].readings[pipeline]
        assert (reading.n_classes, reading.pair) == (task.n_classes, task.sequences == 2)
        assert reading.inputs == ("tokens" if isinstance(task.encoding, TokenEncoding) else "features")
    lengths = {name: [task.readings[p].length for p in PIPELINES] for name, task in lra.TASKS.items()}
    assert lengths["path-x"] == [128**2] * 2
    assert lengths["text"] == [4000, 4096]
    assert arena_tasks["text", "s4"].text.max_length == 4096


@pytest.mark.parametrize("system", lra.SYSTEMS)
def test_every_system_builds_on_every_task(system: str, arena_tasks: dict[tuple[str, str], Classification]) -> None:
    for name in lra.TASKS:
        recipe = lra.recipe_of(name, system)
        task = arena_tasks[name, recipe.pipeline]
        with torch.device("meta"):  # shapes only: no memory, whatever the size
            model = read_model(recipe.model)(task.encoding.size)
        task.require_fit(model)
        assert model.max_length is None or model.max_length >= lra.TASKS[name].readings[recipe.pipeline].length
        assert 2e4 < parameters(model) < 4e8
        assert recipe.source
        assert lra.configure(name, system, RunOptions(budget="published"))["training"]["steps"] > 1000


@pytest.mark.parametrize("system", lra.SYSTEMS)
def test_every_system_takes_a_step(system: str) -> None:
    recipe = lra.SYSTEMS[system].recipe("packages", Size(1, 64, length=128))
    model = read_model(recipe.model)(256)
    loss = torch.nn.functional.cross_entropy(model(torch.randint(256, (2, 100))), torch.tensor([0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.backbone.parameters())


@pytest.mark.parametrize(("system", "millions"), [("s4d", 3.96), ("s4", 4.15)])
def test_models_are_as_large_as_published(system: str, millions: float) -> None:
    """The README of github.com/state-spaces/s4 tells these of images, with a system of its own in every channel."""
    row = S4_ROWS["image"]._replace(shared=None)
    recipe = STATE_SPACES[system]._replace(rows={"image": row}).recipe("image")
    with torch.device("meta"):
        assert round(parameters(read_model(recipe.model)(1)) / 1e6, 2) == millions


def test_all_systems_of_the_papers_are_there() -> None:
    assert {row.system for row in lra.PUBLISHED} | {row.system for row in lra.PUBLISHED_SPEED} <= set(lra.SYSTEMS)
    own = {"s4", "s4d", "dss", "s5", "liquid-s4", "longconv", "mega", "transformer", "bigbird", "nystromformer", "luna"}
    for system in own:
        assert lra.recipe_of("image", system).published
    for system in ("hyena", "h3", "rwkv", "sgconv", "fnet"):
        assert not lra.recipe_of("image", system).published
        assert "none is published" in lra.recipe_of("image", system).source
    assert not lra.recipe_of("packages", "s4").published


def test_averages_are_those_of_the_rows() -> None:
    """Over five tasks, or over six where chance counts as 50; the average of one paper is none of these."""
    for row in lra.PUBLISHED:
        known = [score for score in row.scores if score is not None]
        averages = [sum(known) / len(known), (sum(known) + 50 * (6 - len(known))) / 6]
        if row.system != "rwkv":
            assert min(abs(average - row.average) for average in averages) < 0.09, row.label


def test_a_configuration_says_where_it_is_from(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["lra", "config", "path-x", "bigbird", "--budget", "published", "--threads", "1"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# bigbird on Path-X. Hyperparameters: github.com/google-research/long-range-arena")
    assert "# Nothing is published for Path-X; taken from Pathfinder." in text
    found = experiment(text, tmp_path)
    assert found.training.steps == 500_000
    assert found.training.threads == 1
    small = lra.config_text("listops", "hyena", RunOptions())
    assert "# hyena on ListOps. Hyperparameters: none is published; taken from S4" in small
    assert "# Size, batch and length of training are ours" in small
    assert (
        yaml.safe_load(small)["training"] | {"minutes": 60.0, "warmup_steps": 300} == yaml.safe_load(small)["training"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config", "listop", "s4"], "there is no task 'listop'; choose from listops, text"),
        (["config", "listops", "s44"], "there is no system 's44'; choose from s4, s4d"),
        (["run", "listops", "s4,s44"], "there is no system 's44'"),
        (["run", "listops", "s4", "--minutes", "2", "--steps", "3"], "give exactly one of the two"),
        (["run", "listops", ","], "',' names nothing; choose all, or from s4, s4d"),
        (["speed", "--systems", "s4,s44"], "there is no system 's44'"),
        (["speed", "--lengths", "1K"], "--lengths takes whole numbers, like 128,512; '1K' is none"),
        (["speed", "--lengths", "0"], "must be at least 1"),
        (["speed", "--table"], "nothing was measured in"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = [] if arguments[0] == "config" else ["--out", str(tmp_path)]
    assert run(["lra", *arguments, *out]) == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_the_published_table_is_shown_before_anything_is_trained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    assert run(["lra", "table", "--out", str(nowhere)]) == 0
    shown = capsys.readouterr().out
    assert "36.37" in shown
    assert "no run is finished in" in shown
    assert not nowhere.exists()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three small packages in the place of the standard library's, and the options of a run of two steps."""
    for name in ("red", "green", "blue"):
        (tmp_path / "source" / name).mkdir(parents=True)
        for file in range(30):
            (tmp_path / "source" / name / f"{file}.py").write_text(f"{name} {file}\n" * 60)
    arguments = {"n_packages": 3, "length": 64, "train": 10, "held_out": 4}
    reading = tasks.Reading(3, 64, "tokens")
    task = lra.TASKS["packages"]._replace(
        readings=dict.fromkeys(PIPELINES, reading), arguments=dict.fromkeys(PIPELINES, arguments)
    )
    monkeypatch.setitem(tasks.TASKS, "packages", task)
    monkeypatch.setitem(systems.SMALL, "packages", systems.Small(Size(1, 16), 4, 8))
    monkeypatch.setenv("LONGREACH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "150")
    options = ["--steps", "2", "--threads", "1", "--device", "cpu"]
    return [*options, "--data", str(tmp_path / "source"), "--out", str(tmp_path / "out")]


def test_systems_are_trained_once_and_shown(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run(["lra", "run", "packages", "s4d,local", *tiny]) == 0
    told = capsys.readouterr()
    assert "run 2 of 2: local on packages" in told.err
    assert "packages, local" in told.out
    assert "Long Range Arena: accuracy in percent, here and as published" in told.out
    found = lra.read_results(out)
    assert [(result.system, result.steps) for result in found] == [("s4d", 2), ("local", 2)]
    assert all(result.majority_accuracy == pytest.approx(1 / 3) for result in found)
    assert all(0 <= result.accuracy <= 1 and result.parameters > 1000 for result in found)
    for name in ("table.md", "table.csv", "arena.png", "packages.png", "packages/s4d/checkpoints/best"):
        assert (out / name).exists(), name

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(cell_run, "train", refuse)
    assert run(["lra", "run", "packages", "s4d", *tiny]) == 0
    assert run(["lra", "table", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "packages, s4d" in told.out
    assert "s4d on packages is finished; to train it anew, remove" in told.err


def test_a_run_that_stops_or_diverges(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = cell_run.train
    monkeypatch.setattr(cell_run, "train", lambda *a, **b: train(*a, **b)._replace(finished=False))
    assert run(["lra", "run", "packages", "s4d", *tiny]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert lra.read_results(tmp_path / "out") == []

    def diverge(*arguments: object, **options: object) -> None:
        raise DivergenceError("the loss is nan")

    monkeypatch.setattr(cell_run, "train", diverge)
    assert run(["lra", "run", "packages", "s4d", *tiny]) == 0
    (result,) = lra.read_results(tmp_path / "out")
    assert result.accuracy is None
    assert "packages, s4d: the loss is nan" in capsys.readouterr().out


def result(task: str, system: str, accuracy: float | None) -> ArenaResult:
    return ArenaResult(task, system, accuracy, 0.165, 0.5, 10, 20, 90.0, 1000, {}, {})


def test_tables_show_ours_above_the_published_and_nothing_else(tmp_path: Path) -> None:
    lines = lra.markdown([result("listops", "s4d", 0.5555), result("packages", "local", 0.25)]).splitlines()
    assert "| s4d, here | 55.5 |  |  |  |  |  |  |  |" in lines or "| s4d, here | 55.6 |  |  |  |  |  |  |  |" in lines
    ours = next(number for number, line in enumerate(lines) if line.startswith("| s4d, here"))
    assert lines[ours + 1].startswith("| S4D-LegS | 60.47 | 86.18 |")
    assert "| packages, local | 25.0 | 16.5 | 50.0 | 10 | 20 | 1.5 | 1,000 |" in lines
    assert not any(line.startswith("| s4, here") for line in lines)
    assert (
        "| S4D-Lin | 60.52 | 86.97 | 90.96 | 87.93 | 93.96 | chance | 78.39 | Gu et al. 2022, arXiv:2206.11893 |"
        in lines
    )
    assert "| most frequent label, here | 16.5 |  |  |  |  |  |  |  |" in lines
    every = [result(task, "s4d", 0.1 * number) for number, task in enumerate(lra.ARENA)]
    assert "| s4d, here | 0.0 | 10.0 | 20.0 | 30.0 | 40.0 | 50.0 | 25.0 |  |" in lra.markdown(every)
    lra.write_files([*every, result("packages", "local", None)], tmp_path)
    with (tmp_path / "table.csv").open() as file:
        assert [row["accuracy"] for row in csv.DictReader(file)][-1] == ""
    assert not (tmp_path / "packages.png").exists()
    assert (tmp_path / "arena.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_has_the_published_table() -> None:
    page = (Path(__file__).parent.parent / "docs" / "lra.md").read_text()
    assert "\n".join(lra.markdown([]).splitlines()[2:]) in page


def answers(system: str, lengths: list[int], options: SpeedOptions) -> list[SpeedCell]:
    """What the process of a system sends, run in this one."""
    receiver, sender = Pipe(duplex=False)
    speed.measure_system(system, lengths, options, sender)
    return [receiver.recv() for _ in lengths]


def test_a_step_is_measured_and_a_slow_system_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SIZE", Size(1, 64, expand=4))
    first, second, third = answers("performer", [64, 96, 128], replace(FAST, limit=1e-9))
    assert first.seconds is not None
    assert first.parameters > 50_000
    assert second == SpeedCell("performer", 96, note="a step takes more than 1e-09 s at length 64")
    assert third.note == second.note

    def refuse(*arguments: object) -> None:
        raise RuntimeError("not enough memory\nat all")

    monkeypatch.setattr(speed, "training_step", refuse)
    assert answers("performer", [64], FAST) == [SpeedCell("performer", 64, note="not enough memory")]


@pytest.mark.slow
def test_speed_is_measured_in_a_process_of_its_own_and_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["lra", "speed", "--systems", "transformer", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert run([*command, "--lengths", "64"]) == 0
    told = capsys.readouterr()
    assert "1/1 transformer at 64" in told.err
    assert "training steps a second, relative to the Transformer" in told.out
    found = lra.read_speed(tmp_path)
    assert found is not None
    (cell,) = found.cells
    assert cell.seconds is not None
    for name in ("speed.md", "speed.csv", "speed.png"):
        assert (tmp_path / name).exists(), name

    def refuse(*arguments: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(speed, "own_process", refuse)
    assert run([*command, "--lengths", "64"]) == 0
    assert run(["lra", "speed", "--table", "--batch-size", "7", "--out", str(tmp_path)]) == 0  # not what was measured
    assert found.options["batch_size"] == 1
    assert run([*command, "--lengths", "64", "--batch-size", "2"]) == 2
    assert "use the same options, or another folder" in capsys.readouterr().err
    (tmp_path / "speed.json").write_text(json.dumps({"cells": [{}]}))
    with pytest.raises(InputError, match=r"speed\.json is damaged"):
        lra.read_speed(tmp_path)


def test_another_limit_tries_what_was_given_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, given_up = SpeedCell("s4", 64, 0.5, 1, 1), SpeedCell("s4", 128, note="a step takes more than 1 s")
    options = SpeedOptions(limit=1.0)
    asked: list[int] = []

    def measure(system: str, lengths: list[int], options: SpeedOptions) -> Iterator[SpeedCell]:
        asked.extend(lengths)
        return iter(SpeedCell(system, length, 2.0, 1, 1) for length in lengths)

    monkeypatch.setattr(speed, "_in_own_process", measure)
    speed._write_cells(tmp_path, [measured, given_up], options)
    assert list(lra.measure_speed(["s4"], [64, 128], options, tmp_path)) == [measured, given_up]
    longer = replace(options, limit=5.0)
    assert list(lra.measure_speed(["s4"], [64, 128], longer, tmp_path)) == [measured, SpeedCell("s4", 128, 2.0, 1, 1)]
    assert asked == [128]
    with pytest.raises(InputError, match="use the same options"):
        list(lra.measure_speed(["s4"], [64], replace(longer, batch_size=2), tmp_path))


def test_speed_is_told_relative_to_the_transformer(tmp_path: Path) -> None:
    cells = [
        SpeedCell("transformer", 1024, 0.5, 2 << 20, 10),
        SpeedCell("transformer", 2048, note="too slow"),
        SpeedCell("performer", 1024, 0.125, 1 << 20, 10),
        SpeedCell("performer", 2048, 0.25, None, 10),
    ]
    steps, relative, memory, less, published, _ = (grid.rows for grid in speed_grids(cells))
    assert steps == [["transformer", "2", ""], ["performer", "8", "4"]]
    assert relative == [["transformer", "1", ""], ["performer", "4", ""]]
    assert memory == [["transformer", "2", ""], ["performer", "1", ""]]
    assert less == [["transformer", "1", ""], ["performer", "0.5", ""]]
    assert len(published[0]) == 1 + len(PUBLISHED_SPEED_LENGTHS)
    assert published[0] == ["transformer", "1", "1", "1", "1"]
    assert published[-1][0] == "performer"
    assert published[-1][-1] == "5.71"  # 8.0 / 1.4
    assert "transformer from length 2,048: too slow" in lra.speed_markdown(cells)
    written = lra.write_speed(cells, tmp_path, "here")
    assert [path.name for path in written] == ["speed.md", "speed.csv", "speed.png"]
