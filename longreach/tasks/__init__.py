"""What models are trained on."""

from longreach.tasks.base import Batch, Curve, Evaluation, ModelFactory, Task
from longreach.tasks.classification import Classification, Loading
from longreach.tasks.corpora import Corpus, MaskedCorpus
from longreach.tasks.encodings import FeatureEncoding, TokenEncoding
from longreach.tasks.images import ImageSequence, SequentialImages
from longreach.tasks.labelled import Example
from longreach.tasks.lra import Image, ListOps, Pathfinder, Retrieval, Text, TextOptions
from longreach.tasks.recall import (
    Addition,
    AssociativeRecall,
    Counting,
    InductionHead,
    LinearFunctions,
    Majority,
    MultiQueryRecall,
)
from longreach.tasks.source_packages import SourcePackages
from longreach.tasks.speech_commands import SpeechCommands

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
    "Image",
    "ImageSequence",
    "InductionHead",
    "LinearFunctions",
    "ListOps",
    "Loading",
    "Majority",
    "MaskedCorpus",
    "ModelFactory",
    "MultiQueryRecall",
    "Pathfinder",
    "Retrieval",
    "SequentialImages",
    "SourcePackages",
    "SpeechCommands",
    "Task",
    "Text",
    "TextOptions",
    "TokenEncoding",
]
