"""What a Pathfinder image consists of, at each resolution and difficulty, as in the Long Range Arena's data.

The numbers are those in the docstrings of its data loader (https://arxiv.org/abs/2011.04006); the generator is that of
https://arxiv.org/abs/1805.08315.  Its names follow in parentheses.
"""

from dataclasses import dataclass
from typing import Literal

Resolution = Literal[32, 64, 128, 256]
Difficulty = Literal["contour_length_3", "baseline", "contour_length_9", "contour_length_14"]

CONTOUR_LENGTHS: dict[Difficulty, int] = {
    "contour_length_3": 3,  # not in the release: to begin with, where a model would not leave chance on the others
    "baseline": 6,
    "contour_length_9": 9,
    "contour_length_14": 14,
}
"""Dashes of a contour; the release's three data sets, and one that is easier."""


@dataclass(frozen=True)
class PathfinderSettings:
    """The generator's options.

    Args:
        resolution: Height and width of the image in pixels.
        padding: Width of the border that no contour enters.
        margins: Distances between segments (paddle_margin_list), one of which is drawn for each image.
        seed_distance: Distance between the first points of the two contours.
        marker_radius: Of the two discs that mark the ends in question.
        segment_length: Of one dash of a contour (paddle_length).
        thickness: Of a dash.
        continuity: How much a contour keeps its direction.
        n_distractor_segments: Dashes of all distractors together.
        target_contrast: Brightness of the two contours (snake contrast times paddle contrast); markers have 1.
        distractor_contrast: Brightness of distractors (snake contrast).
        contour_length: Dashes of each of the two contours.
    """

    resolution: int
    padding: int
    margins: tuple[int, ...]
    seed_distance: int
    marker_radius: float
    segment_length: int
    thickness: float
    continuity: float
    n_distractor_segments: int
    target_contrast: float
    distractor_contrast: float
    contour_length: int

    @property
    def distractor_length(self) -> int:
        """Dashes of a distractor: a third of a contour's."""
        return self.contour_length // 3

    @property
    def n_distractors(self) -> int:
        """How many distractors are tried."""
        return self.n_distractor_segments // self.distractor_length


def pathfinder_settings(resolution: Resolution, difficulty: Difficulty) -> PathfinderSettings:
    """The settings of one of the data sets; the release names them pathfinder32/curv_contour_length_14 etc."""
    n = CONTOUR_LENGTHS[difficulty]
    return {
        32: PathfinderSettings(32, 1, (1,), 7, 1.5, 2, 0.5, 1.0, 20, 2 * 0.75, 2.0, n),
        64: PathfinderSettings(64, 1, (1,), 12, 2.5, 5, 1.0, 1.8, 22, 0.8, 0.8, n),
        128: PathfinderSettings(128, 1, (2, 3), 20, 3.0, 5, 1.5, 1.8, 35, 0.9, 0.9, n),
        256: PathfinderSettings(256, 22, (3,), 27, 5.0, 5, 2.0, 1.8, 30, 1.0, 1.0, n),
    }[resolution]
