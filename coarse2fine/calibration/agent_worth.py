"""Whether training an agent could pay: how much there is to choose, and what somebody who knew everything would gain.

An agent chooses between a parent and its children, and what to leave out. Where nearly every object has one box there
is nothing to choose; where the best choice in hindsight is hardly better than the rule's, nothing is to be learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from assignnet import RULES
from assignnet.value.oracle import oracle
from coarse2fine.calibration.cases import CalibrationCase
from coarse2fine.calibration.kit import files_of
from coarse2fine.calibration.memory import recall, remember
from coarse2fine.calibration.passes import as_compared, coarse_pass
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.schema import Config
from coarse2fine.fine.segment import FineStage
from coarse2fine.nnunet.fingerprint import model_fingerprint
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.labels import read_labels
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.promise.statement import settings_fingerprint
from coarse2fine.segmenter import make_segmenter
from coarse2fine.selection.features import FeatureSettings
from coarse2fine.system.timing import Run
from coarse2fine.training.outcomes import OutcomeSettings, measure_outcomes

FEW_FAMILIES = 5
"""Parents with several children; with fewer in most cases a rule has hardly anything to choose."""
LITTLE = 0.01
"""Gain in Dice, less the cost, that is not worth an agent of one's own."""
MOST_CASES = 2
"""Cases on which every region is segmented to see what the best choice would be."""
_ONE_TREE = OutcomeSettings(variants=1, regions=0)


@dataclass(frozen=True, slots=True)
class Worth:
    """What an agent could gain.

    Attributes:
        families: Median over the cases of the number of parents that have several children.
        gain: Of the best choice in hindsight over the rule's, in Dice less what cost is worth; mean of a few cases.
            None where that was not measured.
        worth: Whether training an agent could pay.
        statement: In words.
    """

    families: float
    gain: float | None
    worth: bool
    statement: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def agent_worth(cases: Sequence[tuple[CalibrationCase, Model]], config: Config, fine: Model, work: Path) -> Worth:
    """Look at the trees of cases, and if these are large enough at what their regions yield.

    Args:
        cases: Each with the coarse model that may look at it.
        config: Settings with the threshold that was calibrated.
        fine: The fine model.
        work: Folder of what is known already.
    """
    config = as_compared(config)
    if config.mode != "accelerated" or config.assign.agent not in RULES:
        return Worth(0.0, None, False, "no agent was considered: the settings say who chooses")
    families = [_families(case, config, coarse, fine, work) for case, coarse in cases]
    usual = float(median(families))
    many = f"half of the cases have {usual:g} or more regions that could be cut into several"
    if usual < FEW_FAMILIES:
        few = f"no agent was trained: half of the cases have at most {usual:g} regions that could be cut into several"
        return Worth(usual, None, False, few)
    labelled = [pair for pair in cases if pair[0].labels is not None]
    labelled = sorted(labelled, key=lambda pair: sum(path.stat().st_size for path in pair[0].images))[:MOST_CASES]
    gains = [gain for case, coarse in labelled for gain in _gains(case, config, coarse, fine, work)]
    if not gains:
        return Worth(usual, None, False, f"no agent was trained: {many}, but there are no labels to learn from")
    gain, best = mean(gains), "the best choice in hindsight"
    if gain < LITTLE:
        return Worth(usual, gain, False, f"no agent was trained: {best} earns only {gain:.3g} more than the rule")
    advice = "see whether one that c2f-train makes is better (--set assign.agent=AGENT)"
    return Worth(usual, gain, True, f"no agent was trained: {many}, and {best} earns {gain:.3g} more; {advice}")


def _families(case: CalibrationCase, config: Config, coarse: Model, fine: Model, work: Path) -> int:
    segmenter, volume = make_segmenter(config, coarse, FineStage.of(fine, config)), case.read(coarse, fine)
    looked = coarse_pass(case, volume, segmenter, work).result
    tree = segmenter.regions(Scene(view_volume(volume, fine), looked), Run())
    return sum(len(children) > 1 for children in tree.children)


def _gains(case: CalibrationCase, config: Config, coarse: Model, fine: Model, work: Path) -> list[float]:
    """Of the one tree of a case; none if it has too many regions, or nothing to find."""
    about = {
        "files": files_of(case.files),
        "models": [model_fingerprint(model) for model in (coarse, fine)],
        "settings": settings_fingerprint(config),
    }
    path = work / f"{case.name}.outcomes.json"
    known = recall(path, about)
    if known is not None:
        return [float(gain) for gain in known["gains"]]
    if case.labels is None:
        return []
    volume, gains, weight = case.read(coarse, fine), [], config.assign.weight
    labels = read_labels(case.labels, fine, volume)
    for instance in measure_outcomes(volume, labels, coarse, fine, config, FeatureSettings("none"), _ONE_TREE):
        chosen = RULES[config.assign.agent](instance.tree, instance.cost_model)
        best = oracle(instance, "dice", weight, config.assign.budget).reward
        gains.append(best - instance.reward(chosen, "dice", weight))
    remember(path, about, {"gains": gains})
    return gains
