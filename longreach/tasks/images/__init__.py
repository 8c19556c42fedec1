"""Labelled images of any size, from the files that people have, and as sequences."""

from longreach.tasks.images.sequences import ImageSequence
from longreach.tasks.images.sequential_images import SequentialImages, SplitOptions

__all__ = ["ImageSequence", "SequentialImages", "SplitOptions"]
