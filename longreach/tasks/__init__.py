"""What models are trained on."""

from longreach.tasks.base import Batch, Curve, Evaluation, ModelFactory, Task
from longreach.tasks.classification import Classification, Loading
from longreach.tasks.corpora import Corpus, MaskedCorpus
from longreach.tasks.encodings import FeatureEncoding, TokenEncoding
from longreach.tasks.labelled import Example

__all__ = [
    "Batch",
    "Classification",
    "Corpus",
    "Curve",
    "Evaluation",
    "Example",
    "FeatureEncoding",
    "Loading",
    "MaskedCorpus",
    "ModelFactory",
    "Task",
    "TokenEncoding",
]
