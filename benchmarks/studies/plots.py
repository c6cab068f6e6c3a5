"""Pictures of the experiments, drawn from their rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.selection.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED

if TYPE_CHECKING:  # takes a second to import, and only pictures need it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
MEASURES = {"dice": "Dice", "iou": "IoU"}
COLOURS = (BLUE, RED, GREEN, ORANGE, PINK, BLACK, GREY, "#56B4E9")
AXIS_COLOURS = {"z": BLUE, "y": RED, "x": GREEN}
UNITS = {
    "canvases": "canvases",
    "boxes": "boxes",
    "mvoxels": "Mvoxels into the fine network",
    "fill": "filled share of canvases",
    "wanted": "share of canvases that shows boxes",
    "total_s": "whole run in s",
    "fine_s": "fine stage in s",
    "ms_per_mvoxel": "network, ms per Mvoxel",
    "volume_share": "share of the volume",
    "mass_share": "share of the heatmap's mass",
    "children": "children",
    "parents": "parents",
    **MEASURES,
}
"""Names of columns on axes."""
QUANTITY_NAMES = {
    "score": "score",
    "mass": "mass in voxels",
    "size": "size in voxels",
    "z": "z in voxels",
    "y": "y in voxels",
    "x": "x in voxels",
}


def draw_selection(rows: Rows, path: Path) -> None:
    """1: quality against seconds, and the share of the heatmap's mass that was seen."""
    figure, panels = panels_of(rows, "Who selects regions", 1, 2, (11.5, 5.2))
    measure = rows[0]["measure"]
    for axes, name in zip(panels, (measure, "mass_share"), strict=True):
        places = [(row["fine_s"], row[name]) for row in rows]
        label_beside(axes, places, [f"{row['selection']}, {row['canvases']} canvases" for row in rows])
        axes.set(xlabel=UNITS["fine_s"], ylabel=UNITS[name])
    save(figure, path)


def draw_capacity(rows: Rows, path: Path) -> None:
    """2: quality, seconds, canvases and fill by crops per canvas."""
    measure = rows[0]["measure"]
    figure, panels = panels_of(rows, "Crops per canvas, same-size packing", 1, 4, (15, 4))
    for axes, name in zip(panels, (measure, "fine_s", "canvases", "fill"), strict=True):
        for norm, colour, line in (("case", BLUE, "-"), ("canvas", RED, "--")):
            found = [row for row in rows if row["norm"] == norm]
            places = [str(row["capacity"]) for row in found]
            axes.plot(places, [row[name] for row in found], color=colour, linestyle=line, marker="o", label=norm)
            for row in found if name == measure else []:
                if row["alone"] and norm == "case":
                    axes.annotate("not packed", (str(row["capacity"]), row[name]), (9, 2), **OFFSET)
        axes.set(xlabel="crops per canvas", ylabel=UNITS[name])
        from_zero(axes, name)
    panels[0].legend(title="norm", frameon=False)
    save(figure, path)


def draw_ordering(rows: Rows, path: Path) -> None:
    """3: quality of each order, by packing and norm."""
    measure = rows[0]["measure"]
    figure, (axes,) = panels_of(rows, f"Order of {rows[0]['boxes']} regions on canvases", 1, 1, (9, 5))
    groups = list(dict.fromkeys((row["packing"], row["norm"]) for row in rows))
    orders = list(dict.fromkeys("random" if row["order"].startswith("random") else row["order"] for row in rows))
    for order, colour, marker in zip(orders, (BLUE, GREEN, GREY), ("D", "s", "o"), strict=False):
        found = [row for row in rows if row["order"].startswith(order)]
        places = [groups.index((row["packing"], row["norm"])) for row in found]
        shift = {0: -0.15, 1: 0.0, 2: 0.15}[orders.index(order)]
        label = {"space": "in space", "random": "random, 3 seeds"}.get(order, f"as {order} chose")
        axes.plot(np.add(places, shift), [row[measure] for row in found], marker, color=colour, label=label, alpha=0.8)
    names = [f"{packing.replace('_', ' ')}\nnorm: {norm}" for packing, norm in groups]
    axes.set_xticks(range(len(groups)), names)
    axes.set(ylabel=MEASURES[measure], xlim=(-0.5, len(groups) - 0.5))
    axes.legend(frameon=False)
    save(figure, path)


