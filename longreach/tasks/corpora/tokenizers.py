"""Tokenizers that lose nothing: bytes, DNA, and byte-level byte-pair encodings from a file or trained on the spot.

Whatever its kind, a tokenizer is a table of what each token stands for, in bytes, so decoding is a look-up, the bytes
of a token can be counted, and text comes back exactly.  (Only a normaliser changes a text, such as Unicode's NFC, which
some published tokenizers have.)  On disk every tokenizer is a Hugging Face `tokenizer.json`.
Byte-pair encoding: https://arxiv.org/abs/1508.07909; on bytes: https://arxiv.org/abs/1909.03341; DNA by single bases:
HyenaDNA, https://arxiv.org/abs/2306.15794
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int, Integer
from numpy import ndarray
from tokenizers import decoders, models, pre_tokenizers, trainers

from longreach.errors import InputError

SEPARATOR = "<|endoftext|>"
SEPARATORS = (SEPARATOR, "<|end_of_text|>", "<|eot_id|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
"""Names of the token between documents in published tokenizers, best first."""
UNUSED = "<|unused{}|>"
"""The names of tokens that only fill a vocabulary up."""
PROBE = "A b\t c\n\n  def f(x): # na\u00efve \u6f22\u5b57 \U0001f642 it's 1234\r\n "


def _alphabet() -> dict[str, int]:
    """The printable character that byte-level encodings write for each byte, as GPT-2 fixed it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


ALPHABET = _alphabet()
BYTES = [*(bytes([byte]) for byte in range(256)), b""]
"""The table of the byte tokenizer: every byte, then the separator."""
UNKNOWN = "[UNK]"
DNA_SPECIAL = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", UNKNOWN)
DNA_BASES = "ACGTN"
"""Their numbers in HyenaDNA follow those of the special tokens."""


class Tokenizer:
    """Bytes to tokens and back.  Made by `byte_tokenizer`, `train_bpe` and `load_tokenizer`.

    Args:
        coder: The Hugging Face tokenizer that does the work.
        table: The bytes of every token; nothing for the separator and other tokens that are not text.
        separator: The token that starts every document, so that its first token is predicted like any other.
        unknown: The token that the coder gives for what it cannot encode; None if there is nothing that it cannot.
    """

    def __init__(
        self, coder: tokenizers.Tokenizer, table: Sequence[bytes], separator: int, unknown: int | None = None
    ) -> None:
        self.table = table
        self.vocab_size = len(table)
        self.separator = separator
        self.n_bytes: Int[ndarray, " v"] = np.array([len(content) for content in table])
        self.dtype = np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")
        self.is_bytes = list(table) == BYTES
        self._coder = coder
        self._unknown = unknown

    @property
    def fingerprint(self) -> str:
        """A digest of the table.  Two tokenizers with the same fingerprint mean the same by every token."""
        digest = hashlib.sha256(f"{self.separator}\n".encode())
        for content in self.table:
            digest.update(len(content).to_bytes(4, "little") + content)
        return digest.hexdigest()

    def encode(self, text: bytes) -> Integer[ndarray, " l"]:
        """The tokens of a text, without separators.

        The byte tokenizer takes any bytes; the others raise InputError unless they are UTF-8, that of DNA unless
        they are bases.
        """
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[bytes]) -> list[Integer[ndarray, " l"]]:
        """The tokens of each of several texts, on all cores."""
        if self.is_bytes:
            return [np.frombuffer(text, np.uint8).astype(self.dtype) for text in texts]
        try:
            decoded = [text.decode() for text in texts]
        except UnicodeDecodeError as error:
            problem = f"the text is not UTF-8 ({error.reason} at byte offset {error.start})"
            raise InputError(f"{problem}; only the byte tokenizer takes any bytes") from None
        encoded = self._coder.encode_batch_fast(decoded, add_special_tokens=False)
        found = [np.array(encoding.ids, self.dtype) for encoding in encoded]
        for text, tokens in zip(decoded, found, strict=True):
            if self._unknown is not None and (tokens == self._unknown).any():
                at = int((tokens == self._unknown).argmax())
                raise InputError(
                    f"the text has {text[at]!r} at character {at}, for which this tokenizer has no token; it knows "
                    f"{b''.join(self.table).decode()} only: write capitals without line breaks, and N for other bases"
                )
        return found

    def decode(self, tokens: Sequence[int] | Integer[ndarray, " l"]) -> bytes:
        """The bytes of some tokens, which need not be whole characters; separators are nothing."""
        tokens = np.asarray(list(tokens) if not isinstance(tokens, ndarray) else tokens, np.int64)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocab_size:
            worst = tokens.max() if tokens.min() >= 0 else tokens.min()
            raise InputError(f"token {worst} is not in the vocabulary of this tokenizer, 0 to {self.vocab_size - 1}")
        return b"".join(self.table[token] for token in tokens.tolist())

    def filled_up(self, vocab_size: int) -> "Tokenizer":
        """The same, with tokens that stand for nothing behind the others: many models round their vocabulary up."""
        if vocab_size < self.vocab_size:
            raise InputError(
                f"the tokenizer has {self.vocab_size} tokens, which do not fit a vocabulary of {vocab_size}"
            )
        coder = tokenizers.Tokenizer.from_str(self._coder.to_str())
        coder.add_special_tokens([UNUSED.format(token) for token in range(self.vocab_size, vocab_size)])
        return _from_coder(coder, "filled up")

    def save(self, path: Path) -> None:
        """Write the tokenizer as a Hugging Face `tokenizer.json`."""
        path.write_text(self._coder.to_str(pretty=True), encoding="utf-8")


