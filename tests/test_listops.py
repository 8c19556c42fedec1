"""ListOps: every value, the statistics of the published generator, files, and what a cache holds."""

import gzip
import hashlib
import itertools
import json
import os
import random
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longreach.cli.main import run
from longreach.errors import InputError
from longreach.tasks import ListOps, Loading
from longreach.tasks.lra import ListOpsData
from longreach.tasks.lra.listops import write_listops
from longreach.tasks.lra.listops_files import FILES, find_files, read_trees, source_text, write_trees
from longreach.tasks.lra.listops_trees import SYMBOLS, Tree, TreeLimits, trees

GOLDEN = Path(os.environ.get("LONGREACH_GOLDEN", Path(__file__).parent / "golden")) / "listops"
PUBLISHED = sorted(GOLDEN.glob("*.tsv*"))
SMALL = {"min_length": 2, "max_length": 30, "max_depth": 4, "max_args": 4}
RULES = {"[MIN": min, "[MAX": max, "[MED": lambda a: int(statistics.median(a)), "[SM": lambda a: sum(a) % 10}


def evaluate(text: str) -> int:
    """The value of an expression as it is written, by the rules of the paper and a stack."""
    stack: list[list[str | int]] = [[]]
    for word in text.replace("(", " ").replace(")", " ").split():
        if word.startswith("["):
            stack.append([word])
        elif word == "]":
            operation, *arguments = stack.pop()
            assert len(arguments) >= 2
            stack[-1].append(RULES[operation](arguments))
        else:
            stack[-1].append(int(word))
    ((value,),) = stack
    return value


def published_trees(seed: int, n: int) -> set[bytes]:
    """What the published generator makes with Python's random numbers: an independent statement of its rules."""
    rng, found = random.Random(seed), set()

    def grow(depth: int) -> list[str]:
        if not depth < 10 or rng.random() > 0.25:
            return [str(rng.choice(range(10)))]
        arguments = [grow(depth + 1) for _ in range(rng.randint(2, 10))]
        return [rng.choice(["[MIN", "[MAX", "[MED", "[SM"]), *itertools.chain(*arguments), "]"]

    while len(found) < n:
        tree = grow(1)
        if 500 < len(tree) < 2000:
            found.add(bytes(map(SYMBOLS.index, tree)))
    return found


def unpacked(path: Path, folder: Path) -> Path:
    content = path.read_bytes()
    (folder / path.stem).write_bytes(gzip.decompress(content) if path.suffix == ".gz" else content)
    return folder / path.stem


def some(n: int, seed: int = 0, **limits: int) -> list[Tree]:
    return list(itertools.islice(trees(seed, TreeLimits(**limits)), n))


@pytest.fixture(scope="module")
def many() -> list[Tree]:
    return some(4000)


def test_every_value_is_right(many: list[Tree]) -> None:
    for tree in [*many[:500], *some(500, **SMALL)]:
        assert tree.value == evaluate(source_text(tree.symbols).decode())


def test_the_limits_hold(many: list[Tree]) -> None:
    assert all(500 < len(tree.symbols) < 2000 for tree in many)
    small = some(300, **SMALL)
    assert {len(tree.symbols) for tree in small} <= set(range(3, 30))
    assert max(map(depth, small)) == 3
    assert max(len(arguments) for tree in small for arguments in tree_arguments(tree)) == 4


def depth(tree: Tree) -> int:
    """How many operations are open at most."""
    return int(np.cumsum((tree.symbols > 10) * 1 - (tree.symbols == 10)).max())


def tree_arguments(tree: Tree) -> Iterator[list[None]]:
    """The arguments of every operation."""
    stack: list[list[None]] = [[]]
    for symbol in tree.symbols:
        if symbol > 10:
            stack.append([])
        else:
            if symbol == 10:
                yield stack.pop()
            stack[-1].append(None)


def test_no_expression_comes_twice_and_too_many_are_refused() -> None:
    tiny = {"min_length": 2, "max_length": 5, "max_depth": 2, "max_args": 2}
    found = some(400, **tiny)
    assert len({tree.symbols.tobytes() for tree in found}) == 400  # 4 operations on 10 x 10 digits are all there are
    with pytest.raises(InputError, match=r"only 400 trees .*max_length=5"):
        some(401, **tiny)


