"""The six tasks of the Long Range Arena (Tay et al. 2020, https://arxiv.org/abs/2011.04006)."""

from longreach.tasks.lra.listops import ListOps, ListOpsData
from longreach.tasks.lra.pathfinder import Pathfinder
from longreach.tasks.lra.pathfinder_generation import PathfinderRecipe

__all__ = ["ListOps", "ListOpsData", "Pathfinder", "PathfinderRecipe"]