def draw_resize_ratio(rows: Rows, path: Path) -> None:
    """4: sizes and ratios by NMM threshold, axis by axis."""
    figure, panels = panels_of(rows, f"Merged regions; heatmap: {rows[0]['heatmap']}", 2, 4, (15, 7))
    once = [row for row in rows if row["postprocess"] == "crop_and_resize"]
    ways = {"resize_only": ("resize only", "--"), "crop_and_resize": ("crop and resize", "-")}
    x = [row["nmm_threshold"] for row in once]
    for column, (axis, colour) in enumerate(AXIS_COLOURS.items()):
        edges, ratios = panels[column], panels[column + 4]
        for what, line in (("parent", "-"), ("child", ":")):
            values = numbers(row[f"{what}_edge_{axis}_voxels"] for row in once)
            edges.plot(
                x, values, color=colour, linestyle=line, marker=".", label={"child": "children"}.get(what, "parents")
            )
        for way, (name, line) in ways.items():
            values = numbers(row[f"ratio_{axis}"] for row in rows if row["postprocess"] == way)
            ratios.plot(x, values, color=colour, linestyle=line, marker=".", label=name)
        ratios.axhline(1, color=GREY, linewidth=0.8)
        edges.set(ylabel=f"mean edge along {axis} in voxels")
        ratios.set(ylabel=f"mean ratio along {axis},\nvoxels of the volume per voxel shown")
        for axes in (edges, ratios):
            from_zero(axes)
            axes.legend(frameon=False)
    panels[3].plot(x, [row["parents"] for row in once], color=BLACK, marker=".", label="parents")
    panels[3].plot(x, [row["children"] for row in once], color=BLACK, linestyle=":", marker=".", label="children")
    panels[3].set(ylabel="boxes")
    panels[7].plot(x, [row["mvoxels"] for row in once], color=BLACK, marker=".", label="all parents")
    panels[7].set(ylabel=UNITS["mvoxels"])
    for axes in (panels[3], panels[7]):
        from_zero(axes)
        axes.legend(frameon=False)
    for axes in panels:
        axes.set(xlabel="NMM threshold")
    save(figure, path)


def draw_packing(rows: Rows, path: Path) -> None:
    """5: canvases and fill; where images are, also seconds and quality."""
    measure = rows[0]["measure"]
    geometry, real = ([row for row in rows if row["kind"] == kind] for kind in ("geometry", "run"))
    columns = ["mvoxels", "fill", "wanted"] + (["fine_s", "total_s", measure] if real else [])
    size = (15, 7.8 if real else 4.2)
    figure, panels = panels_of(rows, f"Packing; heatmap: {geometry[0]['heatmap']}", 2 if real else 1, 3, size)
    for axes, name in zip(panels, columns, strict=True):
        shown = geometry if name in ("mvoxels", "fill", "wanted") else real
        labels = [
            f"{row['packing'].replace('_', ' ')}\n{row['volume_times']}x volume\n{row['boxes']} boxes\n"
            f"{row['canvases']} canvases"
            for row in shown
        ]
        bars(axes, labels, [row[name] for row in shown], UNITS[name], colours=2)
    save(figure, path)


def draw_large_volume(rows: Rows, path: Path) -> None:
    """6: seconds and memory by volume."""
    figure, panels = panels_of(rows, "Ever larger volumes, by mirroring", 1, 2, (12, 5))
    slopes = {row["mode"]: row for row in rows if row["kind"] == "slope"}
    units = (
        ("total_s", "s_per_gvoxel", "whole run in s", "s"),
        ("peak_rss_mb", "mb_per_gvoxel", "peak memory in MB", "MB"),
    )
    for axes, (name, slope, title, unit) in zip(panels, units, strict=True):
        for mode, colour in (("accelerated", BLUE), ("nnunet", RED)):
            found = [row for row in rows if row["kind"] == "run" and row["mode"] == mode and row[name] is not None]
            measured = [row for row in found if not row["extrapolated"]]
            guessed = [row for row in found if row["extrapolated"]]
            steep = slopes.get(mode, {}).get(slope)
            label = mode if steep is None else f"{mode}, {steep:.0f} {unit} per Gvoxel"
            axes.plot(*line_of(measured, name), color=colour, marker="o", label=label)
            if guessed:
                style: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "markevery": slice(1, None)}
                joined = line_of([*measured[-1:], *guessed], name)
                axes.plot(*joined, ":", color=colour, label=f"{mode}, extrapolated", zorder=1, **style)
        axes.set(xlabel="volume in Gvoxel", ylabel=title, xlim=(0, None), ylim=(0, None))
        axes.legend(frameon=False)
    save(figure, path)


