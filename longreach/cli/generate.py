"""`longreach generate`: a trained model continues prompts, on stdout as it writes."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from longreach.cli.command import Command
from longreach.cli.options import add_options, build_options
from longreach.errors import InputError
from longreach.inference.generation import Piece, generate
from longreach.inference.sampling import GenerationOptions
from longreach.inference.trained import TrainedModel, load_trained
from longreach.training.run_folder import CheckpointName

STDIN = "-"
SHOWN_OF_PROMPT = 50


def add_arguments(parser: ArgumentParser) -> None:
    """Which run, the prompts, and the fields of GenerationOptions."""
    parser.add_argument("run", type=Path, help="Folder of the run.")
    parser.add_argument("--checkpoint", type=CheckpointName, default="best", help="Which weights.")
    parser.add_argument(
        "--prompt", action="append", help='Text to continue; "" begins a document. Give it several times for a batch.'
    )
    parser.add_argument(
        "--prompt-file",
        action="append",
        help='A UTF-8 file to continue, "-" for stdin, which is also read when there is no prompt and no terminal. '
        "May be as long as a book, and given several times.",
    )
    add_options(parser, GenerationOptions, {"stop": {"action": "append"}})


def run(parsed: Namespace) -> int:
    """Load, read the prompts, write."""
    options = build_options(parsed, GenerationOptions)
    prompts = read_prompts(parsed.prompt or [], parsed.prompt_file or [])
    try:
        write_text(load_trained(parsed.run, parsed.checkpoint), prompts, options)
    except BrokenPipeError:  # whoever reads the text has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def read_prompts(texts: Sequence[str], files: Sequence[str]) -> list[str]:
    """The prompts that were given; where there are none, all of stdin, or nothing if that is a terminal."""
    if not texts and not files:
        return ["" if sys.stdin.isatty() else _read(STDIN)]
    return [*texts, *(_read(file) for file in files)]


def _read(file: str) -> str:
    name = "stdin" if file == STDIN else file
    try:
        content = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
        return content.decode()
    except OSError as error:
        raise InputError(f"cannot read the prompt {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"the prompt {name} is not UTF-8 text (byte {error.start}); convert it") from None


def write_text(trained: TrainedModel, prompts: Sequence[str], options: GenerationOptions) -> None:
    """Write the continuations to stdout, one after the other, and how fast it went to stderr."""
    began = first = time.perf_counter()
    written = 0

    def timed(pieces: Iterable[Piece]) -> Iterator[Piece]:
        nonlocal first, written
        for piece in pieces:
            written += 1
            if written == 1:
                first = time.perf_counter()
            yield piece

    shown = -1
    for piece in in_order(timed(generate(trained.model, trained.tokenizer, prompts, options)), len(prompts)):
        if len(prompts) > 1 and piece.prompt != shown:
            sys.stdout.write(f"{'' if shown < 0 else chr(10)}--- {_header(prompts[piece.prompt], piece.prompt)}\n")
        shown = piece.prompt
        sys.stdout.write(piece.text + ("\n" if piece.end else ""))
        sys.stdout.flush()
    read = sum(1 + len(trained.tokenizer.encode(prompt.encode())) for prompt in prompts)
    _tell_speed(read, first - began, written - len(prompts), time.perf_counter() - first)


def in_order(pieces: Iterable[Piece], n_prompts: int) -> Iterator[Piece]:
    """The pieces prompt after prompt: the first as they come, those of later prompts kept until it is their turn."""
    kept: list[list[Piece]] = [[] for _ in range(n_prompts)]
    turn = 0
    for piece in pieces:
        kept[piece.prompt].append(piece)
        while turn < n_prompts and kept[turn]:
            ready, kept[turn] = kept[turn], []
            yield from ready
            turn += ready[-1].end is not None


def _header(prompt: str, index: int) -> str:
    """The number of a prompt and how it begins."""
    beginning = " ".join(prompt[:SHOWN_OF_PROMPT].split())
    more = "..." if len(prompt) > SHOWN_OF_PROMPT else ""
    return f"{index + 1}: {beginning}{more}" if prompt else f"{index + 1}: (the beginning of a document)"


def _tell_speed(read: int, reading: float, written: int, writing: float) -> None:
    """The first token of every prompt is written by reading it."""
    line = f"read {read:,} tokens in {reading:.2f} s ({read / reading:,.0f} tokens/s)"
    if written > 0:
        line += f", then wrote {written:,} in {writing:.2f} s ({written / writing:,.0f} tokens/s)"
    Console(stderr=True, highlight=False, soft_wrap=True).print(line)


COMMAND = Command("Let a trained model continue text.", add_arguments, run)
