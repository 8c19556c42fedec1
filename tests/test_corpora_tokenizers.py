"""Tokenizers: nothing is lost, bytes are counted, files are checked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from longreach.errors import InputError
from longreach.tasks.corpora.tokenizers import (
    SEPARATOR,
    Tokenizer,
    byte_tokenizer,
    load_tokenizer,
    make_tokenizer,
    require_match,
    tokenizer_identity,
    train_bpe,
)

TEXT = ["the cat sat on the mat, the rat sat on the cat\n" * 20, "naïve 漢字漢字 don't 1234 1234\n" * 20]
BYTES = byte_tokenizer()
BPE = train_bpe(iter(TEXT), 280)
BOTH = pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])


@given(st.binary())
def test_the_byte_tokenizer_takes_any_bytes(content: bytes) -> None:
    tokens = BYTES.encode(content)
    assert tokens.tolist() == list(content)
    assert BYTES.decode(tokens) == content


@given(st.text())
def test_byte_pairs_give_back_any_text(text: str) -> None:
    assert BPE.decode(BPE.encode(text.encode())) == text.encode()


@BOTH
@pytest.mark.parametrize("text", [SEPARATOR, f"a{SEPARATOR}\n", "", " ", "\r\n\t\0 the cat"])
def test_awkward_texts_come_back_and_none_has_the_power_of_a_separator(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text.encode())
    assert tokenizer.decode(tokens) == text.encode()
    assert tokenizer.separator not in tokens
    assert int(tokenizer.n_bytes[tokens].sum()) == len(text.encode())


@given(st.text(alphabet="the cat漢"), st.integers(0, 99))
def test_any_part_of_the_tokens_can_be_decoded_and_counted(text: str, cut: int) -> None:
    tokens = BPE.encode(text.encode())
    head, tail = tokens[: cut % (len(tokens) + 1)], tokens[cut % (len(tokens) + 1) :]
    assert BPE.decode(head) + BPE.decode(tail) == text.encode()
    assert BPE.n_bytes[head].sum() == len(BPE.decode(head))


def test_the_byte_vocabulary() -> None:
    assert (BYTES.vocab_size, BYTES.separator, BYTES.dtype) == (257, 256, np.uint16)
    assert BYTES.n_bytes.tolist() == [1] * 256 + [0]
    assert BYTES.decode([104, 256, 105]) == b"hi"


def test_trained_byte_pairs_are_shorter_than_bytes() -> None:
    assert BPE.vocab_size == 280
    text = TEXT[0].encode()
    assert len(BPE.encode(text)) < len(text) / 2
    assert b" cat" in BPE.table
    assert {bytes([byte]) for byte in range(256)} <= set(BPE.table)


def test_training_is_deterministic_across_processes_and_threads() -> None:
    code = (
        "from longreach.tasks.corpora.tokenizers import train_bpe; import random; random.seed(0)\n"
        "words = [''.join(random.choices('abcdefgh', k=4)) for _ in range(3000)]\n"
        "print(train_bpe((' '.join(words[i:i + 50]) for i in range(0, 3000, 50)), 700).fingerprint)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "RAYON_NUM_THREADS": n, "PYTHONHASHSEED": n},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for n in ("1", "4")
    }
    assert len(found) == 1


@BOTH
def test_a_saved_tokenizer_is_the_same_and_a_hugging_face_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.is_bytes == tokenizer.is_bytes
    text = "the cat 漢字\n"
    np.testing.assert_array_equal(loaded.encode(text.encode()), tokenizer.encode(text.encode()))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode(text).ids == tokenizer.encode(text.encode()).tolist()
    assert theirs.decode(theirs.encode(text).ids) == text
    assert theirs.token_to_id(SEPARATOR) == tokenizer.separator


def test_the_fingerprint_tells_tokenizers_apart() -> None:
    other = train_bpe(iter(TEXT[:1]), 270)
    same = train_bpe(iter(TEXT), 280)
    assert len({BYTES.fingerprint, BPE.fingerprint, other.fingerprint}) == 3
    assert same.fingerprint == BPE.fingerprint


def test_a_checkpoint_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    BPE.save(tmp_path / "tokenizer.json")
    require_match(BPE, tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match=r"tokenizer\.json \(280 tokens, .* is not the one in use \(257 tokens"):
        require_match(BYTES, tmp_path / "tokenizer.json")


def test_text_that_is_not_utf8_needs_the_byte_tokenizer() -> None:
    with pytest.raises(InputError, match=r"byte offset 2.*only the byte tokenizer"):
        BPE.encode(b"ab\xff")


@BOTH
@pytest.mark.parametrize("token", [-1, 300])
def test_a_token_out_of_range_is_named(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(InputError, match=rf"token {token} is not in the vocabulary"):
        tokenizer.decode([1, token, 2])


def save(coder: tokenizers.Tokenizer, path: Path) -> Path:
    coder.save(str(path))
    return path


def byte_level(model: models.Model, prefix: bool = False) -> tokenizers.Tokenizer:
    coder = tokenizers.Tokenizer(model)
    coder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    coder.decoder = decoders.ByteLevel()
    return coder


def alphabet(extra: int = 0) -> dict[str, int]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(a + b for a in letters for b in letters), *("xy" + a + b for a in letters for b in letters)]
    return {token: i for i, token in enumerate(tokens[: 256 + extra])}


def test_a_file_without_a_separator_gets_one_behind_its_last_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save(byte_level(models.BPE(vocab=alphabet(), merges=[])), tmp_path / "t.json"))
    assert (tokenizer.vocab_size, tokenizer.separator) == (257, 256)
    assert not tokenizer.is_bytes, "its tokens are bytes in another order"


def test_published_separators_added_tokens_and_other_special_tokens(tmp_path: Path) -> None:
    coder = byte_level(models.BPE(vocab=alphabet(), merges=[]))
    coder.add_special_tokens(["<pad>", "</s>"])
    coder.add_tokens(["    "])
    coder.enable_truncation(4)
    coder.enable_padding()
    tokenizer = load_tokenizer(save(coder, tmp_path / "t.json"))
    assert (tokenizer.vocab_size, tokenizer.separator) == (259, 257)
    text = b"<pad></s>        end"
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokens.tolist().count(258) == 2
    assert tokenizer.n_bytes[[256, 257, 258]].tolist() == [0, 0, 4]
    assert tokenizer.decode([256, 257, 258]) == b"    "


def test_the_form_of_recent_published_tokenizers(tmp_path: Path) -> None:
    """A regular expression before the byte level, and a template that would put a token before every text."""
    coder = byte_level(models.BPE(vocab=alphabet(), merges=[]))
    split = pre_tokenizers.Split(tokenizers.Regex(r"\p{L}+|\p{N}{1,3}|\s+|[^\s\p{L}\p{N}]+"), "isolated")
    byte_wise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    coder.pre_tokenizer = pre_tokenizers.Sequence([split, byte_wise])
    coder.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    coder.post_processor = processors.TemplateProcessing(
        "<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 256)]
    )
    tokenizer = load_tokenizer(save(coder, tmp_path / "t.json"))
    assert tokenizer.separator == 257
    assert len(tokenizer.encode(b"a 1234")) == 6


def test_more_than_65536_tokens_are_stored_in_four_bytes(tmp_path: Path) -> None:
    coder = byte_level(models.BPE(vocab=alphabet(extra=70_000), merges=[]))
    tokenizer = load_tokenizer(save(coder, tmp_path / "t.json"))
    assert tokenizer.dtype == np.uint32
    assert tokenizer.encode(b"abc").dtype == np.uint32


def test_a_normaliser_that_spares_ordinary_text_is_accepted(tmp_path: Path) -> None:
    coder = byte_level(models.BPE(vocab=alphabet(), merges=[]))
    coder.normalizer = normalizers.NFC()
    tokenizer = load_tokenizer(save(coder, tmp_path / "t.json"))
    assert tokenizer.decode(tokenizer.encode("e\u0301".encode())) == "\u00e9".encode()


def lossy() -> dict[str, tokenizers.Tokenizer]:
    """Tokenizers that change the text."""
    words = tokenizers.Tokenizer(models.WordLevel({"the": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    sentence_pieces = tokenizers.Tokenizer(models.BPE(vocab={"\u2581the": 0, "\u2581": 1}, merges=[]))
    lower = byte_level(models.BPE(vocab=alphabet(), merges=[]))
    lower.normalizer = normalizers.Lowercase()
    return {
        "words": words,
        "pieces": sentence_pieces,
        "lower case": lower,
        "prefix": byte_level(models.BPE(vocab=alphabet(), merges=[]), prefix=True),
        "no separate bytes": byte_level(models.BPE(vocab={"a": 0, "b": 1}, merges=[])),
    }


@pytest.mark.parametrize("kind", ["words", "pieces", "lower case", "prefix", "no separate bytes"])
def test_a_tokenizer_that_loses_something_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t\.json does not give back the text.*byte-level"):
        load_tokenizer(save(lossy()[kind], tmp_path / "t.json"))


def test_files_that_are_no_tokenizers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    for content in (b"", b"{}", json.dumps({"model": {"type": "BPE"}}).encode(), b"\xff"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"t\.json is not a Hugging Face tokenizer\.json"):
            load_tokenizer(path)
    with pytest.raises(InputError, match=r"nowhere.json' \(No such file or directory\)"):
        load_tokenizer(tmp_path / "nowhere.json")


def test_the_option_names_bytes_a_size_or_a_file(tmp_path: Path) -> None:
    assert make_tokenizer("bytes", []).fingerprint == BYTES.fingerprint
    assert make_tokenizer("bpe:280", iter(TEXT)).fingerprint == BPE.fingerprint
    BPE.save(tmp_path / "t.json")
    spec = str(tmp_path / "t.json")
    assert make_tokenizer(spec, []).fingerprint == BPE.fingerprint
    identity = tokenizer_identity(spec)
    BYTES.save(tmp_path / "t.json")
    assert tokenizer_identity(spec) != identity
    assert tokenizer_identity("bpe:280") == "bpe:280"


@pytest.mark.parametrize("spec", ["bpe:", "bpe:256", "bpe:many", "bpe:-5"])
def test_a_size_that_is_none_is_refused(spec: str) -> None:
    with pytest.raises(InputError, match=f"'{spec}' needs a vocabulary size of at least 257"):
        tokenizer_identity(spec)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match=r'"bytes", "dna", "bpe:<vocabulary size>" or the path of a tokenizer\.json'):
        tokenizer_identity("gpt2")


def test_dna_has_the_numbers_of_hyena_dna() -> None:
    dna = make_tokenizer("dna", [])
    assert dna.encode(b"ACGTNA").tolist() == [7, 8, 9, 10, 11, 7]
    assert dna.decode([1, 7, 8, 1]) == b"AC"
    assert (dna.vocab_size, dna.separator) == (12, 1)
    assert dna.n_bytes[[1, 7, 11]].tolist() == [0, 1, 1]
    assert tokenizer_identity("dna") == "dna"


@pytest.mark.parametrize(("text", "told"), [(b"ACx", "'x' at character 2"), (b"A\nC", r"'\\n' at character 1")])
def test_what_is_no_base_is_refused(text: bytes, told: str) -> None:
    with pytest.raises(InputError, match=f"{told}.*ACGTN only"):
        make_tokenizer("dna", []).encode(text)


def test_a_special_token_spelled_out_is_no_base() -> None:
    with pytest.raises(InputError, match=r"'\[' at character 1"):
        make_tokenizer("dna", []).encode(b"A[SEP]")


@pytest.mark.parametrize("spec", ["dna", "bytes"])
def test_a_vocabulary_is_filled_up_with_tokens_of_nothing(spec: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(spec, [])
    filled = tokenizer.filled_up(tokenizer.vocab_size + 4)
    assert filled.vocab_size == tokenizer.vocab_size + 4
    assert filled.decode([7, tokenizer.vocab_size + 3]) == tokenizer.decode([7])
    assert filled.encode(b"ACGT").tolist() == tokenizer.encode(b"ACGT").tolist()
    filled.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").fingerprint == filled.fingerprint
    with pytest.raises(InputError, match="do not fit a vocabulary of 3"):
        tokenizer.filled_up(3)
