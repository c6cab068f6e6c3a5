"""What the numbers of the benchmark say, as numbers: means over cases, who beats whom, and how far aims are met.

Everything here follows from rows of ``results.json`` by the rules that the constants and docstrings state.
``tables.py`` makes text of it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from benchmarks.page.paired import compare_cases, mean_by_label

Row = Mapping[str, Any]
Verdict = Literal["dominates", "loses", "trades"]
OURS, BASELINE, ONE_STAGE, BOUND = "accelerated", "nnunet", "one_stage", "bound"
"""Names of the rows that stand out; ``rows/methods.py`` says what each does."""
MEASURES: Final = MappingProxyType({"dice": "Dice", "iou": "IoU"})
MEANS = (
    "total_s", "coarse_s", "fine_s", "bound_s", "dice", "iou", "hd95", "surface_dice", "ap", "recall", "agreement",
    "network_voxels", "canvases", "fill",
)  # fmt: skip
HIGHEST = ("peak_rss_mb", "peak_gpu_mb")


@dataclass(frozen=True, slots=True)
class Aim:
    """What ``accelerated`` shall reach on a data set.

    Attributes:
        faster: Least ratio of seconds to those of looking everywhere.
        loss: How much less its quality may be.
    """

    faster: float
    loss: float


AIMS: Final[Mapping[str, Aim]] = MappingProxyType({"lung": Aim(35.0, 0.0), "em": Aim(3.0, 0.01)})
"""The project's own aims. The lung CT is nearly empty, so almost all of the work can be saved, and less to look at
means fewer false findings: no loss is allowed. In the EM stack there is something to find everywhere."""
BOUND_AIM: Final = 1.25
"""Greatest ratio of seconds to the lower bound: what choosing, gaps on canvases, reading and writing may cost."""
FILL_AIM, FILL_BOXES = 0.8, 50
"""Least share of canvases that crops fill, and from how many boxes on: fewer cannot be packed so well."""
SPREAD_AIM: Final = 0.1
"""Greatest difference of a row's runs as a share of their median."""
EVEN: Final = 0.001
"""Qualities that differ by no more count as equal: the last digit that is shown."""
ROUNDING: Final = 1e-9
"""What computers get wrong: an aim that is reached exactly is met."""
POOR: Final = 0.5
"""Where nnU-Net's own quality is below it, its fine model is a weak one, and qualities say little."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One data set's rows, each with its means over the same cases.

    Attributes:
        name: Of the data set.
        quality: ``dice`` or ``iou``, the measure that counts most.
        rows: In the order of tables, without the lower bound. Keys as in ``results.json``, and ``ratio``, ``spread``,
            ``boxes`` (the number of them) and ``bound_ratio``; ``runs`` is the number of runs of each case, and
            ``paired`` how its quality differs from one-stage mode's.
        cases: What rows are means over.
        trained_on: Whether models were trained on these cases.
        incomplete: Titles of rows that lack some of the cases and are left out.
    """

    name: str
    quality: str
    rows: tuple[Row, ...]
    cases: tuple[str, ...]
    trained_on: bool = False
    incomplete: tuple[str, ...] = ()

    def find(self, name: str) -> Row | None:
        """A row by name."""
        return next((row for row in self.rows if row["row"] == name), None)

    @property
    def measure(self) -> str:
        """The quality's name in texts."""
        return MEASURES[self.quality]

    @property
    def judged(self) -> tuple[Row, ...]:
        """Rows that can be compared."""
        return tuple(row for row in self.rows if row[self.quality] is not None and row["total_s"])


