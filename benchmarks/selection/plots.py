"""Tables and pictures of ``assign.py``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from assignnet import Roi, RoiTree
from canvas import Box

if TYPE_CHECKING:  # takes a second to import, and only pictures need it
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]
# Okabe and Ito's colours, which people with any common colour blindness can tell apart.
BLACK, ORANGE, GREEN, BLUE, RED, PINK, GREY = (
    "#000000", "#E69F00", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#777777",
)  # fmt: skip
LINES = {
    "oracle": (BLACK, "--"),
    "policy": (BLUE, "-"),
    "gains": (RED, "-"),
    "greedy_drop": (GREEN, "-."),
    "greedy": (PINK, ":"),
}
"""Kinds that change with lambda: colour and line."""
POINTS = {"all_parents": "^", "all_children": "s", "top_k": "D", "random": "X"}
"""Rules that do not: marker."""


def share_table(rows: Rows, where: str) -> Table:
    """Share of the oracle's reward, policy by lambda."""
    return _by_weight(
        rows, where, f"share of the oracle's reward, {where}", lambda row: _number(row["oracle_fraction"])
    )


def effort_table(rows: Rows, where: str) -> Table:
    """Quality and slots, policy by lambda."""
    title = f"quality / slots, {where}"
    return _by_weight(rows, where, title, lambda row: f"{row['quality']:.3f} / {row['slots']:.1f}")


def spread_table(rows: Rows, where: str) -> Table:
    """Share of the oracle's reward, mean and range over seeds, kind by lambda."""
    table, weights = _table(rows, where, f"share of the oracle's reward over seeds: mean, least to greatest, {where}")
    for kind in dict.fromkeys(row["kind"] for row in rows if row["seed"] is not None):
        found = [row for row in rows if row["kind"] == kind and row["set"] == where]
        seeds = len({row["seed"] for row in found})
        table.add_row(f"{kind}, {seeds} seed{'s' * (seeds > 1)}", *(_spread(found, weight) for weight in weights))
    return table


def ablation_table(rows: Rows, where: str, weights: Sequence[float]) -> Table:
    """Rewards of the policy and its ablations of seed 0."""
    title = f"reward of ablations, seed 0, {where}"
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("policy")
    for weight in weights:
        table.add_column(f"{weight:g}", justify="right")
    chosen = [row for row in rows if row["set"] == where and row["seed"] == 0 and row["kind"].startswith("policy")]
    for name in dict.fromkeys(row["policy"] for row in chosen):
        found = {row["lambda"]: row["reward"] for row in chosen if row["policy"] == name}
        table.add_row(name, *(f"{found[weight]:.4f}" for weight in weights))
    return table


def order_table(found: Rows, agent: str) -> Table:
    """What the order of regions does."""
    table = Table(title=f"regions of {agent} at lambda {found[0]['lambda']:g} in several orders", title_justify="left")
    for name in ("packing", "norm", "order", "Dice", "IoU", "canvases", "fill", "fine s"):
        table.add_column(name, justify="left" if name in ("packing", "norm", "order") else "right")
    for row in found:
        figures = (f"{row['dice']:.4f}", f"{row['iou']:.4f}", str(row["canvases"]), f"{row['fill']:.2f}")
        table.add_row(row["packing"], row["norm"], row["order"], *figures, f"{row['fine_s']:.1f}")
    return table


def agent_share_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """How long choosing takes in a whole run."""
    table = Table(title="time of choosing in a whole run, medians", title_justify="left")
    for name in ("agent", "choosing s", "whole run s", "share"):
        table.add_column(name, justify="left" if name == "agent" else "right")
    for name, row in found.items():
        table.add_row(name, f"{row['assign_s']:.3f}", f"{row['total_s']:.1f}", f"{row['share']:.2%}")
    return table


def _by_weight(rows: Rows, where: str, title: str, show: Any) -> Table:
    table, weights = _table(rows, where, title)
    for name in dict.fromkeys(row["policy"] for row in rows):
        found = {row["lambda"]: show(row) for row in rows if row["policy"] == name and row["set"] == where}
        table.add_row(name, *(found[weight] for weight in weights))
    return table


def _table(rows: Rows, where: str, title: str) -> tuple[Table, list[float]]:
    weights = list(dict.fromkeys(row["lambda"] for row in rows if row["set"] == where))
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("lambda")
    for weight in weights:
        table.add_column(f"{weight:g}", justify="right")
    return table, weights


