"""The six tasks of the Long Range Arena (Tay et al. 2020, https://arxiv.org/abs/2011.04006)."""

from longreach.tasks.lra.listops import ListOps, ListOpsData

__all__ = ["ListOps", "ListOpsData"]
