"""Speech Commands (Warden 2018, https://arxiv.org/abs/1804.03209): one word of 35, or of 10, from raw audio.

    <word>/<speaker>_nohash_<n>.wav      a second at 16,000 Hz, 16 bits, one channel; some are shorter
    validation_list.txt, testing_list.txt     <word>/<file> of the parts that are not to train, a line each

A clip becomes 16,000 numbers: shorter ones are followed by silence, longer ones cut.  They are standardised by the mean
and the standard deviation over the training part, as in the S4 family's pipelines (https://arxiv.org/abs/2111.00396).
These divide the clips of 10 words at random and leave out the short ones; here the published lists decide on both sets.
"""

import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int16
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.cache_folder import Header
from longreach.tasks.classification import Classification, Loading
from longreach.tasks.data_files import first_present, state_of
from longreach.tasks.encodings import FeatureEncoding
from longreach.tasks.labelled import Example

RATE = 16_000
TEN_WORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
WORDS: dict[str, tuple[str, ...]] = {
    "ten": TEN_WORDS,
    "all": tuple(
        sorted(
            (
                *TEN_WORDS,
                *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
                *("backward", "bed", "bird", "cat", "dog", "follow", "forward", "happy", "house", "learn", "marvin"),
                *("sheila", "tree", "visual", "wow"),
            )
        )
    ),
}
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
PLACES = ("speech_commands_v0.02", "SpeechCommands", "SpeechCommands/speech_commands_v0.02")
AGAIN = "copy or unpack speech_commands_v0.02.tar.gz again"


class SpeechCommands(Classification):
    """Which word is spoken.

    Args:
        data: The unpacked data set, version 0.02, or a folder that has it in speech_commands_v0.02.
        words: `all` 35 words, or the `ten` of commands.
        rate: Samples a second: at 8000 every second one is left out, as the S4 family does to test a model on another
            rate than it was trained on.
        loading: How examples are put together and where they are kept.
    """

    def __init__(
        self,
        data: Path = Path("data"),
        words: Literal["all", "ten"] = "all",
        rate: Literal[16000, 8000] = 16000,
        loading: Loading = Loading(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__(loading)
        self.data, self.words, self.rate = data, WORDS[words], rate
        self.n_classes = len(self.words)
        self.encoding = FeatureEncoding(stored="i2")  # its mean and deviation are known when the clips are read
        self._sums = np.zeros(3)

    def settings(self) -> dict[str, object]:
        """Which clips are read."""
        return {"data": str(self.data.absolute()), "words": list(self.words), "rate": self.rate}

    def fingerprint(self) -> str:
        """The state of the clips and lists."""
        folder = find_speech_commands(self.data)
        require_lists(folder)
        clips = (path for word in self.words for path in clips_of(folder, word))
        return state_of([*(folder / name for name in LISTS.values()), *clips])

    def prepare(self) -> None:
        """Read the clips, or their cache, and what they are standardised by."""
        super().prepare()
        found = self._ready().header["statistics"]
        self.encoding = replace(self.encoding, mean=found["mean"], std=found["std"])

    def examples(self) -> Iterator[Example]:
        """Every clip of these words, cut or followed by silence."""
        folder, self._sums = find_speech_commands(self.data), np.zeros(3)
        parts = read_lists(folder)
        self._require_complete(folder, parts)
        for label, word in enumerate(self.words):
            for path in clips_of(folder, word):
                part = parts.get(f"{word}/{path.name}", "train")
                clip = np.zeros(RATE, np.int16)
                samples = read_clip(path)[:RATE]
                clip[: len(samples)] = samples
                clip = clip[:: RATE // self.rate]
                if part == "train":
                    values = clip.astype(np.float64)
                    self._sums += len(values), values.sum(), (values**2).sum()
                yield Example(part, [clip], label)

    def _require_complete(self, folder: Path, parts: dict[str, str]) -> None:
        for name in parts:
            if name.split("/")[0] in self.words and not (folder / name).is_file():
                raise InputError(f"{folder} has no {name}, which is on a list; {AGAIN}")

    def _write(self, folder: Path) -> Header:
        header = super()._write(folder)
        n, total, squares = self._sums
        mean = total / n
        std = float(np.sqrt(squares / n - mean**2))
        if not std:
            raise InputError(f"all clips in {self.data} are silent; {AGAIN}")
        return {**header, "statistics": {"mean": float(mean), "std": std}}


def find_speech_commands(data: Path) -> Path:
    """The data set's folder, where it or the one around it is named; raises InputError if it is not there."""
    if data.is_file():
        raise InputError(f"{data} is a file; unpack it into a folder of its own and name that")
    found = data if (data / LISTS["test"]).is_file() else first_present(data, PLACES)
    if found is None:
        raise InputError(f"{data} has no speech_commands_v0.02; name the folder with {LISTS['test']}")
    return found


def clips_of(folder: Path, word: str) -> list[Path]:
    """All clips of a word; raises InputError where there are none."""
    found = sorted((folder / word).glob("*.wav"))
    if not found:
        raise InputError(f"{folder} has no clips in {word}; {AGAIN}")
    return found


def require_lists(folder: Path) -> None:
    """Raise InputError unless both lists are there."""
    for name in LISTS.values():
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}; {AGAIN}")


def read_lists(folder: Path) -> dict[str, str]:
    """The part of each clip that is not to train."""
    parts: dict[str, str] = {}
    for part, name in LISTS.items():
        try:
            lines = (folder / name).read_text(encoding="utf-8").split()
        except UnicodeDecodeError:
            raise InputError(f"{folder / name} is no list of clips; {AGAIN}") from None
        for line in lines:
            if parts.setdefault(line, part) != part:
                raise InputError(f"{line} is on both lists of {folder}; {AGAIN}")
    return parts


def read_clip(path: Path) -> Int16[ndarray, " l"]:
    """The samples of a clip; raises InputError for a damaged one or one of another kind."""
    try:
        with wave.open(str(path)) as clip:
            n, kind = clip.getnframes(), (clip.getframerate(), 8 * clip.getsampwidth(), clip.getnchannels())
            content = clip.readframes(n)
    except (wave.Error, EOFError) as error:
        raise InputError(f"{path} is damaged or no WAV file ({str(error) or 'it ends too early'}); {AGAIN}") from None
    if kind != (RATE, 16, 1):
        raise InputError(
            f"{path} has {kind[0]} Hz, {kind[1]} bits and {kind[2]} channels instead of {RATE}, 16 and 1; convert it"
        )
    if not n or len(content) != 2 * n:
        raise InputError(f"{path} has {len(content) // 2} samples instead of {n or 'some'}; {AGAIN}")
    return np.frombuffer(content, "<i2").astype(np.int16)
