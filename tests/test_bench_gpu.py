"""`longreach bench gpu`, measured on the CPU at tiny sizes: every cell, what breaks, the time, the files."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from longreach.bench import gpu
from longreach.bench.gpu import attention, measure
from longreach.bench.gpu.cells import Cell, Contest, Result
from longreach.bench.gpu.clock import CLEARED, CLEARING, Meter, event_seconds
from longreach.bench.gpu.measure import NO_MEMORY, NO_TIME, Plan, measure_apart, measure_here, reason_to_skip
from longreach.bench.gpu.quantities import QUANTITIES
from longreach.bench.gpu.report import grids, notes
from longreach.bench.gpu.sides import OUR_TORCH, OURS, leaf
from longreach.cli import bench_gpu
from longreach.cli.main import run

TINY = gpu.Sizes(
    matrix=16, copied=1 << 10, attention_lengths=(16, 32), attention_tokens=32, attention_width=16, head_sizes=(8, 16),
    convolution_lengths=(256, 1024), convolution_numbers=1 << 11, operator_lengths=(8, 16), operator_numbers=1 << 12,
    vocabulary=32, width=8, layers=1, training_lengths=(8, 16), training_tokens=16, contexts=(4, 8), batches=(1, 2),
    written=2,
)  # fmt: skip
UNAVAILABLE = {"torch cuDNN", "torch efficient"}
"""What torch has for no CPU."""


def one_millisecond(call: Any) -> float:
    """A clock for machines that are busy."""
    call()
    return 1e-3


CPU = Meter("cpu", one_millisecond, one_millisecond)


def plan(*sections: str, seconds: float = 1000.0) -> Plan:
    return Plan(sections or tuple(gpu.SECTIONS), TINY, CPU, time.time() + seconds)


@pytest.fixture(scope="module")
def results() -> list[Result]:
    """All sections, measured once."""
    return list(measure_here(plan()))


def test_every_cell_is_measured(results: list[Result]) -> None:
    assert [(r.section, r.case, r.side, r.length) for r in results] == [cell[:4] for cell in plan().cells()]
    assert {r.section for r in results} == {"device", *gpu.SECTIONS}
    assert {r.side for r in results if r.note} == UNAVAILABLE
    assert all(value == value for r in results for value in r.numbers.values())


def test_results_are_right(results: list[Result]) -> None:
    """In bfloat16 within its rounding, in float32 within its own."""
    errors = {(r.case, r.side): r.numbers["error"] for r in results if "error" in r.numbers}
    assert {side for _, side in errors} >= {OURS, OUR_TORCH, "torch flash", "torch math", "all scores", "torch.fft"}
    for (case, side), error in errors.items():
        wide = case.startswith(("linear_scan", "wkv", "vandermonde", "cauchy", "butterfly", "float32"))
        wide = wide or case.endswith(", float32")
        assert error < (1e-5 if wide else 1e-2), (case, side)
    assert errors["heads of 8", OURS] > 0
    assert {"window, heads of 8", "packed, heads of 8"} <= {case for case, _ in errors}


@pytest.mark.parametrize("rule", [attention._window, attention._packed])
@pytest.mark.parametrize("length", [256, 512])
def test_pairs_that_may_meet_are_counted(rule: Any, length: int) -> None:
    """Up to the diagonal, of which half is counted everywhere."""
    mask = rule(torch.zeros(1, 1, length, 1)).located(length, length, torch.device("cpu"))
    pairs = mask.allowed().sum().item() - length / 2
    assert pairs == pytest.approx(length**2 / 2 * attention._met(rule), rel=0.05)


def test_a_wrong_side_is_seen() -> None:
    contest = Contest(
        *("some", "case", (4,)),
        inputs=lambda length, device: [leaf(length, device=device)],
        sides={"wrong": lambda x: 1.5 * x},
        exact=lambda x: 1.0 * x,
    )
    (cell,) = contest.cells(rank=3)
    numbers = cell.measure(CPU)
    assert numbers["error"] == pytest.approx(0.5)
    assert numbers["forward_moved"] == 2 * 4 * 4
    assert numbers["backward_moved"] == 3 * 4 * 4
    assert cell.rank == 4


def test_what_matters_most_comes_first() -> None:
    cells = gpu.Plan(tuple(gpu.SECTIONS), gpu.Sizes(), CPU, 0.0).cells()
    ranks = [cell.rank for cell in cells]
    assert ranks == sorted(ranks)
    assert {cell.section for cell in cells if cell.rank == 0} == {"device"}
    first = {(cell.section, cell.side, cell.length) for cell in cells if cell.rank == 1}
    assert first >= {("attention", OURS, 4096), ("long_conv", OURS, 1 << 20), ("training", "Hyena", 8192)}
    assert ("generation", "S4D", 16_384) in first
    assert ("attention", "all scores", 4096) not in first


CELL = Cell("s", "c", "a", 64, 0, lambda meter: {})


def known(length: int, seconds: float | None, note: str = "", side: str = "a") -> Result:
    return Result("s", "c", side, length, {} if seconds is None else {"x_seconds": seconds, "bytes": 1e9}, note)


@pytest.mark.parametrize(
    ("found", "left", "reason"),
    [
        ([], 1.0, ""),
        ([], -1.0, NO_TIME),
        ([known(16, None, NO_MEMORY)], 100.0, "out of memory at 16 already"),
        ([known(16, None, NO_MEMORY, side="b")], 100.0, ""),
        ([known(128, None, NO_MEMORY)], 100.0, ""),
        ([known(16, None, "no kernel")], 100.0, ""),
        ([known(32, 1.0)], 100.0, ""),
        ([known(32, 3.0)], 100.0, "would take about 6 s"),
        ([known(16, 0.5), known(32, 2.0)], 100.0, "would take about 8 s"),
        ([known(16, 0.001), known(32, 2.0)], 100.0, "would take about 8 s"),
        ([known(32, 1.0)], 11.0, NO_TIME),
    ],
)
def test_cells_that_need_not_be_tried(found: list[Result], left: float, reason: str) -> None:
    assert reason_to_skip(CELL, found, left) == reason


def test_when_the_time_is_over_cells_stay_empty() -> None:
    found = list(measure_here(plan("attention", seconds=-1.0)))
    assert {r.note for r in found} == {NO_TIME}
    assert len(found) == len(plan("attention").cells())


def breaking(sizes: gpu.Sizes) -> list[Cell]:
    """Cells that end in every way a cell can end."""

    def raising(error: Exception) -> Any:
        def call(meter: Meter) -> dict[str, float]:
            raise error

        return call

    def die(meter: Meter) -> dict[str, float]:
        os._exit(1)

    ways = {
        "good": lambda meter: {"x_seconds": 1.0},
        "memory": raising(torch.OutOfMemoryError("CUDA out of memory. Tried ...")),
        "refused": raising(RuntimeError("no kernel\nfor this")),
        "broken": raising(RuntimeError("CUDA error: an illegal memory access was encountered")),
        "dead": die,
        "good again": lambda meter: {"x_seconds": 2.0},
    }
    return [Cell("breaking", "way", name, 1, 1, call) for name, call in ways.items()]


def test_a_cell_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [cell for cell in breaking(TINY) if cell.side != "dead"]
    monkeypatch.setitem(measure.SECTIONS, "breaking", lambda sizes: cells)
    found = {r.side: r.note for r in measure_here(plan("breaking")) if r.section == "breaking"}
    broken = "CUDA error: an illegal memory access was encountered"
    assert found == {"good": "", "memory": NO_MEMORY, "refused": "no kernel", "broken": broken, "good again": ""}


def breaking_work(given: Plan, found: list[Result], answers: Any) -> None:
    """What the process of its own runs in the next test."""
    measure.SECTIONS["breaking"] = breaking
    measure._work(given, found, answers)


@pytest.mark.slow
def test_what_breaks_costs_one_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own: one cell leaves a GPU that is of no use, one kills its process."""
    work = measure._work
    monkeypatch.setitem(measure.SECTIONS, "breaking", breaking)
    monkeypatch.setattr(measure, "_work", breaking_work)
    monkeypatch.setitem(breaking_work.__globals__, "measure", SimpleNamespace(SECTIONS=measure.SECTIONS, _work=work))
    found = list(measure_apart(plan("breaking")))
    assert [r.side for r in found] == [cell.side for cell in plan("breaking").cells()]
    notes_of = {r.side: r.note for r in found}
    assert "illegal memory access" in notes_of["broken"]
    assert "died" in notes_of["dead"]
    assert notes_of["good again"] == ""


