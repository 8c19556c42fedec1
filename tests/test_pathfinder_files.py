"""Pathfinder data sets on disk: the release's layout and both kinds of its metadata; what is wrong is named."""

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from longreach.cli.main import run
from longreach.errors import InputError
from longreach.tasks.classification import Loading
from longreach.tasks.lra import Pathfinder, PathfinderRecipe, pathfinder_generation
from longreach.tasks.lra.pathfinder import split
from longreach.tasks.lra.pathfinder_generation import made_images, write_images
from longreach.tasks.lra.pathfinder_images import make_images
from longreach.tasks.lra.pathfinder_metadata import read_metadata
from longreach.tasks.lra.pathfinder_release import find_data_set, read_entries, read_images
from longreach.tasks.lra.pathfinder_settings import pathfinder_settings
from longreach.training import read_experiment

CONFIGS = sorted((Path(__file__).parent.parent / "configs" / "lra" / "pathfinder").glob("*.yaml"))
RECIPE = PathfinderRecipe(difficulty="baseline", images=20, seed=3)
NAME = "pathfinder32/curv_baseline"


@pytest.fixture(autouse=True)
def small_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images in a folder, and made in this process, because others know nothing of that."""
    monkeypatch.setattr(pathfinder_generation, "IMAGES_IN_A_FOLDER", 8)
    monkeypatch.setattr(pathfinder_generation, "usable_cores", lambda: 1)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 20 images in three folders."""
    root = tmp_path_factory.mktemp("release")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pathfinder_generation, "IMAGES_IN_A_FOLDER", 8)
        assert list(write_images(root / NAME, RECIPE, workers=1)) == [0, 8, 16, 20]
    return root


@pytest.fixture
def copy(release: Path, tmp_path: Path) -> Path:
    """One to be damaged."""
    return Path(shutil.copytree(release, tmp_path / "copy"))


def expected():
    return make_images(pathfinder_settings(32, "baseline"), RECIPE.seed, np.arange(RECIPE.images))


def task(data: Path | None, cache: Path, **options) -> Pathfinder:
    return Pathfinder(RECIPE, data=data, loading=Loading(batch_size=4, cache=cache), **options)


def by_label(found: Pathfinder) -> dict[bytes, int]:
    return {
        part.values[part.starts[i, 0] :][:1024].tobytes(): int(part.labels[i])
        for part in map(found.part, ("train", "validation", "test"))
        for i in range(len(part))
    }


def test_what_is_written_is_read(release: Path) -> None:
    folder = find_data_set(release, 32, "baseline")
    entries = read_entries(folder)
    found = list(read_images(folder, entries, 32))
    made = expected()
    assert np.array_equal([image.pixels for image in found], made.pixels)
    assert [image.label for image in found] == made.labels.tolist()
    assert [str(image.path.relative_to(folder)) for image in found[7:9]] == [
        "imgs/0/sample_7.png",
        "imgs/1/sample_0.png",
    ]
    line = (folder / "metadata" / "1.npy").read_text().splitlines()[2]
    assert line == f"imgs/1 sample_2.png 2 {made.labels[10]} 1.0 6 2 2 0.5 1 1"  # as published, text


@pytest.mark.parametrize("place", [NAME, "pathfinder32", ""])
def test_a_data_set_is_found_below_what_is_named(release: Path, place: str) -> None:
    assert find_data_set(release / place, 32, "baseline") == release / NAME


def test_a_task_of_generated_and_of_read_images_is_the_same(release: Path, tmp_path: Path) -> None:
    made, read = task(None, tmp_path), task(release, tmp_path)
    for found in (made, read):
        found.prepare()
    assert by_label(made) == by_label(read) == {
        pixels.tobytes(): label for pixels, label in zip(expected().pixels, expected().labels.tolist(), strict=True)
    }  # fmt: skip
    assert [len(made.part(part)) for part in ("train", "validation", "test")] == [16, 2, 2]
    assert read.record()["empty_files"] == read.record()["unlisted_images"] == {"count": 0, "first": []}


