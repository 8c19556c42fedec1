"""`longreach evaluate` and `generate` on the folder of a real, very short run; mistakes end with status 2."""

import gc
import io
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longreach.cli import show_trained
from longreach.cli.generate import in_order
from longreach.cli.main import run
from longreach.inference.evaluation import EvaluationOptions
from longreach.inference.generation import Piece, complete
from longreach.inference.sampling import GenerationOptions
from longreach.inference.trained import load_trained

EXAMPLES = Path(__file__).parent.parent / "examples"
CONFIG = """
task:
  class_path: Corpus
  init_args:
    data: {data}
    context: 32
    batch_size: 2
    split: {{validation: 0.2, test: 0.2}}
    reading: {{cache: {cache}}}
model:
  class_path: LanguageModel
  init_args:
    backbone:
      class_path: Backbone
      init_args:
        d_model: 8
        n_layers: 2
        mixers:
          - class_path: Hyena
            init_args: {{max_length: 2048}}
          - class_path: Attention
            init_args: {{n_heads: 2}}
        channel_mixer:
          class_path: MLP
training:
  steps: 3
  lr: 0.1
  warmup_steps: 1
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a run in it and the text that it was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text").mkdir()
    for i in range(10):
        lines = [f"{i} times {j} is {i * j}\n" for j in range(60)]
        (folder / "text" / f"{i}.txt").write_text("".join(lines))
    (folder / "config.yaml").write_text(CONFIG.format(data=folder / "text", cache=folder / "cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(show_trained, "LOOK", EvaluationOptions(contexts=[16]))
        patch.setattr(show_trained, "SAMPLE", GenerationOptions(max_new_tokens=5))
        torch.manual_seed(0)
        assert run(["train", "--config", str(folder / "config.yaml"), "--run", str(folder / "run")]) == 0
    return folder


def fails(capsys, *arguments: object) -> str:
    """What a command says before it ends with status 2."""
    assert run([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("longreach: error: ")
    assert err.count("\n") <= 2
    assert "Traceback" not in err
    return err


def test_training_ends_with_a_judgement_and_a_sample(trained: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(show_trained, "SAMPLE", GenerationOptions(max_new_tokens=5))
    show_trained.show_trained(trained / "run")
    out = capsys.readouterr().out
    for word in ("gzip -9", "xz -9e", "this model", "held-out.png", "A sample of 5 tokens", "longreach generate"):
        assert word in out


def test_evaluate_judges_held_out_documents(trained: Path, capsys) -> None:
    assert run(["evaluate", str(trained / "run"), "--contexts", "16", "64"]) == 0
    assert "gzip -9" in capsys.readouterr().out
    found = json.loads((trained / "run" / "evaluation" / "held-out.json").read_text())
    assert found["data"] == "held-out"
    assert [row["context"] for row in found["contexts"]] == [16, 64, None]
    held_out = load_trained(trained / "run").corpus
    held_out.prepare()
    names = [document.name for document in held_out.held_out()]
    assert [row["name"] for row in found["documents"]] == names
    for row in found["documents"]:
        assert row["bytes"] == (trained / "text" / row["name"]).stat().st_size == row["tokens"] - 1


def test_evaluate_takes_other_data_and_limits(trained: Path, capsys) -> None:
    text = trained / "text"
    options = ["--max-documents", "2", "--contexts", "16", "--context-tokens", "100", "--checkpoint", "last"]
    assert run(["evaluate", str(trained / "run"), str(text), str(text / ".." / "config.yaml"), *options]) == 0
    assert "as far as the limits allow" in capsys.readouterr().out
    found = json.loads((trained / "run" / "evaluation" / "text+config.yaml.json").read_text())
    assert found["checkpoint"] == "last"
    assert len(found["documents"]) == 2
    assert [row["tokens"] for row in found["contexts"]] == [96, 96]


def test_generate_writes_the_text_and_nothing_else_to_stdout(trained: Path, capsys) -> None:
    arguments = ["--prompt", "3 times", "--max-new-tokens", "12", "--temperature", "0.7", "--top-k", "5", "--seed", "4"]
    assert run(["generate", str(trained / "run"), *arguments, "--top-p", "0.9", "--stop", "7", "--stop", "8"]) == 0
    out, err = capsys.readouterr()
    options = GenerationOptions(12, temperature=0.7, top_k=5, top_p=0.9, seed=4, stop=["7", "8"])
    loaded = load_trained(trained / "run")
    assert out == complete(loaded.model, loaded.tokenizer, ["3 times"], options)[0] + "\n"
    assert err.startswith("read 8 tokens in ")


@pytest.mark.parametrize("arguments", [[], ["--prompt-file", "-"]])
def test_generate_reads_stdin(trained: Path, capsys, monkeypatch, arguments: list[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("5 \u00d7 6".encode())))
    assert run(["generate", str(trained / "run"), "--max-new-tokens", "4", *arguments]) == 0
    assert capsys.readouterr().err.startswith("read 7 tokens in ")


def test_generate_without_a_prompt_begins_a_document_at_a_terminal(trained: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert run(["generate", str(trained / "run"), "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().err.startswith("read 1 tokens in ")


def test_a_batch_of_prompts_comes_one_after_the_other(trained: Path, capsys) -> None:
    (trained / "prompt.txt").write_text("a prompt from a file, of which only the beginning is shown in the header\nx")
    arguments = ["--prompt", "4 times", "--prompt", "", "--prompt-file", str(trained / "prompt.txt")]
    assert run(["generate", str(trained / "run"), *arguments, "--max-new-tokens", "9", "--temperature", "0"]) == 0
    loaded = load_trained(trained / "run")
    prompts = ["4 times", "", (trained / "prompt.txt").read_text()]
    texts = complete(loaded.model, loaded.tokenizer, prompts, GenerationOptions(9, temperature=0.0))
    headers = ["1: 4 times", "2: (the beginning of a document)"]
    headers.append("3: a prompt from a file, of which only the beginning...")
    expected = "\n".join(f"--- {header}\n{text}\n" for header, text in zip(headers, texts, strict=True))
    assert capsys.readouterr().out == expected


def test_pieces_are_put_in_order_as_early_as_possible() -> None:
    """The first prompt streams; a later one waits until those before it have ended."""
    log = []
    pieces = [Piece(0, "a"), Piece(1, "x"), Piece(0, "b"), Piece(1, "y", "stop"), Piece(0, "c", "length")]
    for piece in in_order((log.append(f"in {p.text}") or p for p in pieces), 2):
        log.append(f"out {piece.text}")
    assert log == ["in a", "out a", "in x", "in b", "out b", "in y", "in c", "out c", "out x", "out y"]


def test_mistakes_end_with_a_line_that_names_them(trained: Path, capsys, tmp_path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    folder = trained / "run"
    for arguments, words in [
        (("evaluate", tmp_path / "none"), ("none", "not the folder of a run")),
        (("evaluate", folder, tmp_path / "none"), ("none", "does not exist")),
        (("evaluate", folder, tmp_path / "empty.txt"), ("empty.txt", "empty")),
        (("evaluate", folder, tmp_path / "latin.txt"), ("latin.txt", "UTF-8")),
        (("evaluate", folder, "--contexts", 4096), ("4,096", "2,048")),
        (("evaluate", folder, "--contexts", 1), ("contexts", "at least 2")),
        (("evaluate", folder, "--contexts", "many"), ("contexts",)),
        (("evaluate", folder, "--checkpoint", "first"), ("checkpoint",)),
        (("evaluate", folder, "--context", 16), ("--context",)),
        (("generate", folder, "--prompt-file", tmp_path / "none"), ("none", "No such file")),
        (("generate", folder, "--prompt-file", tmp_path / "latin.txt"), ("latin.txt", "byte 3", "UTF-8")),
        (("generate", folder, "--prompt", "", "--temperature", -1), ("temperature", "-1")),
        (("generate", folder, "--prompt", "", "--stop", ""), ("stop", "empty")),
        (("generate", folder, "--prompt", "", "--max-new-tokens", 3000), ("3,000", "2,048")),
        (("generate", folder, "--prompt", "", "--top_k", 3), ("top_k",)),
    ]:
        message = fails(capsys, *arguments)
        assert all(word in message for word in words), message


def test_files_of_another_run_are_refused(trained: Path, capsys, tmp_path) -> None:
    """A tokenizer that does not belong to the weights, and a run without one."""
    folder = shutil.copytree(trained / "run", tmp_path / "run")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "is not the tokenizer" in fails(capsys, "generate", folder, "--prompt", "x")
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in fails(capsys, "evaluate", folder)


def test_a_reader_that_has_enough_is_no_mistake(trained: Path) -> None:
    """As with `longreach generate ... | head`."""
    command = [sys.executable, "-m", "longreach", "generate", str(trained / "run"), "--prompt", "x"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"Traceback" not in err


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_runs(example: Path, trained: Path, capsys, monkeypatch, tmp_path) -> None:
    """Those that need a trained run take it as their first argument, or as `--run`."""
    book = ["--bytes", "2500", "--out", str(tmp_path / "book.png")]
    from_nothing = ["--data", str(trained / "text"), "--minutes", "0.01", "--context", "100"]
    calls = {"whole_book.py": [["--run", str(trained / "run"), *book], [*from_nothing, *book]]}
    monkeypatch.setenv("LONGREACH_CACHE", str(tmp_path))
    for arguments in calls.get(example.name, [[str(trained / "run"), "1 times", "x"]]):
        monkeypatch.setattr("sys.argv", [str(example), *arguments])
        runpy.run_path(str(example), run_name="__main__")
        assert capsys.readouterr().out.count("\n") >= 4
    gc.collect()  # configurations name classes, among which another test would find those of an example
    assert (example.name == "whole_book.py") == (tmp_path / "book.png").exists()
