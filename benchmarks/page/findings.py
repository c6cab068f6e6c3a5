"""What the numbers of the benchmark say, in sentences: who beats whom, which aims are met, where the largest gaps are.

Everything here follows from rows of ``results.json`` by the rules that the constants and docstrings state.
``results_page.py`` puts the sentences on the page.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

Record = Mapping[str, Any]
Verdict = Literal["dominates", "loses", "trades"]
OURS, BASELINE, ONE_STAGE, BOUND = "accelerated", "nnunet", "one_stage", "bound"
"""Names of the rows that sentences are about; ``rows.py`` says what each does."""
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
            ``boxes`` (the number of them) and ``bound_ratio``; ``runs`` is the number of runs of each case.
        cases: What rows are means over.
        trained_on: Whether models were trained on these cases.
        incomplete: Titles of rows that lack some of the cases and are left out.
    """

    name: str
    quality: str
    rows: tuple[Record, ...]
    cases: tuple[str, ...]
    trained_on: bool = False
    incomplete: tuple[str, ...] = ()

    def find(self, name: str) -> Record | None:
        """A row by name."""
        return next((row for row in self.rows if row["row"] == name), None)

    @property
    def measure(self) -> str:
        """The quality's name in texts."""
        return MEASURES[self.quality]

    @property
    def judged(self) -> tuple[Record, ...]:
        """Rows that can be compared."""
        return tuple(row for row in self.rows if row[self.quality] is not None and row["total_s"])


def summarise(name: str, quality: str, records: Sequence[Record]) -> Summary:
    """Sum rows up over cases: those that models were not trained on, if there are any, and that nnU-Net has segmented.

    Args:
        name: Of the data set.
        quality: The measure that counts most.
        records: Rows of ``results.json``, of all cases.
    """
    test = [record for record in records if not record["trained_on"]]
    found: dict[str, dict[str, Record]] = {}
    for record in test or records:
        if record["row"] != BOUND:
            found.setdefault(record["row"], {})[record["case"]] = record
    wanted = sorted(found.get(BASELINE) or found.get(OURS) or next(iter(found.values()), {}))
    rows = [_over_cases([by_case[case] for case in wanted]) for by_case in found.values() if {*wanted} <= {*by_case}]
    base = next((row["total_s"] for row in rows if row["row"] == BASELINE), None)
    for row in rows:
        row["ratio"] = base / row["total_s"] if base and row["total_s"] else None
        row["bound_ratio"] = row["total_s"] / row["bound_s"] if row["bound_s"] else None
    left = [next(iter(by_case.values()))["title"] for by_case in found.values() if not {*wanted} <= {*by_case}]
    return Summary(name, quality, tuple(rows), tuple(wanted), bool(records) and not test, tuple(left))


def _over_cases(found: Sequence[Record]) -> dict[str, Any]:
    row: dict[str, Any] = {key: found[0][key] for key in ("row", "title", "ours")}
    row |= {key: _of(statistics.fmean, [one.get(key) for one in found]) for key in MEANS}
    row |= {key: _of(max, [one.get(key) for one in found]) for key in HIGHEST}
    row["boxes"] = _of(statistics.fmean, [(one.get("boxes") or {}).get("selected") for one in found])
    row["spread"] = _of(max, [spread([run["total_s"] for run in one["runs"]]) for one in found])
    row["runs"] = min(len(one["runs"]) for one in found)
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


def compare(ours: Record, other: Record, quality: str) -> Verdict | None:
    """Whether a row dominates another one (faster and at least as good), loses to it, or neither; None if unknown."""
    if any(row[key] is None for row in (ours, other) for key in (quality, "total_s")):
        return None
    better, faster = ours[quality] - other[quality], other["total_s"] - ours["total_s"]
    if better >= -EVEN - ROUNDING and faster >= 0 and (faster > 0 or better > EVEN + ROUNDING):
        return "dominates"
    return "loses" if better <= EVEN + ROUNDING and faster <= 0 else "trades"


