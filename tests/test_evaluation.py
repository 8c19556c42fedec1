"""Bits per byte: every target counted once, with the context that is said, and the bytes that it stands for."""

import gzip
import inspect
import io
import json
import lzma
import math
import shutil
import subprocess
import typing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from longreach.errors import InputError
from longreach.inference import scoring
from longreach.inference.compression import gzip_size, xz_size
from longreach.inference.eval_mode import eval_mode
from longreach.inference.evaluation import (
    EvaluationOptions,
    Report,
    choose_blocks,
    choose_contexts,
    evaluate_documents,
    read_documents,
    within_limits,
)
from longreach.inference.report import report_json, report_tables, write_report
from longreach.inference.scoring import document_losses, window_losses, windows
from longreach.mixers import Attention
from longreach.models import MLP, Backbone, LanguageModel
from longreach.tasks.corpora.corpus import HeldOutDocument
from longreach.tasks.corpora.sources import Report as ReadingReport
from longreach.tasks.corpora.sources import Source
from longreach.tasks.corpora.tokenizers import byte_tokenizer, train_bpe

TOKENIZER = byte_tokenizer()
SEPARATOR = TOKENIZER.separator


def attention_model(vocab_size: int = 257) -> LanguageModel:
    backbone = Backbone(8, n_layers=2, mixers=[lambda d: Attention(d, n_heads=2)], channel_mixer=MLP, dropout=0.3)
    return LanguageModel(vocab_size, backbone, tied=False, init_std=0.5).double()


class Fake(LanguageModel):
    """A model whose loss at a position is a function of how many inputs it has seen there, this one included."""

    def __init__(self, loss, max_length: int | None = None) -> None:
        super().__init__(257, Backbone(2, n_layers=1, mixers=[lambda d: Attention(d, n_heads=1)], channel_mixer=MLP))
        self.loss, self.backbone.max_length = loss, max_length
        self.read_at_once: list[int] = []

    def init_state(self, batch_size):
        return (torch.zeros(batch_size, dtype=torch.int64),)

    def score(self, tokens, targets, state):
        seen = state[0][:, None] + 1 + torch.arange(tokens.shape[1])
        self.read_at_once.append(tokens.numel())
        return self.loss(seen, targets), (seen[:, -1],)

    def token_losses(self, tokens, targets):
        assert self.max_length is None or tokens.shape[1] <= self.max_length
        return self.score(tokens, targets, self.init_state(len(tokens)))[0]


def uniform(vocab_size: int) -> Fake:
    return Fake(lambda seen, targets: torch.full(targets.shape, math.log(vocab_size)))


def counting(max_length: int | None = None) -> Fake:
    return Fake(lambda seen, targets: torch.where(targets == -100, math.nan, seen.double()), max_length)


def document(size: int, name: str = "a") -> HeldOutDocument:
    content = np.random.default_rng(size).integers(97, 123, size).astype(np.uint8).tobytes()
    return HeldOutDocument(name, content, TOKENIZER.encode(content))


def test_a_uniform_model_needs_log2_of_the_vocabulary_per_token() -> None:
    """The bytes are those of the documents; each document has one target more than tokens, its end."""
    documents = [document(300), document(1000, "b"), document(1, "c")]
    scores, curve = evaluate_documents(uniform(257), TOKENIZER, documents, EvaluationOptions())
    assert [(s.name, s.bytes, s.tokens) for s in scores] == [("a", 300, 301), ("b", 1000, 1001), ("c", 1, 2)]
    for score in [*scores, Report(scores, curve, left_out=False).total, *curve]:
        assert score.bits / score.tokens == pytest.approx(math.log2(257), rel=1e-6)
    assert Report(scores, curve, left_out=False).total.bytes == 1301


