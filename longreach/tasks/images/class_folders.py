"""Images in folders named like their classes, PNG or JPEG, of any sizes.

    data/train/<class>/<name>.png, data/validation/<class>/..., data/test/<class>/...        with parts, or
    data/<class>/<name>.png                                                                  without

Classes are numbered in the order of their names.  The part to validate may be called `val` or `valid`; it and the part
to test may be absent.
"""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, UnidentifiedImageError

from longreach.errors import InputError
from longreach.tasks.data_files import first_present, state_of
from longreach.tasks.images.sources import ImageSource, LabelledImages

SUFFIXES = (".png", ".jpg", ".jpeg")
PART_NAMES = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
GREY = ("1", "L", "LA")
"""What Pillow calls images without colours."""
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""And those with more than a byte for a number."""


class ClassFolders(ImageSource):
    """A folder of class folders, or of parts that are such folders.

    Args:
        folder: That folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.where = folder, str(folder)
        self.roots = {part: found for part, names in PART_NAMES.items() if (found := first_present(folder, names))}
        if self.roots and "train" not in self.roots:
            raise InputError(f"{folder} has no folder train beside {', '.join(p.name for p in self.roots.values())}")
        self.roots = self.roots or {"train": folder}

    def state(self) -> str:
        """The state of every image."""
        return state_of(path for part in self.roots for path, _ in self._files(part))

    def n_classes(self) -> int:
        """The number of class folders."""
        return len(self._classes("train"))

    def parts(self) -> dict[str, LabelledImages]:
        """The images of every part."""
        return {part: _labelled(self._files(part)) for part in self.roots}

    def _classes(self, part: str) -> list[str]:
        root = self.roots[part]
        classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not classes:
            raise InputError(f"{root} has no folders named like classes with images in them; name one that has")
        return classes

    def _files(self, part: str) -> list[tuple[Path, int]]:
        """The images of a part with their labels."""
        classes, expected = self._classes(part), self._classes("train")
        if classes != expected:
            name = sorted(set(classes) ^ set(expected))[0]
            raise InputError(f"the class {name} is in one of {self.roots[part]} and {self.roots['train']} only")
        found = []
        for label, name in enumerate(classes):
            paths = sorted(path for path in (self.roots[part] / name).iterdir() if not path.name.startswith("."))
            for path in paths:
                if path.suffix.lower() not in SUFFIXES or not path.is_file():
                    raise InputError(f"{path} is no file named like a PNG or JPEG; move it elsewhere or convert it")
            if not paths:
                raise InputError(f"{self.roots[part] / name} has no images; copy them again or remove the folder")
            found += [(path, label) for path in paths]
        return found


def _labelled(files: list[tuple[Path, int]]) -> LabelledImages:
    return LabelledImages([label for _, label in files], lambda i: read_image(files[i][0]), lambda i: str(files[i][0]))


def read_image(path: Path) -> UInt8[ndarray, "h w c"]:
    """The pixels of a PNG or JPEG; raises InputError for an empty, damaged or unsuitable one."""
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; copy it again or remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large images are what this is for
            with Image.open(path) as image:
                if image.mode in DEEP:
                    raise InputError(f"{path} has more than 8 bits for a number (mode {image.mode}); convert it")
                return image_pixels(image)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()).removesuffix(f" {str(path)!r}")
        raise InputError(f"{path} is damaged or no image ({reason}); copy it again or remove it") from None


def image_pixels(image: Image.Image) -> UInt8[ndarray, "h w c"]:
    """The bytes of an image of Pillow, grey or red, green and blue; transparency is left out."""
    if image.mode in GREY:
        return np.asarray(image.convert("L"))[:, :, None]
    return np.asarray(image.convert("RGB"))
