"""Classification tasks: caches, batches, losses, and what an accuracy is worth."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from classification_toys import SIZES, Constant, MajorityTask, Oracle
from torch import Tensor, nn
from training_toys import metrics, small_run

from longreach.errors import InputError
from longreach.mixers import S4D
from longreach.models import MLP, Backbone, Classifier, LearnedPositions
from longreach.tasks import Example, Loading
from longreach.tasks.epochs import Epochs
from longreach.tasks.labelled import Format, LabelledPart, one_of_few, part_writer
from longreach.training import RunFolder
from longreach.training.checkpoint import load_model

ORDER = [[14, 8, 17, 5], [4, 18, 13, 6], [7, 14, 9, 10]]


def prepared(root: Path, **options: object) -> MajorityTask:
    task = MajorityTask(root, **options)
    task.prepare()
    return task


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("pair", [False, True])
def test_an_oracle_is_always_right_and_a_constant_at_chance(tmp_path: Path, features: bool, pair: bool) -> None:
    task = prepared(tmp_path, features=features, pair=pair)
    assert task.evaluate(Oracle()).metrics["accuracy"] == 1.0
    assert task.test(Oracle())["test_accuracy"] == 1.0
    for part in SIZES:
        frequency = np.bincount(task.part(part).labels, minlength=3) / SIZES[part]
        for label in range(3):
            found = task.judge(Constant(label), part)
            assert found["accuracy"] == pytest.approx(frequency[label])
            assert found["majority_accuracy"] == pytest.approx(frequency.max())
            assert found["accuracy"] <= found["majority_accuracy"]


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("pair", [False, True])
def test_a_batch_holds_the_examples(tmp_path: Path, features: bool, pair: bool) -> None:
    task = prepared(tmp_path, features=features, pair=pair)
    written = [example for example in task.examples() if example.part == "train"]
    seen: list[int] = []
    for step in range(8):
        batch, rows = task.batch(step, 0, 1), task.epochs.rows(step)
        mask = torch.ones(batch.inputs.shape[: 2 + pair], dtype=torch.bool) if batch.mask is None else batch.mask
        assert batch.positions == int(mask.sum()) == sum(len(s) for row in rows for s in written[row].sequences)
        for place, row in enumerate(rows):
            assert batch.targets[place] == written[row].label
            values, real = batch.inputs[place], mask[place]
            found = [v[m] for v, m in zip(values, real, strict=True)] if pair else [values[real]]
            for ours, theirs in zip(found, written[row].sequences, strict=True):
                expected = (theirs - 1.0) / 0.5 if features else theirs
                np.testing.assert_array_equal(ours.numpy(), expected)
        seen += rows.tolist()
    assert len(set(seen)) == len(seen) == 64  # of 70; six wait for the next epoch


def test_batches_are_a_function_of_the_step_and_the_seed(tmp_path: Path) -> None:
    task, again = prepared(tmp_path), prepared(tmp_path)
    later = again.batch(11, 0, 1)
    for step in range(11):
        task.batch(step, 0, 1)
    assert torch.equal(task.batch(11, 0, 1).inputs, later.inputs)
    assert not np.array_equal(task.epochs.rows(0), task.epochs.rows(8))  # another epoch, another order
    other = prepared(tmp_path, loading=Loading(batch_size=8, pool=2, seed=1, cache=tmp_path))
    assert not np.array_equal(task.epochs.rows(0), other.epochs.rows(0))


def test_the_order_is_the_same_everywhere() -> None:
    epochs = Epochs(np.arange(20) % 7, batch_size=4, pool=2, seed=5)
    assert [epochs.rows(step).tolist() for step in (0, 1, 5)] == ORDER


def test_parts_of_a_batch_are_the_batch(tmp_path: Path) -> None:
    task = prepared(tmp_path)
    whole, parts = task.batch(3, 0, 1), [task.batch(3, part, 4) for part in range(4)]
    losses = [task.loss(Oracle(), batch) for batch in (whole, *parts)]
    assert float(losses[0]) == pytest.approx(float(sum(losses[1:])), rel=1e-5)
    assert [batch.weight for batch in parts] == [2, 2, 2, 2]
    with pytest.raises(InputError, match=r"batch_size = 8 cannot be divided equally into 3 parts"):
        task.batch(0, 0, 3)


def test_pools_save_padding_and_keep_every_example() -> None:
    lengths = np.random.Generator(np.random.PCG64(0)).integers(1, 1000, size=640)
    padded = []
    for pool in (1, 10):
        epochs = Epochs(lengths, batch_size=16, pool=pool, seed=0)
        rows = [epochs.rows(step) for step in range(epochs.steps)]
        assert sorted(np.concatenate(rows)) == list(range(640))
        padded.append(sum(16 * int(lengths[row].max()) for row in rows))
    assert padded[1] < 0.65 * padded[0]
    assert padded[1] < 1.15 * lengths.sum()
    longest = [int(lengths[epochs.rows(step)].max()) for step in range(epochs.steps)]
    assert longest[:10] != sorted(longest[:10]), "long batches do not all come at the end of a pool"


def test_batches_have_few_lengths(tmp_path: Path) -> None:
    lengths = range(1, 1500)
    rounded = {length: one_of_few(length) for length in lengths}
    assert all(length <= found <= length * 17 / 16 for length, found in rounded.items())
    assert len({found for length, found in rounded.items() if length >= 512}) <= 32
    with part_writer(tmp_path, "train", Format(np.dtype("u1"))) as writer:
        for length in (65, 69, 70, 1):
            writer.add(Example("train", [np.ones(length, np.uint8)], 0))
    part = LabelledPart(tmp_path, "train", Format(np.dtype("u1")))
    shapes = [part.padded(np.array(rows)).values.shape[2] for rows in ([0, 3], [1], [2], [3])]
    assert shapes == [68, 70, 70, 1], "none is longer than the longest of the part"
    assert (part.padded(np.array([0])).values[0, 0] == [1] * 65 + [0] * 3).all()


def test_where_nothing_is_padding_there_is_no_mask(tmp_path: Path) -> None:
    task = prepared(tmp_path, loading=Loading(batch_size=1, cache=tmp_path))
    assert all(task.batch(step, 0, 1).mask is None for step in range(5))
    assert task.batch(0, 0, 1).positions == task.batch(0, 0, 1).inputs.shape[1]


def test_a_loss_is_a_sum_of_cross_entropies(tmp_path: Path) -> None:
    task = prepared(tmp_path)
    batch = task.batch(0, 0, 1)
    logits = Oracle()(batch.inputs, batch.mask)
    expected = -sum(float(logits[i].log_softmax(-1)[label]) for i, label in enumerate(batch.targets))
    assert float(task.loss(Oracle(), batch)) == pytest.approx(expected)
    assert task.describe_loss(np.log(2)) == {"bits": pytest.approx(1.0)}


def test_an_evaluation_reads_as_many_examples_as_it_may(tmp_path: Path) -> None:
    model = Counting()
    task = prepared(tmp_path, loading=Loading(batch_size=8, evaluation_examples=10, cache=tmp_path))
    task.evaluate(model)
    assert model.rows == 10
    assert model.training, "it is left as it was"
    model.rows = 0
    task.test(model)
    assert model.rows == SIZES["test"]


class Counting(Oracle):
    """Counts what it is asked."""

    rows = 0

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """In eval mode only."""
        assert not self.training
        assert not torch.is_grad_enabled()
        self.rows += len(inputs)
        return super().forward(inputs, mask)


def test_examples_are_written_once_and_anew_when_files_change(tmp_path: Path) -> None:
    task = prepared(tmp_path)
    task.prepare()
    assert task.read == 1
    assert prepared(tmp_path).read == 0
    assert prepared(tmp_path, pair=True).read == 1, "other settings, another cache"
    task.state = "changed"
    task.prepare()
    assert task.read == 2
    assert task.part("train").values.dtype == np.uint8


def test_before_prepare_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not read yet; call prepare\(\)"):
        MajorityTask(tmp_path).batch(0, 0, 1)


class Empty(MajorityTask):
    """Has no test part."""

    def examples(self) -> Iterator[Example]:
        """Those of the other parts."""
        return (example for example in super().examples() if example.part != "test")


class Beyond(MajorityTask):
    """Has a label too many."""

    def examples(self) -> Iterator[Example]:
        """One is wrong."""
        yield Example("test", [np.zeros(3)], 3)
        yield from super().examples()


class Wide(MajorityTask):
    """Has a token that is none."""

    def examples(self) -> Iterator[Example]:
        """One is wrong."""
        yield Example("test", [np.array([1, 3])], 1)
        yield from super().examples()


class Hollow(MajorityTask):
    """Has an empty sequence."""

    def examples(self) -> Iterator[Example]:
        """One is wrong."""
        yield Example("test", [np.zeros(0, np.uint8)], 1)
        yield from super().examples()


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        (Empty, "Empty has no example in its test part"),
        (Beyond, "the test part of Beyond has labels beyond 2"),
        (Wide, "example 1 of the test part of Wide has the token 3, but there are 3, which start at 0"),
        (Hollow, "example 1 of the test part of Hollow has an empty sequence"),
    ],
)
def test_examples_that_cannot_be_learned_are_refused(task: type[MajorityTask], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        task(tmp_path).prepare()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def classifier(size: int, **options: object) -> nn.Module:
    backbone = Backbone(8, n_layers=1, mixers=[lambda d: S4D(d, d_state=4, causal=False)], channel_mixer=MLP)
    return Classifier(size, backbone, **{"n_classes": 3, **options})


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    task = prepared(tmp_path)
    assert isinstance(task.build(classifier), Classifier)
    for options, complaint in {
        ("n_classes", 4): "model.n_classes is 4, but MajorityTask needs 3",
        ("inputs", "features"): "model.inputs is features, but MajorityTask needs tokens",
        ("pair", "compared"): "model.pair is compared, but MajorityTask needs null",
    }.items():
        with pytest.raises(InputError, match=complaint):
            task.build(partial(classifier, **dict([options])))
    with pytest.raises(InputError, match=r"model\.pair is null, but MajorityTask needs concatenated or compared"):
        prepared(tmp_path, pair=True).build(classifier)
    with pytest.raises(InputError, match="Embedding is no Classifier"):
        task.build(lambda size: nn.Embedding(size, 2))
    short = LearnedPositions(classifier(3).backbone, length=4)
    with pytest.raises(InputError, match="longest sequence of MajorityTask has 9 positions, more than"):
        task.build(lambda size: Classifier(size, short, n_classes=3))


@pytest.mark.parametrize("option", ["batch_size", "pool", "evaluation_examples"])
def test_numbers_must_be_positive(option: str) -> None:
    with pytest.raises(InputError, match=f"loading.{option} = 0 must be at least 1"):
        Loading(**{option: 0})


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="70 examples to learn from, fewer than batch_size = 71"):
        prepared(tmp_path, loading=Loading(batch_size=71, cache=tmp_path))


def test_a_run_learns_keeps_the_most_accurate_and_tests_it(tmp_path: Path) -> None:
    task = MajorityTask(tmp_path / "cache", loading=Loading(batch_size=35, cache=tmp_path / "cache"))
    result = small_run(tmp_path / "run", task=task, model=classifier, steps=60, lr=0.03, evaluate_every=10)
    assert result.best is not None
    lines = metrics(tmp_path / "run")
    accuracies = [line["accuracy"] for line in lines if line["kind"] == "evaluation"]
    assert result.best.metrics["accuracy"] == max(accuracies) > result.best.metrics["majority_accuracy"]
    loaded = classifier(3)
    load_model(loaded, tmp_path / "run" / "checkpoints" / "best")
    assert task.test(loaded) == {name: result.best.metrics[name] for name in task.test(loaded)}
    record = RunFolder(tmp_path / "run").read_record()
    assert record["result"]["metrics"] == result.best.metrics
    assert record["data"]["parts"]["train"]["examples"] == 70
