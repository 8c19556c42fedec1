"""Compare trained runs of language models: what they learned, how fast they learn and write, how much memory they take.

python benchmarks/compare_runs.py RUN [RUN ...] [--tokens 256] [--out benchmarks/results/NAME]

For each run it reads the record of training, evaluates the best checkpoint on the held-out documents if that was not
done, and times generation: all runs in this process, in turn, several times, medians.  The speed of training is the
median of the last steps, at full context; that of generation is at batch 1 after a prompt of 1,024 tokens.  Prints a
Markdown table; with --out writes it as NAME.json and draws the losses over time as NAME.png.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

from longreach.inference import (
    EvaluationOptions,
    GenerationOptions,
    TokenStream,
    TrainedModel,
    evaluate_run,
    load_trained,
)

ROUNDS = 3
PROMPT = 1024


def seconds_per_token(trained: TrainedModel, prompt: list[int], n_tokens: int) -> float:
    """The time of one generated token at batch 1, after a prompt, its first token not counted."""
    stream = TokenStream(trained.model, [prompt], GenerationOptions(max_new_tokens=n_tokens + 1, seed=0))
    stream.advance()
    began = time.perf_counter()
    for _ in range(n_tokens):
        stream.advance()
    return (time.perf_counter() - began) / n_tokens


def training_metrics(run: Path) -> list[dict]:
    """All lines of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def held_out(run: Path, trained: TrainedModel) -> dict:
    """The evaluation on held-out documents, made now if there is none."""
    found = run / "evaluation" / "held-out.json"
    if not found.exists():
        evaluate_run(trained, [], EvaluationOptions(), {"run": str(run)})
    return json.loads(found.read_text())


def describe(run: Path, trained: TrainedModel) -> dict:
    """One row of the table, without the speed of generation."""
    record = json.loads((run / "record.json").read_text())
    result, total = record["result"], held_out(run, trained)["total"]
    full = [line for line in training_metrics(run) if line["kind"] == "train"]
    return {
        "name": run.name,
        "parameters": record["model"]["parameters"],
        "bits_per_byte": total["bits_per_byte"],
        "minutes": result["seconds"] / 60,
        "steps": result["step"],
        "tokens": result["tokens"],
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in full[-20:]),
        "memory": result["memory"],
        "machine": record["machine"],
    }


def draw(rows: list[dict], runs: list[Path], path: Path) -> None:
    """Held-out bits per byte over minutes of training."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for row, run in zip(rows, runs, strict=True):
        seconds, minutes, values = 0.0, [], []
        for line in training_metrics(run):
            if line["kind"] == "train":
                seconds = line["seconds"]
            else:
                minutes.append(seconds / 60)
                values.append(line["bits_per_byte"])
        axes.plot(minutes, values, marker="o", markersize=3, label=row["name"])
    axes.set(xlabel="minutes of training", ylabel="bits per byte, held-out documents")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=256, help="tokens generated in each round")
    parser.add_argument("--out", type=Path, help="where to write the results, without an ending")
    options = parser.parse_args()
    models = [load_trained(run) for run in options.runs]
    rows = [describe(run, trained) for run, trained in zip(options.runs, models, strict=True)]
    source = Path(argparse.__file__).read_bytes()
    prompts = [[trained.tokenizer.separator, *trained.tokenizer.encode(source)][:PROMPT] for trained in models]
    times: list[list[float]] = [[] for _ in models]
    for _ in range(ROUNDS):
        for i, trained in enumerate(models):
            times[i].append(seconds_per_token(trained, [int(token) for token in prompts[i]], options.tokens))
    print(
        "| model | parameters | bits per byte | tokens read | training tokens/s | peak memory | generation tokens/s |"
    )
    print("|---|---|---|---|---|---|---|")
    for row, seconds in zip(rows, times, strict=True):
        row["generated_tokens_per_second"] = 1 / statistics.median(seconds)
        print(
            f"| {row['name']} | {row['parameters'] / 1e6:.1f} M | {row['bits_per_byte']:.3f} "
            f"| {row['tokens'] / 1e6:.1f} M in {row['minutes']:.1f} minutes | {row['tokens_per_second']:,.0f} "
            f"| {row['memory'] / 2**30:.2f} GiB | {row['generated_tokens_per_second']:,.0f} |"
        )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        draw(rows, options.runs, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
