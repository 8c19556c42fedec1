"""Pathfinder images: the published law, replayed step by step; the published statistics; the same on every machine."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from numpy import ndarray

from longreach.tasks.lra import pathfinder_targets
from longreach.tasks.lra.counter_random import keys_of, stream, uniform
from longreach.tasks.lra.pathfinder_canvas import Canvases, stamp
from longreach.tasks.lra.pathfinder_drawing import alignment, circle, dilate, disc, displacement, line, orientations
from longreach.tasks.lra.pathfinder_images import TARGETS, PathfinderImages, make_images
from longreach.tasks.lra.pathfinder_settings import CONTOUR_LENGTHS, Difficulty, Resolution, pathfinder_settings
from longreach.tasks.lra.pathfinder_shapes import N_SEEDS, PathfinderShapes, pathfinder_shapes
from longreach.tasks.lra.pathfinder_targets import grow_targets

GOLDEN = Path(__file__).parent / "golden" / "pathfinder"
PUBLISHED = np.load(GOLDEN / "pathfinder_shared.npz", allow_pickle=False)
STATISTICS = json.loads((GOLDEN / "pathfinder_shared.stats.json").read_text())
BOUND = 4.0
"""Means of ours and theirs may differ by so many standard errors of the difference."""


@pytest.fixture(scope="module", params=[32, 128])
def images(request: pytest.FixtureRequest) -> tuple[Resolution, PathfinderImages]:
    n = {32: 600, 128: 40}[request.param]
    return request.param, make_images(pathfinder_settings(request.param, "contour_length_14"), 1, np.arange(n))


def assert_same_mean(ours: ndarray, theirs: ndarray) -> None:
    error = np.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs))
    assert abs(ours.mean() - theirs.mean()) < BOUND * error, f"{ours.mean()} is not {theirs.mean()} within {error}"


def test_pixels_have_the_published_statistics(images) -> None:
    resolution, made = images
    theirs = PUBLISHED[f"images_{resolution}"]
    for statistic in (
        lambda pixels: (pixels > 25).mean(axis=(1, 2)),
        lambda pixels: pixels.mean(axis=(1, 2)),
        lambda pixels: pixels.std(axis=(1, 2)),
        lambda pixels: (pixels == 0).mean(axis=(1, 2)),
        lambda pixels: pixels.mean(axis=2)[:, : resolution // 4].mean(axis=1),
    ):
        assert_same_mean(statistic(made.pixels), statistic(theirs))
    assert made.pixels.min() == 0
    assert (made.pixels.max(axis=(1, 2)) == 255).all()


def test_markers_are_as_far_apart_as_published(images) -> None:
    resolution, made = images
    markers = [PUBLISHED[f"{end}_marker_yx_{resolution}"] for end in ("origin", "terminal")]
    theirs = np.linalg.norm(markers[0] - markers[1], axis=1)
    ours = np.linalg.norm(made.markers[:, 0] - made.markers[:, 1], axis=1)
    assert_same_mean(ours, theirs)
    assert_same_mean(ours[made.labels == 1], ours[made.labels == 0])  # the distance tells nothing
    assert_same_mean(made.pixels[made.labels == 1].mean((1, 2)), made.pixels[made.labels == 0].mean((1, 2)))


def test_contours_fit_as_rarely_as_published(images) -> None:
    """The published code counts attempts whose first orientation cannot be planted; ours makes none."""
    resolution, made = images
    settings = pathfinder_settings(resolution, "contour_length_14")
    for margin in settings.margins:
        plantable = len(pathfinder_shapes(settings, margin).first_places)
        theirs = PUBLISHED[f"two_snake_attempts_{resolution}"][PUBLISHED[f"margin_{resolution}"] == margin]
        ours = (made.attempts[made.margins == margin] + 1) * N_SEEDS / plantable - 1
        few = 3 if resolution == 32 else 6  # a handful of theirs, of an exponential law, says little about its width
        assert theirs.mean() / few < ours.mean() < theirs.mean() * few
        if resolution == 32:
            assert_same_mean(ours, theirs)


def test_contours_have_as_many_pixels_as_published(images) -> None:
    resolution, _ = images
    settings = pathfinder_settings(resolution, "contour_length_14")
    counts, n = [], {32: 40, 128: 10}[resolution]
    for margin in settings.margins:
        shapes = pathfinder_shapes(settings, margin)
        found = grow_targets(shapes, keys_of(5, np.arange(n)))
        for contour in range(2):
            canvases = np.zeros((n, shapes.side**2), np.uint8)
            for dash in range(contour, found.shapes.shape[1], 2):
                places = np.arange(n) * shapes.side**2 + found.places[:, dash]
                stamp(canvases, shapes.lines, found.shapes[:, dash], places)
            counts.append((canvases / 255 * settings.target_contrast > 0.1).sum(axis=1))
    theirs = STATISTICS[str(resolution)]["target_snake_pixels_gt0p1"]
    error = theirs["std"] / np.sqrt(STATISTICS[str(resolution)]["n"])
    assert abs(np.mean(counts) - theirs["mean"]) < BOUND * error
    assert theirs["std"] / 2 < np.std(counts) < theirs["std"] * 2


def test_margins_and_labels_are_equally_likely(images) -> None:
    resolution, made = images
    n = len(made.labels)
    settings = pathfinder_settings(resolution, "contour_length_14")
    for choice, values in ((made.labels, (0, 1)), (made.margins, settings.margins)):
        counts = np.array([(choice == value).sum() for value in values])
        assert counts.sum() == n
        assert (abs(counts - n / len(values)) <= BOUND * np.sqrt(n) / 2).all()
    assert (made.n_distractors <= settings.n_distractors).all()
    # about one at 32 pixels, where hardly a first dash can be planted, nearly all at 128: their brightness is theirs
    low, high = {32: (0.9, 1.6), 128: (7.3, 8.0)}[resolution]
    assert low < made.n_distractors.mean() < high


@pytest.mark.parametrize("difficulty", ["contour_length_3", "contour_length_14"])
def test_whoever_traces_the_contours_is_always_right(difficulty: Difficulty, images) -> None:
    resolution, made = images
    settings = pathfinder_settings(resolution, difficulty)
    if difficulty != "contour_length_14":
        made = make_images(settings, 1, np.arange(len(made.labels)))
    step, ambiguous = settings.segment_length + 2 * made.margins + 3, 0
    for i in range(len(made.labels)):
        starts = [contour for contour in range(2) if (made.dashes[i, contour, 0] == made.markers[i, 0]).all()]
        ends = [contour for contour in range(2) if (made.dashes[i, contour, -1] == made.markers[i, 1]).all()]
        if len(ends) == 2:  # published: the last dash of the first contour takes no room, so both can end in one place
            ambiguous += 1
            continue
        assert len(starts) == len(ends) == 1
        contour, gap = made.dashes[i, starts[0]], settings.segment_length + step[i]
        assert (np.linalg.norm(np.diff(contour, axis=0), axis=1) <= gap).all()  # it is one contour
        for y, x in contour:  # and it is in the picture
            assert made.pixels[i, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max() > 50
        assert (starts == ends) == (made.labels[i] == 1)
    assert ambiguous <= 0.015 * len(made.labels)


def paste(patch: ndarray, place: tuple[int, int], side: int) -> ndarray:
    """A patch on an empty image, cut off at its border."""
    reach = len(patch) // 2
    canvas = np.zeros((side + 2 * reach, side + 2 * reach))
    canvas[place[0] : place[0] + len(patch), place[1] : place[1] + len(patch)] = patch / 255
    return canvas[reach:-reach, reach:-reach]


def replay(shapes: PathfinderShapes, shape: ndarray, place: ndarray) -> None:
    """Go through the published generator's steps with whole images, and assert that each was possible."""
    settings, margin = shapes.settings, shapes.margin
    length, side = settings.segment_length, settings.resolution
    mask = np.ones((side, side))
    mask[settings.padding : -settings.padding, settings.padding : -settings.padding] = 0
    points = np.stack(np.divmod(place, shapes.side), axis=-1) - shapes.edge
    ways = circle(length + margin)
    onward = orientations(ways)
    last, pivots, current = {}, {}, {}
    for contour in range(2):
        o = float(shapes.orientations[shape[contour]])
        head = points[contour] + displacement(o, length)
        back = o + np.pi if o < 0 else o - np.pi
        pivots[contour], current[contour] = head + displacement(back, length + margin), o
        last[contour] = paste(line(o, length, settings.thickness, margin)[1], points[contour], side)
    distance = np.linalg.norm(points[1] - points[0])
    assert abs(distance - settings.seed_distance) < 1
    for dash in range(2, len(shape)):
        contour, way = dash % 2, shape[dash] - N_SEEDS
        pivots[contour] = pivots[contour] + displacement(current[contour], length + 2 * margin)
        end = pivots[contour] + ways[way]
        assert (end == points[dash]).all()
        weight = alignment(np.array([current[contour]]), onward[[way]], settings.continuity)[0]
        weight = weight * (1 - dilate(mask, disc(margin))[tuple(end)])
        assert weight > 0
        o = float(onward[way])
        room = paste(line(o + np.pi if o < 0 else o - np.pi, length, settings.thickness, margin)[1], end, side)
        assert (mask + room).max() < 1.8
        mask, last[contour], current[contour] = np.maximum(mask, last[contour]), room, o


