"""Markdown tables of the benchmark's rows and of experiments, and what their columns mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from benchmarks.common.markdown import table
from benchmarks.page.findings import (
    BASELINE,
    ONE_STAGE,
    OURS,
    Check,
    Row,
    Summary,
    compare,
    front,
    in_doubt,
    significant,
)
from benchmarks.page.paired import MARGIN

DASH: Final = "-"
MOST_ROWS, MOST_COLUMNS = 12, 14
"""Of an experiment's table; the JSON holds the rest."""
PARTS = ("kind", "varied")
"""An experiment's rows that differ in one of these say different things, and get tables of their own."""

Show = Callable[[float], str]


def three_decimals(value: float) -> str:
    """As qualities are shown."""
    return f"{value:.3f}"


def whole(value: float) -> str:
    """No decimals."""
    return f"{value:.0f}"


def millions(value: float) -> str:
    """In millions."""
    return significant(value / 1e6)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table of rows.

    Attributes:
        key: Of the row.
        head: Above the column.
        show: Makes a text of a number.
        meaning: One line, with the unit.
    """

    key: str
    head: str
    show: Show
    meaning: str


RESULT = (
    Column("ratio", "ratio", lambda value: f"{significant(value)}x", "nnU-Net's total seconds over the row's"),
    Column("total_s", "total s", significant, "seconds from file to file with models loaded, the median of all turns"),
    Column("coarse_s", "coarse s", significant, "of these from the volume in memory to the choice of regions"),
    Column("fine_s", "fine s", significant, "of these from the chosen regions to the labels; nnU-Net: everything"),
    Column("dice", "Dice", three_decimals, "twice the common voxels over both masks' voxels, 0 to 1"),
    Column("iou", "IoU", three_decimals, "common voxels over voxels in either mask, 0 to 1"),
    Column("hd95", "HD95", significant, "95th percentile of surface distances in the spacing's unit; a dash: infinite"),
    Column("surface_dice", "surface Dice", three_decimals, "share of surface voxels within a tolerance, 0 to 1"),
    Column("ap", "AP", three_decimals, "average precision of objects, mean over IoU 0.50 to 0.95, 0 to 1"),
    Column("recall", "recall", three_decimals, "share of true objects that the result touches, 0 to 1"),
    Column("agreement", "agreement", three_decimals, "Dice between the row's result and nnU-Net's, 0 to 1"),
)
EFFORT = (
    Column("network_voxels", "network Mvoxels", millions, "million voxels that went into networks"),
    Column("canvases", "canvases", whole, "inputs of the fine network: canvases, or tiles"),
    Column("fill", "fill", three_decimals, "mean share of a canvas that crops fill; 1 for tiles"),
    Column("bound_ratio", "of bound", significant, "total seconds over the row's own lower bound"),
    Column("peak_rss_mb", "peak MB", whole, "peak resident memory of the process; the highest of all runs"),
    Column("peak_gpu_mb", "peak GPU MB", whole, "peak of what tensors took on the GPU; the highest of all runs"),
    Column(
        "runs",
        "runs",
        whole,
        "how many turns the row had; one under 3 s has five runs in each, of which the median counts",
    ),
    Column("spread", "spread", lambda value: f"{value:.1%}", "slowest less fastest turn, over the median turn"),
)
QUALITIES: Final = frozenset(one.key for one in (*RESULT, *EFFORT) if one.show is three_decimals)


def show(value: float | None, form: Show) -> str:
    """A number as a text; a dash if there is none."""
    return DASH if value is None else form(value)


def row_tables(summary: Summary) -> Iterator[str]:
    """Two tables of a data set's rows: what they reach, and what they take.

    Rows of coarse2fine stand apart from others. Columns of which nothing is known are left out.
    """
    for group in (RESULT, EFFORT):
        columns = [one for one in group if any(row[one.key] is not None for row in summary.rows)]
        lines = []
        for ours, title in ((True, "**coarse2fine**"), (False, "**others**")):
            rows = [row for row in summary.rows if row["ours"] == ours]
            lines += [[title, *[""] * len(columns)]] if rows else []
            lines += [_line(row["title"], row, columns) for row in rows]
        if group is RESULT and (bound := bound_row(summary)):
            lines.append(_line("**lower bound**", bound, columns))
        yield table(["row", *(one.head for one in columns)], lines)


def _line(title: str, row: Row, columns: Iterable[Column]) -> list[str]:
    return [title, *(show(row.get(one.key), one.show) for one in columns)]


def paired_table(summary: Summary) -> str:
    """Rows beside one-stage mode, case by case; empty of a single case."""
    lines = []
    for row in summary.judged:
        paired = row["paired"]
        if paired.interval is not None:
            low, high = paired.interval
            cells = [f"{row[summary.quality]:.3f}", f"{paired.deviation:.3f}", f"{paired.difference:+.4f}"]
            lines.append([row["title"], *cells, f"{low:+.4f} to {high:+.4f}", _yes(paired.non_inferior)])
    heads = [f"mean {summary.measure}", "spread over cases", "less one-stage", "95 % interval"]
    return table(["row", *heads, f"no worse by {MARGIN:g}"], lines) if lines else ""


def labels_table(summary: Summary) -> str:
    """Mean Dice of each label, of the rows that stand out; empty where labels are one, or nobody tells."""
    rows = [row for row in map(summary.find, (BASELINE, ONE_STAGE, OURS)) if row and len(row["dice_by_label"]) > 1]
    names = list(rows[0]["dice_by_label"]) if rows else []
    lines = [[name, *(show(row["dice_by_label"].get(name), three_decimals) for row in rows)] for name in names]
    return table(["label", *(row["title"] for row in rows)], lines) if lines else ""


def bound_row(summary: Summary) -> Row:
    """The least that ``accelerated`` could take; empty if that is unknown."""
    ours, base = summary.find(OURS), summary.find(BASELINE)
    if ours is None or not ours["bound_s"]:
        return {}
    return {"total_s": ours["bound_s"], "ratio": base["total_s"] / ours["bound_s"] if base else None}


def alternatives_table(summary: Summary) -> str:
    """How ``accelerated`` stands against what users have today; empty if nothing can be compared."""
    ours, quality = summary.find(OURS), summary.quality
    if ours not in summary.judged:
        return ""
    lines, best = [], front(summary)
    for other in summary.judged:
        if not other["ours"]:
            faster, better = other["total_s"] / ours["total_s"], ours[quality] - other[quality]
            doubt = f"{compare(ours, other, quality)}{'?' if in_doubt(ours, other) else ''}"
            lines.append([other["title"], doubt, f"{significant(faster)}x", f"{better:+.3f}", _yes(other in best)])
    heads = ["against", "accelerated", "times as fast", f"{summary.measure} less theirs", "on the Pareto front"]
    return table(heads, lines, left=2)


def aims_table(found: Iterable[Check]) -> str:
    """Aims, and whether they are met."""
    lines = [[one.kind, one.other, one.value, one.aim, "yes" if one.met else "**no**"] for one in found]
    return table(["what", "beside", "measured", "aim", "met"], lines, left=2)


def gaps_table(found: Iterable[Check]) -> str:
    """Aims that are missed, of several data sets."""
    lines = [[one.dataset, one.kind, one.other, one.value, one.aim, significant(one.size)] for one in found]
    return table(["data set", "what", "beside", "measured", "aim", "times the aim"], lines, left=3)


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def column_meanings() -> str:
    """A table of what columns mean."""
    return table(["column", "meaning"], [[one.head, one.meaning] for one in (*RESULT, *EFFORT)], left=2)


def experiment_tables(rows: Sequence[Row]) -> Iterator[str]:
    """Tables of an experiment's flat rows, each with a line that says what it leaves out.

    What is the same in all rows is said once instead of in a column. Of long tables, evenly spread rows are shown.
    """
    parts: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        parts.setdefault(tuple(row.get(key) for key in PARTS), []).append(row)
    for part in parts.values():
        keys = [key for key in dict.fromkeys(key for row in part for key in row) if _is_told(key, part)]
        fixed = [key for key in keys if len(part) > 1 and len({json.dumps(row.get(key)) for row in part}) == 1]
        columns, picked = [key for key in keys if key not in fixed], pick(part, MOST_ROWS)
        said = "; ".join(f"{spoken(key)} {value_text(key, part[0].get(key))}" for key in fixed)
        less = [f"{len(picked)} of {len(part)} rows, evenly picked"] if len(picked) < len(part) else []
        less += [f"{MOST_COLUMNS} of {len(columns)} columns"] if len(columns) > MOST_COLUMNS else []
        notes = [f"In all rows: {said}."] if said else []
        notes += [f"Shown: {', '.join(less)}."] if less else []
        if notes:
            yield " ".join(notes)
        columns = columns[:MOST_COLUMNS]
        words = next(
            (at for at, key in enumerate(columns) if not any(isinstance(row.get(key), str) for row in part)),
            len(columns),
        )
        if columns:
            lines = [[value_text(key, row.get(key)) for key in columns] for row in picked]
            yield table([spoken(key) for key in columns], lines, left=max(1, words))


def _is_told(key: str, rows: Iterable[Row]) -> bool:
    """Whether a column holds anything, and single values only."""
    values = [row.get(key) for row in rows]
    return any(value is not None for value in values) and not any(isinstance(value, (dict, list)) for value in values)


def pick(rows: Sequence[Row], count: int) -> list[Row]:
    """At most so many rows, evenly spread, the first and the last among them."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / (count - 1))] for index in range(count)]


def spoken(key: str) -> str:
    """A key as a reader would say it.

    Example:
        >>> [spoken(key) for key in ("total_s", "peak_rss_mb", "surface_dice")]
        ['total s', 'peak rss MB', 'surface Dice']
    """
    names = MappingProxyType(
        {"mb": "MB", "dice": "Dice", "iou": "IoU", "hd95": "HD95", "ap": "AP", "nms": "NMS", "mvoxel": "Mvoxel"}
    )
    return " ".join(names.get(word, word) for word in key.split("_"))


def value_text(key: str, value: Any) -> str:
    """A value of an experiment."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return _yes(value)
    if not isinstance(value, float):
        return str(value)
    return three_decimals(value) if QUALITIES & {key, key.partition("_")[0]} else significant(value)


def leaves(numbers: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of nested numbers."""
    for key, value in numbers.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{spoken(key)} ")
        else:
            yield f"{above}{spoken(key)}", value
