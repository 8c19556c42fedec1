"""Image of the Long Range Arena: CIFAR-10 in grey, 32 x 32 = 1,024 pixels row by row, one of ten classes.

(Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html; Tay et al. 2020, https://arxiv.org/abs/2011.04006.)  All
classes are equally frequent.  Every pixel is data, also the black ones: nothing is padding.

    the original     pixels: tokens, grey: tensorflow
    as S4            pixels: standardised, grey: pillow; (pixel - 122.6) / 61

Both hold a tenth of the training part out to validate on; which images, is not recorded anywhere.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from longreach.errors import InputError
from longreach.tasks.classification import Classification, Loading
from longreach.tasks.encodings import FeatureEncoding, TokenEncoding
from longreach.tasks.hugging_face import hub_name, source_name
from longreach.tasks.images.cifar import N_CLASSES, SIDE, find_cifar
from longreach.tasks.images.colours import Grey, to_grey
from longreach.tasks.images.hub_images import HubImages
from longreach.tasks.images.sources import ImageSource, assign
from longreach.tasks.labelled import Example

Pixels = Literal["standardised", "tokens"]

ENCODINGS: dict[Pixels, TokenEncoding | FeatureEncoding] = {
    "standardised": FeatureEncoding(mean=122.6, std=61.0),
    "tokens": TokenEncoding(256),
}


class Image(Classification):
    """The class of a small grey image.

    Args:
        data: CIFAR-10's binary version: the folder cifar-10-batches-bin, the archive cifar-10-binary.tar.gz, or a
            folder with one of them; or hf:uoft-cs/cifar10.
        pixels: What a pixel is: a number with mean 0 and standard deviation 1 over the data set, or one of 256 tokens.
        grey: How grey is made of colours.
        held_out: The share of the training part on which checkpoints are chosen.
        split_seed: Decides which images are held out.
        loading: How examples are put together and where they are kept.
    """

    n_classes = N_CLASSES

    def __init__(
        self,
        data: Path = Path("data"),
        pixels: Pixels = "standardised",
        grey: Grey = "pillow",
        held_out: float = 0.1,
        split_seed: int = 42,
        loading: Loading = Loading(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__(loading)
        self.data, self.pixels = data, pixels
        self.grey: Grey = grey
        self.held_out, self.split_seed = held_out, split_seed
        self.encoding = ENCODINGS[pixels]

    def settings(self) -> dict[str, object]:
        """Where the images come from and what is made of them."""
        return {
            "data": source_name(self.data),
            "grey": self.grey,
            "held_out": self.held_out,
            "split_seed": self.split_seed,
        }

    def fingerprint(self) -> str:
        """The state of the files; that of the hub is not watched."""
        return self._source().state()

    def examples(self) -> Iterator[Example]:
        """Images one by one, row by row of pixels."""
        parts = self._source().parts()
        for part, source_part, index in assign(parts, self.held_out, self.split_seed):
            images = parts[source_part]
            pixels = images.read(index)
            if pixels.shape[:2] != (SIDE, SIDE):
                size = " x ".join(map(str, pixels.shape[:2]))
                raise InputError(f"{images.name(index)} has {size} pixels, not {SIDE} x {SIDE}; it is not CIFAR-10")
            yield Example(part, [to_grey(pixels, self.grey).reshape(-1)], images.labels[index])

    def _source(self) -> ImageSource:
        name = hub_name(self.data)
        found = find_cifar(self.data) if name is None else HubImages(name, N_CLASSES)
        if found is None:
            raise InputError(
                f"{self.data} has no cifar-10-batches-bin and no cifar-10-binary.tar.gz; name one of them or the "
                "folder that they are in, or hf:uoft-cs/cifar10"
            )
        return found
