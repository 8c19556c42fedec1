"""A small corpus for the tests of corpora."""

from pathlib import Path


def write_texts(folder: Path, n_files: int) -> Path:
    """A new folder of small files of different lengths, in more than one alphabet."""
    folder.mkdir()
    for i in range(n_files):
        (folder / f"{i:02}.txt").write_text(f"the text of file {i}, naïve 漢字\n" * (1 + i % 4))
    return folder
