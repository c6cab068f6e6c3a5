"""What the experiments measure with the fine network: selections, packings, orders, settings, models, cases.

Each function is one experiment: it takes a case and returns its rows, see ``experiments.EXPERIMENTS``.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import spearmanr

from assignnet import Roi
from assignnet.choice.rules import in_space_order
from benchmarks.common.bench import Bench, Effort, run_ours
from benchmarks.common.machine import ROOT, forget
from benchmarks.common.registry import MissingDataError, find_case_files
from benchmarks.selection.measures import RealCase, Seen, choose, look
from benchmarks.selection.plots import draw_orders
from benchmarks.studies.geometry import (
    MEGA,
    AnyBench,
    Rows,
    by_rule,
    find_regions,
    ground_of,
    mvoxels,
    pack_geometry,
    packed,
    real_case,
)
from canvas import canvas_grids, share_filled
from coarse2fine.errors import ModelError
from coarse2fine.evaluation.masks import dice, iou, leave_out, mean_over_labels
from coarse2fine.fine.inputs import VolumeNorm
from coarse2fine.fine.segment import FineStage, segment_boxes
from coarse2fine.fine.sizes import plan_sizes
from coarse2fine.fine.writeback import LabelWriter
from coarse2fine.io import read_volume
from coarse2fine.system.timing import Run, Stage

AGENTS = ROOT / "benchmarks" / "agents"
RULES = ("all_parents", "all_children", "top_k", "greedy")
CAPACITIES = (1, 4, 8)
NORMS = ("case", "slot", "canvas")
SEEDS = (0, 1, 2)
"""Of random orders."""
SLOT_SHARES = {"quarter": 4, "half": 2, "full": 1}
NMS_THRESHOLDS, WINDOW_STEPS = (0.3, 0.5, 0.75, 0.9), (0.5, 0.75, 1.0)
QUANTITIES = ("score", "mass", "size", "z", "y", "x")
"""With which the rank of a region is correlated."""


def measure(bench: Bench, *overrides: str, fine: str = "fine") -> dict[str, Any]:
    """One run from file to file: what it cost and how good it is."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "labels.nii.gz"
        effort = bench.run(partial(run_ours, overrides=overrides, fine=fine), output)
        labels = read_volume([output]).channels[0]
    return quality(bench.decided(labels), bench.reference, bench.labels) | costs(effort, fine)


def quality(labels: NDArray[Any], truth: NDArray[Any], names: Sequence[int]) -> dict[str, float]:
    """Means over labels."""
    return {metric.__name__: mean_over_labels(metric, labels, truth, names) for metric in (dice, iou)}


def costs(effort: Effort, role: str) -> dict[str, Any]:
    """What a run took and looked at; ``mvoxels`` and ``ms_per_mvoxel`` are of the fine network, in its role."""
    times = {name: getattr(effort, name) for name in ("total_s", "coarse_s", "fine_s", "network_s")}
    report = effort.report
    if report is None:
        raise ValueError("only runs of coarse2fine report what they looked at")
    seen = {"mass_share": report.coverage.heatmap_mass, "volume_share": report.coverage.volume}
    boxes = {
        "children": report.boxes.children,
        "parents": report.boxes.parents,
        "boxes": report.boxes.selected,
    }
    given = effort.network_voxels.get(role, 0) / MEGA
    pace = {"mvoxels": given, "ms_per_mvoxel": effort.network_s / given * 1000 if given else None}
    return {**times, "canvases": effort.canvases, "fill": effort.fill, **pace, **boxes, **seen}


def find_agents(bench: Bench, console: Console, *kinds: str) -> dict[str, Path]:
    """Trained agents of the data set that fit its models and settings, by name, the wanted kinds in their order."""
    found = {}
    cards = [card for kind in kinds for card in sorted((AGENTS / bench.dataset.name).glob(f"{kind}-seed*/agent.json"))]
    for folder in (card.parent for card in cards):
        try:
            bench.pipeline(f"assign.agent={json.dumps(str(folder))}")
            found[folder.name] = folder
        except ModelError as error:
            say(console, f"agent {folder.name} is left out: {error.problem}")
    if not found:
        say(console, f"there is no trained agent of kind {' or '.join(kinds)} for '{bench.dataset.name}': rules only")
    return found