def _spread(rows: Rows, weight: float) -> str:
    found = [row["oracle_fraction"] for row in rows if row["lambda"] == weight]
    shares = [share for share in found if share is not None]
    return f"{fmean(shares):.3f}\n{min(shares):.3f} to {max(shares):.3f}" if shares else "-"


def _number(value: float | None) -> str:
    return "-" if value is None or not isfinite(value) else f"{value:.3f}"


def statements(rows: Rows) -> list[str]:
    """For every set and lambda whether agents earn as much as every rule: on average over seeds, and the best one.

    Ablations, whose kinds have a hyphen, do not count.
    """
    found = []
    for where, weight in dict.fromkeys((row["set"], row["lambda"]) for row in rows):
        here = [row for row in rows if (row["set"], row["lambda"]) == (where, weight)]
        rule = max((row for row in here if row["seed"] is None and row["policy"] != "oracle"), key=_reward)
        agents = [row for row in here if row["seed"] is not None and "-" not in row["kind"]]
        for kind in dict.fromkeys(row["kind"] for row in agents):
            mean = fmean(row["reward"] for row in agents if row["kind"] == kind)
            found.append(f"{where}: {kind}, mean over seeds, {_beside(mean, rule)}")
        if agents:
            best = max(agents, key=_reward)
            found.append(
                f"{where}: the best of {len(agents)} agents, {best['policy']}, {_beside(best['reward'], rule)}"
            )
    return found or ["there are no agents to compare with the rules: add --train"]


def _reward(row: Mapping[str, Any]) -> float:
    return float(row["reward"])


def _beside(reward: float, rule: Mapping[str, Any]) -> str:
    """One agent beside the best rule."""
    more, where = reward - rule["reward"], f"at lambda {rule['lambda']:g}"
    if more < 0:
        return f"below {rule['policy']} {where} by {-more:.4f}"
    return f"at or above every rule {where}, the best of them being {rule['policy']}, by {more:.4f}"


def draw_pareto(results: Mapping[str, Any], path: Path) -> None:
    """Quality against cost, one line per kind over lambda; thin lines are single seeds."""
    from matplotlib.figure import Figure

    rows, sets = results["rows"], list(dict.fromkeys(row["set"] for row in results["rows"]))
    figure = Figure(figsize=(5.2 * len(sets) + 1.8, 4.6), layout="constrained")
    for axes, where in zip(np.atleast_1d(figure.subplots(1, len(sets))), sets, strict=True):
        _pareto(axes, [row for row in rows if row["set"] == where])
        axes.set_title({"case": "the test case", "trees": "mean over all trees"}[where], loc="left")
        axes.set_ylabel({"dice": "Dice", "iou": "IoU"}[results["metric"]])
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150)


def _pareto(axes: Axes, rows: Rows) -> None:
    for kind, (colour, line) in LINES.items():
        found = [row for row in rows if row["kind"] == kind]
        names = list(dict.fromkeys(row["policy"] for row in found))
        lines = [[(row["slots"], row["quality"]) for row in found if row["policy"] == name] for name in names]
        if not lines:
            continue
        for single in lines if len(lines) > 1 else []:
            axes.plot(*np.transpose(single), color=colour, linewidth=0.7, alpha=0.5)
        mean, label = np.mean(lines, axis=0).T, f"{kind}, mean of {len(lines)}" if len(lines) > 1 else kind
        axes.plot(*mean, color=colour, linestyle=line, marker="o", markersize=3.5, linewidth=1.8, label=label)
    points = {row["kind"]: (row["slots"], row["quality"]) for row in rows if row["kind"] in POINTS}
    for kind, point in points.items():
        if kind != "random":
            axes.plot(*point, color=GREY, linestyle="", marker=POINTS[kind], markersize=7, label=kind)
    _point_at_edge(axes, *points["random"])
    _name_ends(axes, [row for row in rows if row["kind"] == "oracle"])
    slots, seconds = (sum(row[name] for row in rows if row["kind"] == "all_children") for name in ("slots", "seconds"))
    axes.set_xlabel("cost in slots")
    # Seconds are slots times a measured constant of the tree, so one more axis shows them exactly for one tree.
    if slots and seconds:
        rate = seconds / slots
        above = axes.secondary_xaxis("top", functions=(lambda x: x * rate, lambda x: x / rate))
        above.set_xlabel("seconds of the fine network")
    axes.spines["right"].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.5)


