"""Images as sequences: sequential and permuted MNIST, sequential CIFAR-10, photographs as patches, or your own folders.

(Le, Jaitly & Hinton 2015, https://arxiv.org/abs/1504.00941; patches as in Gato, https://arxiv.org/abs/2205.06175.)

    sequential MNIST         data: a folder with the four IDX files
    permuted MNIST           the same with  sequence: {permutation: 0}
    sequential CIFAR-10      data: cifar-10-binary.tar.gz, sequence: {colour: rgb}
    photographs              data: a folder of class folders, sequence: {colour: rgb, patch: 16, coordinates: true}
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from longreach.errors import InputError
from longreach.tasks.classification import Classification, Loading
from longreach.tasks.hugging_face import hub_name, source_name
from longreach.tasks.images.cifar import find_cifar
from longreach.tasks.images.class_folders import ClassFolders
from longreach.tasks.images.hub_images import HubImages
from longreach.tasks.images.idx_files import IdxFiles, has_idx_files
from longreach.tasks.images.sequences import ImageSequence
from longreach.tasks.images.sources import ImageSource, assign, require_classes
from longreach.tasks.labelled import Example

IDX_FOLDERS = ("", "MNIST/raw", "mnist")
"""Where IDX files may be below what is named."""


@dataclass(frozen=True)
class SplitOptions:
    """What is done where a data set has no part to validate or no part to test.

    Args:
        held_out: The share of the training part that becomes each of the missing ones.
        seed: Decides which images these are.
    """

    held_out: float = 0.1
    seed: int = 42


class SequentialImages(Classification):
    """The class of an image that is read as a sequence.

    Args:
        data: A folder with class folders of PNG or JPEG files, with or without folders for the parts around them; one
            with MNIST's IDX files; CIFAR-10's binary version, as a folder or archive; or, as hf:NAME, a data set of
            the Hugging Face hub.
        n_classes: Number of classes.
        sequence: How an image becomes a sequence.
        split: What is held out where the data have no such part.
        loading: How examples are put together and where they are kept.
    """

    def __init__(
        self,
        data: Path,
        n_classes: int = 10,
        sequence: ImageSequence = ImageSequence(),  # noqa: B008 (immutable)
        split: SplitOptions = SplitOptions(),
        loading: Loading = Loading(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__(loading)
        self.data, self.n_classes, self.sequence, self.split = data, n_classes, sequence, split
        self.encoding = sequence.encoding

    def settings(self) -> dict[str, object]:
        """Where the images come from and what is made of them."""
        options = {"sequence": asdict(self.sequence), "split": asdict(self.split)}
        return {"data": source_name(self.data), "n_classes": self.n_classes, **options}

    def fingerprint(self) -> str:
        """The state of the files; raises InputError where there are none, or of another number of classes."""
        return self._source().state()

    def examples(self) -> Iterator[Example]:
        """Images one by one."""
        source = self._source()
        require_classes(source, self.n_classes)
        parts, length = source.parts(), None
        for part, source_part, index in assign(parts, self.split.held_out, self.split.seed):
            images = parts[source_part]
            positions = self.sequence.positions(images.read(index))
            length = len(positions) if length is None else length
            if self.sequence.permutation is not None and len(positions) != length:
                raise InputError(
                    f"{images.name(index)} has {len(positions)} positions, others have {length}; "
                    "sequence.permutation needs images of one size"
                )
            yield Example(part, [positions[self.sequence.order(len(positions))]], images.labels[index])

    def _source(self) -> ImageSource:
        return find_images(self.data, self.n_classes)


def find_images(data: Path, n_classes: int) -> ImageSource:
    """The images that are named, of whatever kind; raises InputError where there are none."""
    name = hub_name(data)
    if name is not None:
        return HubImages(name, n_classes)
    cifar = find_cifar(data)
    if cifar is not None:
        return cifar
    if not data.is_dir():
        raise InputError(f"{data} is no folder of images, nor cifar-10-binary.tar.gz; name one of these")
    for place in IDX_FOLDERS:
        if has_idx_files(data / place):
            return IdxFiles(data / place, n_classes)
    return ClassFolders(data)
