"""`longreach bench ops`: baselines compute what the operators do, sides are timed in turn, and files are written."""

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from longreach.bench import (
    OperatorCase,
    OperatorCost,
    OperatorOptions,
    measure_operators,
    on_torch,
    operator_cases,
    operator_costs,
    operator_table,
    select_cases,
    write_json,
    write_operator_plot,
)
from longreach.bench.operator_costs import MOST_ROUNDS
from longreach.cli.main import run
from longreach.errors import InputError
from longreach.ops import OPS

CASES = {f"{case.operator}, {case.name}": case for case in operator_cases()}
TINY = OperatorOptions(threads=(1,), seconds=0.0, elements=2048)


def widened(x: Any) -> Any:
    if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
        return x
    return x.detach().to(torch.complex128 if x.is_complex() else torch.float64).requires_grad_(x.requires_grad)


@pytest.mark.parametrize("length", [2, 37])
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("step")])
def test_baselines_are_the_operators(name: str, length: int) -> None:
    """Outputs and gradients, in float64."""
    case = CASES[name]
    inputs = [widened(x) for x in case.inputs(length, 2048)]
    wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    expected = case.ours(*inputs)
    cotangent = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, wanted, cotangent)
    for baseline in case.baselines.values():
        y = baseline(*inputs)
        torch.testing.assert_close(y, expected, rtol=1e-8, atol=1e-8)
        for a, e in zip(torch.autograd.grad(y, wanted, cotangent), gradients, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("step")])
def test_every_mixer_with_steps_is_measured(name: str) -> None:
    (cost,) = measure_operators([CASES[name]._replace(lengths=(3,))], TINY)
    assert (cost.training, cost.errors) == (None, None)
    assert min(cost.forward[0]) > 0


def test_nothing_of_ours_is_compiled_on_torch() -> None:
    u, kernel = torch.randn(1, 2, 8), torch.randn(2, 8)
    with on_torch():
        assert OPS["long_conv"].choose(u, kernel) == "fft"
    assert OPS["long_conv"].choose(u, kernel) in ("fft", "native")


def sleeping(seconds: float) -> Any:
    def side(x: Tensor, count: int) -> Tensor:
        time.sleep(seconds)
        return x * count

    return side


def test_rounds_give_ratios_and_memory() -> None:
    """Sides that sleep for a known time, on two threads, where the clock is that of the wall."""
    inputs = [torch.ones(8, requires_grad=True), 2]
    case = OperatorCase("op", "case", (5,), lambda *_: inputs, sleeping(0.002), {"slow": sleeping(0.02)})
    before = torch.get_num_threads()
    (cost,) = measure_operators([case], OperatorOptions(threads=(2,), seconds=0.1))
    assert torch.get_num_threads() == before
    assert (cost.operator, cost.length, cost.threads, cost.baseline, cost.numbers) == ("op", 5, 2, "slow", 8)
    ours, theirs = cost.forward
    assert 3 <= len(ours) == len(theirs) <= MOST_ROUNDS
    assert min(theirs) >= 0.02 > 0.002 <= min(ours)
    assert cost.training is not None
    assert cost.errors == (0.0, 0.0)


def test_errors_are_those_of_each_side() -> None:
    def rounded(x: Tensor) -> Tensor:
        return x.bfloat16().to(x.dtype) if x.dtype == torch.float32 else x

    case = OperatorCase("op", "case", (9,), lambda *_: [torch.randn(9)], rounded, {"exact": lambda x: 1 * x})
    (cost,) = measure_operators([case], TINY)
    assert cost.errors is not None
    assert cost.errors[0] > 1e-4 > cost.errors[1] == 0
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(operator_table([cost]))
    assert "error" in console.export_text()


