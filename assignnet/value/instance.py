"""Training instances: a tree, what a network sees in it, and what each choice yields and costs; their HDF5 files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from assignnet.choice.cost_model import CostModel
from assignnet.choice.tree import Features, Roi, RoiTree
from assignnet.value.voxel_counts import Metric, VoxelCounts
from canvas.box import Box, Triple, to_array, triple

FORMAT = "coarse2fine assign instances 1"


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One tree with everything that is known about its regions.

    Attributes:
        name: Case and region that it came from.
        case: The volume; training and held-out instances never share one.
        tree: The regions.
        cost_model: How regions are processed; its weight is a default that training varies.
        features: What the feature model sees.
        outcomes: What each region yields.
        seconds_per_slot: Measured time of the fine network for one slot.
    """

    name: str
    case: str
    tree: RoiTree
    cost_model: CostModel
    features: Features
    outcomes: VoxelCounts
    seconds_per_slot: float

    @property
    def slots(self) -> NDArray[np.float64]:
        """Cost of each region in slots, shape (regions,)."""
        return np.array([self.cost_model.slots(roi.box) for roi in self.tree.rois])

    def chosen(self, selection: Iterable[Roi]) -> NDArray[np.bool_]:
        """A selection as a mask over ``tree.rois``."""
        wanted = set(selection)
        return np.array([roi in wanted for roi in self.tree.rois], dtype=bool)

    def reward(self, selection: Iterable[Roi], metric: Metric, weight: float) -> float:
        """Quality gained over processing nothing, less ``weight`` times the cost as a share of all children's."""
        chosen = self.chosen(selection)
        nothing = np.zeros_like(chosen)
        gain = self.outcomes.quality(chosen, metric) - self.outcomes.quality(nothing, metric)
        return gain - weight * float(self.slots[chosen].sum()) / total_slots(self.tree, self.cost_model)

    def weighted(self, weight: float) -> Instance:
        """The same with another weight of cost."""
        return replace(self, cost_model=replace(self.cost_model, weight=weight))


def total_slots(tree: RoiTree, cost_model: CostModel) -> float:
    """Slots that all children of a tree occupy: the unit of which costs are shares; 1 for an empty tree."""
    return sum(cost_model.slots(leaf.box) for leaf in tree.leaves) or 1.0


def write_instances(path: Path, instances: Iterable[Instance], about: Mapping[str, Any]) -> None:
    """Write instances to an HDF5 file.

    Args:
        path: Is overwritten.
        instances: Of any cases.
        about: How they were made, as JSON-ready values.
    """
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["about"] = FORMAT, json.dumps(dict(about))
        for index, instance in enumerate(instances):
            group = file.create_group(f"{index:06d}")
            for name, value in _attributes(instance).items():
                group.attrs[name] = value
            for name, array in _arrays(instance).items():
                group.create_dataset(name, data=array, **({"compression": "gzip"} if array.size > 64 else {}))


def read_instances(path: Path) -> tuple[list[Instance], dict[str, Any]]:
    """Read what ``write_instances`` wrote: the instances, and how they were made.

    Raises:
        ValueError: If the file is not one of ours.
        OSError: If it is not HDF5 or cannot be read.
    """
    with h5py.File(path, "r") as file:
        if file.attrs.get("format") != FORMAT:
            raise ValueError(f"{path} holds no instances of this version ({FORMAT})")
        return [_load(file[name]) for name in sorted(file)], json.loads(file.attrs["about"])


def _attributes(instance: Instance) -> dict[str, Any]:
    cost_model = instance.cost_model
    return {
        "name": instance.name,
        "case": instance.case,
        "volume": instance.tree.volume,
        "classes": instance.outcomes.classes,
        "seconds_per_slot": instance.seconds_per_slot,
        "slot": cost_model.slot,
        "weight": cost_model.weight,
        "large": cost_model.large,
        "tile_step": cost_model.tile_step,
        "drop": cost_model.drop,
        "native": cost_model.native or (),
        "context": (-1,) if cost_model.context is None else cost_model.context,
        "budget": np.nan if cost_model.budget is None else cost_model.budget,
        "keep": cost_model.keep or 0,
    }


def _arrays(instance: Instance) -> dict[str, NDArray[Any]]:
    rois, outcomes = instance.tree.rois, instance.outcomes
    return {
        "boxes": to_array(roi.box for roi in rois),
        "score": np.array([roi.score for roi in rois]),
        "mass": np.array([roi.mass for roi in rois]),
        "parent": instance.tree.parent_of,
        "features": instance.features.nodes,
        "volume_features": instance.features.volume,
        "count": outcomes.count,
        "truth": outcomes.truth,
        "outside": outcomes.outside,
        "start": outcomes.start,
        "node": outcomes.node,
        "label": outcomes.label,
    }


def _load(group: h5py.Group) -> Instance:
    about, data = dict(group.attrs), {name: group[name][()] for name in group}
    context = tuple(int(edge) for edge in about["context"])
    cost_model = CostModel(
        slot=triple(about["slot"]),
        weight=float(about["weight"]),
        large=about["large"],
        tile_step=float(about["tile_step"]),
        drop=bool(about["drop"]),
        native=triple(about["native"]) if len(about["native"]) else None,
        context=None if context == (-1,) else triple(context),
        budget=None if np.isnan(about["budget"]) else float(about["budget"]),
        keep=int(about["keep"]) or None,
    )
    counts = {name: data[name] for name in ("count", "truth", "outside", "start", "node", "label")}
    outcomes = VoxelCounts(**counts, classes=tuple(int(name) for name in about["classes"]))
    tree = _tree(data["boxes"], data["score"], data["mass"], data["parent"], triple(about["volume"]))
    features = Features(data["features"], data["volume_features"])
    return Instance(
        about["name"], about["case"], tree, cost_model, features, outcomes, float(about["seconds_per_slot"])
    )


def _tree(
    boxes: NDArray[np.int64], score: NDArray[Any], mass: NDArray[Any], parent: NDArray[np.int64], volume: Triple
) -> RoiTree:
    rois = [
        Roi(Box(triple(row[:3]), triple(row[3:])), float(one), float(other))
        for row, one, other in zip(boxes, score, mass, strict=True)
    ]
    families: dict[int, list[Roi]] = {}
    for index, above in enumerate(parent.tolist()):
        families.setdefault(above, [])
        if above != index:
            families[above].append(rois[index])
    parents = tuple(rois[index] for index in families)
    children = tuple(tuple(family) or (rois[index],) for index, family in families.items())
    return RoiTree(parents, children, volume)