def summarise(name: str, quality: str, rows: Sequence[Row]) -> Summary:
    """Sum rows up over cases: those that models were not trained on, if there are any, and that nnU-Net has segmented.

    Args:
        name: Of the data set.
        quality: The measure that counts most.
        rows: Of ``results.json``, of all cases.
    """
    test = [row for row in rows if not row["trained_on"]]
    found: dict[str, dict[str, Row]] = {}
    for row in test or rows:
        if row["row"] != BOUND:
            found.setdefault(row["row"], {})[row["case"]] = row
    wanted = sorted(found.get(BASELINE) or found.get(OURS) or next(iter(found.values()), {}))
    complete = {row: [by_case[case] for case in wanted] for row, by_case in found.items() if {*wanted} <= {*by_case}}
    means = [_over_cases(of_row) for of_row in complete.values()]
    reference = _scores(complete.get(ONE_STAGE, ()), quality)
    for row in means:
        scores = _scores(complete[row["row"]], quality)
        row["paired"] = None if scores is None else compare_cases(scores, reference)
    base = next((row["total_s"] for row in means if row["row"] == BASELINE), None)
    for row in means:
        row["ratio"] = base / row["total_s"] if base and row["total_s"] else None
        row["bound_ratio"] = row["total_s"] / row["bound_s"] if row["bound_s"] else None
    left = [next(iter(by_case.values()))["title"] for by_case in found.values() if not {*wanted} <= {*by_case}]
    return Summary(name, quality, tuple(means), tuple(wanted), bool(rows) and not test, tuple(left))


def _scores(found: Sequence[Row], quality: str) -> list[float] | None:
    """The quality of each case; None if there is no case, or it is unknown of one."""
    scores = [row.get(quality) for row in found]
    known = [score for score in scores if score is not None]
    return known if known and len(known) == len(scores) else None


def _over_cases(found: Sequence[Row]) -> dict[str, Any]:
    row: dict[str, Any] = {key: found[0][key] for key in ("row", "title", "ours")}
    row |= {key: _of(statistics.fmean, [one.get(key) for one in found]) for key in MEANS}
    row |= {key: _of(max, [one.get(key) for one in found]) for key in HIGHEST}
    row["boxes"] = _of(statistics.fmean, [(one.get("boxes") or {}).get("selected") for one in found])
    row["spread"] = _of(max, [spread([run["total_s"] for run in one["runs"]]) for one in found])
    row["runs"] = min(len(one["runs"]) for one in found)
    row["dice_by_label"] = mean_by_label(found)
    row["tolerance"] = found[0].get("tolerance")
    row["warnings"] = tuple(dict.fromkeys(text for one in found for text in one.get("warnings") or ()))
    return row


