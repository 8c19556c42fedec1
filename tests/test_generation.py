"""Writing text: the right tokens, exactly, alone and in a batch; text that comes out whole; limits said beforehand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from longreach.errors import InputError
from longreach.inference.eval_mode import eval_mode
from longreach.inference.generation import GenerationOptions, TokenStream, complete, generate
from longreach.inference.sampling import choose_tokens
from longreach.inference.text_stream import TextStream
from longreach.mixers import S4D, Attention, Hyena, SequenceMixer
from longreach.models import MLP, Backbone, LanguageModel
from longreach.models.backbone import BackboneState
from longreach.tasks.corpora.tokenizers import byte_tokenizer

TOKENIZER = byte_tokenizer()
SEPARATOR = TOKENIZER.separator
MIXERS = {
    "attention": lambda d: Attention(d, n_heads=2),
    "s4d": S4D,
    "hyena": lambda d: Hyena(d, max_length=256),
}


def model_of(mixer, vocab_size: int = TOKENIZER.vocab_size) -> LanguageModel:
    """A random model whose distribution is far from uniform."""
    backbone = Backbone(8, n_layers=2, mixers=[mixer], channel_mixer=MLP, dropout=0.3)
    return LanguageModel(vocab_size, backbone, tied=False, init_std=0.5).double()


class Scripted(LanguageModel):
    """Writes a given text after any prompt, as sure as can be; its state counts what it has written."""

    def __init__(self, script: bytes, max_length: int | None = None) -> None:
        backbone = Backbone(2, n_layers=1, mixers=[Silent], channel_mixer=MLP)
        super().__init__(TOKENIZER.vocab_size, backbone)
        self.script = [*script, SEPARATOR]
        backbone.max_length = max_length

    def init_state(self, batch_size):
        return BackboneState(((torch.zeros(batch_size, dtype=torch.int64),),))

    def read(self, tokens, state, mask=None):
        return self._next(state), state

    def step(self, token, state):
        state = BackboneState(((state.layers[0][0] + 1,),))
        return self._next(state), state

    def _next(self, state):
        written = [self.script[at] for at in state.layers[0][0].tolist()]
        return 1e3 * torch.nn.functional.one_hot(torch.tensor(written), self.vocab_size)


class Silent(SequenceMixer):
    """Adds nothing."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, causal=True)

    def forward(self, x, mask=None):
        return 0 * x

    def init_state(self, batch_size):
        return (torch.zeros(batch_size, 1),)

    def step(self, x, state):
        return 0 * x, state

    def prefill(self, x, state, mask=None):
        return 0 * x, state


def naive(model: LanguageModel, prompt: list[int], options: GenerationOptions, copy: int = 0) -> list[int]:
    """The definition: run the whole sequence through forward for every token."""
    tokens, random = list(prompt), np.random.default_rng([options.seed, copy])
    with eval_mode(model):
        for _ in range(options.max_new_tokens):
            logits = model(torch.tensor([tokens]))[:, -1]
            uniform = torch.tensor([random.random()], dtype=torch.float64)
            tokens.append(choose_tokens(logits, uniform, options).item())
    return tokens[len(prompt) :]


def write(model: LanguageModel, prompts: list[list[int]], options: GenerationOptions, **chunk: int) -> list[list[int]]:
    """The tokens that a stream writes for each prompt."""
    stream = TokenStream(model, prompts, options, **chunk)
    columns = [stream.advance() for _ in range(options.max_new_tokens)]
    return [[column[row] for column in columns] for row in range(len(prompts))]


def prompts_of(*lengths: int, vocab_size: int = TOKENIZER.vocab_size) -> list[list[int]]:
    return [torch.randint(vocab_size, (length,)).tolist() for length in lengths]


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_writing_is_what_forward_says(mixer: str, temperature: float) -> None:
    """Token for token, for prompts of different lengths in one batch, read in chunks that cut them."""
    model, options = model_of(MIXERS[mixer]), GenerationOptions(max_new_tokens=20, temperature=temperature, seed=3)
    prompts = prompts_of(17, 1, 40, 8)
    expected = [naive(model, prompt, options) for prompt in prompts]
    assert write(model, prompts, options) == expected
    assert write(model, prompts, options, chunk=7) == expected
    assert len({tuple(tokens) for tokens in expected}) == 4
    assert model.training  # left as it was found


@pytest.mark.parametrize("mixer", MIXERS)
def test_its_logits_are_those_of_forward(mixer: str) -> None:
    model, options = model_of(MIXERS[mixer]), GenerationOptions(max_new_tokens=12)
    prompts = prompts_of(9, 5)
    stream, texts = TokenStream(model, prompts, options), [list(prompt) for prompt in prompts]
    for _ in range(12):
        for row, token in stream.advance().items():
            with eval_mode(model):
                logits = model(torch.tensor([texts[row]]))[0, -1]
            torch.testing.assert_close(stream._logits[row], logits, rtol=1e-9, atol=1e-9)
            texts[row].append(token)


