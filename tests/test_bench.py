"""`longreach bench mixers`: it measures in processes of its own, survives what goes wrong there, and writes files."""

import csv
import io
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from rich.console import Console

from longreach.bench import (
    CostOptions,
    Crossing,
    MixerCost,
    cost_tables,
    crossings,
    measure_mixers,
    mixer_names,
    write_csv,
    write_plot,
)
from longreach.bench.memory import peak_bytes
from longreach.bench.mixer_costs import _measure_one, build_mixer
from longreach.bench.own_process import receive
from longreach.cli.main import run
from longreach.errors import InputError

TINY = CostOptions(d_model=8, threads=1, device="cpu")


@pytest.mark.parametrize("name", mixer_names())
def test_every_mixer_can_be_measured(name: str) -> None:
    mixer = build_mixer(name, 64, 70)
    assert mixer(torch.randn(1, 70, 64)).shape == (1, 70, 64)


@pytest.mark.slow
def test_costs_are_measured_in_a_process_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "mixers"
    command = ["bench", "mixers", "--mixers", "S4D", "Attention", "--lengths", "128", "64", "--d-model", "8"]
    assert run([*command, "--threads", "1", "--device", "cpu", "--out", str(out)]) == 0
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["mixer"], row["length"]) for row in rows] == [
        ("S4D", "64"), ("S4D", "128"), ("Attention", "64"), ("Attention", "128"),
    ]  # fmt: skip
    for row in rows:
        assert 0 < float(row["forward_seconds"]) < float(row["training_seconds"])
        assert row["note"] == ""
        if Path("/proc/self/clear_refs").exists():
            assert int(row["training_bytes"]) >= 0
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert '"d_model": 8' in out.with_suffix(".json").read_text()
    told = capsys.readouterr()
    assert "forward and backward, milliseconds" in told.out
    assert "take less time than Attention" in told.out
    assert "4/4 Attention at 128" in told.err


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is known on Linux only")
def test_memory_is_what_a_run_needs() -> None:
    def take(mebibytes: int) -> None:
        torch.ones(mebibytes << 18).add_(1)

    small, large = peak_bytes(lambda: take(8), "cpu"), peak_bytes(lambda: take(64), "cpu")
    assert small is not None
    assert large is not None
    assert 6 << 20 < small < 16 << 20
    assert 60 << 20 < large < 72 << 20


def answers(name: str, lengths: list[int], options: CostOptions) -> list[MixerCost]:
    """What the process of a mixer sends, run in this one."""
    receiver, sender = Pipe(duplex=False)
    _measure_one(name, lengths, options, sender)
    return [receiver.recv() for _ in lengths]


def test_a_mixer_that_is_too_slow_is_not_tried_on_more() -> None:
    first, second = answers("S4D", [64, 128], CostOptions(d_model=8, limit=0.0, device="cpu"))
    assert first.training_seconds is not None
    assert second == MixerCost("S4D", 128, note="over 0 s at length 64")


def test_what_a_mixer_refuses_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise InputError("not today\nnor tomorrow")

    monkeypatch.setattr("longreach.bench.mixer_costs.build_mixer", refuse)
    assert answers("S4D", [64], TINY) == [MixerCost("S4D", 64, note="not today")]


def test_a_process_that_dies_or_hangs_is_noticed() -> None:
    receiver, sender = Pipe(duplex=False)
    assert receive(receiver, 0.01) == "no answer within 0.01 s"
    sender.close()
    assert "died" in str(receive(receiver, 0.01))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["Hyen"], [64], TINY), "no mixer 'Hyen'; the mixers are"),
        ((["S4D"], [0], TINY), "must be at least 1"),
        ((["S4D"], [64], CostOptions(device="tpu")), "'tpu' is not there"),
    ],
)
def test_mistakes_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(measure_mixers(*arguments))


def test_what_was_not_measured_stays_empty(tmp_path: Path) -> None:
    costs = [MixerCost("A", 64, 0.1, 1 << 20, 0.25, None), MixerCost("A", 128, note="over 1 s at length 64")]
    write_csv(tmp_path / "x.csv", costs)
    assert (tmp_path / "x.csv").read_text().splitlines()[1:] == [
        "A,64,0.1,1048576,0.25,,", "A,128,,,,,over 1 s at length 64",
    ]  # fmt: skip
    write_plot(tmp_path / "x.png", costs, "title")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(cost_tables(costs))
    told = console.export_text()
    assert "A from length 128: over 1 s at length 64" in told
    assert "250" in told
    with pytest.raises(InputError, match="cannot write"):
        write_csv(tmp_path / "none" / "x.csv", costs)


def timed(mixer: str, *seconds: float | None) -> list[MixerCost]:
    """Training at lengths 64, 256, 1,024."""
    return [MixerCost(mixer, 64 * 4**i, training_seconds=each) for i, each in enumerate(seconds)]


def test_crossings_with_attention() -> None:
    """Attention is quadratic here; what is linear crosses it where both times are equal."""
    attention = timed("Attention", 1.0, 16.0, 256.0)
    others = {
        "before": timed("before", 0.5, 2.0, 8.0),
        "between": timed("between", 2.0, 8.0, 32.0),
        "twice": timed("twice", 0.5, 32.0, 128.0),
        "never": timed("never", 2.0, 32.0, 512.0),
        "once": timed("once", 0.5, None, None),
        "nowhere": timed("nowhere", None, None, None),
    }
    found = crossings([*attention, *(cost for costs in others.values() for cost in costs)])
    assert found == [
        Crossing("before", 64.0, everywhere=True),
        Crossing("between", pytest.approx(128.0), everywhere=False),
        Crossing("twice", pytest.approx(512.0), everywhere=False),
        Crossing("never", None, everywhere=False),
        Crossing("once", 64.0, everywhere=True),
    ]
    assert crossings(others["before"]) == []


def test_many_mixers_get_a_panel_each(tmp_path: Path) -> None:
    costs = [cost for i in range(12) for cost in timed(f"mixer{i}", 1.0, 2.0 + i, None)] + timed("Attention", 1.0, 4.0)
    write_plot(tmp_path / "x.png", costs, "title")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(cost_tables(costs))
    told = console.export_text()
    assert "not reached" in told
    assert "mixer0" in told