def _of(sum_up: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    """A number for all cases; None if it is unknown of one."""
    known = [value for value in values if value is not None]
    return sum_up(known) if known and len(known) == len(values) else None


def spread(seconds: Sequence[float]) -> float | None:
    """Difference of the slowest and the fastest run as a share of the median; None of a single run."""
    return (max(seconds) - min(seconds)) / statistics.median(seconds) if len(seconds) > 1 else None


def significant(value: float, digits: int = 3) -> str:
    """A number with three significant digits, never in powers of ten; digits before the point are all shown.

    Example:
        >>> [significant(value) for value in (1053.4, 105.3, 9.996, 0.08215, 0)]
        ['1053', '105', '10.0', '0.0822', '0']
    """
    if not value or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def compare(ours: Row, other: Row, quality: str) -> Verdict | None:
    """Whether a row dominates another one (faster and at least as good), loses to it, or neither; None if unknown."""
    if any(row[key] is None for row in (ours, other) for key in (quality, "total_s")):
        return None
    better, faster = ours[quality] - other[quality], other["total_s"] - ours["total_s"]
    if better >= -EVEN - ROUNDING and faster >= 0 and (faster > 0 or better > EVEN + ROUNDING):
        return "dominates"
    return "loses" if better <= EVEN + ROUNDING and faster <= 0 else "trades"


def front(summary: Summary) -> list[Row]:
    """The rows that lose to no other, from fast to slow."""
    rows = summary.judged
    best = [
        row
        for row in rows
        if not any(compare(row, other, summary.quality) == "loses" for other in rows if other is not row)
    ]
    return sorted(best, key=lambda row: float(row["total_s"]))


def in_doubt(ours: Row, other: Row) -> bool:
    """Whether two rows' seconds differ by no more than runs of one of them do."""
    return abs(other["total_s"] / ours["total_s"] - 1) <= max(ours["spread"] or 0, other["spread"] or 0)


@dataclass(frozen=True, slots=True)
class Check:
    """A number of ``accelerated`` beside what it shall be.

    Attributes:
        dataset: Where.
        kind: What is compared.
        other: Title of the row that it is compared with, or whose number it is.
        value, aim: As shown.
        size: How many times the aim it is; above 1 the aim is missed.
    """

    dataset: str
    kind: str
    other: str
    value: str
    aim: str
    size: float

    @property
    def met(self) -> bool:
        """Whether the aim is reached."""
        return self.size <= 1 + ROUNDING


def checks(summary: Summary) -> list[Check]:
    """Of each kind the one that is furthest from its aim; kinds of which nothing is known are left out."""
    found: dict[str, Check] = {}
    for check in (*_own_checks(summary), *_comparisons(summary)):
        known = found.get(check.kind)
        if known is None or check.size > known.size:
            found[check.kind] = check
    return list(found.values())


def largest_gaps(summaries: Iterable[Summary], count: int = 3) -> list[Check]:
    """The missed aims that are the most times what they should be."""
    missed = [check for summary in summaries for check in checks(summary) if not check.met]
    return sorted(missed, key=lambda check: (-check.size, check.dataset, check.kind))[:count]


def _own_checks(summary: Summary) -> Iterator[Check]:
    """What can be said of rows by themselves."""
    ours, name = summary.find(OURS), summary.name
    for row in summary.rows:
        if row["spread"] is not None:  # as times are: the slowest run against the fastest, nearly
            size = (1 + row["spread"]) / (1 + SPREAD_AIM)
            yield Check(name, "spread of runs", row["title"], f"{row['spread']:.1%}", f"at most {SPREAD_AIM:.0%}", size)
    if ours and ours["bound_ratio"] is not None:
        value = f"{significant(ours['bound_ratio'])}x"
        size = ours["bound_ratio"] / BOUND_AIM
        yield Check(name, "seconds", "lower bound", value, f"at most {BOUND_AIM:g}x", size)
    if ours and ours["fill"] and (ours["boxes"] or 0) >= FILL_BOXES:
        size = FILL_AIM / ours["fill"]
        yield Check(name, "canvas fill", ours["title"], f"{ours['fill']:.3f}", f"at least {FILL_AIM:g}", size)


def _comparisons(summary: Summary) -> Iterator[Check]:
    """``accelerated`` beside looking everywhere, and beside what users have today."""
    ours, quality, measure = summary.find(OURS), summary.quality, summary.measure
    aim, name = AIMS.get(summary.name, Aim(1.0, 0.0)), summary.name
    if ours not in summary.judged:
        return
    for other in summary.judged:
        faster, better = other["total_s"] / ours["total_s"], ours[quality] - other[quality]
        if other["row"] in (BASELINE, ONE_STAGE):
            value, size = f"{significant(faster)}x", aim.faster / faster
            yield Check(name, "speed", other["title"], value, f"at least {aim.faster:g}x", size)
            size = (other[quality] - aim.loss) / max(ours[quality], EVEN)
            yield Check(name, measure, other["title"], f"{better:+.3f}", f"at least {0 - aim.loss:g}", size)
        elif not other["ours"] and better < -EVEN - ROUNDING:
            size = other[quality] / max(ours[quality], EVEN)
            yield Check(name, f"{measure} of alternatives", other["title"], f"{better:+.3f}", "at least 0", size)
        if not other["ours"] and compare(ours, other, quality) == "loses":
            kind = "seconds of what is as good"
            yield Check(name, kind, other["title"], f"{significant(1 / faster)}x", "at most 1x", 1 / faster)
        if other["row"] == BASELINE and other["peak_rss_mb"] and ours["peak_rss_mb"]:
            size = ours["peak_rss_mb"] / other["peak_rss_mb"]
            yield Check(name, "peak memory", other["title"], f"{significant(size)}x", "at most 1x", size)
