"""The picture of a data set's rows: quality against seconds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from benchmarks.page.findings import BASELINE, OURS, Row, Summary, front
from benchmarks.selection.plots import BLUE, GREY, RED
from coarse2fine.io import atomic_write

if TYPE_CHECKING:  # takes a second to import, and only pictures need it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Bbox

GROUPS = ((True, "coarse2fine", BLUE, "o"), (False, "others", RED, "s"))
"""Whether rows are ours, name, colour, and a marker for those who cannot tell colours apart."""
NAMED = {OURS: "accelerated", BASELINE: "nnU-Net"}
"""Rows that have their name beside their number."""
KEY = "results"
"""Name of the text in a PNG file that tells from which results it was drawn."""
DISTANCES, ANGLES = (5, 8, 12, 18, 25, 34), tuple(range(0, 360, 30))
"""Where a number may lie around its point, in points of 1/72 inch and degrees; the nearest free place is taken."""
MARKER, DPI = 6.5, 110

Point = tuple[float, float]


def fingerprint(summary: Summary) -> str:
    """Tells whether a picture still shows these results."""
    points = [(row["title"], row["ours"], row["total_s"], row[summary.quality]) for row in summary.judged]
    content = json.dumps([summary.quality, points, _bound_s(summary)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def drawn_from(path: Path) -> str | None:
    """The fingerprint of the results that a picture was drawn from; None if there is no such picture."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            return str(image.info.get(KEY))
    except OSError:  # no picture
        return None


def draw_pareto(summary: Summary, title: str, path: Path) -> None:
    """Write the picture of a data set's rows.

    Args:
        summary: Rows, of which at least one can be compared.
        title: Above the picture.
        path: PNG file. The same results make the same file.

    Raises:
        OutputError: If it cannot be written.
    """
    figure = plot_pareto(summary, title)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=DPI, format="png", metadata={"Software": None, KEY: fingerprint(summary)})


def plot_pareto(summary: Summary, title: str) -> Figure:
    """Quality against seconds: one numbered point for each row that can be compared, and their titles beside.

    Numbers rise with seconds.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = sorted(summary.judged, key=lambda row: (row["total_s"], row["title"]))
    figure = Figure(figsize=(10.5, 5.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row in rows:
        _, _, colour, marker = _group(row)
        axes.plot(
            row["total_s"], row[summary.quality], marker, color=colour, markersize=MARKER, markeredgecolor="white",
            markeredgewidth=0.5, zorder=3,
        )  # fmt: skip
    best = [(float(row["total_s"]), float(row[summary.quality])) for row in front(summary)]
    bound = _bound_s(summary)
    if best:
        axes.step(*zip(*best, strict=True), where="post", color=GREY, linewidth=1, zorder=1)
    if bound:
        axes.axvline(bound, color=BLUE, linewidth=1, linestyle=":", zorder=1)
    _dress(axes, summary, title)
    _list_rows(figure, rows, bool(bound))
    figure.draw_without_rendering()  # fixes where points lie, which numbers need
    heights = axes.get_ylim()
    lines = [[corner for (x, y), (after, _) in pairwise(best) for corner in ((x, y), (after, y))] + best[-1:]]
    lines += [[(bound, heights[0]), (bound, heights[1])]] if bound else []
    _number_points(axes, rows, summary.quality, lines)
    return figure


def _group(row: Row) -> tuple[bool, str, str, str]:
    return next(group for group in GROUPS if group[0] == row["ours"])


def _bound_s(summary: Summary) -> float | None:
    ours = summary.find(OURS)
    return ours["bound_s"] if ours else None


def _dress(axes: Axes, summary: Summary, title: str) -> None:
    """Scales with some room, ticks, names."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    seconds = [row["total_s"] for row in summary.judged] + [one for one in [_bound_s(summary)] if one]
    room = max((max(seconds) / min(seconds)) ** 0.08, 1.2)
    axes.set(xscale="log", xlim=(min(seconds) / room, max(seconds) * room))
    axes.margins(y=0.1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, loc="left", fontsize=10)
    axes.set(xlabel="seconds from file to file, logarithmic", ylabel=summary.measure)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.5)


