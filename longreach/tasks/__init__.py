"""What models are trained on."""

from longreach.tasks.base import Batch, Curve, Evaluation, ModelFactory, Task
from longreach.tasks.corpora import Corpus, MaskedCorpus

__all__ = ["Batch", "Corpus", "Curve", "Evaluation", "MaskedCorpus", "ModelFactory", "Task"]
