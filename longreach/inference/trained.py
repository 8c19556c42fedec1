"""A trained language model with its tokenizer, from the folder of its run."""

from pathlib import Path
from typing import NamedTuple, cast

import torch

from longreach.errors import InputError
from longreach.models.language_model import LanguageModel
from longreach.tasks.corpora.corpus import Corpus
from longreach.tasks.corpora.tokenizers import Tokenizer, load_tokenizer
from longreach.training import LoadedRun, load_run
from longreach.training.run_folder import CheckpointName, RunFolder


class TrainedModel(NamedTuple):
    """What writing and judging need."""

    model: LanguageModel
    """In eval mode, on the GPU if there is one."""
    tokenizer: Tokenizer
    corpus: Corpus
    """What it was trained on; not prepared, so nothing of it has been read."""
    folder: RunFolder


def is_language_model(loaded: LoadedRun) -> bool:
    """Whether the run is that of a LanguageModel on a Corpus, so that it can write and be judged on documents."""
    return isinstance(loaded.model, LanguageModel) and isinstance(loaded.experiment.task, Corpus)


def load_trained(run: Path, checkpoint: CheckpointName = "best") -> TrainedModel:
    """Load a run of a language model on a corpus.

    Raises InputError if `run` is none, or if its files are damaged or not those that belong together.
    """
    loaded = load_run(run, checkpoint)
    if not is_language_model(loaded):
        raise InputError(
            f"{run} trained a {type(loaded.model).__name__} on {type(loaded.experiment.task).__name__}; "
            "only a LanguageModel trained on a Corpus can write and be judged on documents"
        )
    model, corpus = cast(LanguageModel, loaded.model), cast(Corpus, loaded.experiment.task)
    tokenizer = load_tokenizer(run / "tokenizer.json")
    trained_with = loaded.folder.read_record().get("data", {}).get("tokenizer", {}).get("fingerprint")
    if tokenizer.fingerprint != trained_with or tokenizer.vocab_size != model.vocab_size:
        raise InputError(
            f"{run / 'tokenizer.json'} ({tokenizer.vocab_size} tokens) is not the tokenizer that the model of "
            f"{model.vocab_size} tokens was trained with; restore the file, which the run wrote"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TrainedModel(model.to(device), tokenizer, corpus, loaded.folder)