@pytest.mark.parametrize("already", [None, "glibc.malloc.mmap_max=0"])
def test_both_sides_under_a_tuned_allocator(already: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that starts with it, unless this one has one; it is measured here all the same, to be quick."""
    seen: list[str | None] = []

    @contextmanager
    def own_process(work: Callable[..., None], *arguments: object) -> Iterator[Callable[[float], Any]]:
        seen.append(os.environ.get("GLIBC_TUNABLES"))
        answers, sender = Pipe(duplex=False)
        work(*arguments, sender)
        yield lambda seconds: answers.recv()

    monkeypatch.setattr(operator_costs, "own_process", own_process)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if already:
        monkeypatch.setenv("GLIBC_TUNABLES", already)
    (tuned,) = (case for case in CASES.values() if case.tuned)
    costs = list(measure_operators([tuned._replace(lengths=(8, 9))], TINY))
    assert [(cost.case, cost.length) for cost in costs] == [("tuned allocator", 8), ("tuned allocator", 9)]
    assert seen == ([] if already else [operator_costs.TUNED])
    assert os.environ.get("GLIBC_TUNABLES") == already


def test_a_process_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_costs, "own_process", lambda *_: nullcontext(lambda seconds: "its process died"))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    with pytest.raises(InputError, match="long_conv, tuned allocator: its process died; give fewer --elements"):
        list(measure_operators([case for case in CASES.values() if case.tuned], TINY))


def test_mistakes_are_named() -> None:
    cases = operator_cases()
    with pytest.raises(InputError, match="operator 'long_con' is not measured; those that are: long_conv, "):
        select_cases(cases, ["long_con"], TINY)
    with pytest.raises(InputError, match="must be at least 1"):
        select_cases(cases, [], OperatorOptions(threads=(0,)))
    quick = select_cases(cases, ["long_conv", "wkv"], OperatorOptions(quick=True))
    assert {case.operator for case in quick} == {"long_conv", "wkv"}
    assert {len(case.lengths) for case in quick} == {1}


def test_a_table_and_files(tmp_path: Path) -> None:
    times = ([1e-3, 1e-3, 2e-3], [4e-3, 8e-3, 8e-3])
    costs = [
        OperatorCost("wkv", "some", length, 1, "steps", 1000, times, times, (1e-7, 2e-7), (1 << 20, None))
        for length in (64, 128)
    ]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(operator_table([*costs, costs[0]._replace(operator="step", training=None, errors=None)]))
    told = console.export_text()
    assert "4.0 (4.0 to 6.0)" in told  # of 4, 8 and 4
    assert "1e+03" in told  # both 1000 ns and 1000 us
    assert "wkv: geometric mean of the ratios on 1 thread(s): forward 4.0, training 4.0" in told
    write_json(tmp_path / "x.json", costs, {"machine": {}})
    assert json.loads((tmp_path / "x.json").read_text())["costs"][1]["forward"] == [list(side) for side in times]
    write_operator_plot(tmp_path / "x.png", costs, "title")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="cannot write"):
        write_operator_plot(tmp_path / "none" / "x.png", costs, "title")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_max=0")  # which glibc reads when a process starts
    out = tmp_path / "new" / "ops"
    command = [
        "bench",
        "ops",
        "--quick",
        "--operators",
        "short_conv",
        "cross_entropy",
        "--elements",
        "20000",
        "--seconds",
        "0",
    ]
    assert run([*command, "--out", str(out)]) == 0
    written = json.loads(out.with_suffix(".json").read_text())
    assert {cost["threads"] for cost in written["costs"]} == {1}
    assert written["options"]["elements"] == 20000
    assert written["allocator"] == "glibc.malloc.mmap_max=0"
    assert out.with_suffix(".png").exists()
    told = capsys.readouterr().out
    assert "16,384 tokens" in told
    assert "allocator: glibc.malloc.mmap_max=0" in told
    assert run(["bench", "ops", "--operators", "wk"]) == 2
    (tmp_path / "file").touch()
    for what in ("ops", "mixers"):
        assert run(["bench", what, "--out", str(tmp_path / "file" / "x")]) == 2  # before anything is measured
        assert f"cannot make {tmp_path / 'file'}" in capsys.readouterr().err
    assert run(["bench", "opps"]) == 2