def test_a_seed_means_the_same_bytes_everywhere() -> None:
    digest = hashlib.sha256()
    for tree in some(50):
        digest.update(tree.symbols.tobytes() + bytes([tree.value]))
    assert digest.hexdigest() == "c7f974bbd619727292f79e0681b28c1ec992b9d804e88e837e8fe27b9dbfac13"
    assert some(1, seed=1)[0].symbols.tobytes() != some(1)[0].symbols.tobytes()
    assert [tree.value for tree in some(700)] == [tree.value for tree in some(900)[:700]]


def test_there_are_published_files() -> None:
    assert PUBLISHED


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.name)
def test_published_files_are_read_evaluated_and_written_byte_for_byte(path: Path, tmp_path: Path) -> None:
    theirs = unpacked(path, tmp_path)
    found = list(read_trees(theirs))
    assert len(found) == len(theirs.read_bytes().splitlines()) - 1
    for tree in found:
        assert tree.value == evaluate(source_text(tree.symbols).decode())
    write_trees(tmp_path / "ours.tsv", found)
    assert (tmp_path / "ours.tsv").read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.stats.json")), ids=lambda path: path.name)
def test_statistics_are_those_of_the_published_generator(path: Path, tmp_path: Path, many: list[Tree]) -> None:
    stats = json.loads(path.read_text())
    source = next(each for each in PUBLISHED if each.name.startswith(path.name.removesuffix("stats.json")))
    theirs = list(read_trees(unpacked(source, tmp_path)))
    assert {tree.symbols.tobytes() for tree in theirs} == published_trees(stats["seed"], stats["n"])
    lengths = [np.sort([len(tree.symbols) for tree in found]) for found in (theirs, many)]
    values = [np.bincount([tree.value for tree in found], minlength=10) for found in (theirs, many)]
    operations = [
        sum(np.bincount(tree.symbols, minlength=len(SYMBOLS))[11:] for tree in found) / len(found)
        for found in (theirs, many)
    ]
    assert values[0].tolist() == stats["label_counts"]
    assert {depth(tree) for tree in many} == {int(each) for each in stats["depth_hist"]}
    # Two samples of one distribution: Kolmogorov-Smirnov and chi-squared, each refused once in a thousand
    grid = np.concatenate(lengths)
    distance = np.abs(np.subtract(*[np.searchsorted(each, grid, "right") / len(each) for each in lengths])).max()
    assert distance < 1.95 * np.sqrt(1 / len(theirs) + 1 / len(many))
    expected = sum(values) / (len(theirs) + len(many))
    chi_squared = sum(((v - v.sum() * expected) ** 2 / (v.sum() * expected)).sum() for v in values)
    assert chi_squared < 27.9  # 9 degrees of freedom
    np.testing.assert_allclose(operations[1], operations[0], rtol=0.15)


def test_values_and_lengths_are_those_of_a_large_published_sample(many: list[Tree]) -> None:
    """Of 2,000 expressions of the published generator: how often each value, and quartiles of the length."""
    published = np.array([331, 189, 148, 181, 172, 162, 159, 152, 180, 326]) / 2000
    ours = np.bincount([tree.value for tree in many], minlength=10) / len(many)
    np.testing.assert_allclose(ours, published, atol=0.03)
    np.testing.assert_allclose(np.percentile([len(t.symbols) for t in many], [25, 50, 75]), [698, 961, 1335], rtol=0.06)


def test_a_file_is_the_release_format(tmp_path: Path) -> None:
    symbols = [SYMBOLS.index(word) for word in ("[MAX", "2", "9", "[MED", "1", "5", "]", "]")]
    write_trees(tmp_path / "file.tsv", [Tree(np.array(symbols, np.uint8), 9)])
    expression = b"( ( ( ( [MAX 2 ) 9 ) ( ( ( [MED 1 ) 5 ) ] ) ) ] )"
    assert (tmp_path / "file.tsv").read_bytes() == b"Source\tTarget\r\n" + expression + b"\t9\r\n"


ROW = "( ( ( [MAX 2 ) 9 ) ] )\t9"


