"""Which boxes to process, and in which order.

Training needs more packages than choosing does; its modules (``assignnet.env``, ``assignnet.policy``,
``assignnet.train``) are imported by their own names.
"""

from assignnet.problem import Problem
from assignnet.rules import (
    RULES,
    Assigner,
    all_children,
    all_parents,
    check_selection,
    greedy,
    in_space_order,
    random_rule,
    top_k,
)
from assignnet.tree import NO_FEATURES, Features, Roi, RoiTree

__all__ = [
    "NO_FEATURES",
    "RULES",
    "Assigner",
    "Features",
    "Problem",
    "Roi",
    "RoiTree",
    "all_children",
    "all_parents",
    "check_selection",
    "greedy",
    "in_space_order",
    "random_rule",
    "top_k",
]
