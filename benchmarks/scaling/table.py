"""The results of ``scale.py`` as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Figures = Mapping[str, Any]
Rows = Iterator[tuple[str, str]]


def summary(parts: Figures) -> dict[str, Any]:
    """The main figures by name, of all parts that are there; ``peak_rss_mb`` by size of the volume."""
    found: dict[str, Any] = {}
    if "memory" in parts:
        found["peak_rss_mb"] = {f"{row['volume_times']}x": row["peak_rss_mb"] for row in parts["memory"]["sizes"]}
    for part, names in _SUMMARY.items():
        found |= {name: parts[part][name] for name in names if part in parts}
    return found


_SUMMARY = {
    "overhead": ("engine_overhead",),
    "kills": ("kills", "survived", "voxels_different"),
    "gvoxel": ("s_per_gvoxel", "s_per_gvoxel_one_stage"),
}


def figures(results: Figures) -> list[tuple[str, str]]:
    """What was measured and how much it is, for all parts that are there."""
    return [row for name, rows in _PARTS.items() if name in results for row in rows(results[name])]


def markdown(results: Figures) -> str:
    """A table, and on what it was measured."""
    rows = "\n".join(f"| {what} | {value} |" for what, value in figures(results))
    places = dict.fromkeys(_place(part) for part in results.values())
    notes = "\n".join(f"- {place}" for place in places)
    return f"| | measured |\n|---|---|\n{rows}\n\nMeasured on:\n\n{notes}"


def _place(part: Figures) -> str:
    on, versions = part["environment"], part["environment"]["versions"]
    shown = ", ".join(f"{name} {versions[name]}" for name in ("coarse2fine", "python", "torch") if name in versions)
    load = on["load_average"][0]
    return f"{part['date']}: {on['machine']}; {on['cores']} cores, device {on['device']}, load {load:.1f}; {shown}"


def _memory(part: Figures) -> Rows:
    for row in part["sizes"]:
        size = f"{row['mvoxels']:,.0f} million voxels in {row['cells']} cells"
        memory = f"{row['peak_rss_mb']:.0f} MB, {row['beyond_models_mb']:.0f} MB beyond the loaded models"
        yield f"Peak memory, one process, {size}", memory
    yield "Peak memory, largest volume over smallest", f"{part['largest_over_smallest']:.2f}"


def _overhead(part: Figures) -> Rows:
    yield "Time that one Dask worker adds to the same blocks in process", f"{part['engine_overhead']:+.1%}"


def _workers(part: Figures) -> Rows:
    one, two = (row["seconds"]["total"] for row in part["runs"])
    yield "Seconds with one worker and with two", f"{one:.1f} and {two:.1f}: {part['scaling']:.2f} times as fast"


def _kills(part: Figures) -> Rows:
    yield "Runs with `kill -9` of a worker, the main process or the scheduler at a random time", f"{part['kills']}"
    yield "Of these finished by the same command", f"{part['survived']}"
    yield "Voxels in which their results differ from an undisturbed run's", f"{part['voxels_different']}"
    yield "Processes left behind", f"{part['left_behind']}"


def _gvoxel(part: Figures) -> Rows:
    shape = " x ".join(map(str, part["shape"]))
    seconds, counts = part["seconds"], part["counts"]
    phases = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items() if name != "total")
    yield f"{shape} voxels ({part['gvoxels']:.2f} Gvoxels), {part['workers']} workers", f"{seconds['total']:.0f} s"
    yield "Seconds by phase", phases
    yield "Seconds per Gvoxel", f"{part['s_per_gvoxel']:.0f}"
    yield "Cells, objects", f"{part['cells']}, {counts.get('objects', 0)}"
    if part["largest_worker_mb"] is not None:
        yield "Peak memory of the largest worker, of the main process", _pair(part)
    plain, where = part["s_per_gvoxel_one_stage"], len(part["one_stage"]["picks"])
    tiles = f"extrapolated from {where} places to {part['one_stage']['tiles']} tiles"
    yield "Seconds per Gvoxel of the sliding window of nnU-Net (one-stage)", f"{plain:.0f} ({tiles})"
    yield "The sliding window's time over ours", f"{part['ratio']:.1f}"


def _pair(part: Figures) -> str:
    return f"{part['largest_worker_mb']:.0f} MB, {part['main_mb']:.0f} MB"


_PARTS: Mapping[str, Callable[[Figures], Rows]] = {
    "memory": _memory,
    "overhead": _overhead,
    "workers": _workers,
    "kills": _kills,
    "gvoxel": _gvoxel,
}