@pytest.mark.parametrize("mixer", MIXERS)
def test_rows_that_are_dropped_leave_the_others_alone(mixer: str) -> None:
    model, options = model_of(MIXERS[mixer]), GenerationOptions(max_new_tokens=15)
    prompts = prompts_of(4, 11, 2, 6)
    expected = write(model, prompts, options)
    stream = TokenStream(model, prompts, options)
    for t in range(15):
        assert stream.advance() == {row: expected[row][t] for row in stream.rows}
        stream.drop({3: [1], 5: [0, 3]}.get(t, []))
    assert stream.rows == [2]
    stream = TokenStream(model, prompts, options)
    stream.drop([0, 2])  # before anything was written
    assert [stream.advance()[3] for _ in range(15)] == expected[3]


def test_a_seed_gives_the_same_text_alone_and_in_any_batch() -> None:
    model, options = model_of(MIXERS["attention"]), GenerationOptions(max_new_tokens=10, seed=5)
    first, second = prompts_of(6, 3)
    alone = write(model, [first], options)[0]
    together = write(model, [second, first, first], options)
    assert together[1] == alone
    assert together[2] == naive(model, first, options, copy=1) != alone  # a repeated prompt gives another sample
    assert write(model, [first], GenerationOptions(max_new_tokens=10, seed=6))[0] != alone


def test_sampling_has_the_distribution_of_the_logits() -> None:
    """Whatever uniform numbers come: the share of each token is its probability, under every restriction."""
    logits = torch.tensor([0.4, 0.1, 0.3, 0.2]).log()[None].repeat(10_000, 1)
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    cases = {
        GenerationOptions(): [0.4, 0.1, 0.3, 0.2],
        GenerationOptions(temperature=0.5): [0.16 / 0.3, 0.01 / 0.3, 0.09 / 0.3, 0.04 / 0.3],
        GenerationOptions(temperature=0.0): [1, 0, 0, 0],
        GenerationOptions(top_k=2): [4 / 7, 0, 3 / 7, 0],
        GenerationOptions(top_k=1): [1, 0, 0, 0],
        GenerationOptions(top_k=100): [0.4, 0.1, 0.3, 0.2],
        GenerationOptions(top_p=0.69): [4 / 7, 0, 3 / 7, 0],
        GenerationOptions(top_p=0.71): [4 / 9, 0, 3 / 9, 2 / 9],
        GenerationOptions(top_p=0.05): [1, 0, 0, 0],
        GenerationOptions(top_p=1.0): [0.4, 0.1, 0.3, 0.2],
        GenerationOptions(top_k=3, top_p=0.75): [4 / 7, 0, 3 / 7, 0],  # of the three: 4/9 and 3/9 reach 0.75
    }
    for options, expected in cases.items():
        share = torch.bincount(choose_tokens(logits, uniform, options), minlength=4) / 10_000
        torch.testing.assert_close(share, torch.tensor(expected).float(), rtol=0, atol=2e-4, msg=str(options))


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_sampling_never_takes_an_impossible_token(uniform: float) -> None:
    logits = torch.tensor([[-torch.inf, 2.0, 1.0, -200.0]]).nan_to_num(neginf=-1e30)
    chosen = choose_tokens(logits, torch.tensor([uniform], dtype=torch.float64), GenerationOptions(top_k=2))
    assert chosen.item() == (1 if uniform == 0 else 2)


def test_the_shares_of_the_uniform_numbers_are_half_open() -> None:
    """Of two equal tokens the second begins at exactly one half."""
    uniform = torch.tensor([0.0, 0.5 - 2**-53, 0.5], dtype=torch.float64)
    assert choose_tokens(torch.zeros(3, 2), uniform, GenerationOptions()).tolist() == [0, 0, 1]


def test_logits_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        choose_tokens(torch.tensor([[0.0, torch.nan]]), torch.zeros(1), GenerationOptions())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("seed", -1),
        ("stop", ("a", "")),
    ],
)
def test_options_that_make_no_sense_are_named(option: str, value) -> None:
    with pytest.raises(InputError, match=option if option != "stop" else "stop string"):
        GenerationOptions(**{option: value})


def test_the_end_of_the_document_ends_the_text() -> None:
    pieces = list(generate(Scripted(b"all of it"), TOKENIZER, ["x"], GenerationOptions()))
    assert "".join(piece.text for piece in pieces) == "all of it"
    assert [piece.end for piece in pieces] == [None] * 9 + ["document"]


def test_stop_strings_end_the_text_and_are_not_part_of_it() -> None:
    model = Scripted(b"one two three")
    for stop, expected, end in [
        ((" three",), "one two", "stop"),
        (("three", "two"), "one ", "stop"),
        (("o t", "ee"), "one tw", "stop"),
        (("threex", "four"), "one two three", "document"),
        (("o",), "", "stop"),
    ]:
        pieces = list(generate(model, TOKENIZER, [""], GenerationOptions(stop=stop)))
        assert "".join(piece.text for piece in pieces) == expected, stop
        assert pieces[-1].end == end
        assert all(piece.end is None for piece in pieces[:-1])