def draw_foreground_share(rows: Rows, path: Path) -> None:
    """12: seconds by share of foreground."""
    figure, panels = panels_of(rows, "Ever more foreground, by exchanging blocks", 1, 2, (12, 5))
    slopes = {row["mode"]: row["s_per_percent"] for row in rows if row["kind"] == "slope"}
    for axes, (name, title) in zip(
        panels, (("total_s", "whole run in s"), ("peak_rss_mb", "peak memory in MB")), strict=True
    ):
        for mode, colour in (("accelerated", BLUE), ("nnunet", RED)):
            found = [row for row in rows if row["kind"] == "run" and row["mode"] == mode and row[name] is not None]
            label = f"{mode}, {slopes[mode]:+.2f} s per % of foreground" if mode in slopes else mode
            shares = [100 * row["foreground_share"] for row in found]
            axes.plot(shares, [row[name] for row in found], color=colour, marker="o", label=label)
        axes.set(xlabel="foreground voxels in %", ylabel=title, xlim=(0, None), ylim=(0, None))
    panels[0].legend(frameon=False)
    save(figure, path)


def draw_splits(rows: Rows, path: Path) -> None:
    """7: quality of every case in both modes, and means with their ranges."""
    measure = rows[0]["measure"]
    cases = [row for row in rows if row["kind"] == "case"]
    names = list(dict.fromkeys((row["case"], row["model"], row["split"], row["trained_on"]) for row in cases))
    seen = {True: "trained on it", False: "not trained on it"}
    labels = [f"{case}, {split}\n{seen[known]}" for case, _, split, known in names]
    summaries = [row for row in rows if row["kind"] == "summary"]
    kinds = list(dict.fromkeys(row["trained_on"] for row in summaries))
    labels += [
        f"mean of {next(s['case'] for s in summaries if s['trained_on'] == kind)},\n{seen[kind]}" for kind in kinds
    ]
    figure, (axes,) = panels_of(rows, "Case by case", 1, 1, (3 + 1.6 * len(labels), 5), case="")
    for mode, colour, shift in (("accelerated", BLUE, -0.1), ("one-stage", RED, 0.1)):
        found = {(row["case"], row["model"]): row[measure] for row in cases if row["mode"] == mode}
        axes.plot(
            [i + shift for i in range(len(names))], [found[name[:2]] for name in names], "o", color=colour, label=mode
        )
        for place, kind in enumerate(kinds, len(names)):
            row = next(row for row in summaries if (row["mode"], row["trained_on"]) == (mode, kind))
            ends = (row[f"{measure}_least"], row[f"{measure}_greatest"])
            axes.plot([place + shift] * 2, ends, color=colour, linewidth=1.2)
            axes.plot(place + shift, row[measure], "D", color=colour)
    axes.axvline(len(names) - 0.5, color=GREY, linewidth=0.8)
    axes.set_xticks(range(len(labels)), labels, fontsize=9)
    axes.set(ylabel=f"{MEASURES[measure]}; lines: least to greatest", xlim=(-0.5, len(labels) - 0.5))
    axes.legend(frameon=False)
    save(figure, path)


