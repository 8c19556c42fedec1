"""Speech Commands: what is read of the folder that people have, and what is refused."""

import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from known_answers import judge, prepared, small, stored

from longreach.errors import InputError
from longreach.tasks import SpeechCommands
from longreach.tasks.speech_commands import RATE, TEN_WORDS, WORDS

LENGTHS = {"a_nohash_0": RATE, "b_nohash_0": RATE // 3, "c_nohash_1": RATE + 100}
"""Of the clips of each part: to train, to validate, to test."""


def write_clip(path: Path, samples: np.ndarray, rate: int = RATE, width: int = 2, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())


def samples(word: str, speaker: str) -> np.ndarray:
    seed = 1000 * TEN_WORDS.index(word) + ord(speaker[0])
    return np.random.Generator(np.random.PCG64(seed)).integers(-300, 320, LENGTHS[speaker])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of each of the ten words."""
    folder = tmp_path_factory.mktemp("data") / "speech_commands_v0.02"
    for word in TEN_WORDS:
        for speaker in LENGTHS:
            write_clip(folder / word / f"{speaker}.wav", samples(word, speaker))
    write_clip(folder / "_background_noise_" / "pink_noise.wav", np.zeros(100_000))
    (folder / "validation_list.txt").write_text("".join(f"{word}/b_nohash_0.wav\n" for word in (*TEN_WORDS, "bed")))
    (folder / "testing_list.txt").write_text("".join(f"{word}/c_nohash_1.wav\r\n" for word in TEN_WORDS))
    return folder


@pytest.fixture
def speech(original: Path, tmp_path: Path) -> Path:
    """One to be damaged."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


def expected(word: str, speaker: str) -> np.ndarray:
    found = samples(word, speaker)[:RATE]
    return np.concatenate([found, np.zeros(RATE - len(found), int)])


@pytest.mark.parametrize("rate", [16000, 8000])
def test_clips_are_read_padded_cut_and_standardised(original: Path, tmp_path: Path, rate: int) -> None:
    step = RATE // rate
    task = prepared(SpeechCommands(original.parent, "ten", rate, small(tmp_path, 5)))
    answers = {
        (tuple(expected(word, speaker)[::step].tolist()),): label
        for label, word in enumerate(TEN_WORDS)
        for speaker in LENGTHS
    }
    judge(task, answers)
    for part, speaker in zip(("train", "validation", "test"), LENGTHS, strict=True):
        clips = [((tuple(expected(word, speaker)[::step].tolist()),), i) for i, word in enumerate(TEN_WORDS)]
        assert stored(task, part) == clips
    train = np.stack([expected(word, "a_nohash_0")[::step] for word in TEN_WORDS])
    batches = torch.cat([task.batch(step, 0, 1).inputs for step in range(2)])
    assert batches.shape == (10, rate, 1)
    assert float(batches.mean()) == pytest.approx(0, abs=1e-5)
    assert float(batches.std(correction=0)) == pytest.approx(1, rel=1e-5)
    assert (task.encoding.mean, task.encoding.std) == pytest.approx((train.mean(), train.std()))
    again = SpeechCommands(original, "ten", rate, small(tmp_path, 5))
    again.prepare()
    assert again.encoding == task.encoding


def test_there_are_35_words() -> None:
    assert len(set(WORDS["all"])) == SpeechCommands().n_classes == 35
    assert set(WORDS["all"]) > set(TEN_WORDS)


def spoil(data: Path, how: str) -> None:
    clip = data / "go" / "a_nohash_0.wav"
    match how:
        case "word":
            shutil.rmtree(data / "go")
        case "list":
            (data / "validation_list.txt").unlink()
        case "binary":
            (data / "validation_list.txt").write_bytes(b"\xff\xfe\0")
        case "clip":
            (data / "go" / "b_nohash_0.wav").unlink()
        case "both":
            with (data / "testing_list.txt").open("a") as file:
                file.write("go/b_nohash_0.wav\n")
        case "half":
            clip.write_bytes(clip.read_bytes()[:20_000])
        case "empty":
            clip.write_bytes(b"")
        case "text":
            clip.write_text("not a sound at all, but some text")
        case "rate":
            write_clip(clip, np.ones(100), rate=8000)
        case "stereo":
            write_clip(clip, np.ones(100), channels=2)
        case "none":
            write_clip(clip, np.zeros(0))
        case "silent":
            for path in data.glob("*/a_nohash_0.wav"):
                write_clip(path, np.zeros(RATE))


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("word", "has no clips in go; copy or unpack speech_commands_v0.02.tar.gz again"),
        ("list", "has no validation_list.txt; copy or unpack"),
        ("binary", "validation_list.txt is no list of clips; copy or unpack"),
        ("clip", "has no go/b_nohash_0.wav, which is on a list"),
        ("both", "go/b_nohash_0.wav is on both lists"),
        ("half", "go/a_nohash_0.wav has 9978 samples instead of 16000"),
        ("empty", r"go/a_nohash_0.wav is damaged or no WAV file \(it ends too early\)"),
        ("text", "go/a_nohash_0.wav is damaged or no WAV file"),
        ("rate", "go/a_nohash_0.wav has 8000 Hz, 16 bits and 1 channels instead of 16000, 16 and 1; convert"),
        ("stereo", "16000 Hz, 16 bits and 2 channels"),
        ("none", "go/a_nohash_0.wav has 0 samples instead of some"),
        ("silent", "all clips in .* are silent"),
    ],
)
def test_what_is_wrong_is_refused_by_name(speech: Path, tmp_path: Path, how: str, complaint: str) -> None:
    spoil(speech, how)
    with pytest.raises(InputError, match=complaint):
        SpeechCommands(speech, "ten", loading=small(tmp_path / "cache")).prepare()


def test_wrong_folders_are_refused_by_name(original: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no clips in backward"):
        SpeechCommands(original, loading=small(tmp_path)).prepare()
    with pytest.raises(InputError, match=r"has no speech_commands_v0.02; name the folder"):
        SpeechCommands(tmp_path, loading=small(tmp_path)).prepare()
    (tmp_path / "speech_commands_v0.02.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match="is a file; unpack it"):
        SpeechCommands(tmp_path / "speech_commands_v0.02.tar.gz", loading=small(tmp_path)).prepare()