def test_the_last_token_gives_out_what_was_held_back() -> None:
    """At the length limit the beginning of a stop string and of a character are all that there will be."""
    held = GenerationOptions(max_new_tokens=5, stop=("two",))
    assert complete(Scripted(b"one two"), TOKENIZER, [""], held) == ["one t"]
    cut = GenerationOptions(max_new_tokens=2)
    assert complete(Scripted("a\u20ac".encode()), TOKENIZER, [""], cut) == ["a\ufffd"]


def test_a_character_comes_out_when_it_is_complete() -> None:
    pieces = list(generate(Scripted("a\u20ac\U0001f642!".encode()), TOKENIZER, [""], GenerationOptions()))
    assert [piece.text for piece in pieces] == ["a", "", "", "\u20ac", "", "", "", "\U0001f642", "!", ""]


LETTERS = st.sampled_from("ab\u20ac")


@given(st.text(LETTERS), st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3), st.data())
def test_however_text_is_cut_it_ends_before_the_stop_string_that_is_complete_first(
    text: str, stop: list[str], data
) -> None:
    """The stream equals the cut of the whole text, and never gives out what it would have to take back."""
    content = text.encode()
    found = [(at + len(s.encode()), at) for s in stop if (at := content.find(s.encode())) >= 0]
    _, expected = min(found, default=(0, len(content)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    stream, written = TextStream(stop), ""
    for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        written += stream.feed(content[start:end])
    assert stream.stopped == bool(found)
    assert written + stream.close() == content[:expected].decode()


def test_an_empty_prompt_begins_a_document() -> None:
    model, options = model_of(MIXERS["attention"]), GenerationOptions(max_new_tokens=8, temperature=0.0)
    expected = naive(model, [SEPARATOR], options)
    text = TOKENIZER.decode(expected[: expected.index(SEPARATOR)] if SEPARATOR in expected else expected)
    assert complete(model, TOKENIZER, [""], options) == [text.decode(errors="replace")]


def test_rows_of_a_batch_end_each_on_its_own() -> None:
    """Stop strings end some rows early; every text is what it is alone."""
    model = model_of(MIXERS["attention"])
    options = GenerationOptions(max_new_tokens=60, stop=tuple("aeiou"))
    prompts = ["import os", "", "def f(x):\n    return", "\u20ac"]
    pieces = list(generate(model, TOKENIZER, prompts, options))
    texts = ["".join(piece.text for piece in pieces if piece.prompt == row) for row in range(4)]
    assert texts == [complete(model, TOKENIZER, [prompt], options)[0] for prompt in prompts]
    assert sorted(piece.prompt for piece in pieces if piece.end) == [0, 1, 2, 3]
    assert len({len(text) for text in texts}) > 1


def test_limits_are_said_before_anything_is_read() -> None:
    model = Scripted(b"x" * 100, max_length=30)
    generate(model, TOKENIZER, ["a" * 9], GenerationOptions(max_new_tokens=21))  # the separator, 9, and 20 read again
    with pytest.raises(InputError, match=r"10 tokens and 22 new ones need 31 positions.*at most 30"):
        generate(model, TOKENIZER, ["a" * 9], GenerationOptions(max_new_tokens=22))
    model.backbone.causal = False
    with pytest.raises(InputError, match="causal"):
        generate(model, TOKENIZER, [""], GenerationOptions(max_new_tokens=1))
    with pytest.raises(InputError, match="no prompt"):
        generate(Scripted(b""), TOKENIZER, [], GenerationOptions())


def test_the_longest_possible_text_can_be_written() -> None:
    """A model that reads 256 positions reads exactly so many."""
    model, options = model_of(MIXERS["hyena"]), GenerationOptions(max_new_tokens=7, temperature=0.0)
    prompt = prompts_of(250)
    assert write(model, prompt, options) == [naive(model, prompt[0], options)]


class LargestTensor(TorchDispatchMode):
    """Watches every operation and remembers the largest result."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.nbytes)
        return result


@pytest.mark.parametrize("mixer", ["s4d"])
def test_a_prompt_as_long_as_a_book_needs_the_memory_of_a_chunk(mixer: str) -> None:
    """Reading 50,000 tokens makes no tensor larger than the tokens themselves, 8 bytes each, and a chunk's channels."""
    model = model_of(MIXERS[mixer]).float()
    prompt = np.random.default_rng(0).integers(256, size=50_000).tolist()
    largest = []
    for length in (50_000, 6_000):
        with LargestTensor() as watch:
            stream = TokenStream(model, [prompt[:length]], GenerationOptions(), chunk=2_000)
            stream.advance()
            stream.advance()
        largest.append(watch.bytes)
    assert largest[0] <= max(8 * 50_000, largest[1])
