"""The folder of a run: what is in it, its plots, and the model that can be loaded from it again."""

import json
import math
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from training_toys import CountingTask, SignallingTask, TableModel, assert_same_run, small_run, tensors

from longreach.errors import InputError
from longreach.tasks.base import Curve
from longreach.training import load_run, read_experiment, train
from longreach.training.metrics_log import MetricsLog, read_metrics
from longreach.training.plots import plot_curve, plot_loss, smoothed
from longreach.training.run_folder import RunFolder

CONFIG = """\
task:
  class_path: training_toys.CountingTask
  init_args: {vocab_size: 6}
model:
  class_path: LanguageModel
  init_args:
    backbone:
      class_path: Backbone
      init_args:
        d_model: 8
        n_layers: 2
        mixers: [S4D, {class_path: Attention, init_args: {n_heads: 2}}]
        channel_mixer: MLP
training: {steps: 3, warmup_steps: 1, threads: 1, device: cpu}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a language model from a configuration."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "model.yaml").write_text(CONFIG)
    experiment = read_experiment(folder / "model.yaml")
    run = folder / "run"
    return train(experiment.task, experiment.model, experiment.training, run, config=experiment.config).run


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The run of `trained`, to be damaged."""
    for path in trained.rglob("*"):
        if path.is_file():
            target = tmp_path / "run" / path.relative_to(trained)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path / "run"


def test_a_run_learns_and_leaves_everything_in_its_folder(tmp_path: Path) -> None:
    result = small_run(tmp_path / "run", steps=150, evaluate_every=30, config="a: 1\n")
    assert result.finished
    assert result.leads
    assert result.best.metrics["bits"] < 1.3  # of 3 bits; the noise alone is 0.8
    assert result.best.curves["bits_by_position"].x[0] == 1.0
    files = {str(path.relative_to(result.run)) for path in result.run.rglob("*") if path.is_file()}
    assert files >= {
        "config.yaml", "record.json", "metrics.jsonl", "tokenizer.json", "plots/loss.png", "plots/bits_by_position.png",
        "checkpoints/best/model.safetensors", "checkpoints/last/model.safetensors",
        "checkpoints/last/optimiser.safetensors", "checkpoints/last/state.json",
    }  # fmt: skip
    assert any(name.startswith("tensorboard/") for name in files)
    assert [path.stat().st_size > 5000 for path in result.plots] == [True, True]
    record = json.loads((result.run / "record.json").read_text())
    assert record["model"] == {"class": "TableModel", "input_size": 8, "parameters": 8 * 8 + 16 + 72}
    assert (record["task"], record["data"]) == ("CountingTask", {"vocab_size": 8})
    assert record["result"]["finished"] is True
    assert record["result"]["steps"] == 150
    assert record["result"]["tokens"] == 150 * 64
    assert record["result"]["metrics"] == result.best.metrics
    assert record["machine"]["torch"] == torch.__version__


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_model_is_loaded_without_its_data(trained: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training_toys.CountingTask.prepare", lambda self: pytest.fail("the data was read"))
    loaded = load_run(trained, checkpoint)
    assert not loaded.model.training
    assert loaded.model.vocab_size == 6
    assert loaded.experiment.training.steps == 3
    assert loaded.folder.path == trained
    saved = tensors(trained, checkpoint)
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, saved[f"model.safetensors:{name}"]), name