def test_bytes_are_those_of_the_text_whatever_the_tokenizer() -> None:
    """Under byte pairs the same text has fewer targets; the end of a document stands for no byte."""
    text = "the cat sat on the mat and the dog sat on the log. " * 40
    tokenizer = train_bpe([text], 300)
    document = HeldOutDocument("a", text.encode(), tokenizer.encode(text.encode()))
    options = EvaluationOptions(contexts=[16, 64])
    scores, curve = evaluate_documents(uniform(300), tokenizer, [document], options)
    assert scores[0].bytes == len(text)
    assert scores[0].tokens == len(document.tokens) + 1 < len(text) / 2
    assert {score.bytes for score in curve} == {len(tokenizer.decode(document.tokens[32:]))}
    assert {score.tokens for score in curve} == {len(document.tokens) + 1 - 32}


@pytest.mark.parametrize("chunk", [scoring.CHUNK, 7])
@pytest.mark.parametrize("length", [1, 7, 40])
def test_a_whole_document_is_read_in_one_pass(chunk: int, length: int, monkeypatch) -> None:
    """Loss by loss what forward over separator and text says, in eval mode, however it is cut into chunks."""
    monkeypatch.setattr(scoring, "CHUNK", chunk)
    model, tokens = attention_model(), document(length).tokens
    read = []
    losses = document_losses(model, tokens, SEPARATOR, read.append)
    whole = torch.tensor([[SEPARATOR, *tokens.tolist(), SEPARATOR]])
    with eval_mode(model):
        expected = model(whole[:, :-1]).log_softmax(-1).gather(-1, whole[:, 1:, None])
    torch.testing.assert_close(losses, -expected.flatten().float(), rtol=1e-5, atol=1e-6)
    assert sum(read) == length + 1
    assert model.training


@given(st.integers(0, 60), st.integers(1, 120), st.integers(1, 40))
def test_windows_count_every_position_once_with_the_context_that_they_promise(first, extra, context) -> None:
    first = 0 if first % 2 else first
    stop, counted = first + extra, []
    for window in windows(first, stop, context):
        assert 0 <= window.start <= window.first < window.stop
        assert window.stop - window.start <= context
        for position in range(window.first, window.stop):
            seen = position - window.start + 1
            assert seen >= min(context // 2 + 1, position + 1)
            counted.append(position)
    assert counted == list(range(first, stop))


@given(st.integers(1, 200), st.integers(1, 50))
def test_a_model_with_a_maximum_gets_windows_of_it(size: int, maximum: int) -> None:
    """Every target counts once, and sees all that there is or at least half of what the model reads."""
    seen = document_losses(counting(maximum), document(size).tokens, SEPARATOR)
    assert len(seen) == size + 1
    for position, count in enumerate(seen.tolist()):
        assert min(position + 1, maximum // 2 + 1) <= count <= min(position + 1, maximum)


def test_a_window_is_read_from_its_beginning() -> None:
    """Loss by loss what forward says when it reads the window and nothing before."""
    model, tokens = attention_model(), document(60).tokens
    inputs, targets = scoring.inputs_and_targets(tokens, SEPARATOR)
    for window in windows(20, 61, 16):
        with eval_mode(model):
            logits = model(inputs[None, window.start : window.stop])[0, window.first - window.start :]
        expected = torch.nn.functional.cross_entropy(logits, targets[window.first : window.stop], reduction="none")
        torch.testing.assert_close(window_losses(model, inputs, targets, [window]), expected.float())


def test_windows_read_together_are_windows_read_alone(monkeypatch) -> None:
    """Also where a shorter one is padded; and no more is read at once than a chunk."""
    model, tokens = attention_model(), document(100).tokens
    inputs, targets = scoring.inputs_and_targets(tokens, SEPARATOR)
    chosen = [*windows(0, 55, 16), *windows(60, 101, 16)]
    together = window_losses(model, inputs, targets, chosen)
    alone = torch.cat([window_losses(model, inputs, targets, [window]) for window in chosen])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)
    assert len(together) == 55 + 41
    monkeypatch.setattr(scoring, "CHUNK", 40)
    fake = counting()
    assert len(window_losses(fake, inputs, targets, chosen)) == 96
    assert max(fake.read_at_once) == 32


def test_every_context_is_judged_on_the_same_targets() -> None:
    """Each target sees at least half of the context and at most all of it; the whole document comes last."""
    documents = [document(900), document(100, "b"), document(3000, "c")]
    seen = {}

    def remember(count, targets):
        contexts = seen.setdefault(targets.shape[1], [])
        contexts += count.expand(targets.shape)[targets != -100].tolist()
        return torch.ones(targets.shape)

    options = EvaluationOptions(contexts=[64, 10, 256])
    scores, curve = evaluate_documents(Fake(remember), TOKENIZER, documents, options)
    assert [score.context for score in curve] == [10, 64, 256, None]
    assert {score.tokens for score in curve} == {901 - 128 + 3001 - 128}
    assert {score.bytes for score in curve} == {900 - 128 + 3000 - 128}
    for context in (10, 64, 256):
        assert len(seen[context]) == curve[0].tokens
        assert context // 2 < min(seen[context]) <= max(seen[context]) == context
    assert [score.tokens for score in scores] == [901, 101, 3001]


def test_a_model_that_needs_context_shows_it_on_the_curve() -> None:
    """A model that gets better with every input seen has a falling curve, down to the whole document."""
    model = Fake(lambda seen, targets: (5.0 / seen.double().sqrt()).expand(targets.shape))
    _, curve = evaluate_documents(model, TOKENIZER, [document(20_000)], EvaluationOptions())
    assert [score.context for score in curve] == [64, 256, 1024, 4096, 16384, None]
    bits = [score.bits for score in curve]
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] < 0.9 * bits[-3]