def make_tokenizer(spec: str, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that an option names: "bytes", "dna", "bpe:<vocabulary size>" (trained on `texts`), or a file."""
    if spec in SIMPLE:
        return SIMPLE[spec]()
    if spec.startswith("bpe:"):
        return train_bpe(texts, int(spec.removeprefix("bpe:")))
    return load_tokenizer(Path(spec))


def tokenizer_identity(spec: str) -> str:
    """What such an option stands for: itself, with a digest of the file where it names one.

    Raises InputError where it cannot stand for anything.
    """
    if spec in SIMPLE:
        return spec
    if spec.startswith("bpe:"):
        size = spec.removeprefix("bpe:")
        if not (size.isdecimal() and int(size) >= 257):
            raise InputError(
                f'tokenizer {spec!r} needs a vocabulary size of at least 257 after "bpe:", as in "bpe:4096"'
            )
        return spec
    return f"{spec} {hashlib.sha256(_read(Path(spec))).hexdigest()}"


def byte_tokenizer() -> Tokenizer:
    """One token per byte, with the byte's own number, and 256 as the separator."""
    coder = _bare_coder(models.BPE(vocab=dict(ALPHABET), merges=[]))
    coder.add_special_tokens([SEPARATOR])
    return _from_coder(coder, "bytes")


def dna_tokenizer() -> Tokenizer:
    """One token per base, with the numbers of HyenaDNA: A 7, C 8, G 9, T 10, N 11, and [SEP] 1 between sequences."""
    vocabulary = {token: number for number, token in enumerate((*DNA_SPECIAL, *DNA_BASES))}
    coder = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    coder.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("[\\s\\S]"), "isolated")
    coder.decoder = decoders.Fuse()
    coder.add_special_tokens(list(DNA_SPECIAL))
    return _from_coder(coder, "dna")


SIMPLE = {"bytes": byte_tokenizer, "dna": dna_tokenizer}
"""Those that need nothing but their name."""


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-pair encoding with up to `vocab_size` tokens: all bytes, the separator, and the most frequent merges."""
    coder = _bare_coder(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[SEPARATOR], initial_alphabet=alphabet, show_progress=False
    )
    coder.train_from_iterator(texts, trainer)
    return _from_coder(coder, f"bpe:{vocab_size}")


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer from a Hugging Face `tokenizer.json`; raises InputError unless text comes back exactly.

    Byte-level encodings pass (GPT-2, GPT-NeoX, Llama 3, Qwen and what this library saves).  Where the file has none of
    the usual separators, one is added behind its last token.
    """
    content = _read(path)
    try:
        coder = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # what the tokenizers library raises has no type of its own
        raise InputError(f"{path} is not a Hugging Face tokenizer.json: {error}") from None
    coder.no_truncation()
    coder.no_padding()
    return _from_coder(coder, str(path))


def require_match(tokenizer: Tokenizer, path: Path) -> None:
    """Raise InputError unless the tokenizer saved at `path` (with a checkpoint) means the same by every token."""
    saved = load_tokenizer(path)
    if saved.fingerprint != tokenizer.fingerprint:
        raise InputError(
            f"the checkpoint's tokenizer {path} ({saved.vocab_size} tokens, {saved.fingerprint[:12]}) is not the "
            f"one in use ({tokenizer.vocab_size} tokens, {tokenizer.fingerprint[:12]}); set tokenizer to that file"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        remedy = 'tokenizer must be "bytes", "dna", "bpe:<vocabulary size>" or the path of a tokenizer.json'
        raise InputError(f"cannot read the tokenizer {str(path)!r} ({error.strerror}); {remedy}") from None


def _bare_coder(model: models.BPE) -> tokenizers.Tokenizer:
    coder = tokenizers.Tokenizer(model)
    coder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    coder.decoder = decoders.ByteLevel()
    return coder


def _from_coder(coder: tokenizers.Tokenizer, name: str) -> Tokenizer:
    """Read the table off a Hugging Face tokenizer and check that it loses nothing."""
    if not _special_tokens(coder).keys() & set(SEPARATORS):
        coder.add_special_tokens([SEPARATOR])
    coder.encode_special_tokens = True  # a text that spells a special token gets no power from it
    special = _special_tokens(coder)
    plain_added = {token.content for token in coder.get_added_tokens_decoder().values() if not token.special}
    vocabulary = coder.get_vocab(with_added_tokens=True)
    by_character = isinstance(coder.model, models.WordLevel) and all(len(t) == 1 for t in vocabulary.keys() - special)
    table = [b""] * (max(vocabulary.values()) + 1)
    for text, token in vocabulary.items():
        if text in plain_added or (by_character and text not in special):
            table[token] = text.encode()
        elif text not in special:
            if not ALPHABET.keys() >= set(text):
                raise _lossy(name, f"its token {text!r} is not written in the byte-level alphabet")
            table[token] = bytes(ALPHABET[character] for character in text)
    separator = next(special[text] for text in SEPARATORS if text in special)
    tokenizer = Tokenizer(coder, table, separator, special.get(UNKNOWN) if by_character else None)
    probe = b"".join(table) if by_character else PROBE.encode()
    returned = tokenizer.decode(tokenizer.encode(probe))
    if returned != probe:
        raise _lossy(name, f"{probe!r} comes back as {returned!r}")
    return tokenizer


def _special_tokens(coder: tokenizers.Tokenizer) -> dict[str, int]:
    return {token.content: number for number, token in coder.get_added_tokens_decoder().items() if token.special}


def _lossy(name: str, why: str) -> InputError:
    return InputError(
        f"tokenizer {name} does not give back the text it was given: {why}; use a byte-level one, such as that of "
        'GPT-2, GPT-NeoX, Llama 3 or Qwen, or "bytes", or "bpe:<vocabulary size>"'
    )