@pytest.mark.parametrize(("pixels", "low", "high"), [("centred", -1, 1), ("unit", 0, 1), ("tokens", 0, 255)])
def test_pixels_as_numbers_or_tokens(pixels, low: float, high: float, tmp_path: Path) -> None:
    found = task(None, tmp_path, pixels=pixels)
    found.prepare()
    batch = found.batch(0, 0, 1)
    assert batch.mask is None  # a black pixel is no padding
    assert batch.inputs.shape == ((4, 1024) if pixels == "tokens" else (4, 1024, 1))
    assert batch.inputs.dtype == (torch.int64 if pixels == "tokens" else torch.float32)
    assert (batch.inputs.min(), batch.inputs.max()) == (low, high)


class Constant(nn.Module):
    """Always says the same."""

    def forward(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).expand(len(inputs), 2)


class Oracle(nn.Module):
    """Knows every image."""

    def __init__(self, labels: dict[bytes, int]) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        found = [self.labels[image.numpy().astype(np.uint8).tobytes()] for image in inputs]
        return nn.functional.one_hot(torch.tensor(found), 2).float()


def test_constants_are_at_chance_and_oracles_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pathfinder_generation, "IMAGES_IN_A_FOLDER", 400)
    recipe = PathfinderRecipe(difficulty="baseline", images=400)
    found = Pathfinder(recipe, pixels="tokens", loading=Loading(batch_size=50, cache=tmp_path))
    found.prepare()
    labels = {
        pixels.tobytes(): int(label)
        for made in made_images(recipe, workers=1)
        for pixels, label in zip(made.pixels, made.labels, strict=True)
    }
    for part in ("train", "validation", "test"):
        n = len(found.part(part))
        assert abs(found.judge(Constant(), part)["accuracy"] - 0.5) < 4 * 0.5 / np.sqrt(n)
        assert found.judge(Oracle(labels), part)["accuracy"] == 1.0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_fits_its_task(path: Path, tmp_path: Path) -> None:
    experiment = read_experiment(path)
    shipped = experiment.task
    assert isinstance(shipped, Pathfinder)
    small = replace(shipped.recipe, difficulty="baseline", images=20)
    found = Pathfinder(small, pixels=shipped.pixels, loading=Loading(batch_size=2, cache=tmp_path))
    found.prepare()
    with torch.device("meta"):
        found.build(experiment.model)  # refuses what does not fit
    assert experiment.training.minutes or experiment.training.steps


def test_parts_are_80_10_10_and_follow_the_seed() -> None:
    parts = split(1000, 42)
    assert np.bincount(parts).tolist() == [800, 100, 100]
    assert np.array_equal(parts, split(1000, 42))
    assert not np.array_equal(parts, split(1000, 43))
    assert 0.6 < np.mean(parts[:500] == 0) < 0.95  # not one after the other
    with pytest.raises(InputError, match="9 images are too few"):
        split(9, 42)


def test_many_processes_make_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    recipe = PathfinderRecipe(difficulty="baseline", images=1010)
    one, two = list(made_images(recipe, workers=2))
    assert len(one.labels) == 1000
    alone = make_images(pathfinder_settings(32, "baseline"), 0, np.array([0, 500, 999, 1000, 1009]))
    assert np.array_equal(np.concatenate([one.pixels[[0, 500, 999]], two.pixels[[0, 9]]]), alone.pixels)