def test_contexts_go_as_far_as_model_and_documents() -> None:
    assert choose_contexts([20_000, 10], None, None) == [64, 256, 1024, 4096, 16384]
    assert choose_contexts([20_000, 10], 8192, None) == [64, 256, 1024, 4096]
    assert choose_contexts([5000], None, None) == [64, 256, 1024, 4096]
    assert choose_contexts([4097], None, None) == [64, 256, 1024, 4096]
    assert choose_contexts([4095], None, None) == [64, 256, 1024]
    assert choose_contexts([63] * 100, None, None) == []
    assert choose_contexts([100], None, [64, 8, 64]) == [8, 64]
    with pytest.raises(InputError, match=r"512 tokens is more than the 256"):
        choose_contexts([10_000], 256, [512])
    with pytest.raises(InputError, match=r"512 tokens needs a document.*longest has 200"):
        choose_contexts([200, 100], None, [64, 512])


def test_a_context_that_leaves_only_the_end_of_a_document_is_refused() -> None:
    """The separator stands for no byte, so there would be nothing to divide by."""
    with pytest.raises(InputError, match="longest has 33"):
        choose_contexts([33], None, [64])
    assert choose_contexts([34], None, [64]) == [64]


def test_a_budget_takes_blocks_from_beginning_to_end() -> None:
    assert choose_blocks([401, 401], 100, 300) == [(0, 100, 200), (0, 300, 400), (1, 200, 300)]
    assert choose_blocks([401, 401], 100, 1) == [(0, 100, 200)]