def draw_roi_threshold(rows: Rows, path: Path) -> None:
    """8: recall and cost by threshold."""
    figure, panels = panels_of(rows, f"Heatmap threshold; heatmap: {rows[0]['heatmap']}", 1, 3, (15, 4.6))
    x = [row["threshold"] for row in rows]
    for name, text, colour, line in (
        ("voxels_in_boxes", "voxels, in boxes", BLUE, "-"),
        ("objects_in_boxes", f"objects ({rows[0]['objects']}), half or more in boxes", RED, "-"),
        ("voxels_above", "voxels, above threshold", BLUE, ":"),
        ("objects_above", "objects, half or more above threshold", RED, ":"),
        ("volume_share", "share of the volume in boxes", BLACK, "--"),
    ):
        panels[0].plot(x, [row[name] for row in rows], color=colour, linestyle=line, marker=".", label=text)
    panels[0].set(ylabel="share of the reference, and of the volume", ylim=(0, 1.02))
    for name, colour, line in (("children", GREEN, "-"), ("parents", ORANGE, "-"), ("boxes", BLUE, "--")):
        label = {"boxes": "chosen"}.get(name, name)
        panels[1].plot(x, [row[name] for row in rows], color=colour, linestyle=line, marker=".", label=label)
    panels[1].set(ylabel="boxes")
    from_zero(panels[1])
    panels[2].plot(x, [row["mvoxels"] for row in rows], color=BLACK, marker=".")
    panels[2].set(ylabel=UNITS["mvoxels"])
    from_zero(panels[2])
    for axes in panels:
        axes.set(xscale="log", xlabel="rois.threshold (heatmap probability)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    panels[1].legend(frameon=False)
    save(figure, path)


def draw_slot_and_nms(rows: Rows, path: Path) -> None:
    """9: above by slot size, below by NMS threshold and window step."""
    measure = rows[0]["measure"]
    figure, panels = panels_of(rows, "Slot size (same size); NMS threshold by window step", 2, 4, (15, 7.6))
    slots, grid = ([row for row in rows if row["varied"] == kind] for kind in ("slot", "nms"))
    for index, name in enumerate(("boxes", "canvases", "fine_s", measure)):
        bars(
            panels[index],
            [f"{row['slot']}\n{row['slot_voxels']}" for row in slots],
            [row[name] for row in slots],
            UNITS[name],
        )
        axes = panels[index + 4]
        for step, colour, size in zip(sorted({row["window_step"] for row in grid}), COLOURS, (10, 7, 4), strict=False):
            found = [row for row in grid if row["window_step"] == step and row.get(name) is not None]
            x, values = ([row[key] for row in found] for key in ("nms_threshold", name))
            # Equal lines stay visible below each other.
            axes.plot(x, values, color=colour, marker="o", markersize=size, linewidth=size / 3, label=f"step {step:g}")
        axes.set(xlabel="rois.nms_threshold", ylabel=UNITS[name])
        from_zero(axes, name)
    panels[4].legend(frameon=False)
    save(figure, path)


def draw_preferred_order(rows: Rows, path: Path) -> None:
    """10: rank against each quantity for the first chooser, and the correlations of all."""
    first = rows[0]["chosen_by"]
    figure, panels = panels_of(rows, f"Rank of the regions that {first} chooses", 2, 4, (15, 7.2))
    picks = [row for row in rows if row["kind"] == "pick" and row["chosen_by"] == first]
    known = {(row["chosen_by"], row["with"]): row["spearman"] for row in rows if row["kind"] == "correlation"}
    for axes, (name, text) in zip([*panels[:3], *panels[4:7]], QUANTITY_NAMES.items(), strict=True):
        axes.plot([row["rank"] for row in picks], [row[name] for row in picks], ".", color=BLUE)
        rho = known[first, name]
        axes.set_title("no correlation: constant" if rho is None else f"Spearman {rho:+.2f}", fontsize=10)
        axes.set(xlabel="rank (1 = first)", ylabel=text, yscale="log" if name in ("mass", "size") else "linear")
    table = panels[3]
    panels[7].remove()
    choosers = list(dict.fromkeys(name for name, _ in known))
    values = np.array(
        [[np.nan if known[who, what] is None else known[who, what] for what in QUANTITY_NAMES] for who in choosers]
    )
    table.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = "-" if np.isnan(value) else f"{value:+.2f}"
        table.text(
            column, row, text, ha="center", va="center", fontsize=8, color="white" if abs(value) > 0.6 else BLACK
        )
    table.set_xticks(range(len(QUANTITY_NAMES)), list(QUANTITY_NAMES))
    table.set_yticks(range(len(choosers)), choosers, fontsize=8)
    table.set_title("Spearman of rank with", fontsize=10)
    table.grid(visible=False)
    save(figure, path)


def draw_network_size(rows: Rows, path: Path) -> None:
    """11: quality and seconds by parameters."""
    measure = rows[0]["measure"] if rows else "dice"
    figure, panels = panels_of(rows, "Size of the fine network, accelerated", 1, 3, (16, 4.8))
    for axes, name in zip(panels, (measure, "fine_s", "ms_per_mvoxel"), strict=True):
        places = [(row["parameters"] / 1e6, row[name]) for row in rows]
        label_beside(axes, places, [f"{row['role']}, {row['patch']}" for row in rows])
        axes.set(xlabel="million parameters", ylabel=UNITS[name])
    save(figure, path)


def draw_neighbours(rows: Rows, path: Path) -> None:
    """13, ours: quality, and how far labels are from those of regions alone, by norm and context."""
    measure = rows[0]["measure"]
    figure, panels = panels_of(rows, "What regions on a canvas do to each other", 1, 2, (14, 4.6))
    names = [f"{row['norm']}\n{row['context']}" for row in rows]
    bars(panels[0], names, [row[measure] for row in rows], UNITS[measure], 1)
    bars(panels[1], names, [row["mismatch"] for row in rows], "mismatch: 1 - Dice with regions alone", 1)
    save(figure, path)


OFFSET: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}