@pytest.mark.parametrize("resolution", [32, 64, 128, 256])
def test_every_step_was_possible(resolution: Resolution) -> None:
    settings = pathfinder_settings(resolution, "baseline" if resolution == 64 else "contour_length_9")
    shapes = pathfinder_shapes(settings, settings.margins[-1])
    found = grow_targets(shapes, keys_of(2, np.arange(4)))
    for shape, place in zip(found.shapes, found.places, strict=True):
        replay(shapes, shape, place)


@pytest.mark.parametrize("taken", [False, True])
def test_ways_on_are_as_likely_as_their_weights(taken: bool) -> None:
    settings = pathfinder_settings(32, "contour_length_14")
    shapes, n = pathfinder_shapes(settings, 1), 20_000
    room, wide_room = shapes.empty()
    pivot, orientation = shapes.places(np.array([[15, 15]]) + shapes.edge), 200
    if taken:  # a faint room on one side, which dims some ends but collides with nothing
        wide_room = wide_room.copy()
        wide_room.reshape(shapes.side, -1)[:, : shapes.edge + 18] |= 128
    canvases = Canvases(shapes, room[None], wide_room[None])
    rows, keys = np.zeros(n, np.int64), keys_of(0, np.arange(n))
    growth = canvases.grow(rows, rows + pivot, rows + orientation, keys, rows)
    assert growth.fits.all()
    centre = pivot + shapes.advance[orientation]
    current, onward = shapes.orientations[[orientation]], shapes.orientations[N_SEEDS:]
    weights = alignment(current, onward, settings.continuity)
    weights = weights * (1 - wide_room[centre + shapes.circle] / 255)
    expected = weights / weights.sum()
    counted = np.bincount(growth.orientations - N_SEEDS, minlength=len(expected)) / n
    assert (abs(counted - expected) <= 4 * np.sqrt(expected * (1 - expected) / n) + 1e-12).all()
    assert (growth.ends == centre + shapes.circle[growth.orientations - N_SEEDS]).all()