def test_the_saved_configuration_repeats_the_run(trained: Path, tmp_path: Path) -> None:
    again = read_experiment(trained / "config.yaml")
    run = train(again.task, again.model, again.training, tmp_path / "again", config=again.config).run
    assert (run / "config.yaml").read_text() == (trained / "config.yaml").read_text()
    ours, theirs = tensors(run), tensors(trained)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_run_begins_with_the_weights_of_another(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    small_run(first, steps=60, config="a: 1")
    small_run(second, steps=10, lr=1e-9, seed=7, start_from=first)
    before, after = tensors(first, "best"), tensors(second, "best")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert RunFolder(second).read_record()["start_from"] == str(first)


def test_a_resumed_run_goes_on_from_its_own_weights(tmp_path: Path) -> None:
    start, whole, stopped = tmp_path / "start", tmp_path / "whole", tmp_path / "stopped"
    small_run(start, steps=2, config="a: 1")
    small_run(whole, start_from=start)
    small_run(stopped, start_from=start, task=SignallingTask(at=7))
    small_run(stopped, start_from=start, resume=True)
    assert_same_run(whole, stopped)


def test_weights_to_begin_with_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not the folder of a run"):
        small_run(tmp_path / "new", start_from=tmp_path)
    small_run(tmp_path / "old", steps=2, config="a: 1", model=lambda size: TableModel(size, width=4))
    with pytest.raises(InputError, match="does not fit the model"):
        small_run(tmp_path / "new", start_from=tmp_path / "old")
    small_run(tmp_path / "other", steps=2, config="a: 1")
    record = RunFolder(tmp_path / "other")
    record.add_to_record({"data": {"tokenizer": {"fingerprint": "another"}}})
    task = CountingTask()
    task.record = lambda: {"tokenizer": {"fingerprint": "this"}}
    with pytest.raises(InputError, match=r"tokens of this task.*other/tokenizer.json"):
        small_run(tmp_path / "new", start_from=tmp_path / "other", task=task)


def test_every_call_of_the_factory_builds_a_new_model(trained: Path) -> None:
    experiment = read_experiment(trained / "config.yaml")
    torch.manual_seed(0)
    first, second = experiment.model(6), experiment.model(6)
    torch.manual_seed(0)
    same = experiment.model(6)
    weight = "backbone.blocks.0.channel_mixer.up.weight"
    assert first.backbone is not second.backbone
    assert torch.equal(first.get_parameter(weight), same.get_parameter(weight))
    assert not torch.equal(first.get_parameter(weight), second.get_parameter(weight))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not the folder of a run.*config\.yaml"):
        load_run(tmp_path)


def test_a_run_stopped_before_its_first_checkpoint_is_refused(copy: Path) -> None:
    for path in (copy / "checkpoints/best").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no checkpoint 'best'"):
        load_run(copy)


def test_a_configuration_of_another_model_is_refused(copy: Path) -> None:
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("d_model: 8", "d_model: 16"))
    with pytest.raises(InputError, match=r"A_real \(8, 32\) instead of \(16, 32\), .* and 22 more"):
        load_run(copy)


def test_a_configuration_that_cannot_be_read_is_refused(copy: Path) -> None:
    (copy / "config.yaml").write_text("task: [")
    with pytest.raises(InputError, match=r"config\.yaml is not a configuration"):
        load_run(copy)


@pytest.mark.parametrize("content", ['{"model": {', "{}"])
def test_a_damaged_record_is_refused(copy: Path, content: str) -> None:
    (copy / "record.json").write_text(content)
    with pytest.raises(InputError, match=r"record\.json.*restore it or train again"):
        load_run(copy)


def test_the_record_is_replaced_whole_or_not_at_all(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(copy)
    before = folder.read_record()

    def full(self: Path, text: str) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="No space left"):
        folder.add_to_record({"more": 1})
    assert folder.read_record() == before


def test_a_full_disk_is_reported_wherever_it_is_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("training_toys.CountingTask.save", full)
        with pytest.raises(InputError, match=r"cannot write .*task.* No space left .* intact"):
            small_run(tmp_path / "task", steps=1)
    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", full)
        with pytest.raises(InputError, match=r"cannot write .*loss\.png.* No space left .* intact"):
            small_run(tmp_path / "plot", steps=1)
    assert small_run(tmp_path / "plot", steps=1, resume=True).finished
    log = MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "board", step=0)
    with log:
        log.write("train", 1, {"loss": 1.0})
        monkeypatch.setattr(json, "dumps", full)
        with pytest.raises(InputError, match=r"cannot write .*metrics\.jsonl"):
            log.write("train", 2, {"loss": 1.0})
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_plots_are_drawn_where_there_is_little_to_draw(tmp_path: Path) -> None:
    one = [{"kind": "train", "step": 1, "loss": 2.0}]
    plot_loss(tmp_path / "one.png", one, "bits")
    plot_loss(tmp_path / "none.png", [], "bits")
    plot_curve(tmp_path / "point.png", Curve("x", "y", [1.0], [2.0]))
    plot_curve(tmp_path / "empty.png", Curve("x", "y", [], []))
    assert len(list(tmp_path.iterdir())) == 4


def test_the_scale_is_not_decided_by_the_first_steps(tmp_path: Path) -> None:
    """A loss that starts at a million still shows its fall from 2 to 1: the line is not flat."""
    lines = [{"kind": "train", "step": s, "loss": 1e6 if s < 3 else 2.0 - s / 200} for s in range(1, 201)]
    plot_loss(tmp_path / "loss.png", lines, "loss")
    pixels = imread(tmp_path / "loss.png")[:, :, :3]
    height = pixels.shape[0]
    blue = (abs(pixels - [0x2A / 255, 0x6F / 255, 0x97 / 255]) < 0.02).all(-1).any(1).nonzero()[0]
    assert blue.max() - blue.min() > height / 2


def test_smoothing_keeps_a_line_and_the_mean() -> None:
    assert smoothed([3.0]) == [3.0]
    line = [float(i) for i in range(200)]
    assert smoothed(line)[50:150] == pytest.approx(line[50:150])
    noisy = [float(i % 2) for i in range(400)]
    assert max(abs(value - 0.5) for value in smoothed(noisy)) < 0.1
    assert not any(math.isnan(value) for value in smoothed(noisy))