def panels_of(
    rows: Rows, title: str, down: int, across: int, size: tuple[float, float], case: str | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure that names data set and case, and its panels row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    where = rows[0]["dataset"] + ("" if case == "" else f", case {rows[0]['case']}")
    figure.suptitle(f"{title} ({where})", fontsize=12)
    panels = list(figure.subplots(down, across, squeeze=False).reshape(-1))
    for axes in panels:
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def label_beside(axes: Axes, places: Sequence[tuple[float, float]], texts: Sequence[str]) -> None:
    """Draw points and their names in a column on the right, as far apart as letters need, with lines between them."""
    axes.margins(x=0.06, y=0.08)
    for place, colour in zip(places, cycle(len(places)), strict=True):
        axes.plot(*place, "o", color=colour, markersize=8)
    low, high = axes.get_ylim()
    order = sorted(range(len(places)), key=lambda index: (places[index][1], -places[index][0]))
    heights = [(places[index][1] - low) / (high - low) for index in order]
    gap = 0.05
    for rank in range(1, len(heights)):
        heights[rank] = max(heights[rank], heights[rank - 1] + gap)
    for rank in range(len(heights) - 1, -1, -1):  # back down from the upper edge
        limit = 1.0 if rank == len(heights) - 1 else heights[rank + 1] - gap
        heights[rank] = min(heights[rank], limit)
    for index, height in zip(order, heights, strict=True):
        colour = cycle(len(places))[index]
        axes.annotate(
            texts[index], places[index], (1.04, height), textcoords="axes fraction", fontsize=9, va="center",
            color=colour, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkB": 4, "relpos": (0, 0.5)},
        )  # fmt: skip


def bars(axes: Axes, labels: Sequence[str], values: Sequence[float], title: str, colours: int | None = None) -> None:
    """Bars with their values, in so many colours over and over; None = each its own."""
    places = range(len(values))
    drawn = axes.bar(places, values, color=cycle(colours or len(values)), width=0.6, zorder=3)
    axes.bar_label(drawn, [f"{value:.3g}" for value in values], fontsize=9)
    axes.set_xticks(places, labels, fontsize=8)
    axes.set(ylabel=title)
    axes.margins(y=0.12)


def cycle(count: int) -> list[str]:
    """As many colours."""
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def from_zero(axes: Axes, name: str = "") -> None:
    """Counts and seconds begin at zero, with room for the highest; quality shows its differences."""
    if name not in MEASURES:
        axes.set_ylim(0, max(1.06 * axes.dataLim.y1, 1e-9))


def line_of(rows: Rows, name: str) -> tuple[list[float], list[float]]:
    """A figure by volume."""
    return [row["gvoxels"] for row in rows], [row[name] for row in rows]


def numbers(values: Any) -> list[float]:
    """Gaps for what is not known."""
    return [float("nan") if value is None else value for value in values]


def save(figure: Figure, path: Path) -> None:
    """As PNG."""
    figure.savefig(path, dpi=110, format="png")
