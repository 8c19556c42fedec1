"""Continuing prompts: read them with `prefill`, then write token by token with `step`.

A batch of prompts of different lengths is padded on the left and read under a mask, which leaves no trace in the
states: each row continues exactly as it would alone.  Prompts are read in chunks, so the memory that a book-long one
needs is that of a chunk and of the model's state.

On a GPU, steps of a model whose state keeps its shapes are recorded as a CUDA graph (see captured_step.py beside this).

Axes: b batch, l length, v vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from longreach.errors import InputError
from longreach.inference.captured_step import CapturedStep, changes
from longreach.inference.eval_mode import eval_mode
from longreach.inference.sampling import GenerationOptions, choose_tokens, random_streams
from longreach.inference.text_stream import TextStream
from longreach.mixers.base import State, map_state
from longreach.mixers.constant_weights import Kept, constant_weights
from longreach.models.language_model import LanguageModel
from longreach.tasks.corpora.tokenizers import Tokenizer

CHUNK = 16_384
"""How many positions of the prompts are read at a time."""

End = Literal["document", "stop", "length"]
"""Why a text ended: the model ended the document, a stop string appeared, or max_new_tokens were written."""


class Piece(NamedTuple):
    """What one token added to the text of one prompt."""

    prompt: int
    """The index of the prompt."""
    text: str
    """May be empty, while a character or a possible stop string is not complete."""
    end: End | None = None
    """Set on a prompt's last piece."""


class TokenStream:
    """Sequences of tokens that are continued together, each by one token a call of `advance`.

    Args:
        model: a causal language model.  Its weights must not change in the meantime.
        prompts: token ids, at least one each; their lengths may differ.
        options: how tokens are chosen; `stop` belongs to text and is not looked at here.
        chunk: positions read at a time.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        chunk: int = CHUNK,
    ) -> None:
        check_lengths(model, [len(prompt) for prompt in prompts], options.max_new_tokens)
        self.rows = list(range(len(prompts)))
        self._model, self._options = model, options
        self._kept: Kept = {}  # what steps find again: weights do not change here
        self._random = random_streams(prompts, options.seed)
        self._device = next(model.parameters()).device
        with eval_mode(model):
            self._logits, self._state = self._read(prompts, chunk)
        self._written: Tensor | None = None  # tokens that the state has not seen yet
        self._captured: CapturedStep | None = None
        self.eager = None if self._device.type == "cuda" else f"the model is on the {self._device.type}, not on a GPU"
        """Why steps are not recorded and replayed, or None while nothing speaks against it."""

    def advance(self) -> dict[int, int]:
        """The next token of every row that has not been dropped."""
        with eval_mode(self._model), constant_weights(self._kept):
            if self._written is not None:
                self._read_written(self._written)
            uniform = torch.tensor([self._random[row].random() for row in self.rows], dtype=torch.float64)
            self._written = choose_tokens(self._logits, uniform.to(self._device), self._options)
        return dict(zip(self.rows, self._written.tolist(), strict=True))

    def _read_written(self, tokens: Tensor) -> None:
        """A step: the first one as it is, which shows whether the others can be recorded."""
        if self._captured is not None:
            self._logits = self._captured(tokens)
            return
        before = self._state
        self._logits, self._state = self._model.step(tokens, before)
        self.eager = self.eager or changes(before, self._state)
        if self.eager is None:
            try:
                with torch.cuda.device(self._device):
                    self._captured = CapturedStep(self._model, self._state)
            except RuntimeError as error:  # a mixer of the user's own may wait for the GPU within a step
                self.eager = f"recording failed: {error}"
            else:
                self._state = self._captured.state

    def drop(self, rows: Collection[int]) -> None:
        """Stop continuing these rows.  The states of the others are copied once, about the cost of one step.

        On a GPU the steps to come are recorded anew.
        """
        if not rows:
            return
        kept = [i for i, row in enumerate(self.rows) if row not in rows]
        self.rows = [self.rows[i] for i in kept]
        index = torch.tensor(kept, dtype=torch.int64, device=self._device)
        with torch.inference_mode():
            self._state = map_state(lambda leaf: leaf.index_select(0, index), self._state)
            self._logits = self._logits[index]
            self._written = None if self._written is None else self._written[index]
        self._captured = None  # it is of another batch; the next step makes a new one

    def _read(self, prompts: Sequence[Sequence[int]], chunk: int) -> tuple[Tensor, State]:
        length = max(len(prompt) for prompt in prompts)
        tokens = torch.zeros(len(prompts), length, dtype=torch.int64)
        real = torch.zeros(len(prompts), length, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            tokens[row, length - len(prompt) :] = torch.from_numpy(np.asarray(prompt, dtype=np.int64))
            real[row, length - len(prompt) :] = True
        ragged = not real.all()
        logits, state = torch.empty(0), self._model.init_state(len(prompts))
        for start in range(0, length, chunk):
            part = slice(start, start + chunk)
            mask = real[:, part].to(self._device) if ragged else None
            logits, state = self._model.read(tokens[:, part].to(self._device), state, mask)
        return logits, state


def check_lengths(model: LanguageModel, prompt_lengths: Sequence[int], max_new_tokens: int) -> None:
    """Raise InputError where the prompts cannot be continued so far.  The last token written is never read."""
    if not model.causal:
        raise InputError("the model reads the future (causal=False), so it cannot write; use a causal one")
    if not prompt_lengths or min(prompt_lengths) < 1:
        raise InputError("there is no prompt, or one without a token; give at least the document separator")
    needed = max(prompt_lengths) + max_new_tokens - 1
    if model.max_length is not None and needed > model.max_length:
        raise InputError(
            f"a prompt of {max(prompt_lengths):,} tokens and {max_new_tokens:,} new ones need {needed:,} positions, "
            f"but the model reads at most {model.max_length:,}; shorten the prompt, lower max_new_tokens, or train a "
            "model with a larger maximum"
        )


def generate(
    model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[str], options: GenerationOptions
) -> Iterator[Piece]:
    """Continue every prompt as a document that begins with it; an empty one begins a document.

    Yields one piece a token and prompt, as the tokens come.  Wrong prompts and options raise InputError here, before
    anything is read.
    """
    tokens = [[tokenizer.separator, *tokenizer.encode(prompt.encode()).tolist()] for prompt in prompts]
    check_lengths(model, [len(prompt) for prompt in tokens], options.max_new_tokens)
    return _pieces(model, tokenizer, tokens, options)


def _pieces(
    model: LanguageModel, tokenizer: Tokenizer, prompts: list[list[int]], options: GenerationOptions
) -> Iterator[Piece]:
    stream = TokenStream(model, prompts, options)
    texts = [TextStream(options.stop) for _ in prompts]
    for remaining in range(options.max_new_tokens - 1, -1, -1):
        ended = []
        for row, token in stream.advance().items():
            text, end = _extend(texts[row], token, tokenizer)
            if end is None and remaining == 0:
                text, end = text + texts[row].close(), "length"
            if end is not None:
                ended.append(row)
            yield Piece(row, text, end)
        stream.drop(ended)
        if not stream.rows:
            return


def _extend(text: TextStream, token: int, tokenizer: Tokenizer) -> tuple[str, End | None]:
    if token == tokenizer.separator:
        return text.close(), "document"
    certain = text.feed(tokenizer.decode([token]))
    return certain, "stop" if text.stopped else None


def complete(
    model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[str], options: GenerationOptions
) -> list[str]:
    """The whole continuations of the prompts, without them."""
    texts = [""] * len(prompts)
    for piece in generate(model, tokenizer, prompts, options):
        texts[piece.prompt] += piece.text
    return texts