def _point_at_edge(axes: Axes, slots: float, quality: float) -> None:
    """The random rule, so far below all others that it would squeeze them: at the lower edge, with its value."""
    low, high = axes.get_ylim()
    low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)  # above, the oracle's ends get their names
    axes.set_ylim(low, high)
    axes.plot(
        slots, max(quality, low), color=GREY, linestyle="", marker=POINTS["random"], markersize=7, label="random",
        clip_on=False,
    )  # fmt: skip
    if quality < low:
        axes.annotate(f"at {quality:.2f}", (slots, low), (8, 4), textcoords="offset points", fontsize=8, color=GREY)


def _name_ends(axes: Axes, rows: Rows) -> None:
    """Lambda at both ends of a line."""
    for row, above in ((rows[0], 7), (rows[-1], -13)):
        place = (row["slots"], row["quality"])
        axes.annotate(
            f"\u03bb {row['lambda']:g}", place, (0, above), textcoords="offset points", fontsize=8, ha="center"
        )


def draw_selection(
    path: Path,
    image: NDArray[Any],
    truth: NDArray[Any],
    tree: RoiTree,
    chosen: Sequence[Roi],
    aspect: float,
    title: str,
) -> None:
    """Boxes over the slice with most of the reference: selected ones with their place in the order, dropped ones.

    Args:
        path: PNG file.
        image: Shape (z, y, x).
        truth: True labels, same shape; all slices are drawn together.
        tree: Regions, on any grid over the same region of space.
        chosen: Selected regions in order.
        aspect: Height of a voxel of that grid over its width.
        title: Says who chose.
    """
    from matplotlib.patheffects import withStroke

    figure, (axes,), turn = _canvas(tree, truth, aspect, 1, extra=0.6)
    _background(axes, image, truth, tree, turn)
    wanted, parents = set(chosen), {p for i, p in enumerate(tree.parents) if not tree.is_leaf(i)}
    covered = {part for above in parents & wanted for part in tree.children[tree.parents.index(above)]}
    left = [roi for roi in tree.leaves if roi not in wanted | covered]
    split = [above for above in parents - wanted if wanted & set(tree.children[tree.parents.index(above)])]
    groups = (
        ("selected child", [roi for roi in chosen if roi not in parents], BLUE, "-", 1.4),
        ("selected parent", [roi for roi in chosen if roi in parents], ORANGE, "-", 1.8),
        ("parent of selected children", split, ORANGE, ":", 0.9),
        ("dropped", left, RED, (0, (2, 1.5)), 1.1),
    )
    for name, rois, colour, line, width in groups:
        for roi in rois:
            _rectangle(axes, roi.box, turn, color=colour, linestyle=line, linewidth=width)
        axes.plot([], [], color=colour, linestyle=line, linewidth=width, label=f"{name} ({len(rois)})")
    axes.plot([], [], color=GREEN, linewidth=1.2, label="reference, all slices")
    highest, lowest = axes.get_ylim()
    for place, roi in enumerate(chosen, 1):
        top, _, left_edge, _ = _flat(roi.box, turn)
        halo = [withStroke(linewidth=1.8, foreground="white")]
        row = max(top, lowest + 0.035 * (highest - lowest))  # inside of the picture
        axes.text(left_edge, row, str(place), fontsize=7, va="bottom", clip_on=True, path_effects=halo)
    axes.set_title(title, loc="left", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def draw_orders(
    path: Path,
    image: NDArray[Any],
    truth: NDArray[Any],
    tree: RoiTree,
    orders: Mapping[str, Sequence[Roi]],
    aspect: float,
) -> None:
    """The path through the boxes' centres, one panel per order; arguments as for ``draw_selection``."""
    from matplotlib.collections import LineCollection

    figure, panels, turn = _canvas(tree, truth, aspect, len(orders), extra=0.5)
    for axes, (name, order) in zip(panels, orders.items(), strict=True):
        _background(axes, image, truth, tree, turn)
        for roi in order:
            _rectangle(axes, roi.box, turn, color=GREY, linewidth=0.7)
        edges = np.array([_flat(roi.box, turn) for roi in order]).reshape(-1, 4)
        centres = np.stack([edges[:, 2:].mean(axis=1), edges[:, :2].mean(axis=1)], axis=1)
        path_lines = LineCollection(
            list(np.stack([centres[:-1], centres[1:]], axis=1)), cmap="viridis_r", linewidth=1.6
        )
        path_lines.set_array(np.arange(max(len(order) - 1, 0)))
        axes.add_collection(path_lines)
        if len(centres):
            axes.plot(*centres[0], "o", color="white", markersize=6, markeredgecolor=BLACK)
            axes.plot(*centres[-1], "s", color="white", markersize=6, markeredgecolor=BLACK)
        step = float(np.linalg.norm(np.diff(centres, axis=0), axis=1).mean()) if len(centres) > 1 else 0.0
        axes.set_title(f"{name}: mean step {step:.0f} voxels in the plane", loc="left", fontsize=10)
    figure.supxlabel("circle: first region, square: last; bright to dark: from first to last", fontsize=9)
    figure.savefig(path, dpi=100)


def _canvas(
    tree: RoiTree, truth: NDArray[Any], aspect: float, panels: int, extra: float
) -> tuple[Any, Sequence[Axes], bool]:
    """A figure with equal panels, and whether y and x change places so that these lie flat.

    Flat ones go below each other, others side by side.
    """
    from matplotlib.figure import Figure

    rows, columns = _window(tree, truth)
    height, width = (rows[1] - rows[0]) * aspect, columns[1] - columns[0]
    turn = bool(height > width)
    if turn:
        rows, columns, height, width = columns, rows, width, height
    flat = height < 0.6 * width
    across, down = (1, panels) if flat else (panels, 1)
    edge = 11.0 if flat else 6.5
    size = (across * edge, down * (max(edge * height / width, 2.0) + 0.3) + extra)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).reshape(-1)
    for one in axes:
        one.set(xlim=columns, ylim=rows[::-1], xticks=[], yticks=[], aspect=1 / aspect if turn else aspect)
    return figure, list(axes), turn