@given(st.lists(st.integers(2, 500), min_size=1), st.integers(1, 100), st.integers(1, 1000))
def test_blocks_are_spread_over_all_documents_within_the_budget(lengths, size, budget) -> None:
    every = choose_blocks(lengths, size, 10**9)
    for index, length in enumerate(lengths):
        covered = [position for i, first, stop in every if i == index for position in range(first, stop)]
        assert covered == list(range(size, length))[: len(covered)]
        assert length - size - len(covered) in (0, 1) or length <= size  # the end alone is left out
    chosen = choose_blocks(lengths, size, budget)
    assert set(chosen) <= set(every)
    assert len(chosen) == len(set(chosen)) == min(len(every), max(1, budget // size))


def test_nothing_of_a_curve_where_documents_are_short() -> None:
    scores, curve = evaluate_documents(uniform(257), TOKENIZER, [document(20)], EvaluationOptions())
    assert len(scores) == 1
    assert curve == []


def test_limits_stop_before_a_document_and_say_so() -> None:
    documents = [document(10), document(20), document(30)]
    assert within_limits(documents, EvaluationOptions()) == (documents, False)
    assert within_limits(documents, EvaluationOptions(max_documents=3)) == (documents, False)
    assert within_limits(documents, EvaluationOptions(max_documents=2)) == (documents[:2], True)
    assert within_limits(documents, EvaluationOptions(max_bytes=59)) == (documents[:2], True)
    assert within_limits(documents, EvaluationOptions(max_bytes=60)) == (documents, False)
    with pytest.raises(InputError, match="no document"):
        within_limits([document(0)], EvaluationOptions())


def test_documents_are_read_from_any_source(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("caf\u00e9")
    (tmp_path / "b.txt").write_text("x" * 50)
    source = Source(tmp_path)
    found = list(read_documents(source.documents(ReadingReport()), TOKENIZER, EvaluationOptions()))
    assert [(d.name, d.content, d.tokens.tolist()) for d in found] == [
        ("a.txt", "caf\u00e9".encode(), list("caf\u00e9".encode())),
        ("b.txt", b"x" * 50, [120] * 50),
    ]
    with pytest.raises(InputError, match=r"b.txt has 50 bytes.*max_bytes = 49"):
        list(read_documents(source.documents(ReadingReport()), TOKENIZER, EvaluationOptions(max_bytes=49)))


@pytest.mark.parametrize(
    ("option", "value"),
    [("contexts", []), ("contexts", [64, 1]), ("context_tokens", 0), ("max_documents", 0), ("max_bytes", 0)],
)
def test_options_that_make_no_sense_are_named(option: str, value) -> None:
    with pytest.raises(InputError, match=option):
        EvaluationOptions(**{option: value})


@pytest.mark.skipif(not (shutil.which("gzip") and shutil.which("xz")), reason="gzip and xz are not on this machine")
@pytest.mark.parametrize("size", [1, 100, 5000, 70_000])
def test_compressors_are_those_of_the_command_line(size: int) -> None:
    """A few bytes may differ between versions of the tools, never a percent; and what is written can be read."""
    content = (inspect.getsource(typing).encode() * 2)[:size]
    for ours, command in ((gzip_size, ["gzip", "-9", "-c"]), (xz_size, ["xz", "-9e", "-c"])):
        theirs = len(subprocess.run(command, input=content, capture_output=True, check=True).stdout)
        assert abs(ours(content) - theirs) <= 8 + theirs // 100
    assert gzip_size(content) == len(gzip.compress(content, 9))
    assert abs(xz_size(content) - len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))) <= 4


def test_a_report_has_tables_json_and_a_plot(tmp_path) -> None:
    documents = [document(3000, "long"), document(50, "short")]
    stages = []
    scores, curve = evaluate_documents(
        uniform(257), TOKENIZER, documents, EvaluationOptions(), lambda *now: stages.append(now)
    )
    report = Report(scores, curve, left_out=True)
    written = write_report(report, {"model": "uniform"}, tmp_path / "evaluation", "held-out")
    assert [path.name for path in written] == ["held-out.json", "held-out.png"]
    content = json.loads(written[0].read_text())
    assert content == json.loads(json.dumps(report_json(report, {"model": "uniform"})))
    assert content["model"] == "uniform"
    assert content["left_out_by_limits"] is True
    assert content["total"]["bytes"] == 3050
    assert content["total"]["bits_per_token"] == pytest.approx(math.log2(257))
    assert content["total"]["bits_per_byte"] == pytest.approx(3052 * math.log2(257) / 3050)
    assert [row["name"] for row in content["documents"]] == ["long", "short"]
    assert content["documents"][1]["gzip_bits_per_byte"] == 8 * gzip_size(documents[1].content) / 50
    assert [row["context"] for row in content["contexts"]] == [64, 256, 1024, None]
    assert written[1].read_bytes().startswith(b"\x89PNG")
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(report_tables(report))
    text = console.export_text()
    for expected in ("gzip -9", "xz -9e", "1,024", "whole document", "8.01", "as far as the limits allow"):
        assert expected in text
    assert {name for name, _, _ in stages} == {"whole documents", "context 64", "context 256", "context 1,024"}
    assert all(done <= total for _, done, total in stages)
    for stage in {name for name, _, _ in stages}:
        _, done, total = [now for now in stages if now[0] == stage][-1]
        assert done == total
