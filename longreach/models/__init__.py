"""Whole networks: a stack of mixers, a language model around it, published checkpoints."""

from longreach.models.backbone import Backbone, Block
from longreach.models.channel_mixers import GLU, MLP
from longreach.models.language_model import LanguageModel

__all__ = ["GLU", "MLP", "Backbone", "Block", "LanguageModel"]