def test_an_end_that_collides_is_drawn_anew_at_most_twice() -> None:
    shapes = pathfinder_shapes(pathfinder_settings(32, "contour_length_14"), 1)
    room, wide_room = shapes.empty()
    keys, zeros = keys_of(0, np.arange(20_000)), np.zeros(20_000, np.int64)
    pivot = zeros + shapes.places(np.array([[15, 15]]) + shapes.edge)
    free = Canvases(shapes, room[None], wide_room[None]).grow(zeros, pivot, zeros, keys, zeros)
    likeliest = np.bincount(free.ends).argmax()
    room = room.copy()
    room[likeliest] = 255  # whatever ends there collides; the dilated room does not tell
    half = Canvases(shapes, room[None], wide_room[None])
    growth = half.grow(zeros, pivot, zeros, keys, zeros)
    hit = free.ends == likeliest
    assert (growth.ends[growth.fits] != likeliest).all()
    allowed = np.isin(free.ends, growth.ends[growth.fits])
    share = 1 - allowed.mean()
    assert 0.1 < share < 0.9
    assert hit.mean() <= share
    assert (growth.ends[allowed] == free.ends[allowed]).all()
    failed = 1 - growth.fits.mean()
    assert abs(failed - share**3) < 4 * np.sqrt(share**3 / 20_000)
    everything = Canvases(shapes, np.full_like(room, 255)[None], wide_room[None])
    assert not everything.grow(zeros, pivot, zeros, keys, zeros).fits.any()
    closed = Canvases(shapes, room[None], np.full_like(room, 255)[None])
    assert not closed.grow(zeros, pivot, zeros, keys, zeros).fits.any()