def _list_rows(figure: Figure, rows: Sequence[Row], has_bound: bool) -> None:
    """The numbers' titles, and what lines mean."""
    from matplotlib.lines import Line2D

    entries: list[tuple[Line2D, str]] = []
    for ours, name, colour, marker in GROUPS:
        entries.append((Line2D([], [], linestyle=""), name))
        found = [(rank, row["title"]) for rank, row in enumerate(rows, 1) if row["ours"] == ours]
        style = Line2D([], [], linestyle="", marker=marker, color=colour, markersize=MARKER)
        entries += [(style, f"{rank}  {title}") for rank, title in found]
    entries.append((Line2D([], [], color=GREY, linewidth=1), "Pareto front"))
    if has_bound:
        entries.append((Line2D([], [], color=BLUE, linewidth=1, linestyle=":"), "lower bound of accelerated"))
    legend = figure.legend(*zip(*entries, strict=True), loc="outside right upper", frameon=False, fontsize=8)
    for text in legend.get_texts():
        if text.get_text() in [name for _, name, _, _ in GROUPS]:
            text.set_fontweight("bold")


def _number_points(axes: Axes, rows: Sequence[Row], quality: str, lines: Sequence[Sequence[Point]]) -> None:
    """A number at each point, where it covers no other number, point or line.

    A number for which no place is free takes the one with the least overlap. Those with a name choose first.
    """
    from matplotlib.transforms import Bbox

    scale = axes.figure.dpi / 72
    centres = [_pixel(axes, (row["total_s"], row[quality])) for row in rows]
    taken = [_around(centre, MARKER / 2 * scale) for centre in centres]
    for line in lines:
        corners = [_pixel(axes, corner) for corner in line]
        taken += [piece for start, end in pairwise(corners) for piece in _along(start, end)]
    frame = axes.get_window_extent()
    for index in sorted(range(len(rows)), key=lambda index: rows[index]["row"] not in NAMED):
        row, centre = rows[index], centres[index]
        text = f"{index + 1} {NAMED.get(row['row'], '')}".strip()
        label = axes.annotate(text, (row["total_s"], row[quality]), (0, 0), textcoords="offset points", fontsize=8)
        label.set(color=_group(row)[2], weight="bold" if row["row"] == OURS else "normal", ha="center", va="center")
        size = label.get_window_extent()
        width, height = size.width, size.height * 0.8  # digits have no descenders
        places = []
        for rank, (x, y) in enumerate(_offsets(width / scale, height / scale)):
            left, low = centre[0] + x * scale - width / 2, centre[1] + y * scale - height / 2
            box = Bbox.from_bounds(left, low, width, height)
            cover = sum(_common(box, other) for other in taken) + width * height - _common(box, frame)
            places.append((round(cover, 3), rank, (x, y), box))
        _, _, label.xyann, box = min(places, key=lambda place: place[:2])
        taken.append(box)


def _pixel(axes: Axes, point: Point) -> Point:
    x, y = axes.transData.transform(point)
    return float(x), float(y)


def _offsets(width: float, height: float) -> Iterator[Point]:
    """Places of a text's middle around its point, such that its edge is so far away; the nearest first."""
    for distance in DISTANCES:
        for angle in ANGLES:
            x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            yield x * (distance + width / 2), y * (distance + height / 2)


def _along(start: Point, end: Point, step: float = 4.0) -> Iterator[Bbox]:
    """Small boxes along a line."""
    count = max(1, math.ceil(math.dist(start, end) / step))
    for part in range(count + 1):
        share = part / count
        yield _around((start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])), 1.0)


def _around(centre: Point, reach: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(centre[0] - reach, centre[1] - reach, centre[0] + reach, centre[1] + reach)


def _common(first: Bbox, second: Bbox) -> float:
    """Area that two boxes have in common."""
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return float(width * height) if width > 0 and height > 0 else 0.0