def front(summary: Summary) -> list[Record]:
    """The rows that lose to no other, from fast to slow."""
    rows = summary.judged
    best = [
        row
        for row in rows
        if not any(compare(row, other, summary.quality) == "loses" for other in rows if other is not row)
    ]
    return sorted(best, key=lambda row: float(row["total_s"]))


def sentences(summary: Summary) -> list[str]:
    """All that the rows of a data set say about ``accelerated``, one item of a list each."""
    ours = summary.find(OURS)
    if ours is None:
        return ["`accelerated` was not measured, so there is nothing to compare."]
    found = [*_against_baseline(summary, ours)]
    others = [row for row in summary.rows if not row["ours"] and row["row"] != BASELINE]
    found += [say_verdict(summary, ours, other) for other in others]
    found += [*_own_rows(summary, ours), *_aims(summary, ours), _bound(ours), _fill(ours), _repeats(summary)]
    return found + [f"The run warned: {warning}" for warning in ours["warnings"]]


def _against_baseline(summary: Summary, ours: Record) -> Iterator[str]:
    base = summary.find(BASELINE)
    if base is None or compare(ours, base, summary.quality) is None:
        yield "nnU-Net was not measured, so there are no ratios."
        return
    agreement = ours["agreement"]
    agreed = "" if agreement is None else f" Between its result and nnU-Net's the Dice is {agreement:.3f}."
    memory, least = ours["peak_rss_mb"], base["peak_rss_mb"]
    took = "" if None in (memory, least) else f" Memory peaked at {memory:.0f} MB, with nnU-Net at {least:.0f} MB."
    yield (
        f"**Against nnU-Net**, accelerated is {_speed(ours, base)}, and {_better(summary, ours, base)}.{agreed}{took}"
    )
    if base[summary.quality] < POOR:
        yield (
            f"nnU-Net itself reaches a {summary.measure} of only {base[summary.quality]:.3f} with this fine model. So "
            "qualities here say little about well-trained models; what carries over is the time."
        )


def say_verdict(summary: Summary, ours: Record, other: Record) -> str:
    """How ``accelerated`` stands against one alternative."""
    verdict = compare(ours, other, summary.quality)
    name = f"**{other['title']}**"
    if verdict is None:
        return f"{name}: time or {summary.measure} is unknown, so it cannot be compared."
    speed, quality = _speed(ours, other), _better(summary, ours, other)
    doubt = " The difference in time is within the spread of the runs." if _in_doubt(ours, other) else ""
    if verdict == "dominates":
        return f"{name}: accelerated dominates it, being {speed} and {quality}.{doubt}"
    if verdict == "loses":
        return f"{name}: accelerated **loses to** it, being {speed} and {quality}.{doubt}"
    return f"{name}: a trade. Accelerated is {speed}, but {quality}.{_work(ours, other)}{doubt}"


def _in_doubt(ours: Record, other: Record) -> bool:
    """Whether two rows' seconds differ by no more than runs of one of them do."""
    return abs(other["total_s"] / ours["total_s"] - 1) <= max(ours["spread"] or 0, other["spread"] or 0)


def _work(ours: Record, other: Record) -> str:
    """Why two rows trade: how much networks look at."""
    seen = [row["network_voxels"] for row in (ours, other)]
    if None in seen:
        return ""
    return f" Its networks see {significant(seen[0] / 1e6)} million voxels, there {significant(seen[1] / 1e6)} million."


def _speed(ours: Record, other: Record) -> str:
    first, second = ours["total_s"], other["total_s"]
    words = f"({significant(first)} s against {significant(second)} s)"
    if first > second:
        return f"slower, taking {significant(first / second)} times as long {words}"
    return f"{significant(second / first)}x as fast {words}"