@pytest.mark.parametrize(
    "content",
    [
        f"Source\tTarget\n{ROW}\n{ROW}\n",
        f"Source\tTarget\r\n{ROW}\r\n{ROW}",
        f'"Source"\t"Target"\r\n"( ( ( [MAX 2 ) 9 ) ] )"\t"9"\r\n{ROW}.0\r\n\r\n',
        f"\ufeffSource\tTarget\n[MAX 2 9 ]\t9.0\n{ROW}\n",
    ],
)
def test_line_ends_quotes_and_floats_are_understood(tmp_path: Path, content: str) -> None:
    (tmp_path / "file.tsv").write_bytes(content.encode())
    found = list(read_trees(tmp_path / "file.tsv"))
    assert [tree.value for tree in found] == [9, 9]
    assert [SYMBOLS[i] for tree in found for i in tree.symbols] == 2 * ["[MAX", "2", "9", "]"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", None),
        (b"Target\tSource\n", "does not begin with 'Source"),
        (b"\x1f\x8b\x08\x00", "does not begin with"),
        (b"Source\tTarget\n( ( ( [MAX 2 ) 9", "line 2: 1 fields"),
        (b"Source\tTarget\n[MAX 2 9 ]\t\n", "line 2: '' is no value"),
        (b"Source\tTarget\n[MAX 2 9 ]\t10\n", "line 2: '10' is no value"),
        (b"Source\tTarget\n[MAX 2 9 ]\t1.5\n", "'1.5' is no value"),
        (b"Source\tTarget\n[MAX 2 9 ]\tnan\n", "'nan' is no value"),
        (b"Source\tTarget\n[MAX 2 9 ]\t9\n[MAX 2 9\t9\n", "line 3: the expression does not end"),
        (b"Source\tTarget\n[MAX 2 9 ] 3\t9\n", "does not end where its brackets do"),
        (b"Source\tTarget\n\t9\n", "does not end where its brackets do"),
        (b"Source\tTarget\n[FIRST 2 9 ]\t2\n", r"'\[FIRST' is no symbol"),
        (b"Source\tTarget\n[MAX 12 9 ]\t2\n", "'12' is no symbol"),
    ],
)
def test_what_is_no_listops_is_refused_by_its_line(tmp_path: Path, content: bytes, complaint: str | None) -> None:
    path = tmp_path / "file.tsv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=complaint or "is empty") as raised:
        list(read_trees(path))
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("below", ["", "listops-1000", "lra_release/listops-1000"])
def test_files_are_found_in_the_release(tmp_path: Path, below: str) -> None:
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    for name in FILES.values():
        (tmp_path / below / name).write_text("")
    assert find_files(tmp_path)["validation"] == tmp_path / below / "basic_val.tsv"


def test_wrong_folders_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "lra_release.gz").write_text("")
    with pytest.raises(InputError, match=r"lra_release.gz is a file; .* unpacked"):
        find_files(tmp_path / "lra_release.gz")
    with pytest.raises(InputError, match=rf"{tmp_path} has no basic_train.tsv.*make-data listops"):
        find_files(tmp_path)
    (tmp_path / "listops-1000").mkdir()
    (tmp_path / "listops-1000" / "basic_val.tsv").write_text("")
    with pytest.raises(InputError, match=r"listops-1000 has no basic_train.tsv, basic_test.tsv; copy the whole"):
        find_files(tmp_path)
    with pytest.raises(InputError, match="nowhere has no"):
        ListOps(tmp_path / "nowhere").prepare()


DATA = ListOpsData(60, 20, 10, **SMALL)


def tokens_of(task: ListOps) -> dict[str, list[list[int]]]:
    parts = {part: task.part(part) for part in FILES}
    return {
        part: [found.values[a:][:n].tolist() for (a,), (n,) in zip(found.starts, found.lengths, strict=True)]
        for part, found in parts.items()
    }


def test_a_cache_holds_what_was_made_or_read(tmp_path: Path) -> None:
    loading = Loading(batch_size=10, cache=tmp_path / "cache")
    made = ListOps(generated=DATA, loading=loading)
    made.prepare()
    assert dict(write_listops(tmp_path, DATA)) == {"basic_train.tsv": 60, "basic_val.tsv": 20, "basic_test.tsv": 10}
    read, ended = (ListOps(tmp_path, append_end=end, loading=loading) for end in (False, True))
    for task in (read, ended):
        task.prepare()
    assert tokens_of(made) == tokens_of(read)
    assert {p: [[*row, 15] for row in rows] for p, rows in tokens_of(made).items()} == tokens_of(ended)
    assert (made.encoding.size, ended.encoding.size) == (15, 16)
    everything = [row for rows in tokens_of(made).values() for row in rows]
    assert everything == [tree.symbols.tolist() for tree in some(90, **SMALL)]
    assert made.part("test").labels.tolist() == [tree.value for tree in some(90, **SMALL)[80:]]
    assert made.record()["parts"]["train"]["examples"] == 60


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    loading = Loading(batch_size=10, cache=tmp_path / "cache")
    for seed in (0, 1):
        list(write_listops(tmp_path, ListOpsData(60, 20, 10, seed, **SMALL)))
        task = ListOps(tmp_path, loading=loading)
        task.prepare()
        assert tokens_of(task)["train"][0] == some(1, seed, **SMALL)[0].symbols.tolist()


