"""`longreach convert`: a published checkpoint becomes a run that the other commands read; or nothing is left behind."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longreach.cli.main import run
from longreach.inference import load_trained
from longreach.models import PublishedLanguageModel, load_published
from longreach.models.published import read_published
from longreach.tasks.corpora.tokenizers import byte_tokenizer

FOLDER = Path(__file__).parent / "golden"
GOLDEN = FOLDER / "hyena_lm" / "lm_hyena_o2.safetensors"
MODELS = sorted(
    path
    for pattern in ("hyena_lm/lm_*", "h3_lm/*", "mega/lm_*", "rwkv4/lm_*", "rwkv7/lm*", "stripedhyena/model_*")
    for path in FOLDER.glob(f"{pattern}.safetensors")
)
NOT_PUBLISHED = {"loss", "L", "prompt"}
"""What the golden files note among the options."""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with published weights of 16 tokens."""
    folder = tmp_path / "published"
    folder.mkdir()
    tensors = {name: tensor.clone() for name, tensor in load_file(GOLDEN).items()}
    save_file(
        {n.removeprefix("param/"): t for n, t in tensors.items() if n.startswith("param/")}, folder / "w.safetensors"
    )
    return folder


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    return model.eval().double()(tokens)


def test_a_converted_model_is_the_published_one(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(["convert", str(published), str(out), "--tokenizer", "dna"]) == 0
    trained = load_trained(out)
    tokens = torch.tensor([[1, 7, 8, 9, 10, 11]])
    expected = logits(load_published(published).float(), tokens)  # the model of a run is float32
    torch.testing.assert_close(logits(trained.model, tokens), expected, rtol=0, atol=0)
    assert trained.tokenizer.encode(b"ACGT").tolist() == [7, 8, 9, 10]
    record = json.loads((out / "record.json").read_text())
    assert record["converted"] == {"source": str(published), "layout": "safari", "variant": "safari"}


@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_config_builds_the_model_again(path: Path, tmp_path: Path) -> None:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    save_file(
        {n.removeprefix("param/"): t for n, t in tensors.items() if n.startswith("param/")}, tmp_path / "w.safetensors"
    )
    found = read_published(tmp_path, config={name: config[name] for name in config.keys() - NOT_PUBLISHED})
    plain = json.loads(json.dumps(found.config))
    again = PublishedLanguageModel(found.model.vocab_size, layout=found.layout, variant=found.variant, config=plain)
    again.double().load_state_dict(found.model.state_dict())
    for model in (found.model, again):
        torch.testing.assert_close(logits(model, tensors["input_ids"]), tensors["output"], rtol=1e-9, atol=1e-9)


def test_it_generates_and_is_evaluated(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, text = tmp_path / "run", tmp_path / "sequence.txt"
    text.write_text("ACGTNACGTTGCA")
    run(["convert", str(published), str(out), "--tokenizer", "dna"])
    capsys.readouterr()
    assert run(["generate", str(out), "--prompt", "ACG", "--max-new-tokens", "8"]) == 0
    assert set(capsys.readouterr().out) <= set("ACGTN\n")
    assert run(["evaluate", str(out), str(text), "--contexts", "4"]) == 0
    assert "bits" in capsys.readouterr().out


def test_the_tokenizer_beside_the_weights_is_taken(published: Path, tmp_path: Path) -> None:
    byte_tokenizer().save(published / "tokenizer.json")
    assert run(["convert", str(published), str(tmp_path / "run")]) == 2  # 257 tokens do not fit 16
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name the tokenizer"),
        (["--tokenizer", "bpe:300"], "would be a new one"),
        (["--tokenizer", "bytes"], "257 tokens, which do not fit a vocabulary of 16"),
        (["--tokenizer", "dna", "--variant", "s4"], "variant='s4'"),
        (["--tokenizer", "dna", "--config", "none.json"], "none.json is no JSON object"),
        (["--tokenizer", "dn"], "cannot read the tokenizer 'dn'"),
    ],
)
def test_mistakes_leave_nothing_behind(
    arguments: list[str], told: str, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(published), str(tmp_path / "run"), *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_nothing_behind(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("longreach.cli.convert.checkpoints.save", full)
    assert run(["convert", str(published), str(tmp_path / "run"), "--tokenizer", "dna"]) == 2
    assert "no space left" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


def test_what_is_there_is_not_overwritten(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    assert run(["convert", str(published), str(tmp_path / "run"), "--tokenizer", "dna"]) == 2
    assert "exists already" in capsys.readouterr().err
