"""Text and code as training data, see `longreach.tasks.corpora.corpus`."""

from longreach.tasks.corpora.corpus import Corpus, HeldOutDocument
from longreach.tasks.corpora.masked_corpus import MaskedCorpus, Masking
from longreach.tasks.corpora.packing import Stage
from longreach.tasks.corpora.sources import Document, Reading, Report, Source
from longreach.tasks.corpora.split import Split
from longreach.tasks.corpora.tokenizers import Tokenizer, byte_tokenizer, load_tokenizer, require_match

__all__ = [
    "Corpus",
    "Document",
    "HeldOutDocument",
    "MaskedCorpus",
    "Masking",
    "Reading",
    "Report",
    "Source",
    "Split",
    "Stage",
    "Tokenizer",
    "byte_tokenizer",
    "load_tokenizer",
    "require_match",
]