def test_work_goes_on_where_it_was_stopped(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy / NAME
    (folder / "metadata" / "1.npy").unlink()  # stopped between images and metadata
    (folder / "imgs" / "2").rename(folder / "imgs" / "2.part")  # stopped amidst the images
    (folder / "imgs" / "2.part" / "sample_1.png").write_bytes(b"")
    untouched = (folder / "imgs" / "0" / "sample_0.png").stat().st_mtime_ns
    assert list(write_images(folder, RECIPE, workers=1)) == [8, 16, 20]
    assert (folder / "imgs" / "0" / "sample_0.png").stat().st_mtime_ns == untouched
    assert sorted(path.name for path in (folder / "imgs").iterdir()) == ["0", "1", "2"]
    found = [image.pixels for image in read_images(folder, read_entries(folder), 32)]
    assert np.array_equal(found, expected().pixels)
    more = PathfinderRecipe(difficulty="baseline", images=22, seed=3)
    assert list(write_images(folder, more, workers=1)) == [16, 22]
    with pytest.raises(InputError, match=r"has images made by .*'seed': 3.*not by .*'seed': 4"):
        list(write_images(folder, PathfinderRecipe(difficulty="baseline", images=20, seed=4), workers=1))
    (folder / "generated.json").unlink()
    with pytest.raises(InputError, match="not made by this program"):
        list(write_images(folder, RECIPE, workers=1))


def test_the_command_makes_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["make-data", "pathfinder", str(tmp_path), "--difficulty", "baseline", "--images", "20", "--seed", "3"]
    for _ in range(2):  # the second time there is nothing left to do
        assert run(arguments) == 0
        assert capsys.readouterr().out == f"written: {tmp_path / NAME}, 20 examples\n"
    assert len(read_entries(find_data_set(tmp_path, 32, "baseline"))) == 20
    assert run([*arguments[:-1], "4"]) == 2
    assert run(["make-data", "pathfinder", str(tmp_path), "--images", "0"]) == 2


def test_empty_images_are_left_out_and_counted(copy: Path, tmp_path: Path) -> None:
    (copy / NAME / "imgs" / "1" / "sample_2.png").write_bytes(b"")
    found = task(copy, tmp_path / "cache")
    found.prepare()
    assert len(by_label(found)) == 19
    assert found.record()["empty_files"] == {"count": 1, "first": ["imgs/1/sample_2.png"]}
    again = task(copy, tmp_path / "cache")
    again.prepare()
    assert again.record() == found.record()


def test_images_that_metadata_does_not_name_are_counted(copy: Path, tmp_path: Path) -> None:
    metadata = copy / NAME / "metadata" / "1.npy"
    lines = metadata.read_text().splitlines(keepends=True)
    metadata.write_text("".join(lines[:-1]))  # as a copy that broke off between two lines
    found = task(copy, tmp_path / "cache")
    found.prepare()
    last = "/".join(lines[-1].split()[:2])
    assert found.record()["unlisted_images"] == {"count": 1, "first": [last]}
    assert len(by_label(found)) == 19


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


ROW = "imgs/2 a.png 0 1 1.8 6 2 5 1.5 3 1"


def deep(path: Path) -> None:
    Image.fromarray(np.full((32, 32), 1000, np.uint16)).save(path)


def other_size(path: Path) -> None:
    Image.new("L", (32, 31)).save(path)


@pytest.mark.parametrize(
    ("place", "damage", "message"),
    [
        ("imgs/1/sample_3.png", remove, r"sample_3\.png is missing; .*not complete"),
        ("imgs/1/sample_3.png", cut, r"sample_3\.png is damaged \(.*\); copy or unpack"),
        ("imgs/1/sample_3.png", lambda path: path.write_text("<html>"), r"sample_3\.png is damaged"),
        ("imgs/1/sample_3.png", other_size, r"31 x 32 pixels, not 32 x 32; set resolution"),
        ("imgs/1/sample_3.png", deep, r"sample_3\.png has more than 8 bits for a number"),
        ("imgs/1", remove, r"has no imgs/1; the data set is not complete"),
        ("metadata/2.npy", remove, r"has no metadata/2\.npy; the data set is not complete"),
        ("imgs", remove, r"curv_baseline has no folder imgs"),
        ("metadata", remove, r"curv_baseline has no folder metadata"),
        ("", remove, r"has no pathfinder32/curv_baseline with imgs and metadata; .* make-data pathfinder"),
        ("metadata/2.npy", lambda path: path.write_bytes(b""), r"2\.npy is empty"),
        ("metadata/2.npy", lambda path: path.write_text("imgs/2 sample_0.png"), r"2\.npy: 2 fields instead of 11"),
        ("metadata/2.npy", lambda path: path.write_text(f"{ROW[:-4]}"), r"2\.npy: 9 fields instead of 11"),
        (
            "metadata/2.npy",
            lambda path: path.write_text(ROW.replace(" 1 ", " 7 ", 1)),
            r"2\.npy: the label of .* is '7'",
        ),
        (
            "metadata/2.npy",
            lambda path: path.write_text(ROW.replace(" 1 ", " x ", 1)),
            r"label of imgs/2/a\.png is 'x'",
        ),
        ("metadata/2.npy", lambda path: path.write_text(ROW.replace("imgs/2", "../..")), r"outside of the data set"),
        ("metadata/2.npy", lambda path: path.write_bytes(b"\xff\xfe"), r"2\.npy: .*; copy or unpack"),
    ],
)
def test_what_is_wrong_is_named(copy: Path, place: str, damage: Callable[[Path], object], message: str) -> None:
    damage(copy / NAME / place)
    with pytest.raises(InputError, match=message):
        task(copy, copy / "cache").prepare()


def test_a_file_or_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is not a folder"):
        task(tmp_path / "nowhere", tmp_path).prepare()
    for part in ("imgs", "metadata"):
        (tmp_path / NAME / part).mkdir(parents=True)
    with pytest.raises(InputError, match="has no images"):
        task(tmp_path, tmp_path / "cache").prepare()


ROWS = [["imgs/0", f"sample_{i}.png", i, i % 2, 1.8, 14, 4, 5, 1.5, 3, 1] for i in range(2100)]


def write_text(path: Path) -> None:
    path.write_text("".join(" ".join(map(str, row)) + "\r\n" for row in ROWS))


def write_float_labels(path: Path) -> None:
    path.write_text("".join(" ".join(map(str, [*row[:3], float(row[3]), *row[4:]])) + "\n" for row in ROWS) + "\n")


def write_strings(path: Path) -> None:
    np.save(path, np.array([[str(field) for field in row] for row in ROWS]))


def write_bytes(path: Path) -> None:
    np.save(path, np.array([[str(field).encode() for field in row] for row in ROWS]))


def write_pickle(path: Path, protocol: int, content: object = None) -> None:
    content = np.array(ROWS, dtype=object) if content is None else content
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (len(ROWS), 11)})
        pickle.dump(content, file, protocol)