def test_an_image_depends_on_seed_and_index_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = pathfinder_settings(32, "contour_length_14")
    made = make_images(settings, 3, np.arange(12))
    some = make_images(settings, 3, np.array([7, 2, 11]))
    for field, expected in zip(some, made, strict=True):
        assert np.array_equal(field, expected[[7, 2, 11]])
    monkeypatch.setattr(pathfinder_targets, "LANES", 5)
    for field, expected in zip(make_images(settings, 3, np.arange(12)), made, strict=True):
        assert np.array_equal(field, expected)
    other = make_images(settings, 4, np.arange(12))
    assert not (other.pixels == made.pixels).all(axis=(1, 2)).any()
    assert len({image.tobytes() for image in made.pixels}) == 12


@pytest.mark.parametrize(
    ("resolution", "digest"),
    [(32, "bbbd954e3805ad84"), (64, "32b4b42d3a46df48"), (128, "b87a9d8df1281663"), (256, "51c210a0f1deb512")],
)
def test_images_are_the_same_on_every_machine(resolution: Resolution, digest: str) -> None:
    made = make_images(pathfinder_settings(resolution, "contour_length_9"), -1, np.arange(4))
    found = hashlib.sha256(made.pixels.tobytes() + made.labels.astype("<i8").tobytes()).hexdigest()
    assert found[:16] == digest


def test_the_first_attempt_that_succeeds_is_the_image() -> None:
    """Attempts have random numbers of their own: no other number of lanes and no luck of a later one changes it."""
    shapes = pathfinder_shapes(pathfinder_settings(32, "contour_length_9"), 1)
    keys = stream(keys_of(0, np.arange(3)), TARGETS)
    found = grow_targets(shapes, keys)
    seeds = pathfinder_targets._Seeds(shapes)
    for i in range(3):
        shape, place = seeds.plant(stream(keys[i : i + 1], int(found.attempts[i])))
        assert (shape[0] == found.shapes[i, :2]).all()
        assert (place[0] == found.places[i, :2]).all()


def test_settings_are_the_releases() -> None:
    settings = {d: pathfinder_settings(128, d) for d in CONTOUR_LENGTHS}
    assert [(s.contour_length, s.distractor_length, s.n_distractors) for s in settings.values()] == [
        (3, 1, 35), (6, 2, 17), (9, 3, 11), (14, 4, 8),
    ]  # fmt: skip
    published = STATISTICS["32"]["config"]
    ours = pathfinder_settings(32, "contour_length_14")
    assert (ours.n_distractors, ours.distractor_length) == (published["num_distractor_snakes"], 4)
    assert ours.target_contrast == published["snake_contrast_list"][0] * published["paddle_contrast_list"][0]


def test_random_numbers_are_uniform_and_independent() -> None:
    keys = keys_of(0, np.arange(2_000))
    numbers = uniform(keys[:, None], np.arange(50))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 4 / np.sqrt(12 * numbers.size)
    assert (abs(np.histogram(numbers, 100)[0] - numbers.size / 100) < 5 * np.sqrt(numbers.size / 100)).all()
    for other in (
        uniform(keys[:, None], np.arange(1, 51)),
        uniform(keys_of(1, np.arange(2_000))[:, None], np.arange(50)),
    ):
        assert abs(np.corrcoef(numbers.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(numbers.size)
    assert len(np.unique(numbers)) == numbers.size
