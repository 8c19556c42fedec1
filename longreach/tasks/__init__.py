"""What models are trained on."""

from longreach.tasks.base import Batch, Curve, Evaluation, ModelFactory, Task
from longreach.tasks.classification import Classification, Loading
from longreach.tasks.corpora import Corpus, MaskedCorpus
from longreach.tasks.encodings import FeatureEncoding, TokenEncoding
from longreach.tasks.labelled import Example
from longreach.tasks.lra import ListOps, Pathfinder
from longreach.tasks.recall import (
    Addition,
    AssociativeRecall,
    Counting,
    InductionHead,
    LinearFunctions,
    Majority,
    MultiQueryRecall,
)

__all__ = [
    "Addition",
    "AssociativeRecall",
    "Batch",
    "Classification",
    "Corpus",
    "Counting",
    "Curve",
    "Evaluation",
    "Example",
    "FeatureEncoding",
    "InductionHead",
    "LinearFunctions",
    "ListOps",
    "Loading",
    "Majority",
    "MaskedCorpus",
    "ModelFactory",
    "MultiQueryRecall",
    "Pathfinder",
    "Task",
    "TokenEncoding",
]