WRITERS = {
    "text": write_text, "float labels": write_float_labels, "strings": write_strings, "bytes": write_bytes,
    **{f"pickle {protocol}": lambda path, protocol=protocol: write_pickle(path, protocol) for protocol in range(6)},
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_metadata_of_every_kind(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / "0.npy")
    entries = read_metadata(tmp_path / "0.npy")
    assert [(str(entry.image), entry.label) for entry in entries] == [
        (f"imgs/0/sample_{i}.png", i % 2) for i in range(len(ROWS))
    ]


class Exploit:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_are_not_loaded(protocol: int, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    rows = np.array(ROWS, dtype=object)
    rows[5, 1] = Exploit(evil)
    for content in (rows, [Exploit(evil)], Exploit(evil)):
        write_pickle(tmp_path / "0.npy", protocol, content)
        with pytest.raises(
            InputError, match=r"0\.npy: .*; copy or unpack the data set again, or save the file as text"
        ):
            read_metadata(tmp_path / "0.npy")
    assert not evil.exists()


def test_objects_that_look_like_strings_are_refused(tmp_path: Path) -> None:
    rows = np.array(ROWS, dtype=object)
    rows[5, 1] = Decimal("7")  # one instruction with one string
    write_pickle(tmp_path / "0.npy", 2, rows)
    with pytest.raises(InputError, match="it has a GLOBAL"):
        read_metadata(tmp_path / "0.npy")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 11)), "float64 instead of strings"),
        (np.array(["imgs/0 sample_0.png 0 1"]), "shape .1,. instead of rows of 11 fields"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", array)
    with pytest.raises(InputError, match=message):
        read_metadata(tmp_path / "0.npy")


def test_a_cut_off_array_is_refused(tmp_path: Path) -> None:
    for write in (write_strings, lambda path: write_pickle(path, 4)):
        write(tmp_path / "0.npy")
        whole = (tmp_path / "0.npy").read_bytes()
        for size in (4, 60, len(whole) // 2, len(whole) - 3):
            (tmp_path / "0.npy").write_bytes(whole[:size])
            with pytest.raises(InputError, match=r"0\.npy: "):
                read_metadata(tmp_path / "0.npy")