def test_tables_have_what_was_measured(results: list[Result]) -> None:
    """Made-up numbers, so that shares and ratios are known."""
    made = [
        Result("device", "product", "bfloat16", 16, {"forward_seconds": 1.0, "forward_operations": 4e12}),
        Result("device", "copy", "bytes", 16, {"forward_seconds": 1.0, "forward_moved": 8e9}),
        *(
            Result("attention", "heads of 64", side, 512, {
                "forward_seconds": seconds, "backward_seconds": 2 * seconds, "forward_operations": 2e12,
            })
            for side, seconds in [(OURS, 1.0), ("torch flash", 2.0), ("torch cuDNN", 4.0)]
        ),
        *(
            Result("long_conv", "bfloat16", side, 4096, {"forward_seconds": seconds, "forward_moved": 4e9})
            for side, seconds in [(OURS, 1.0), ("torch.fft", 5.0)]
        ),
        *(
            Result("training", "a step", side, 2048, {"training_seconds": seconds, "tokens": 2048.0})
            for side, seconds in [("Attention", 2.0), ("Hyena", 1.0)]
        ),
        Result("generation", "batch 1", "S4D", 1024, {"written": 64.0, "eager_seconds": 2.0, "captured_seconds": 0.5}),
    ]  # fmt: skip
    tables = {grid.title: {row[0]: row[1:] for row in grid.rows} for grid in grids(made)}
    assert tables["attention: forward, TFLOP/s"]["heads of 64: ours"] == ["2 (50%)"]
    assert tables["attention: backward, TFLOP/s"]["heads of 64: ours"] == ["2.5 (62%)"]
    assert tables["attention: forward, times as fast as torch's best"]["heads of 64: ours"] == ["2"]
    convolutions = tables["long_conv: forward, times as fast as torch.fft"]
    assert convolutions["bfloat16: ours"] == ["5"]
    assert convolutions["bfloat16: FlashFFTConv, published"] == ["6.6"]
    assert tables["long_conv: forward, GB/s of what must be moved"]["bfloat16: ours"] == ["4 (50%)"]
    assert tables["generation: tokens per second"]["batch 1: S4D"] == ["128"]
    assert tables["generation: tokens per second, step by step"]["batch 1: S4D"] == ["32"]
    assert tables["training: a step takes less time than Attention from length"] == {"Hyena": ["≤ 2,048"]}
    assert {grid.title.partition(":")[0] for grid in grids(results)} == set(QUANTITIES)


