"""Images as sequences: Image of the Long Range Arena, MNIST, CIFAR-10, folders of photographs, patches."""

import gzip
import itertools
import pickle
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from known_answers import FakeHub, FakeRows, everything, judge, pixels, prepared, small, stored
from PIL import Image as Pillow

from longreach.errors import InputError
from longreach.tasks import Image, ImageSequence, SequentialImages
from longreach.tasks.images import SplitOptions
from longreach.tasks.images.cifar import FILES
from longreach.tasks.images.colours import to_grey

HALVES = SplitOptions(held_out=0.2)


def flat(image: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return (tuple(image.reshape(-1).tolist()),)


def luma(image: np.ndarray) -> np.ndarray:
    return np.asarray(Pillow.fromarray(image).convert("L"))


CIFAR = {
    name: [(pixels(10 * batch + label, 32, 32, 3), label) for label in range(10)]
    for batch, name in enumerate(itertools.chain(*FILES.values()))
}


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """The binary version, ten images a file."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name, images in CIFAR.items():
        rows = [bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in images]
        (folder / name).write_bytes(b"".join(rows))
    return folder


def cifar_answers(grey: Callable[[np.ndarray], np.ndarray]) -> dict[tuple[tuple[int, ...], ...], int]:
    return {flat(grey(image)): label for images in CIFAR.values() for image, label in images}


@pytest.mark.parametrize("options", [{"pixels": "standardised"}, {"pixels": "tokens", "grey": "tensorflow"}])
def test_grey_images_are_read(cifar: Path, tmp_path: Path, options: dict[str, str]) -> None:
    answers = cifar_answers(luma if "grey" not in options else lambda image: to_grey(image, "tensorflow"))
    for data in (cifar, tmp_path):
        task = prepared(Image(data, **options, loading=small(tmp_path / "cache")))
        judge(task, answers)
        assert everything(task) == sorted(answers.items())
        assert [len(task.part(part)) for part in ("train", "validation", "test")] == [45, 5, 10]
        assert {each for each, _ in stored(task, "test")} == {
            each
            for each, _ in everything(task)
            if each in {flat_of(task, image) for image, _ in CIFAR["test_batch.bin"]}
        }
    batch = task.batch(0, 0, 1)
    assert batch.mask is None, "a black pixel is no padding"
    assert batch.inputs.shape == ((4, 1024, 1) if options["pixels"] == "standardised" else (4, 1024))
    if options["pixels"] == "standardised":
        row = task.part("train").values[:1024].reshape(-1)
        first = (torch.from_numpy(row.astype(np.float64)) / 255 - 122.6 / 255) / (61 / 255)
        torch.testing.assert_close(task.encoding(row[None, :, None])[0, :, 0].double(), first, atol=1e-6, rtol=0)


def flat_of(task: Image, image: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return flat(to_grey(image, task.grey))


def test_an_archive_is_the_same_as_its_folder(cifar: Path, tmp_path: Path) -> None:
    archive = tmp_path / "elsewhere" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        file.add(cifar, "cifar-10-batches-bin")
    expected = prepared(Image(cifar, loading=small(tmp_path / "cache")))
    for data in (archive, archive.parent):
        task = prepared(Image(data, loading=small(tmp_path / "cache")))
        assert all(stored(task, part) == stored(expected, part) for part in ("train", "validation", "test"))
    archive.write_bytes(archive.read_bytes()[:-5000])
    with pytest.raises(InputError, match=r"no complete tar archive .*copy it again"):
        Image(archive, loading=small(tmp_path / "cache")).prepare()


def test_grey_is_what_the_pipelines_read() -> None:
    image = pixels(0, 64, 64, 3)
    image[0, :3] = [[0, 0, 0], [255, 255, 255], [255, 0, 0]]
    assert np.array_equal(to_grey(image)[:, :, 0], luma(image))
    # The exact value times 255.5 / 255, truncated: 76.2195 * 1.00196 for red
    found = to_grey(image, "tensorflow")[:, :, 0]
    assert found[0, :3].tolist() == [0, 255, 76]
    exact = image.astype(np.float64) @ [0.2989, 0.587, 0.114] * 255.5 / 255
    sure = np.abs(exact - exact.round()) > 1e-3
    assert np.array_equal(found[sure], np.floor(exact[sure]))
    grey = image[:, :, :1]
    assert to_grey(grey, "tensorflow") is grey


def test_the_python_version_is_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (pytest.fail, ("it was loaded",))

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(Trap()))
    archive = tmp_path / "other" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    for data in (folder, tmp_path, archive, archive.parent):
        for task in (Image(data, loading=small(tmp_path)), SequentialImages(data, loading=small(tmp_path))):
            with pytest.raises(InputError, match=r"python version: pickles.*take the binary version, cifar-10-binary"):
                task.prepare()


def wrong_cifar(folder: Path, how: str) -> None:
    path = folder / "data_batch_3.bin"
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"short": content[:-1], "empty": b"", "label": b"\x0a" + content[1:]}[how])


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("missing", "has no data_batch_3.bin; copy or unpack"),
        ("short", "data_batch_3.bin of .* has 30729 bytes, which are no whole number of images"),
        ("empty", "data_batch_3.bin of .* has 0 bytes"),
        ("label", "the train part of .*: the label of image 20 is 10, but there are 10 classes"),
    ],
)
def test_a_damaged_file_is_refused(cifar: Path, tmp_path: Path, how: str, complaint: str) -> None:
    wrong_cifar(cifar, how)
    with pytest.raises(InputError, match=complaint):
        Image(cifar, loading=small(tmp_path / "cache")).prepare()


def test_missing_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no cifar-10-batches-bin and no cifar-10-binary"):
        Image(tmp_path, loading=small(tmp_path / "cache")).prepare()
    with tarfile.open(tmp_path / "some.tar", "w"):
        pass
    with pytest.raises(InputError, match=r"some.tar has no data_batch_1.bin, .*; it is not CIFAR-10"):
        Image(tmp_path / "some.tar", loading=small(tmp_path / "cache")).prepare()


def fake_cifar(name: str, split: str) -> FakeRows:
    found = [row for file in FILES[split] for row in CIFAR[file]]
    return FakeRows(img=[Pillow.fromarray(image) for image, _ in found], label=[label for _, label in found])


def test_images_of_the_hub_are_the_same(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(fake_cifar))
    ours, hub = (
        prepared(Image(data, loading=small(tmp_path / "cache"))) for data in (cifar, Path("hf:uoft-cs/cifar10"))
    )
    assert all(stored(ours, part) == stored(hub, part) for part in ("train", "validation", "test"))
    colours = SequentialImages(Path("hf:x/y"), sequence=ImageSequence("rgb"), loading=small(tmp_path / "cache"))
    judge(prepared(colours), cifar_answers(lambda image: image))


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (FakeRows(image=[None], label=[10]), "hf:x/y has the label 10, but n_classes is 10; raise it"),
        (FakeRows(picture=[None], label=[1]), "hf:x/y has no column image or img"),
        (FakeRows(image=[Pillow.new("L", (9, 8))] * 10, label=[1] * 10), "train image 0 of hf:x/y has 8 x 9 pixels"),
    ],
)
def test_other_data_of_the_hub_are_refused(
    rows: FakeRows, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(lambda name, split: rows))
    with pytest.raises(InputError, match=complaint):
        Image(Path("hf:x/y"), loading=small(tmp_path)).prepare()


# --- sequences -------------------------------------------------------------------------------------------------------


def test_a_patch_is_a_square_of_the_image_in_raster_order() -> None:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    found = ImageSequence("rgb", patch=2).positions(image)
    assert found.shape == (6, 12)
    expected = [image[y : y + 2, x : x + 2].reshape(-1) for y in (0, 2) for x in (0, 2, 4)]
    assert np.array_equal(found, expected)
    single = ImageSequence("rgb").positions(image)
    assert np.array_equal(single, image.reshape(24, 3))


def test_patches_are_scaled_as_in_gato() -> None:
    encoding = ImageSequence("rgb", patch=16).encoding
    assert encoding.size == 768
    ends = encoding(np.array([[[0] * 768], [[255] * 768]], np.uint8))
    assert ends[:, 0, 0].tolist() == [-0.25, 0.25]  # [-1, 1] / sqrt(16)


def test_what_a_whole_patch_lacks_repeats_the_edge() -> None:
    image = pixels(1, 3, 5, 1)
    found = ImageSequence(patch=2).positions(image)
    assert found.shape == (6, 4)
    assert found[5].tolist() == [image[2, 4, 0]] * 4
    assert found[2].tolist() == [image[0, 4, 0], image[0, 4, 0], image[1, 4, 0], image[1, 4, 0]]


def test_coordinates_are_shares_of_height_and_width() -> None:
    sequence = ImageSequence(patch=2, coordinates=True)
    found = sequence.positions(pixels(2, 4, 8, 1))
    assert sequence.encoding.size == found.shape[1] == 6
    assert found[:, 4].tolist() == [64] * 4 + [191] * 4
    assert found[:, 5].tolist() == [32, 96, 159, 223] * 2


def test_colours_and_grey() -> None:
    grey, coloured = pixels(3, 2, 2, 1), pixels(3, 2, 2, 3)
    assert np.array_equal(ImageSequence("rgb").positions(grey), np.repeat(grey.reshape(4, 1), 3, 1))
    assert np.array_equal(ImageSequence("grey").positions(coloured)[:, 0], luma(coloured).reshape(-1))


# --- folders ---------------------------------------------------------------------------------------------------------


def write_folder(root: Path, seed: int, per_class: int = 5) -> dict[Path, np.ndarray]:
    """Images of different sizes, grey and coloured, in folders of two classes."""
    written = {}
    for name in ("dog", "cat"):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            image = pixels(seed + 10 * len(written), 4 + i, 5, *([3] if i % 2 else []))
            path = root / name / f"{i}.{'PNG' if i % 2 else 'png'}"
            Pillow.fromarray(image).save(path)
            written[path] = image
    (root / ".hidden").mkdir()
    (root / "cat" / ".DS_Store").write_text("x")
    return written


def folder_answers(written: dict[Path, np.ndarray]) -> dict[tuple[tuple[int, ...], ...], int]:
    return {
        flat(luma(image) if image.ndim == 3 else image): int(path.parent.name == "dog")
        for path, image in written.items()
    }


def folders(data: Path, cache: Path, **options: object) -> SequentialImages:
    return SequentialImages(data, **{"n_classes": 2, "split": HALVES, "loading": small(cache, 2), **options})


def test_class_folders_are_split(tmp_path: Path) -> None:
    answers = folder_answers(write_folder(tmp_path / "data", 0))
    task = prepared(folders(tmp_path / "data", tmp_path / "cache"))
    assert everything(task) == sorted(answers.items())
    assert [len(task.part(part)) for part in ("train", "validation", "test")] == [6, 2, 2]
    lengths = {int(length) for length in task.part("train").lengths[:, 0]}
    assert len(lengths) > 1, "images of any size"


@pytest.mark.parametrize(
    ("names", "sizes"), [(("train", "test"), [8, 2, 10]), (("train", "val", "test"), [10, 10, 10])]
)
def test_folders_of_parts_are_kept(tmp_path: Path, names: tuple[str, ...], sizes: list[int]) -> None:
    written: dict[Path, np.ndarray] = {}
    for seed, name in enumerate(names):
        written |= write_folder(tmp_path / "data" / name, 1000 * seed)
    task = prepared(folders(tmp_path / "data", tmp_path / "cache"))
    assert [len(task.part(part)) for part in ("train", "validation", "test")] == sizes
    answers = folder_answers(written)
    assert everything(task) == sorted(answers.items())
    judge(task, answers) if len(names) == 3 else None


def test_other_options_and_changed_files_are_read_again(tmp_path: Path) -> None:
    written = write_folder(tmp_path / "data", 0)
    before = everything(prepared(folders(tmp_path / "data", tmp_path / "cache")))
    patches = prepared(folders(tmp_path / "data", tmp_path / "cache", sequence=ImageSequence("rgb", 4)))
    assert patches.batch(0, 0, 1).inputs.shape[2] == patches.encoding.size == 48
    other = prepared(folders(tmp_path / "data", tmp_path / "cache", split=SplitOptions(0.2, 1)))
    assert everything(other) == before
    assert stored(other, "test") != stored(prepared(folders(tmp_path / "data", tmp_path / "cache")), "test")
    Pillow.fromarray(pixels(99, 7, 7)).save(next(iter(written)))
    assert everything(prepared(folders(tmp_path / "data", tmp_path / "cache"))) != before


def test_a_jpeg_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", 0)
    path = tmp_path / "data" / "cat" / "photo.jpeg"
    Pillow.new("RGB", (30, 20), (10, 200, 30)).save(path)
    task = prepared(folders(tmp_path / "data", tmp_path / "cache"))
    assert (120 + 1, 0) not in everything(task)
    assert 600 in {len(sequence) for (sequence,), _ in everything(task)}


def spoil(data: Path, how: str) -> None:
    path = data / "cat" / "0.png"
    content = path.read_bytes()
    match how:
        case "empty":
            path.write_bytes(b"")
        case "half":
            Pillow.fromarray(pixels(5, 40, 40)).save(path)
            path.write_bytes(path.read_bytes()[:900])
        case "text":
            path.write_text("not an image")
        case "other":
            (data / "cat" / "notes.txt").write_text("notes")
        case "deep":
            Pillow.fromarray(np.full((4, 4), 40_000, np.uint16)).save(path)
        case "no images":
            (data / "bird").mkdir()
        case "crc":
            path.write_bytes(content[:45] + bytes([content[45] ^ 255]) + content[46:])


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("empty", "cat/0.png is empty; copy it again or remove it"),
        ("half", r"cat/0.png is damaged or no image \(.*truncated.*\)"),
        ("text", r"cat/0.png is damaged or no image \(cannot identify image file\)"),
        ("other", "cat/notes.txt is no file named like a PNG or JPEG"),
        ("deep", "cat/0.png has more than 8 bits for a number"),
        ("no images", "bird has no images; copy them again or remove the folder"),
        ("crc", "cat/0.png is damaged or no image"),
    ],
)
def test_damaged_and_unsuitable_images_are_refused_by_name(tmp_path: Path, how: str, complaint: str) -> None:
    write_folder(tmp_path / "data", 0)
    spoil(tmp_path / "data", how)
    with pytest.raises(InputError, match=complaint):
        folders(tmp_path / "data", tmp_path / "cache").prepare()


def test_wrong_folders_are_refused_by_name(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name in ("train", "test"):
        write_folder(tmp_path / "data" / name, 0)
    with pytest.raises(InputError, match="data has 2 classes, but n_classes is 10; set it to 2"):
        folders(tmp_path / "data", cache, n_classes=10).prepare()
    (tmp_path / "data" / "test" / "dog").rename(tmp_path / "data" / "test" / "bird")
    with pytest.raises(InputError, match=r"the class bird is in one of .*test and .*train only"):
        folders(tmp_path / "data", cache).prepare()
    (tmp_path / "data" / "train").rename(tmp_path / "data" / "trian")
    with pytest.raises(InputError, match="data has no folder train beside test"):
        folders(tmp_path / "data", cache).prepare()
    with pytest.raises(InputError, match="nowhere is no folder of images"):
        folders(tmp_path / "nowhere", cache).prepare()
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="bare has no folders named like classes"):
        folders(tmp_path / "bare", cache).prepare()
    write_folder(tmp_path / "few", 0, per_class=1)
    with pytest.raises(InputError, match=r"2 examples are too few to hold out 0\.1"):
        folders(tmp_path / "few", cache, split=SplitOptions()).prepare()


# --- MNIST -----------------------------------------------------------------------------------------------------------

MNIST = {"train": pixels(7, 20, 6, 4), "t10k": pixels(8, 10, 6, 4)}


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_mnist(folder: Path, mark: str = "-", compressed: bool = False) -> Path:
    folder.mkdir(parents=True)
    for name, images in MNIST.items():
        labels = np.arange(len(images), dtype=np.uint8) % 10
        for kind, content in {"images-idx3": idx(images), "labels-idx1": idx(labels)}.items():
            path = folder / f"{name}-{kind.replace('-', mark)}-ubyte{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(content) if compressed else content)
    return folder


@pytest.mark.parametrize(("mark", "compressed", "place"), [("-", True, ""), (".", False, "MNIST/raw")])
def test_mnist_is_read(tmp_path: Path, mark: str, compressed: bool, place: str) -> None:
    write_mnist(tmp_path / "data" / place, mark, compressed)
    task = prepared(SequentialImages(tmp_path / "data", split=HALVES, loading=small(tmp_path / "cache")))
    answers = {flat(image): i % 10 for images in MNIST.values() for i, image in enumerate(images)}
    judge(task, answers)
    assert everything(task) == sorted(answers.items())
    assert [len(task.part(part)) for part in ("train", "validation", "test")] == [16, 4, 10]


def test_a_permutation_is_the_same_for_every_image_and_a_function_of_the_seed(tmp_path: Path) -> None:
    data = write_mnist(tmp_path / "data")
    found = {}
    for seed in (None, 0, 1):
        sequence = ImageSequence(permutation=seed)
        task = prepared(SequentialImages(data, sequence=sequence, split=HALVES, loading=small(tmp_path / "cache")))
        found[seed] = [np.array(each[0]) for each, _ in stored(task, "train")]
    order = [17, 7, 23, 6]
    for seed in (0, 1):
        places = ImageSequence(permutation=seed).order(24)
        assert sorted(places) == list(range(24))
        assert all(np.array_equal(a[places], b) for a, b in zip(found[None], found[seed], strict=True))
    assert not np.array_equal(found[0], found[1])
    assert ImageSequence(permutation=0).order(24)[:4].tolist() == order, "the same on every machine"


def test_a_permutation_needs_images_of_one_size(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", 0)
    with pytest.raises(InputError, match=r"(?i)png has \d+ positions, others have \d+; sequence.permutation needs"):
        folders(tmp_path / "data", tmp_path / "cache", sequence=ImageSequence(permutation=0)).prepare()


def wrong_mnist(folder: Path, how: str) -> None:
    path = folder / "t10k-images-idx3-ubyte"
    match how:
        case "missing":
            path.unlink()
        case "short":
            path.write_bytes(path.read_bytes()[:-1])
        case "half":
            path.rename(path.with_name(path.name + ".gz"))
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(idx(MNIST["t10k"]))[:-20])
        case "kind":
            path.write_bytes((folder / "t10k-labels-idx1-ubyte").read_bytes())
        case "fewer":
            path.write_bytes(idx(MNIST["t10k"][:9]))
        case "label":
            (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(10, dtype=np.uint8) + 1))


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("missing", "has no t10k-images-idx3-ubyte nor t10k-images-idx3-ubyte.gz; copy all four"),
        ("short", "t10k-images-idx3-ubyte has 239 numbers instead of 10 x 6 x 4"),
        ("half", r"idx3-ubyte.gz is damaged or incomplete \("),
        ("kind", "is no IDX file of bytes with 3 axes"),
        ("fewer", "has 9 images, but .*labels-idx1-ubyte 10 labels"),
        ("label", "t10k-labels-idx1-ubyte: the label of image 9 is 10, but there are 10 classes"),
    ],
)
def test_damaged_mnist_is_refused(tmp_path: Path, how: str, complaint: str) -> None:
    data = write_mnist(tmp_path / "data")
    wrong_mnist(data, how)
    with pytest.raises(InputError, match=complaint):
        SequentialImages(data, loading=small(tmp_path / "cache")).prepare()


def test_sequential_cifar_has_colours(cifar: Path, tmp_path: Path) -> None:
    task = prepared(SequentialImages(cifar, sequence=ImageSequence("rgb"), loading=small(tmp_path / "cache")))
    judge(task, cifar_answers(lambda image: image))
    batch = task.batch(0, 0, 1)
    assert batch.inputs.shape == (4, 1024, 3)
    assert (batch.inputs.min(), batch.inputs.max()) == (-1, 1)
    with pytest.raises(InputError, match="has 10 classes, but n_classes is 7"):
        SequentialImages(cifar, 7, loading=small(tmp_path / "cache")).prepare()


@pytest.mark.parametrize("options", [{"patch": 0}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=re.escape("sequence.patch = 0 must be at least 1")):
        ImageSequence(**options)