def say(console: Console, text: str) -> None:
    """One plain line."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def selection(bench: Bench, console: Console) -> Rows:
    """1: rules and agents, from file to file."""
    ways = {rule: [f"assign.agent={rule}"] for rule in RULES}
    if bench.config().assign.weight > 0:
        ways["greedy_drop"] = ["assign.agent=greedy", "assign.drop=true"]
    else:
        say(console, "greedy with drop is left out: it needs a lambda above 0")
    agents = find_agents(bench, console, "gains")
    ways |= {name: [f"assign.agent={json.dumps(str(folder))}"] for name, folder in agents.items()}
    return [{"selection": name} | measure(bench, *overrides) for name, overrides in ways.items()]


def capacity(bench: Bench, console: Console) -> Rows:
    """2: how many crops share a canvas, in same-size packing; boxes do not grow, so that all rows see the same.

    In a grid of one slot the crop gets the whole canvas. With so many canvases ``norm: case`` packs nothing either,
    and leaves normalisation to the canvas: ``alone`` says so.
    """
    plan = plan_sizes(bench.config(), bench.model("fine"))
    possible = {math.prod(grid) for grid in canvas_grids(plan.canvas, plan.slot)}
    rows = []
    for norm in ("case", "canvas"):
        for crops in CAPACITIES:
            if crops not in possible:
                say(
                    console, f"capacity {crops} is left out: canvas {plan.canvas} has grids of {sorted(possible)} slots"
                )
                continue
            fixed = (*packed(bench, "same_size"), "fine.grow=0")
            row = measure(bench, *fixed, f"canvas.capacity={crops}", f"canvas.norm={norm}")
            rows.append({"norm": norm, "capacity": crops, "alone": row["canvases"] == row["boxes"]} | row)
    return rows


def ordering(bench: Bench, console: Console) -> Rows:
    """3: the same regions in several orders.

    No region is larger than a slot unless it is a parent, so that both packings show it in the same way.
    """
    plan = plan_sizes(bench.config(), bench.model("fine"))
    small = f"rois.window={list(plan.slot)}"
    real = real_case(bench, small)
    seen = look(real)
    agents = find_agents(bench, console, "policy", "gains")
    name, agent = next(((name, str(folder)) for name, folder in agents.items()), ("greedy", "greedy"))
    chosen = choose(real, seen, agent, real.pipeline.config.assign.weight)
    if not chosen:
        raise MissingDataError(f"{bench.case.name}: {name} chooses no region to put in order", "Lower rois.threshold.")
    orders = {name: chosen, "space": in_space_order(chosen, plan.slot)}
    for seed in SEEDS:
        shuffled = np.random.default_rng(seed).permutation(len(chosen))
        orders[f"random-{seed}"] = tuple(chosen[index] for index in shuffled)
    rows = []
    for packing, norm in [("same_size", norm) for norm in NORMS] + [("same_scale", "canvas")]:
        for order, rois in orders.items():
            row = {"packing": packing, "norm": norm, "order": order, "chosen_by": name}
            rows.append(
                row | segment(bench, real, seen, rois, small, f"canvas.packing={packing}", f"canvas.norm={norm}")
            )
    return rows


def segment(bench: Bench, real: RealCase, seen: Seen, rois: Sequence[Roi], *overrides: str) -> dict[str, Any]:
    """The fine stage on given regions in a given order, always packed: what it cost and how good it is."""
    return segment_labels(bench, real, seen, rois, *overrides)[1]


def segment_labels(
    bench: Bench, real: RealCase, seen: Seen, rois: Sequence[Roi], *overrides: str, alone: bool = False
) -> tuple[NDArray[Any], dict[str, Any]]:
    """The same, perhaps with a canvas for each region, and the labels: shape (z, y, x), background if undecided."""
    config, fine, boxes = bench.config(*overrides), real.pipeline.fine, [roi.box for roi in rois]
    forget()
    run = Run()
    clock = run.clock
    with clock.time(Stage.FINE):
        writer = LabelWriter(seen.scene.view, fine)
        known, stage = [roi.box for roi in seen.tree.leaves], FineStage.of(fine, config)
        result = segment_boxes(stage, seen.scene, boxes, writer, run, known=known, norm=VolumeNorm(alone=alone))
        writer.finish()
    labels, truth = (leave_out(one, seen.truth, fine.labels.ignore) for one in (writer.labels, seen.truth))
    return labels, quality(labels, truth, fine.labels.foreground) | {
        "boxes": len(boxes),
        "canvases": len(result.canvases),
        "mvoxels": mvoxels(result.canvases),
        "fill": share_filled(result.canvases),
        "fine_s": clock.seconds[Stage.FINE],
        "network_s": clock.seconds.get(Stage.FINE.passes, 0.0),
    }


def packing(bench: AnyBench, console: Console) -> Rows:
    """5: same size against same scale; without images what follows from geometry only."""
    rows = pack_geometry(bench, console)
    if isinstance(bench, Bench):
        for way in ("same_size", "same_scale"):
            rows.append({"kind": "run", "volume_times": 1, "packing": way} | measure(bench, *packed(bench, way)))
    return rows


def splits(bench: Bench, console: Console) -> Rows:
    """7: every case with an image, of either split, and cross-fitted fine models where there are any.

    ``trained_on`` is about the fine model. The coarse model has seen the training cases in every row.
    """
    rows = []
    cases = [case for case in find_case_files(bench.dataset, data_folder(bench)) if case.image is not None]
    for case in cases:
        cross = f"fine_without_{case.name}"
        roles = {"fine": case.split == "train"} | ({cross: False} if cross in bench.dataset.models else {})
        other = bench.on(case)
        for role, trained_on in roles.items():
            if not bench.has(role):
                say(console, f"{case.name}: role {role} is left out, its model is not there")
                continue
            for mode in ("accelerated", "one-stage"):
                row = {"kind": "case", "case": case.name, "split": case.split, "trained_on": trained_on, "model": role}
                rows.append(row | {"mode": mode} | measure(other, f"mode={mode}", fine=role))
    return rows + list(summaries(rows))


def data_folder(bench: Bench) -> Path:
    """Where a case's data set lies, which need not be where the data set's file says."""
    files = bench.dataset.test if bench.case.split == "test" else bench.dataset.train
    if files is None:
        raise ValueError(f"{bench.dataset.name} has no split of case {bench.case.name}")
    return bench.case.reference.parents[len(Path(files.reference).parts) - 1]


def summaries(rows: Rows) -> Iterator[dict[str, Any]]:
    """Mean and spread over cases: those that models were trained on, and those that they were not."""
    for mode, trained_on in dict.fromkeys((row["mode"], row["trained_on"]) for row in rows):
        found = [row for row in rows if (row["mode"], row["trained_on"]) == (mode, trained_on)]
        row = {
            "kind": "summary",
            "case": f"{len(found)} case{'s' * (len(found) > 1)}",
            "mode": mode,
            "trained_on": trained_on,
        }
        for name in ("dice", "iou", "total_s"):
            values = [one[name] for one in found]
            row |= {f"{name}": statistics.fmean(values), f"{name}_least": min(values), f"{name}_greatest": max(values)}
            row[f"{name}_deviation"] = statistics.stdev(values) if len(values) > 1 else None
        yield row


def slot_and_nms(bench: Bench, console: Console) -> Rows:
    """9: slot size at same size, and NMS threshold by window step; only some combinations are really run.

    Windows are as large as a slot, as in the original system: hardly anything is cut by the largest that fit a canvas.
    """
    rows = []
    plan, config = plan_sizes(bench.config(), bench.model("fine")), bench.config()
    for name, part in SLOT_SHARES.items():
        slot = [plan.slot[0], *(max(1, edge // part) for edge in plan.canvas[1:])]
        # Same size has no context; a configured one might leave no room in a small slot.
        row = measure(bench, *packed(bench, "same_size"), "canvas.context=null", f"canvas.slot={slot}")
        rows.append({"varied": "slot", "slot": name, "slot_voxels": "x".join(map(str, slot)), "measured": True} | row)
    heat, window = ground_of(bench).heat, f"rois.window={list(plan.slot)}"
    usual = min(NMS_THRESHOLDS, key=lambda value: abs(value - config.rois.nms_threshold))
    for step in WINDOW_STEPS:
        for threshold in NMS_THRESHOLDS:
            settings = (*by_rule(bench), window, f"rois.window_step={step}", f"rois.nms_threshold={threshold}")
            found = find_regions(bench, heat, *settings)
            row = {"varied": "nms", "window_step": step, "nms_threshold": threshold, "measured": False}
            row |= {"children": len(found.tree.leaves), "parents": len(found.tree.parents)}
            row |= {"boxes": len(found.chosen), "canvases": len(found.canvases())}
            if step == WINDOW_STEPS[0] or threshold == usual:
                row |= {"measured": True} | measure(bench, *settings)
            rows.append(row)
    return rows


def orders_of(bench: Bench, console: Console) -> tuple[RealCase, Seen, dict[str, tuple[Roi, ...]]]:
    """What each agent, and the configured rule, chooses, in their orders; those whose order is learned come first."""
    real = real_case(bench)
    seen = look(real)
    choosers = {name: str(folder) for name, folder in find_agents(bench, console, "policy", "gains").items()}
    choosers |= {"greedy": "greedy"}
    weight = real.pipeline.config.assign.weight
    return real, seen, {name: choose(real, seen, agent, weight) for name, agent in choosers.items()}


def preferred_order(bench: Bench, console: Console) -> Rows:
    """10: which regions come first, and what rank goes along with."""
    _, _, orders = orders_of(bench, console)
    rows: Rows = []
    for name, rois in orders.items():
        picks = [{"kind": "pick", "chosen_by": name, "rank": rank} | describe(roi) for rank, roi in enumerate(rois, 1)]
        rows += picks
        for quantity in QUANTITIES:
            values = [pick[quantity] for pick in picks]
            known = len(set(values)) > 1  # of what never changes there is no correlation
            rho, p = map(float, spearmanr([pick["rank"] for pick in picks], values)) if known else (None, None)
            row = {"kind": "correlation", "chosen_by": name, "with": quantity, "picks": len(picks)}
            rows.append(row | {"spearman": rho, "p_value": p})
    return rows


def describe(roi: Roi) -> dict[str, float]:
    """A region in numbers; position and size in voxels of the working grid."""
    z, y, x = ((a + b) / 2 for a, b in zip(roi.box.start, roi.box.stop, strict=True))
    edges = dict(zip(("edge_z", "edge_y", "edge_x"), roi.box.shape, strict=True))
    return {"score": roi.score, "mass": roi.mass, "size": roi.box.volume, "z": z, "y": y, "x": x, **edges}


def draw_paths(bench: Bench, console: Console, path: Path) -> None:
    """The order of the first agent, or of the rule, on the case, beside the order in space."""
    real, seen, orders = orders_of(bench, Console(quiet=True))
    name, chosen = next(iter(orders.items()))
    shown = {
        f"{bench.dataset.name}, case {bench.case.name}, {name}": chosen,
        "in space": in_space_order(chosen, real.pipeline.stage.plan.slot),
    }
    spacing = real.pipeline.fine.spacing
    draw_orders(path, seen.image, seen.truth, seen.tree, shown, spacing[1] / spacing[2])


def network_size(bench: Bench, console: Console) -> Rows:
    """11: fine networks of several sizes."""
    names = bench.dataset.models
    rows = []
    for role in ("small", "fine", "mosaic", *sorted(name for name in names if name.startswith("width_"))):
        if not bench.has(role):
            say(console, f"role {role} is left out: '{bench.dataset.name}' has no such model here")
            continue
        model = bench.model(role)
        parameters = sum(weight.numel() for weight in model.networks[0].parameters())
        size = {"parameters": parameters, "patch": "x".join(map(str, model.patch))}
        rows.append({"role": role} | size | measure(bench, fine=role))
    return rows
