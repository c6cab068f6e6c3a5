"""Which boxes to process, and in which order.

Training needs more packages than choosing does; its modules (``assignnet.learn.env``, ``assignnet.learn.policy``,
``assignnet.learn.train``) are imported by their own names.
"""

from assignnet.choice.cost_model import CostModel
from assignnet.choice.rules import (
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
from assignnet.choice.tree import NO_FEATURES, Features, Roi, RoiTree

__all__ = [
    "NO_FEATURES",
    "RULES",
    "Assigner",
    "CostModel",
    "Features",
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