def _better(summary: Summary, ours: Record, other: Record) -> str:
    first, second = ours[summary.quality], other[summary.quality]
    words = f"({first:.3f} against {second:.3f})"
    if abs(first - second) <= EVEN + ROUNDING:
        return f"as good in {summary.measure} {words}"
    return f"{abs(first - second):.3f} {'better' if first > second else 'worse'} in {summary.measure} {words}"


def _own_rows(summary: Summary, ours: Record) -> Iterator[str]:
    """Whether another row is the better choice, and all that are on the Pareto front."""
    best, quality = front(summary), summary.quality
    if ours[quality] is None or len(summary.judged) < 2:
        return
    names = "; ".join(f"{row['title']} ({significant(row['total_s'])} s, {row[quality]:.3f})" for row in best)
    listed = f"On the front, from fast to slow: {names}." if best else "No row is on it."
    if ours in best:
        yield f"**Pareto front**: accelerated is on it, no row is both faster and at least as good. {listed}"
        return
    above = [row["title"] for row in summary.judged if row is not ours and compare(ours, row, quality) == "loses"]
    yield (f"**Pareto front**: accelerated is **not** on it. Faster and at least as good: {'; '.join(above)}. {listed}")


def _aims(summary: Summary, ours: Record) -> Iterator[str]:
    """The data set's own aim, against nnU-Net and against our own mode that looks everywhere."""
    aim = AIMS.get(summary.name)
    if aim is None or ours[summary.quality] is None:
        return
    loss = f"at most {aim.loss:g} lower" if aim.loss else "no lower"
    for name, title in ((BASELINE, "nnU-Net"), (ONE_STAGE, "our own one-stage mode")):
        base = summary.find(name)
        text = f"**Aim**: at least {aim.faster:g}x as fast as {title}, with {summary.measure} {loss}"
        if base is None or base[summary.quality] is None:
            yield f"{text}: unknown, it was not measured."
            continue
        ratio, lost = base["total_s"] / ours["total_s"], base[summary.quality] - ours[summary.quality]
        missed = [
            words
            for words, failed in (
                ("too slow", ratio < aim.faster - ROUNDING),
                (f"{lost:.4f} of {summary.measure} lost", lost > aim.loss + ROUNDING),
            )
            if failed
        ]
        verdict = f"**not met** ({', '.join(missed)})" if missed else "met"
        values = f"{ours[summary.quality]:.3f} against {base[summary.quality]:.3f}"
        yield f"{text}: {verdict}. It is {significant(ratio)}x, {summary.measure} {values}."


def _bound(ours: Record) -> str:
    if ours["bound_ratio"] is None:
        return "**Lower bound**: unknown."
    met = "met" if ours["bound_ratio"] <= BOUND_AIM + ROUNDING else "**not met**"
    return (
        f"**Lower bound**: accelerated takes {significant(ours['bound_ratio'])} times its lower bound of "
        f"{significant(ours['bound_s'])} s. The aim, at most {BOUND_AIM:g} times, is {met}."
    )


def _fill(ours: Record) -> str:
    boxes, fill = ours["boxes"], ours["fill"]
    if boxes is None or fill is None:
        return "**Canvas fill**: unknown."
    words = f"**Canvas fill**: crops of {boxes:.0f} boxes fill {fill:.3f} of the canvases."
    if boxes < FILL_BOXES:
        return f"{words} The aim of {FILL_AIM:g} holds from {FILL_BOXES} boxes on."
    return f"{words} The aim, at least {FILL_AIM:g}, is {'met' if fill >= FILL_AIM - ROUNDING else '**not met**'}."


