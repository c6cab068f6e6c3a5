"""Which boxes to process, and in which order."""

from assignnet.rules import RULES, Assigner, Problem, all_children, all_parents, check_selection, greedy
from assignnet.tree import Roi, RoiTree

__all__ = [
    "RULES",
    "Assigner",
    "Problem",
    "Roi",
    "RoiTree",
    "all_children",
    "all_parents",
    "check_selection",
    "greedy",
]
