"""What is shown when a model has been trained: how it does on what was held out, and a sample of its writing."""

from pathlib import Path

from rich.console import Console

from longreach.cli.evaluate import evaluate_and_show
from longreach.cli.generate import write_text
from longreach.inference.evaluation import EvaluationOptions
from longreach.inference.sampling import GenerationOptions
from longreach.inference.trained import is_language_model, load_trained
from longreach.training import load_run

LOOK = EvaluationOptions(context_tokens=32_768, max_bytes=1_000_000)
"""Enough for a good idea in a minute or so; `longreach evaluate` measures all there is."""
SAMPLE = GenerationOptions(max_new_tokens=400, temperature=0.8, top_p=0.95)


def show_trained(run: Path) -> None:
    """Judge the best checkpoint on the held-out documents, next to gzip and xz, and let it begin a document.

    Shows nothing where the run is not that of a language model on a corpus.
    """
    if not is_language_model(load_run(run)):
        return
    trained = load_trained(run)
    evaluate_and_show(trained, [], LOOK, checkpoint="best")
    limit = trained.model.max_length
    length = SAMPLE.max_new_tokens if limit is None else min(limit, SAMPLE.max_new_tokens)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"\nA sample of {length} tokens, from the beginning of a document:\n")
    write_text(trained, [""], GenerationOptions(length, SAMPLE.temperature, top_p=SAMPLE.top_p))
    console.print(f'\nMore: longreach generate {run} --prompt "..."')
