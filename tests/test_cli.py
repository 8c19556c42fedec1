"""The command line: what it makes, what it says, and the status it exits with."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from training_toys import metrics, tensors

from longreach.cli import train as train_command
from longreach.cli.main import COMMANDS, run
from longreach.training import DivergenceError

CONFIG = {
    "task": {"class_path": "training_toys.CountingTask", "init_args": {"vocab_size": 6}},
    "model": {"class_path": "training_toys.TableModel", "init_args": {"width": 4}},
    "training": {"steps": 3, "warmup_steps": 1, "threads": 1, "device": "cpu"},
}
HYBRID = {
    "class_path": "LanguageModel",
    "init_args": {
        "backbone": {
            "class_path": "Backbone",
            "init_args": {
                "d_model": 8,
                "n_layers": 2,
                "mixers": [{"class_path": "S4D", "init_args": {"d_state": 4}}, "Attention"],
                "channel_mixer": {"class_path": "MLP", "init_args": {"expand": 2}},
            },
        }
    },
}


@pytest.fixture(autouse=True)
def in_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations and runs are relative to it; and no text is written at the end of toy runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(train_command, "show_trained", lambda run: None)
    write("toy.yaml", **CONFIG)


def write(name: str, **sections: object) -> None:
    Path(name).write_text(yaml.safe_dump(sections))


def test_train_makes_a_run_and_tells_where_everything_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--config", "toy.yaml"]) == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("toy-2")
    told = capsys.readouterr()
    assert told.out == ""
    for text in ("3/3", "bits", "plots/loss.png", "plots/bits_by_position.png"):
        assert text in told.err
    assert {"config.yaml", "metrics.jsonl", "record.json"} <= {path.name for path in folder.iterdir()}


def test_options_replace_those_of_the_file() -> None:
    assert run(["train", "--config=toy.yaml", "--training.steps=2", "--model.width", "6", "--run", "here"]) == 0
    assert metrics(Path("here"))[-1]["step"] == 2
    assert tensors(Path("here"))["model.safetensors:embedding.weight"].shape == (6, 6)
    saved = yaml.safe_load(Path("here/config.yaml").read_text())
    assert saved["training"]["steps"] == 2
    assert saved["training"]["lr"] == 1e-3  # also what was not asked for is written down
    assert saved["model"] == {"class_path": "training_toys.TableModel", "init_args": {"width": 6, "dropout": 0.1}}


def test_the_configuration_of_a_run_repeats_it() -> None:
    assert run(["train", "--config", "toy.yaml", "--run", "runs/toy-20260101-000000"]) == 0
    assert run(["train", "--config", "runs/toy-20260101-000000/config.yaml"]) == 0
    (again,) = set(Path("runs").iterdir()) - {Path("runs/toy-20260101-000000")}
    assert again.name.startswith("toy-2")
    assert metrics(again) == metrics(Path("runs/toy-20260101-000000"))


def test_print_config_writes_a_configuration_that_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    write("hybrid.yaml", **(CONFIG | {"model": HYBRID}))
    with pytest.raises(SystemExit) as caught:
        run(["train", "--config", "hybrid.yaml", "--print_config"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    full = yaml.safe_load(printed)
    assert full["model"]["class_path"] == "longreach.models.LanguageModel"
    assert full["model"]["init_args"]["backbone"]["init_args"]["mixers"][0]["init_args"]["d_state"] == 4
    Path("full.yaml").write_text(printed)
    assert run(["train", "--config", "full.yaml", "--run", "a"]) == 0
    assert run(["train", "--config", "hybrid.yaml", "--run", "b"]) == 0
    assert Path("a/config.yaml").read_text() == Path("b/config.yaml").read_text()


def test_resume_continues_with_the_configuration_of_the_run() -> None:
    assert run(["train", "--config", "toy.yaml", "--run", "here"]) == 0
    assert run(["train", "--resume", "here"]) == 0
    assert metrics(Path("here"))[-1]["step"] == 3


MISTAKES = {
    "no command": ([], "train"),
    "unknown command": (["trian"], "'trian'.*did you mean 'train'"),
    "unknown choice": (
        ["make-data", "listop", "out"],
        "'listop' .choose from 'listops', .*did you mean 'listops'",
    ),
    "value of another kind": (["make-data", "listops", "out", "--train", "3.5"], "train: '3.5' is no int"),
    "value that is none": (["lra", "run", "text", "s4", "--budget", "big"], "budget: 'big' is none of 'small', 'publ"),
    "no configuration": (["train"], "there is no task.*--config"),
    "no model": (["train", "--task", "training_toys.CountingTask"], "there is no model.*--config"),
    "missing file": (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
    "unknown option": (["train", "--config", "toy.yaml", "--bogus", "1"], "--bogus"),
    "misspelt option": (
        ["train", "--config", "toy.yaml", "--training.step", "4"],
        "--training.step.*did you mean 'training.steps'",
    ),
    "misspelt option of a class": (
        ["train", "--config", "toy.yaml", "--model.wdth", "4"],
        "model: Option 'wdth' is not accepted by training_toys.TableModel; did you mean 'width'",
    ),
    "wrong type": (["train", "--config", "toy.yaml", "--task.vocab_size", "many"], "task.vocab_size"),
    "unknown class": (["train", "--config", "toy.yaml", "--model", "LanguageModle"], "did you mean 'LanguageModel'"),
    "value out of range": (["train", "--config", "toy.yaml", "--training.lr", "-1"], "training.lr is -1.0"),
    "both budgets": (["train", "--config", "toy.yaml", "--training.minutes", "1"], "exactly one of the two"),
    "no run to resume": (["train", "--resume", "nowhere"], "nowhere is not the folder of a run"),
    "resume with options": (["train", "--resume", "nowhere", "--training.lr", "1"], "takes no other options"),
    "resume into another": (["train", "--resume", "nowhere", "--run", "there"], "takes no other options"),
    "existing run": (["train", "--config", "toy.yaml", "--run", "."], "exists already"),
    "no gpu": (["train", "--config", "toy.yaml", "--training.device", "cuda"], "no GPU"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_explained_without_a_traceback(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments, explanation = MISTAKES[name]
    assert run(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("longreach: error: ")
    assert "Traceback" not in message
    assert re.search(explanation, message), message


FILE_MISTAKES = {
    "not yaml": ("task: [", "config"),
    "unknown section": ({**CONFIG, "optimizer": {"lr": 1}}, "optimizer"),
    "unknown training option": ({**CONFIG, "training": {"step": 1}}, "'training.step'; did you mean 'training.steps'"),
    "unknown task option": (
        {**CONFIG, "task": {"class_path": "training_toys.CountingTask", "init_args": {"lenght": 3}}},
        "task: Option 'lenght' is not accepted by training_toys.CountingTask; did you mean 'length'",
    ),
    "unknown mixer": (
        {**CONFIG, "model": json.loads(json.dumps(HYBRID).replace('"Attention"', '"Atention"'))},
        "model.backbone.mixers: there is no class Atention here.*did you mean 'Attention'",
    ),
    "unknown mixer option": (
        {**CONFIG, "model": json.loads(json.dumps(HYBRID).replace("d_state", "d_stat"))},
        "model.backbone.mixers: Option 'd_stat' is not accepted by longreach.mixers.S4D; did you mean 'd_state'",
    ),
    "not a task": ({**CONFIG, "task": "training_toys.TableModel"}, "task"),
}


@pytest.mark.parametrize("name", FILE_MISTAKES)
def test_mistakes_in_a_file_are_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, explanation = FILE_MISTAKES[name]
    Path("wrong.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    assert run(["train", "--config", "wrong.yaml"]) == 2
    message = capsys.readouterr().err
    assert re.search(explanation, message), message
    assert "Callable" not in message
    assert not Path("runs").exists()


def test_divergence_and_interruption_have_their_own_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, status in [(DivergenceError("step 7: nan"), 1), (KeyboardInterrupt(), 130)]:

        def fail(parsed: object, error: BaseException = error) -> int:
            raise error

        monkeypatch.setitem(COMMANDS, "train", COMMANDS["train"]._replace(run=fail))
        assert run(["train", "--config", "toy.yaml"]) == status
        assert "longreach: error:" in capsys.readouterr().err


def test_among_processes_it_is_said_which_one_complains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run(["train"]) == 2
    assert "longreach (process 1): error:" in capsys.readouterr().err


def test_help_names_our_classes_only(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["train", "--help"])
    text = capsys.readouterr().out
    assert "longreach.models.LanguageModel" in text
    assert "torch.nn" not in text
    assert "Peak learning rate" in text


def command(*arguments: str, **options: object) -> subprocess.Popen[str]:
    """`python -m longreach ...` as a user would start it."""
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], env=environment, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.slow
def test_ctrl_c_saves_and_exits_with_130() -> None:
    process = command("longreach", "train", "--config", "toy.yaml", "--run", "here", "--training.steps", "100000")
    give_up = time.monotonic() + 120
    while not (Path("here/metrics.jsonl").exists() and metrics(Path("here"))) and time.monotonic() < give_up:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "longreach train --resume here" in told
    assert "Traceback" not in told
    step = json.loads(Path("here/checkpoints/last/state.json").read_text())["position"]["step"]
    assert step == metrics(Path("here"))[-1]["step"]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_torchrun_starts_the_same_command(parallel: str) -> None:
    write("hybrid.yaml", **(CONFIG | {"model": HYBRID}))
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "longreach"]
    options = ["train", "--config", "hybrid.yaml", "--folder", "here", "--training.parallel", parallel]
    process = command(*launch, *options)
    try:
        _, told = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, told
    assert told.count("here/plots/loss.png") == 1
    record = json.loads(Path("here/record.json").read_text())
    assert (record["processes"], record["parallel"]) == (2, parallel)
    assert run(["train", "--config", "hybrid.yaml", "--run", "alone", "--training.accumulate", "2"]) == 0
    ours, theirs = ([line["loss"] for line in metrics(Path(name)) if "loss" in line] for name in ("here", "alone"))
    assert ours == pytest.approx(theirs, rel=1e-5)
