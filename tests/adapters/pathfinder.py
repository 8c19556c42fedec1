"""Pathfinder as in github.com/drewlinsley/pathfinder: the parts of the generator that draw no random numbers.

translate_*, circle_*, line_*, dilation_*    coordinates and shapes
cmf/<k>/*                                    where a contour may go on, and how likely that is
"""

from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn

from adapters import Published, Tensors
from longreach.tasks.lra.pathfinder_canvas import LEAST_WEIGHT, stamp
from longreach.tasks.lra.pathfinder_drawing import (
    ANTIALIAS,
    add_marker,
    alignment,
    circle,
    dilate,
    disc,
    displacement,
    line,
    orientations,
)
from longreach.tasks.lra.pathfinder_settings import PathfinderSettings
from longreach.tasks.lra.pathfinder_shapes import WEIGHT_UNIT, PathfinderShapes, stencil

TRANSLATED_FROM = 10


def adapt(config: dict[str, Any], metadata: dict[str, str]) -> Published:
    """Ours for the published functions."""
    (paddle,), (snake,) = config["paddle_contrast_list"], config["snake_contrast_list"]
    settings = PathfinderSettings(
        resolution=config["window_size"][0],
        padding=config["padding"],
        margins=tuple(config["paddle_margin_list"]),
        seed_distance=config["seed_distance"],
        marker_radius=float(config["marker_radius"]),
        segment_length=config["paddle_length"],
        thickness=float(config["paddle_thickness"]),
        continuity=float(config["continuity"]),
        n_distractor_segments=config["num_distractor_snakes"] * config["distractor_length"],
        target_contrast=float(paddle * snake),
        distractor_contrast=float(snake),
        contour_length=config["contour_length"],
    )
    assert config["antialias_scale"] == ANTIALIAS
    assert config["step_length"] == config["margin"] + settings.segment_length
    shapes = PathfinderShapes(settings, config["margin"])

    def run(_: nn.Module, tensors: Tensors) -> dict[str, Tensor]:
        read = {name: np.asarray(tensors[name]) for name in tensors if not name.startswith("param/")}
        found = {**plain_shapes(shapes, read), **lines(shapes, read), **ways_on(shapes, read)}
        return {name: torch.as_tensor(value) for name, value in found.items()}

    return Published(nn.Identity(), lambda theirs: {}, run)


def plain_shapes(shapes: PathfinderShapes, read: dict[str, ndarray]) -> dict[str, ndarray]:
    """Coordinates, discs and dilations."""
    side, step = shapes.settings.resolution, shapes.settings.segment_length + shapes.margin
    markers = np.zeros((len(read["circle_center_yx"]), side, side), np.uint8)
    for image, (y, x) in zip(markers, read["circle_center_yx"].tolist(), strict=True):
        add_marker(image, y, x, shapes.settings.marker_radius)
    moves = [displacement(orientation, step) for orientation in read["translate_orientation"].tolist()]
    return {
        "translate_out_yx": np.array(moves) + TRANSLATED_FROM,
        "circle_image_u8": markers,
        "dilation_struct_small": disc(shapes.margin).astype(np.float64),
        "dilation_struct_large": disc(shapes.margin * ANTIALIAS).astype(np.float64),
        "dilated_mask": dilate(read["occupancy_mask"], disc(shapes.margin)),
    }


def lines(shapes: PathfinderShapes, read: dict[str, ndarray]) -> dict[str, ndarray]:
    """Dashes and the room that they take, each stamped onto a canvas of its own."""
    settings, start = shapes.settings, read["line_start_yx"]
    drawn = [
        line(orientation, settings.segment_length, settings.thickness, shapes.margin)
        for orientation in read["line_orientation"].tolist()
    ]
    found, each = {}, np.arange(len(drawn))
    contrasts = {"line_image": settings.target_contrast, "line_mask": 1.0}
    for (name, contrast), patches in zip(contrasts.items(), zip(*drawn, strict=True), strict=True):
        canvases = np.zeros((len(drawn), shapes.side**2), np.uint8)
        places = each * shapes.side**2 + shapes.places(start + shapes.edge)
        stamp(canvases, stencil(np.stack(patches), shapes.side), each, places)
        found[name] = shapes.inside(canvases).astype(np.float32) / np.float32(255) * np.float32(contrast)
    return found


def ways_on(shapes: PathfinderShapes, read: dict[str, ndarray]) -> dict[str, ndarray]:
    """The pixels that a contour may go on to, and their probabilities."""
    found = {}
    for name in [name.removesuffix("last_endpoint_yx") for name in read if name.endswith("last_endpoint_yx")]:
        pivot, orientation = read[f"{name}last_endpoint_yx"], read[f"{name}last_orientation"]
        ways = circle(shapes.settings.segment_length + shapes.margin)
        ways = ways[((pivot + ways >= 0) & (pivot + ways < shapes.settings.resolution)).all(axis=1)]
        y, x = (pivot + ways).T
        weights = alignment(orientation, orientations(ways), shapes.settings.continuity) * (
            1 - read["dilated_mask"][y, x]
        )
        total = weights.sum()
        goes_on = total >= LEAST_WEIGHT / WEIGHT_UNIT / 255
        found[f"{name}found"] = np.array([int(goes_on)])
        if goes_on:
            found[f"{name}coords"] = pivot + ways
            found[f"{name}orientations"] = orientations(ways)
            found[f"{name}pmf"], found[f"{name}cmf"] = weights / total, np.cumsum(weights / total)
    return found
