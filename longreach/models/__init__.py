"""Whole networks: a stack of mixers, a language model around it, published checkpoints."""

from longreach.models.backbone import Backbone, Block
from longreach.models.block_diagonal import BlockDiagonalLinear, BlockDiagonalMLP
from longreach.models.channel_mixers import GLU, MLP, GatedMLP, S5Gate
from longreach.models.classifier import Classifier
from longreach.models.joint import Joint
from longreach.models.language_model import LanguageModel
from longreach.models.learned_positions import LearnedPositions
from longreach.models.masked_language_model import MaskedLanguageModel
from longreach.models.normalised_input import NormalisedInput
from longreach.models.published import PublishedLanguageModel, load_published
from longreach.models.rwkv import RWKV, RWKVLanguageModel, RWKVOptions
from longreach.models.structured_linear import ButterflyLinear, MonarchLinear

__all__ = [
    "GLU",
    "MLP",
    "RWKV",
    "Backbone",
    "Block",
    "BlockDiagonalLinear",
    "BlockDiagonalMLP",
    "ButterflyLinear",
    "Classifier",
    "GatedMLP",
    "Joint",
    "LanguageModel",
    "LearnedPositions",
    "MaskedLanguageModel",
    "MonarchLinear",
    "NormalisedInput",
    "PublishedLanguageModel",
    "RWKVLanguageModel",
    "RWKVOptions",
    "S5Gate",
    "load_published",
]
