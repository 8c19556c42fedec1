"""Using a trained model: writing text, and judging it over whole long documents."""

from longreach.inference.evaluate_run import RunEvaluation, evaluate_run
from longreach.inference.evaluation import EvaluationOptions, Report, evaluate_documents
from longreach.inference.generation import Piece, TokenStream, complete, generate
from longreach.inference.sampling import GenerationOptions
from longreach.inference.scoring import document_losses
from longreach.inference.trained import TrainedModel, load_trained

__all__ = [
    "EvaluationOptions",
    "GenerationOptions",
    "Piece",
    "Report",
    "RunEvaluation",
    "TokenStream",
    "TrainedModel",
    "complete",
    "document_losses",
    "evaluate_documents",
    "evaluate_run",
    "generate",
    "load_trained",
]