def test_empty_cells_are_explained_once() -> None:
    found = [known(length, None, NO_MEMORY) for length in (64, 32)] + [known(16, 1.0)]
    assert notes(found) == ["s, c, a at 32, 64: out of memory"]


@pytest.fixture
def on_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command as it is, but for where it measures and how much; in this process."""
    monkeypatch.setattr(bench_gpu, "setting", lambda: bench_gpu.Setting(CPU, TINY, "this processor"))
    monkeypatch.setattr(gpu, "measure_apart", measure_here)


@pytest.mark.usefixtures("on_this_cpu")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "gpu"
    assert run(["bench", "gpu", "--sections", "generation", "attention", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "attention.png", "generation.png", "results.json", "tables.md",
    ]  # fmt: skip
    written = json.loads((out / "results.json").read_text())
    assert len(written["results"]) == len(plan("attention", "generation").cells())
    assert written["sizes"]["batches"] == [1, 2]
    assert "attention: forward, TFLOP/s" in (out / "tables.md").read_text()
    assert (out / "attention.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr()
    assert "generation: state, MiB" in told.out
    assert "tables.md" in told.out
    assert "1/" in told.err


@pytest.mark.usefixtures("on_this_cpu")
def test_nothing_is_lost_when_it_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(given: Plan) -> Any:
        for number, result in enumerate(measure_here(given)):
            if number == 7:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(gpu, "measure_apart", interrupted)
    assert run(["bench", "gpu", "--sections", "attention", "--out", str(tmp_path)]) == 130
    assert len(json.loads((tmp_path / "results.json").read_text())["results"]) == 7
    assert "attention: forward" in (tmp_path / "tables.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "gpu", "--out", str(tmp_path / "gpu")]) == 2
    told = capsys.readouterr().err
    assert "torch sees no GPU here" in told
    assert "built for CUDA" in told
    assert not (tmp_path / "gpu").exists()


@pytest.mark.usefixtures("on_this_cpu")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "atention"], "no section 'atention'; the sections are attention, "),
        (["--seconds", "0"], "no time"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    assert run(["bench", "gpu", "--out", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


class Event:
    """An event of a GPU whose calls take 3 ms, the first ones longer."""

    log: list[str] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0

    def record(self) -> None:
        self.log.append("event")
        self.at = len(self.log)

    def elapsed_time(self, end: "Event") -> float:
        assert self.log[self.at : end.at - 1] == ["run"], "something else is between the events"
        return 3.0


def test_events_enclose_the_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """After memory enough was cleared to hide how long the processor takes to launch it."""
    Event.log = log = []

    class Cleared:
        def zero_(self) -> None:
            log.append("clear")

    def call() -> None:
        time.sleep(0.01)
        log.append("run")

    def empty(size: int, dtype: torch.dtype, device: str) -> Any:
        assert (size, dtype, device) == (CLEARED, torch.int8, "cuda")
        return Cleared()

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", empty)
    assert event_seconds(call) == pytest.approx(3e-3)
    rounds = log.count("run") - 1
    assert rounds >= 3
    assert log.count("clear") / rounds > 0.01 / CLEARING


def test_a_long_call_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr("longreach.bench.gpu.clock.LONG_RUN", 0.0)
    assert event_seconds(lambda: calls.append(torch.zeros(1))) > 0
    assert len(calls) == 1
