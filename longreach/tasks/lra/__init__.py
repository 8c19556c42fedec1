"""The six tasks of the Long Range Arena (Tay et al. 2020, https://arxiv.org/abs/2011.04006)."""

from longreach.tasks.lra.image import Image
from longreach.tasks.lra.listops import ListOps, ListOpsData
from longreach.tasks.lra.pathfinder import Pathfinder
from longreach.tasks.lra.pathfinder_generation import PathfinderRecipe
from longreach.tasks.lra.retrieval import Retrieval
from longreach.tasks.lra.text import Text
from longreach.tasks.lra.texts import TextOptions

__all__ = ["Image", "ListOps", "ListOpsData", "Pathfinder", "PathfinderRecipe", "Retrieval", "Text", "TextOptions"]
