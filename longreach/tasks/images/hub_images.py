"""Labelled images of the Hugging Face hub, such as hf:ylecun/mnist and hf:uoft-cs/cifar10."""

from longreach.errors import InputError
from longreach.tasks.hugging_face import PREFIX, load_rows
from longreach.tasks.images.class_folders import image_pixels
from longreach.tasks.images.sources import ImageSource, LabelledImages

COLUMNS = ("image", "img")
"""What a column of images may be called."""


class HubImages(ImageSource):
    """A data set with the splits `train` and `test`.

    Args:
        name: Of the data set.
        n_classes: Labels are from 0 to less than this.
    """

    def __init__(self, name: str, n_classes: int) -> None:
        self.name, self.where, self._n_classes = name, f"{PREFIX}{name}", n_classes

    def state(self) -> str:
        """What is on the hub is not watched."""
        return ""

    def n_classes(self) -> None:
        """Labels are looked at when they are read."""
        return

    def parts(self) -> dict[str, LabelledImages]:
        """Both splits."""
        return {part: self._part(part) for part in ("train", "test")}

    def _part(self, part: str) -> LabelledImages:
        rows = load_rows(self.name, part, ("label",))
        labels = list(rows["label"])
        wrong = [label for label in labels if label not in range(self._n_classes)]
        if wrong:
            raise InputError(f"{self.where} has the label {wrong[0]!r}, but n_classes is {self._n_classes}; raise it")
        column = next((name for name in COLUMNS if name in rows.column_names), None)
        if column is None:
            raise InputError(f"{self.where} has no column {' or '.join(COLUMNS)}; name a data set of images")
        return LabelledImages(
            labels, lambda i: image_pixels(rows[i][column]), lambda i: f"{part} image {i} of {self.where}"
        )