def _window(tree: RoiTree, truth: NDArray[Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Rows and columns of the tree's grid that hold all boxes and the reference, with some room around."""
    sides = []
    for axis in (1, 2):
        found = np.flatnonzero(truth.any(axis=(0, 3 - axis))) * tree.volume[axis] / truth.shape[axis]
        ends = [found.min(initial=np.inf), found.max(initial=-np.inf)]
        low = min([ends[0], *(roi.box.start[axis] for roi in tree.rois)])
        high = max([ends[1], *(roi.box.stop[axis] for roi in tree.rois)])
        room = max(0.15 * (high - low), 12)
        sides.append((max(low - room, 0.0), min(high + room, float(tree.volume[axis]))))
    return sides[0], sides[1]


def _background(axes: Axes, image: NDArray[Any], truth: NDArray[Any], tree: RoiTree, turn: bool) -> None:
    """The slice with most of the reference, pale, so that lines stand out, and outlines of it in all slices."""
    middle = int((truth != 0).sum(axis=(1, 2)).argmax())
    shown, outline = image[middle].astype(np.float32), (truth != 0).any(axis=0).astype(np.float32)
    height, width = tree.volume[1:]
    if turn:
        shown, outline, height, width = shown.T, outline.T, width, height
    low, high = np.percentile(shown, (1, 99.5))
    extent = (0, width, height, 0)
    axes.imshow(shown, cmap="gray", vmin=low, vmax=high, extent=extent, aspect=axes.get_aspect(), alpha=0.45)
    centres = [(np.arange(n) + 0.5) * size / n for n, size in zip(outline.shape, (height, width), strict=True)]
    if outline.any() and min(outline.shape) > 1:
        axes.contour(centres[1], centres[0], outline, levels=[0.5], colors=[GREEN], linewidths=1.1)
        axes.contourf(centres[1], centres[0], outline, levels=[0.5, 1], colors=[GREEN], alpha=0.15)


def _rectangle(axes: Axes, box: Box, turn: bool, **style: Any) -> None:
    from matplotlib.patches import Rectangle

    top, bottom, left, right = _flat(box, turn)
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **style))


def _flat(box: Box, turn: bool) -> tuple[int, int, int, int]:
    """First and last row, first and last column of a box."""
    rows, columns = ((box.start[axis], box.stop[axis]) for axis in ((2, 1) if turn else (1, 2)))
    return (*rows, *columns)


def show_all(results: Mapping[str, Any], ablated: Iterable[float]) -> list[Table]:
    """Every table that the results have content for."""
    rows = results["rows"]
    sets = list(dict.fromkeys(row["set"] for row in rows))
    tables = [share_table(rows, where) for where in sets] + [effort_table(rows, sets[0])]
    if any(row["seed"] is not None for row in rows):
        tables += [spread_table(rows, where) for where in sets]
    if any(row["kind"].startswith("policy-") for row in rows):
        tables += [ablation_table(rows, where, [w for w in results["lambdas"] if w in set(ablated)]) for where in sets]
    if results.get("order"):
        tables.append(order_table(results["order"], results["order_agent"]))
    if results.get("agent_share"):
        tables.append(agent_share_table(results["agent_share"]))
    return tables
