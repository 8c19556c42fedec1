"""What models are trained on."""

from longreach.tasks.base import Batch, Curve, Evaluation, ModelFactory, Task
from longreach.tasks.classification import Classification, FeatureEncoding, Loading, TokenEncoding
from longreach.tasks.corpora import Corpus, MaskedCorpus
from longreach.tasks.recall import (
    Addition,
    AssociativeRecall,
    Counting,
    InductionHead,
    LinearFunctions,
    Majority,
    MultiQueryRecall,
)
from longreach.tasks.labelled import Example

__all__ = [
    "Addition",
    "AssociativeRecall",
    "Batch",
    "Corpus",
    "Counting",
    "Curve",
    "Evaluation",
    "InductionHead",
    "LinearFunctions",
    "Majority",
    "MaskedCorpus",
    "ModelFactory",
    "MultiQueryRecall",
    "Task",
]
