"""Kill -9 at random instants: whatever is left, a resumed run ends at the same bits as one that nobody disturbed."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from training_toys import assert_same_run, small_run, start_process

from longreach.training import whole_run
from longreach.training.checkpoint import find, load_state

KILLS = 20
RUN = {"steps": 24, "evaluate_every": 5, "save_every": 1}


def _train(run: Path, started: Path) -> None:
    started.touch()
    small_run(run, resume=True, **RUN)


def _kill_after(run: Path, started: Path, seconds: float) -> bool:
    """Begin or continue the run, kill it some time after it began to work; False if it was done before that."""
    started.unlink(missing_ok=True)
    process = start_process(_train, run, started)
    while not started.exists() and process.is_alive():
        time.sleep(0.001)
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == -signal.SIGKILL


def _duration(run: Path, started: Path) -> float:
    """Do the whole run undisturbed, in a process as slow as those that will be killed; the seconds that it worked."""
    process = start_process(_train, run, started)
    while not started.exists() and process.is_alive():
        time.sleep(0.001)
    began = time.monotonic()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


@pytest.mark.slow
def test_a_run_killed_at_any_instant_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_run, "plot_loss", lambda *arguments: None)
    monkeypatch.setattr(whole_run, "plot_curve", lambda *arguments: None)
    duration = _duration(tmp_path / "undisturbed", tmp_path / "started")
    instants = random.Random(0)
    run, kills = tmp_path / "run", 0
    reached = set()
    while kills < KILLS:
        if not _kill_after(run, tmp_path / "started", instants.uniform(0, duration)):
            shutil.rmtree(run)  # it was done: another one
            continue
        kills += 1
        copy = tmp_path / f"after-kill-{kills}"
        if run.exists():
            shutil.copytree(run, copy)
        last = find(copy / "checkpoints" / "last")
        reached.add(load_state(last)["position"]["step"] if last else 0)
        assert small_run(copy, resume=True, **RUN).finished
        assert_same_run(copy, tmp_path / "undisturbed")
    assert len(reached) > 1, "the kills all came at the same instant"