def _repeats(summary: Summary) -> str:
    known = [row for row in summary.rows if row["spread"] is not None]
    if not known:
        return "**Repeated runs**: each row was run once, so nothing is known about how far runs differ."
    single = len(summary.rows) - len(known)
    rest = f" Rows that were run only once: {single}." if single else ""
    worst = sorted(
        (row for row in known if row["spread"] > SPREAD_AIM + ROUNDING), key=lambda row: -float(row["spread"])
    )
    aim = f"The aim, at most {SPREAD_AIM:.0%}"
    if not worst:
        most = max(row["spread"] for row in known)
        return f"**Repeated runs** of a row differ by at most {most:.1%}. {aim}, is met.{rest}"
    names = "; ".join(f"{row['title']} ({row['spread']:.1%})" for row in worst)
    return (
        f"**Repeated runs** differ by more in {len(worst)} of {len(known)} rows: {names}. {aim}, is **not met**.{rest}"
    )


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that falls short of an aim.

    Attributes:
        dataset: Where.
        kind: What is compared; of each kind only the largest gap of a data set counts.
        size: How many times the aim it is; above 1.
        words: What it is.
    """

    dataset: str
    kind: str
    size: float
    words: str


def largest_gaps(summaries: Iterable[Summary], count: int = 3) -> list[Gap]:
    """The gaps that are the most times their aim, at most one of a kind for each data set."""
    found: dict[tuple[str, str], Gap] = {}
    for summary in summaries:
        for gap in _candidates(summary):
            known = found.get((gap.dataset, gap.kind))
            if gap.size > 1 + ROUNDING and (known is None or gap.size > known.size):
                found[gap.dataset, gap.kind] = gap
    return sorted(found.values(), key=lambda gap: (-gap.size, gap.dataset, gap.kind))[:count]


def _candidates(summary: Summary) -> Iterator[Gap]:
    """All that might be a gap."""
    ours, name = summary.find(OURS), summary.name
    for row in summary.rows:
        if row["spread"] is not None:  # as times are: the slowest run against the fastest, nearly
            size = (1 + row["spread"]) / (1 + SPREAD_AIM)
            yield Gap(name, "spread", size, f"runs of {row['title']} differ by {row['spread']:.1%}")
    if ours is None:
        return
    if ours["bound_ratio"] is not None:
        words = f"accelerated takes {significant(ours['bound_ratio'])} times its lower bound; {BOUND_AIM:g} is the aim"
        yield Gap(name, "bound", ours["bound_ratio"] / BOUND_AIM, words)
    if ours["fill"] and (ours["boxes"] or 0) >= FILL_BOXES:
        words = f"crops fill {ours['fill']:.3f} of the canvases; {FILL_AIM:g} is the aim"
        yield Gap(name, "fill", FILL_AIM / ours["fill"], words)
    yield from _gaps_to_rows(summary, ours)


def _gaps_to_rows(summary: Summary, ours: Record) -> Iterator[Gap]:
    aim, quality, name = AIMS.get(summary.name, Aim(1.0, 0.0)), summary.quality, summary.name
    for row in summary.judged if ours[quality] is not None else ():
        full = row["row"] in (BASELINE, ONE_STAGE)
        if row["ours"] and not full:
            continue
        size = (row[quality] - (aim.loss if full else 0)) / max(ours[quality], EVEN)
        if row[quality] - ours[quality] > EVEN + ROUNDING:
            yield Gap(name, "quality", size, f"accelerated is {_better(summary, ours, row)} than {row['title']}")
        if compare(ours, row, quality) == "loses":
            words = f"{row['title']} is at least as good, and accelerated is {_speed(ours, row)}"
            yield Gap(name, "time", ours["total_s"] / row["total_s"], words)
        if full:
            ratio = row["total_s"] / ours["total_s"]
            words = f"accelerated is {significant(ratio)}x as fast as {row['title']}; {aim.faster:g}x is the aim"
            yield Gap(name, "speed", aim.faster / ratio, words)
    base = summary.find(BASELINE)
    if base and base["peak_rss_mb"] and ours["peak_rss_mb"]:
        words = f"accelerated needs {ours['peak_rss_mb']:.0f} MB, nnU-Net {base['peak_rss_mb']:.0f} MB"
        yield Gap(name, "memory", ours["peak_rss_mb"] / base["peak_rss_mb"], words)
