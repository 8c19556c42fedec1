"""`longreach convert IN OUT`: a published checkpoint as the folder of a run, which `evaluate` and `generate` read."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from longreach.cli.command import Command
from longreach.errors import InputError
from longreach.models import LanguageModel, PublishedLanguageModel
from longreach.models.published import PublishedCheckpoint, read_published
from longreach.tasks.corpora.tokenizers import Tokenizer, make_tokenizer
from longreach.training import checkpoint as checkpoints
from longreach.training.experiment import read_experiment
from longreach.training.run_folder import RunFolder, machine

STEPS = 1000
"""What the configuration says if somebody trains such a model from its beginning."""


def add_arguments(parser: ArgumentParser) -> None:
    """What to read, what to write, and what the weights do not tell."""
    parser.add_argument(
        "source", type=Path, help="A .safetensors, .pt, .pth, .bin or .ckpt file, or a folder with one."
    )
    parser.add_argument("out", type=Path, help="Folder to make.")
    parser.add_argument("--variant", type=str, help="Whose code wrote it, for example safari or standalone (HyenaDNA).")
    parser.add_argument(
        "--config", type=Path, help="JSON file of the published config; by default config.json beside it."
    )
    parser.add_argument(
        "--tokenizer",
        type=str,
        help='A Hugging Face tokenizer.json, "dna" (HyenaDNA) or "bytes"; by default that beside the weights.',
    )


def run(parsed: Namespace) -> int:
    """Read, check, write; the folder is there when everything else has worked."""
    RunFolder(parsed.out).require_new()
    found = read_published(parsed.source, config=_read_config(parsed.config), variant=parsed.variant)
    if not isinstance(found.model, LanguageModel):
        raise InputError(
            f"{parsed.source} holds a {type(found.model).__name__}; only language models can be evaluated and "
            "generate. In Python, longreach.models.load_published gives the module"
        )
    tokenizer = find_tokenizer(parsed.tokenizer, parsed.source, found.model.vocab_size)
    unfinished = parsed.out.with_name(f"{parsed.out.name}.new")
    try:
        write_run(RunFolder(unfinished), found, tokenizer, parsed)
        unfinished.replace(parsed.out)
    except OSError as error:
        raise InputError(f"cannot write {parsed.out}: {error}; make room, or name another folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    count = sum(parameter.numel() for parameter in found.model.parameters())
    console.print(
        f"{parsed.out}: {found.layout} ({found.variant}), {count:,} parameters, {tokenizer.vocab_size:,} tokens"
    )
    return 0


def find_tokenizer(spec: str | None, source: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer that was named, or lies beside the weights, with as many tokens as the model has."""
    if spec is None:
        beside = (source if source.is_dir() else source.parent) / "tokenizer.json"
        if not beside.is_file():
            raise InputError(f"there is no {beside}; name the tokenizer that the model was trained with: --tokenizer")
        spec = str(beside)
    if spec.startswith("bpe:"):
        raise InputError(f"--tokenizer {spec} would be a new one; name the one that the model was trained with")
    return make_tokenizer(spec, []).filled_up(vocab_size)


def write_run(folder: RunFolder, found: PublishedCheckpoint, tokenizer: Tokenizer, parsed: Namespace) -> None:
    """Everything that a trained run has, apart from how it was trained."""
    model = {
        "class_path": PublishedLanguageModel.__name__,
        "init_args": {"layout": found.layout, "variant": found.variant, "config": found.config},
    }
    task = {"class_path": "Corpus", "init_args": {"tokenizer": str(parsed.out / "tokenizer.json")}}
    folder.create()
    tokenizer.save(folder.path / "tokenizer.json")
    folder.config.write_text(yaml.safe_dump({"task": task, "model": model, "training": {"steps": STEPS}}))
    folder.config.write_text(read_experiment(folder.config).config)  # with every default written out
    data = {"tokenizer": {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}}
    record: dict[str, Any] = {
        "converted": {"source": str(parsed.source.resolve()), "layout": found.layout, "variant": found.variant},
        "machine": machine(),
        "model": {"input_size": tokenizer.vocab_size},
        "data": data,
    }
    folder.add_to_record(record)
    files = {checkpoints.MODEL: checkpoints.model_tensors(found.model)}
    checkpoints.save(folder.checkpoints / "best", files, {"step": 0}, write=True)


def _read_config(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no JSON object that can be read: {error}") from error


COMMAND = Command("Turn a published checkpoint into a run that can be evaluated and generate.", add_arguments, run)
