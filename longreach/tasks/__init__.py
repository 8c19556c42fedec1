"""What models are trained on."""

from longreach.tasks.base import Batch, Curve, Evaluation, ModelFactory, Task
from longreach.tasks.corpora import Corpus

__all__ = ["Batch", "Corpus", "Curve", "Evaluation", "ModelFactory", "Task"]
