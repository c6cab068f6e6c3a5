"""From the heatmap to the boxes that are processed: regions, what they cost, and who chooses among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assignnet import NO_FEATURES, RULES, Assigner, CostModel, Roi, RoiTree, check_selection
from assignnet.learn.agent import Agent, AgentCard, check_fit, load_agent
from canvas import Triple
from coarse2fine.coarse.foreground import counted_names
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.schema import Config
from coarse2fine.config.types import shipped_agents
from coarse2fine.errors import ModelError
from coarse2fine.fine.sizes import CanvasPlan, same_scale
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import WorkingView
from coarse2fine.regions.detect import RoiSettings, find_rois
from coarse2fine.regions.search_grid import Place
from coarse2fine.regions.tree import build_tree
from coarse2fine.selection.features import FeatureSettings, feature_model_fingerprint, tree_features
from coarse2fine.system.terminal import shown
from coarse2fine.system.timing import RunClock


def find_tree(config: Config, plan: CanvasPlan, heatmap: NDArray[np.float32], view: WorkingView) -> RoiTree:
    """Heatmap -> ROI tree.

    Args:
        config: Its section ``rois`` says how.
        plan: Gives the largest candidate.
        heatmap: Shape (z, y, x), over the same region of space as the view.
        view: The fine model's view of the volume.
    """
    rois = find_rois(heatmap, view.shape, roi_settings(config, plan))
    return grow_tree(config, rois, heatmap, view.shape)


def roi_settings(config: Config, plan: CanvasPlan) -> RoiSettings:
    """How candidate regions are found; arguments as of ``find_tree``."""
    rois = config.rois
    return RoiSettings(
        threshold=rois.threshold,
        window=plan.window,
        heatmap_voxel=rois.heatmap_voxel,
        min_edge=rois.min_edge,
        min_voxels=rois.min_voxels,
        margin=rois.margin,
        window_step=rois.window_step,
    )


def grow_tree(
    config: Config, found: Sequence[Roi], heatmap: NDArray[np.float32], volume: Triple, place: Place | None = None
) -> RoiTree:
    """Candidate regions -> ROI tree.

    Args:
        config: Its section ``rois`` says how.
        found: The regions.
        heatmap: The heatmap in which they were found.
        volume: Shape of the working grid.
        place: Where the heatmap lies, if it is a part of one.
    """
    rois = config.rois
    return build_tree(
        found,
        heatmap,
        volume,
        threshold=rois.threshold,
        nms_threshold=rois.nms_threshold,
        nms_overlap=rois.nms_overlap,
        nmm_threshold=rois.nmm_threshold,
        nmm_overlap=rois.nmm_overlap,
        nmm_merging=rois.nmm_merging,
        place=place,
    )


def cost_model_of(config: Config, plan: CanvasPlan) -> CostModel:
    """How the fine stage processes boxes, what that costs, and what speed is worth.

    Args:
        config: All settings.
        plan: The fine stage's sizes.
    """
    settings = config.assign
    return CostModel(
        slot=plan.slot,
        weight=settings.weight,
        large=config.fine.large_boxes,
        tile_step=config.fine.tile_step,
        drop=settings.drop,
        native=plan.native,
        context=plan.context if same_scale(config) else None,
        budget=settings.budget,
        keep=settings.keep,
    )


def feature_settings(config: Config) -> FeatureSettings:
    """What an agent is shown while it is trained; later its card says so."""
    settings = config.assign
    return FeatureSettings(
        settings.features, settings.downsample_mode, settings.pooling_mode, global_info=settings.global_info
    )


@dataclass(frozen=True, slots=True, eq=False)
class Selector:
    """Who chooses.

    Attributes:
        name: As the configuration calls it.
        kind: ``rule``, or the kind of a trained agent.
        assigner: The rule or agent itself.
        features: What it is shown of every region.
        cost_model: How regions are processed.
        warnings: What the user should know about it.
    """

    name: str
    kind: str
    assigner: Assigner
    features: FeatureSettings
    cost_model: CostModel
    warnings: tuple[str, ...] = ()

    def choose(self, tree: RoiTree, scene: Scene, fine: Model, clock: RunClock) -> tuple[Roi, ...]:
        """ROI tree -> ordered boxes.

        Args:
            tree: The regions.
            scene: What the regions are of; its coarse result with the bottleneck if ``features`` wants it.
            fine: The fine model.
            clock: Books network passes, if there are any, under ``assign.network``.
        """
        seen = NO_FEATURES
        if self.features.source != "none":
            seen = tree_features(self.features, tree, scene, fine, self.cost_model.slot, clock)
        chosen = self.assigner(tree, self.cost_model, seen)
        check_selection(tree, chosen)
        return chosen

    @property
    def order(self) -> str:
        """By what regions are put in order under a deadline, unless the settings say: see ``selection.order``."""
        return "agent" if isinstance(self.assigner, Agent) and self.assigner.card.anytime else "doubt"

    def describe(self) -> dict[str, str]:
        """For the report."""
        return {"name": self.name, "kind": self.kind}


def find_selector(config: Config, plan: CanvasPlan, coarse: Model, fine: Model) -> Selector:
    """The rule or agent that ``assign.agent`` names.

    Args:
        config: All settings.
        plan: The fine stage's sizes.
        coarse: The coarse model.
        fine: The fine model.

    Raises:
        ModelError: If the agent cannot be read, or was trained for something else than this run.
    """
    name, cost_model = config.assign.agent, cost_model_of(config, plan)
    if name in RULES:
        return Selector(name, "rule", RULES[name], FeatureSettings("none"), cost_model)
    folder = shipped_agents().get(name, Path(name))
    agent = _load(folder)
    settings = _settings(agent.card, folder)
    reasons = _misfits(agent.card, settings, cost_model, coarse, fine)
    its, ours = agent.card.features.get("foreground"), counted_names(config.coarse.foreground, coarse)
    if its != ours:
        reasons.append(f"it was trained with {_foreground(its)}, this run has {_foreground(ours)}")
    if reasons:
        raise ModelError(
            f"the agent {folder} does not fit this run: {'; '.join(reasons)}",
            "Use it with the models, the packing and the coarse.foreground that it was trained with, train one for "
            "these (c2f-train), or choose by a rule: assign.agent: greedy.",
        )
    return Selector(name, agent.card.kind, agent, settings, cost_model, tuple(_doubts(agent.card, name, cost_model)))


def _load(folder: Path) -> Agent:
    try:
        return load_agent(folder)
    except ValueError as error:  # it names the file and the remedy
        raise ModelError(str(error), "Or choose by a rule: assign.agent: greedy.") from error


def _settings(card: AgentCard, folder: Path) -> FeatureSettings:
    """The settings of an agent's features; a card is a stranger's file."""
    known = {field.name for field in dataclasses.fields(FeatureSettings)}
    given: Mapping[str, Any] = {name: value for name, value in card.features.items() if name in known}
    try:
        return FeatureSettings(**given)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"the card of the agent {folder}: features: {error}",
            "Copy the agent's folder again, train it anew (c2f-train), or choose by a rule: assign.agent: greedy.",
        ) from error


def _misfits(
    card: AgentCard, settings: FeatureSettings, cost_model: CostModel, coarse: Model, fine: Model
) -> list[str]:
    """Why an agent would not know what it looks at."""
    count, volume = settings.size(coarse, fine)
    reasons = check_fit(card, features={}, cost_model=cost_model, count=count, volume=volume)
    model = settings.model(coarse, fine)
    if model is not None and card.features.get("fingerprint") != feature_model_fingerprint(model):
        reasons.insert(0, f"it was trained with another {settings.source} model than {model.folder}")
    return reasons


def _foreground(names: Sequence[str] | None) -> str:
    return f"coarse.foreground: {'null (all labels)' if names is None else shown(names)}"


def _doubts(card: AgentCard, name: str, cost_model: CostModel) -> Iterator[str]:
    """Where an agent has no experience, but can choose all the same."""
    low, high = card.weights
    if not low <= cost_model.weight <= high:
        yield (
            f"assign.lambda {cost_model.weight:g} is outside of {low:g} to {high:g}, for which the agent {name} was "
            "trained: its choice may be poor"
        )
    for key, size in (("slot", cost_model.slot), ("native", cost_model.largest)):
        trained = tuple(card.problem.get(key, size))
        if trained != size:
            yield (
                f"the agent {name} was trained for a {key} size of {list(trained)} voxels, this run has {list(size)}: "
                "its choice may be poor"
            )
