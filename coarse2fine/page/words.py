"""What pages say in words and numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from coarse2fine.measures import Measure
from coarse2fine.report import RunReport

_UNITS = {"mm": ("ml", 1e-3), "nm": ("um³", 1e-9)}  # how volumes are written, and of cubes of the unit
_NAMED = 3  # labels that the finding names


def volume_words(cubes: float, unit: str) -> str:
    r"""A volume as its field writes it.

    >>> volume_words(12438.0, "mm"), volume_words(3.2e11, "nm"), volume_words(2.5e6, "mm")
    ('12.4\xa0ml', '320\xa0um³', '2500\xa0ml')
    """
    name, factor = _UNITS[unit]
    return f"{significant(cubes * factor)}\N{NO-BREAK SPACE}{name}"


def volume_unit(unit: str) -> str:
    """What volumes are written in."""
    return _UNITS[unit][0]


def volume_number(cubes: float, unit: str) -> str:
    """A volume without its unit."""
    return significant(cubes * _UNITS[unit][1])


def significant(value: float) -> str:
    """Three digits, and all of those before the point.

    >>> significant(0.01234), significant(123456.7), significant(0.0)
    ('0.0123', '123457', '0')
    """
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def plural(count: int, one: str, several: str = "") -> str:
    """A number of things.

    >>> plural(1, "box", "boxes"), plural(2000, "box", "boxes"), plural(0, "component")
    ('1 box', '2,000 boxes', '0 components')
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def finding(measures: Sequence[Measure], whole: float, unit: str) -> str:
    """What was found, in one sentence.

    Args:
        measures: Of labels; regions may overlap.
        whole: What all labels take, in cubes of the unit.
        unit: Of the grid.
    """
    found = sorted((one for one in measures if one.voxels), key=lambda one: -one.voxels)
    if not found:
        return "Nothing was found"
    if len(found) == 1:
        name = f" of {found[0].name}" if found[0].name else ""
        count = found[0].components or 0
        return f"{plural(count, 'component')}{name}, {volume_words(whole, unit)}{' in all' if count > 1 else ''}"
    named = ", ".join(f"{label(one)} {volume_words(one.volume, unit)}" for one in found[:_NAMED])
    rest = "" if len(found) <= _NAMED else f" and {len(found) - _NAMED} more"
    return f"{len(found)} labels, {volume_words(whole, unit)} in all: {named}{rest}"


def label(one: Measure) -> str:
    """A label's name."""
    return one.name or f"label {', '.join(map(str, one.values))}"


def names_of(measures: Sequence[Measure], values: Collection[int]) -> dict[int, str]:
    """What each label value is called: of overlapping regions after the smallest that it belongs to."""
    names = {}
    for value in sorted(values):
        holding = [one for one in measures if value in one.values]
        names[value] = label(min(holding, key=lambda one: len(one.values))) if holding else f"label {value}"
    return names


def looked_at(report: RunReport) -> list[str]:
    """What the run looked at, and what is promised of the rest."""
    if report.mode == "one-stage":
        return ["Everything: the fine network looked at the whole volume (one-stage mode).", *_masked(report)]
    coverage, boxes = report.coverage, report.boxes
    lines = [
        f"The fine network looked at {share(coverage.volume)} of the volume, which holds {share(coverage.heatmap_mass)}"
        " of what the coarse network suspects.",
        "; ".join(_boxes(report)) + ".",
        *_masked(report),
    ]
    if boxes.cut:
        lines.append(
            f"{plural(boxes.cut, 'face')} of boxes still cut through what was found: there objects may end too early."
        )
    promise = report.promise
    if promise is None:
        lines.append("Nothing is promised of what lies outside of the boxes: the run was made without a kit.")
    elif promise.covers:
        lines.append(f"Promised: {promise.statement}.")
    else:
        lines.append(
            f"The kit's promise does not cover this case ({'; '.join(promise.reasons)}). For others it says: "
            f"{promise.statement}."
        )
    return lines


def _masked(report: RunReport) -> Iterator[str]:
    if report.in_mask is not None:
        yield f"A mask was given: what lies outside of its {plural(report.in_mask, 'voxel')} is background."


def _boxes(report: RunReport) -> Iterator[str]:
    boxes, kept = report.boxes, report.deadline
    regions = plural(boxes.parents, "region was", "regions were")
    yield f"{regions} found, {plural(boxes.selected, 'box', 'boxes')} chosen"
    if boxes.dropped:
        yield f"{plural(boxes.dropped, 'region', 'regions')} not chosen"
    if boxes.grown:
        yield f"{plural(boxes.grown, 'box was', 'boxes were')} added where something reached out of a box"
    if kept and kept.left:
        filled = "coarse labels" if kept.filled_with == "coarse" else "background"
        missed = plural(len(kept.left), "box was", "boxes were")
        yield (
            f"{missed} not reached in {significant(kept.asked_s)} s and filled with {filled}: "
            f"{share(kept.heatmap_mass)} of what the coarse network suspects"
        )


def share(part: float) -> str:
    """A share in percent.

    >>> share(0.00824), share(1.0), share(0.99996)
    ('0.824 %', '100 %', '99.9 %')
    """
    if 0.9995 <= part < 1:
        return "99.9 %"  # what is not all is not called all
    return f"{100 * part:.3g} %"


def effort(report: RunReport) -> str:
    """Network passes, memory and device in one sentence."""
    canvases, memory = report.canvases, report.peak_memory_mb
    parts = [f"Ran on {report.device}"]
    if canvases.count:
        parts.append(
            f"{plural(canvases.count, 'input', 'inputs')} of the fine network, {canvases.fill:.0%} filled with boxes"
        )
    names = {"resident": "memory", "gpu": "GPU memory"}
    parts += [f"at most {value / 1000:.1f} GB of {names.get(name, name)}" for name, value in memory.items()]
    return "; ".join(parts) + "."


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings by the names that ``--set`` knows.

    >>> list(flat({"rois": {"threshold": 0.1}, "mode": "one-stage", "deadline": None}))
    [('rois.threshold', '0.1'), ('mode', 'one-stage'), ('deadline', 'not set')]
    """
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "not set" if value is None else str(value)
