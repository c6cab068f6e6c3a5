"""The original system's eleven experiments and two more, each runnable by name on any data set.

    python benchmarks/run.py --dataset em --experiments all

Each writes its rows as JSON and a picture of them. What they do is in ``studies``: ``measures``, ``geometry`` (without
the fine network), ``growth`` (ever larger volumes), ``foreground`` (ever more foreground) and ``neighbours`` (what
crops on a canvas do to each other); the pictures are in ``plots``.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from rich.console import Console

from benchmarks.common.bench import Bench, portable
from benchmarks.common.machine import environment
from benchmarks.common.registry import MissingDataError
from benchmarks.studies import measures as runs
from benchmarks.studies import plots as plots
from benchmarks.studies.foreground import SEED, SHARES, foreground_share
from benchmarks.studies.geometry import AnyBench, MaskBench, Rows, resize_ratio, roi_threshold
from benchmarks.studies.growth import FACTORS, grow
from benchmarks.studies.neighbours import neighbours
from coarse2fine.config.reader import config_hash
from coarse2fine.config.validation import did_you_mean
from coarse2fine.errors import ConfigError
from coarse2fine.io import atomic_write


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment.

    Attributes:
        title: What is compared.
        run: Measures it on a case: rows ready for JSON, flat, with units in the names.
        draw: Makes a picture of rows.
        needs_image: Whether a case with image and models is needed; if not, ``run`` takes a ``MaskBench``, too.
        seeds: All randomness there is.
        illustrate: A second picture, for which the case itself is needed.
    """

    title: str
    run: Callable[[Any, Console], Rows]
    draw: Callable[[Sequence[dict[str, Any]], Path], None]
    needs_image: bool = True
    seeds: tuple[int, ...] = ()
    illustrate: Callable[[Bench, Console, Path], None] | None = None


def large_volume(bench: Bench, console: Console) -> Rows:
    """6: the case tiled by mirroring."""
    return grow(bench, FACTORS, console)


def more_foreground(bench: Bench, console: Console) -> Rows:
    """12, ours: the case with ever more of its blocks exchanged for the fullest one."""
    return foreground_share(bench, SHARES, console)


def finite(value: Any) -> Any:
    """A value that JSON has: plain numbers, None for what is not finite."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def median_rows(repeats: Sequence[Rows]) -> Rows:
    """One row of several that differ only by what clocks and memory say: medians."""
    rows = []
    for same in zip(*repeats, strict=True):
        row = {}
        for name, first in same[0].items():
            values = [one[name] for one in same]
            alike = any(value is None for value in values) or all(value == first for value in values)
            row[name] = first if alike else statistics.median(values)
        rows.append(row)
    return rows


def run_experiment(name: str, bench: AnyBench, folder: Path, console: Console, repeat: int = 1) -> Path:
    """Run an experiment on a case, and write ``<name>.json`` and ``<name>.png``.

    Args:
        name: In ``EXPERIMENTS``.
        bench: The case.
        folder: Where to; made if there is none.
        console: Told what is left out, and why.
        repeat: How often everything is measured; numbers that differ are medians.

    Returns:
        The JSON file.

    Raises:
        ConfigError: If there is no such experiment.
        MissingDataError: If it needs an image and the case has none.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(
            f"no experiment named '{name}'",
            f"{did_you_mean(name, EXPERIMENTS)} There are: {', '.join(EXPERIMENTS)}.".strip(),
        )
    experiment = EXPERIMENTS[name]
    if experiment.needs_image and isinstance(bench, MaskBench):
        free = ", ".join(one for one, other in EXPERIMENTS.items() if not other.needs_image)
        raise MissingDataError(
            f"{name} needs an image, and {bench.dataset.name} {bench.case.name} has only a reference",
            f"Without one run: {free}.",
        )
    repeats = [experiment.run(bench, console)]
    if any(key.endswith("_s") for row in repeats[0] for key in row):  # nothing else changes
        repeats += [experiment.run(bench, Console(quiet=True)) for _ in range(repeat - 1)]
    about = {"dataset": bench.dataset.name, "case": bench.case.name, "measure": bench.dataset.quality}
    rows = [{key: finite(value) for key, value in (about | row).items()} for row in median_rows(repeats)]
    document = {"experiment": name, "title": experiment.title, **about, "repeat": len(repeats), "rows": rows}
    document |= made_with(bench) | {"seeds": list(experiment.seeds)}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / f"{name}.json") as path:
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with atomic_write(folder / f"{name}.png") as path:
        experiment.draw(rows, path)
    if experiment.illustrate and isinstance(bench, Bench):
        with atomic_write(folder / f"{name}_case.jpg") as path:
            experiment.illustrate(bench, console, path)
    return folder / f"{name}.json"


def made_with(bench: AnyBench) -> dict[str, Any]:
    """Settings, models and machine."""
    models, device = {}, None
    if isinstance(bench, Bench):
        models, device = {role: bench.fingerprint(role) for role in ("coarse", "fine")}, bench.model("fine").device
    return {"config_hash": config_hash(portable(bench.config())), "models": models, "environment": environment(device)}


EXPERIMENTS: Final[Mapping[str, Experiment]] = MappingProxyType(
    {
        "selection": Experiment("Who selects regions", runs.selection, plots.draw_selection),
        "capacity": Experiment("Crops per canvas", runs.capacity, plots.draw_capacity),
        "ordering": Experiment("Order of regions", runs.ordering, plots.draw_ordering, seeds=runs.SEEDS),
        "resize_ratio": Experiment(
            "Size and resizing of merged regions", resize_ratio, plots.draw_resize_ratio, needs_image=False
        ),
        "packing": Experiment("Same size against same scale", runs.packing, plots.draw_packing, needs_image=False),
        "large_volume": Experiment("Ever larger volumes", large_volume, plots.draw_large_volume),
        "splits": Experiment("Case by case", runs.splits, plots.draw_splits),
        "roi_threshold": Experiment(
            "Heatmap threshold against recall", roi_threshold, plots.draw_roi_threshold, needs_image=False
        ),
        "slot_and_nms": Experiment("Slot, NMS threshold and window step", runs.slot_and_nms, plots.draw_slot_and_nms),
        "preferred_order": Experiment(
            "Which regions come first", runs.preferred_order, plots.draw_preferred_order, illustrate=runs.draw_paths
        ),
        "network_size": Experiment("Size of the fine network", runs.network_size, plots.draw_network_size),
        "foreground_share": Experiment(
            "Ever more foreground", more_foreground, plots.draw_foreground_share, seeds=(SEED,)
        ),
        "neighbours": Experiment("What crops on a canvas do to each other", neighbours, plots.draw_neighbours),
    }
)
"""By name, in the order of the original system, and two more."""