class Calculator(nn.Module):
    """Evaluates."""

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """One for the value."""
        lengths = [inputs.shape[1]] * len(inputs) if mask is None else mask.sum(1).tolist()
        words = [[SYMBOLS[i] for i in row[:n]] for row, n in zip(inputs.tolist(), lengths, strict=True)]
        return nn.functional.one_hot(torch.tensor([evaluate(" ".join(row)) for row in words]), 10).float()


class Constant(nn.Module):
    """Says 0 whatever it reads."""

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """One for 0."""
        return torch.eye(10)[:1].expand(len(inputs), -1)


def test_an_oracle_is_always_right_and_a_constant_at_chance(tmp_path: Path) -> None:
    task = ListOps(generated=ListOpsData(40, 300, 20), loading=Loading(batch_size=20, cache=tmp_path))
    task.prepare()
    assert task.evaluate(Calculator()).metrics["accuracy"] == task.test(Calculator())["test_accuracy"] == 1.0
    found = task.evaluate(Constant()).metrics
    assert found["accuracy"] <= found["majority_accuracy"]
    assert found["accuracy"] == pytest.approx(0.165, abs=0.07)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"train": 0}, "every part needs an example"),
        ({"min_length": 10, "max_length": 11}, "no length is between min_length = 10 and max_length = 11"),
        ({"max_args": 1}, "max_args = 1"),
        ({"max_depth": 0}, "max_depth = 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(complaint)):
        ListOps(generated=ListOpsData(**options), loading=Loading(cache=tmp_path)).prepare()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_command_makes_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ["--train", "150", "--validation", "5", "--test", "5", "--min-length", "20", "--max-length", "60"]
    assert run(["make-data", "listops", str(tmp_path / "new" / "folder"), *sizes, "--seed", "3"]) == 0
    assert "basic_train.tsv, 150 examples" in capsys.readouterr().out
    found = [list(read_trees(path)) for path in find_files(tmp_path / "new" / "folder").values()]
    expected = some(160, 3, min_length=20, max_length=60)
    assert [tree.symbols.tolist() for part in found for tree in part] == [tree.symbols.tolist() for tree in expected]
    assert run(["make-data", "listops", str(tmp_path / "new")]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    monkeypatch.setattr("longreach.tasks.lra.listops_trees.PATIENCE", 3)
    too_many = ["--validation", "5000", "--min-length", "2", "--max-length", "5", "--max-args", "2"]
    assert run(["make-data", "listops", str(tmp_path / "half"), "--train", "20", *too_many]) == 2
    assert "there seem to be only" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "half").iterdir()] == ["basic_train.tsv"], "half a file is none"


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    list(write_listops(tmp_path, ListOpsData(150, 60, 10, **SMALL), lambda *both: told.append(both)))
    assert told == [(100, 220), (200, 220)]


CONFIG = """
task:
  class_path: ListOps
  init_args:
    generated: {{train: 40, validation: 10, test: 10, min_length: 10, max_length: 40}}
    loading: {{batch_size: 10, cache: {cache}}}
model:
  class_path: Classifier
  init_args:
    n_classes: 10
    backbone:
      class_path: Backbone
      init_args:
        d_model: 8
        n_layers: 1
        mixers: [{{class_path: S4D, init_args: {{d_state: 4, causal: false}}}}]
        channel_mixer: MLP
training: {{steps: 4, warmup_steps: 1, device: cpu, threads: 1}}
"""


def test_a_run_is_trained_tested_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(cache=tmp_path / "cache"))
    folder = tmp_path / "run"
    assert run(["train", "--config", str(tmp_path / "config.yaml"), "--run", str(folder)]) == 0
    assert "test majority accuracy" in capsys.readouterr().err
    trained = json.loads((folder / "record.json").read_text())["result"]["metrics"]
    assert run(["evaluate", str(folder)]) == 0
    assert "test accuracy" in capsys.readouterr().out
    judged = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert {name: judged[name] for name in trained} == pytest.approx(trained, rel=1e-5)
    assert run(["evaluate", str(folder), str(tmp_path)]) == 2
    assert "name no other data" in capsys.readouterr().err
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("seed: 0", "seed: 1"))
    assert run(["evaluate", str(folder)]) == 2
    assert "trained on other data: generated, parts differ" in capsys.readouterr().err
