"""Measures rows in turns and keeps every finished run: results are a list of rows that grows in one JSON file."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.common.bench import Bench, Effort, portable, portable_agent
from benchmarks.common.machine import environment
from benchmarks.rows.methods import BASELINE, BOUND, ROWS, Method
from coarse2fine.config.reader import config_hash
from coarse2fine.errors import C2FError
from coarse2fine.evaluation.instances import average_precision, label_objects, object_recall
from coarse2fine.evaluation.masks import Surfaces, dice, iou
from coarse2fine.io import atomic_write, read_volume

Record = dict[str, Any]
MEDIANS = ("coarse_s", "fine_s", "total_s", "network_s", "bound_s")
FILE = "results.json"
SHORT_S, TIMES = 3.0, 5
"""A row that takes less than so many seconds is run so often in each turn, of which the median run counts."""


class Store:
    """The rows of one output folder.

    Args:
        folder: Holds ``results.json`` and ``labels/``.

    Raises:
        C2FError: If the file that is there cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._file = folder, folder / FILE
        self.rows: list[Record] = []
        if self._file.exists():
            try:
                self.rows = json.loads(self._file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise C2FError(f"{self._file} is no JSON: {error}", "Move it away, or choose another --out.") from None

    def find(self, case: str, row: str) -> Record | None:
        """What is known of a row of a case."""
        return next((one for one in self.rows if (one["case"], one["row"]) == (case, row)), None)

    def runs(self, case: str, row: str) -> int:
        """How often a row of a case has been measured."""
        return len((self.find(case, row) or {"runs": ()})["runs"])

    def check(self, bench: Bench) -> None:
        """Refuse to add to rows of other settings.

        Raises:
            C2FError: If rows of this case were measured with other settings, models or data.
        """
        identity = identify(bench)
        for row in self.rows:
            if row["case"] == bench.case.name and row["row"] != BOUND and row["identity"] != identity:
                changed = ", ".join(key for key in identity if row["identity"].get(key) != identity[key])
                raise C2FError(
                    f"{self._file}: row '{row['row']}' of case '{row['case']}' was measured with other {changed}",
                    "Choose another --out, or remove the file.",
                )

    def labels(self, bench: Bench, row: str) -> Path:
        """Where a row's result lies."""
        ending = bench.model("fine").dataset["file_ending"]
        return self.folder / "labels" / bench.case.name / f"{row}{ending}"

    def add(self, bench: Bench, name: str, effort: Effort) -> Record:
        """Add one run, judge it if it is the row's first, and save."""
        row = self.find(bench.case.name, name)
        if row is None:
            row = describe(bench, name) | judge(bench, self.labels(bench, name)) | {"runs": []}
            self.rows.append(row)
        kept = ("total_s", "coarse_s", "fine_s", "network_s", "bound_s", "peak_rss_mb", "peak_gpu_mb")
        row["runs"].append({key: getattr(effort, key) for key in kept})
        row |= {"network_voxels": sum(effort.network_voxels.values()), "network_voxels_by_model": effort.network_voxels}
        row |= {"canvases": effort.canvases, "fill": effort.fill}
        if effort.report:
            report = asdict(effort.report)
            row |= {key: report[key] for key in ("timing_s", "boxes", "coverage", "warnings")}
            row["agent"] = portable_agent(report["agent"].get("name", ""))
        self._finish(bench)
        return row

    def _compare(self, bench: Bench, rows: Sequence[Record]) -> None:
        """Say how far results agree with the baseline's, where both files are there: labels are not kept in git."""
        file = self.labels(bench, BASELINE)
        there = [row for row in rows if self.labels(bench, row["row"]).exists()]
        if not there or not file.exists():
            return
        reference = read_volume([file]).channels[0]
        for row in there:
            labels = read_volume([self.labels(bench, row["row"])]).channels[0]
            row["agreement"] = mean(dice(labels == one, reference == one) for one in bench.labels)

    def _finish(self, bench: Bench) -> None:
        """Bring everything that follows from runs up to date, and save."""
        case = bench.case.name
        rows = [row for row in self.rows if row["case"] == case and row["row"] != BOUND]
        for row in rows:
            row |= {key: median(run[key] for run in row["runs"]) for key in MEDIANS}
            row |= {key: highest(run[key] for run in row["runs"]) for key in ("peak_rss_mb", "peak_gpu_mb")}
            row["bound_ratio"] = row["total_s"] / row["bound_s"] if row["bound_s"] else None
        base = self.find(case, BASELINE)
        if base is not None:
            for row in rows:
                row["ratio"] = base["total_s"] / row["total_s"]
            self._compare(bench, [row for row in rows if row["agreement"] is None])
        self.rows = [row for row in self.rows if (row["case"], row["row"]) != (case, BOUND)]
        ours = self.find(case, "accelerated")
        if ours is not None and ours["bound_s"]:
            head = {key: ours[key] for key in ("dataset", "case", "split", "trained_on", "mirroring", "identity")}
            times = {"total_s": ours["bound_s"], "ratio": base["total_s"] / ours["bound_s"] if base else None}
            self.rows.append({"row": BOUND, "title": "lower bound of accelerated", **head, **times, "runs": []})
        order = {name: index for index, name in enumerate((*ROWS, BOUND))}
        self.rows.sort(key=lambda row: (row["case"], order.get(row["row"], len(order))))
        with atomic_write(self._file) as path:
            path.write_text(json.dumps(self.rows, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def measure_rows(bench: Bench, names: Sequence[str], repeat: int, store: Store, console: Console) -> None:
    """Measure rows in turns, each as often as asked for; what is in the store already is not measured again.

    The order changes with every turn, and short rows are run several times in each. A row that cannot run (a model is
    missing, settings do not fit) is said and left out.

    Raises:
        C2FError: If the store holds rows of other settings.
    """
    store.check(bench)
    wanted = []
    for name in names:
        missing = [role for role in ROWS[name].needs if not bench.has(role)]
        if missing:
            console.print(
                f"{name}: skipped, there is no {missing[0]} model for '{bench.dataset.name}'", highlight=False
            )
        else:
            wanted.append(name)
    for turn in range(repeat):
        for name in wanted if turn % 2 == 0 else wanted[::-1]:
            if store.runs(bench.case.name, name) > turn:
                continue
            output = store.labels(bench, name)
            output.parent.mkdir(parents=True, exist_ok=True)
            try:
                row = store.add(bench, name, run_turn(bench, ROWS[name].method, output))
            except C2FError as error:
                console.print(f"{name}: left out, {error}", markup=False, highlight=False, soft_wrap=True)
                continue
            quality = row[bench.dataset.quality]
            told = f"{turn + 1}/{repeat} {bench.case.name} {name}: {row['runs'][-1]['total_s']:.2f} s, {quality:.3f}"
            console.print(told, highlight=False)


def run_turn(bench: Bench, method: Method, output: Path) -> Effort:
    """One turn of a row: one run, or of a short one the median of several, as single ones differ by a tenth."""
    efforts = [bench.run(method, output)]
    if efforts[0].total_s < SHORT_S:
        efforts += [bench.run(method, output) for _ in range(TIMES - 1)]
    return sorted(efforts, key=lambda effort: effort.total_s)[len(efforts) // 2]


def identify(bench: Bench) -> dict[str, str]:
    """What results depend on; settings and models as short fingerprints."""
    known = environment(bench.model("fine").device)
    machine = {key: str(known[key]) for key in ("machine", "device", "threads")}
    return {"settings": config_hash(portable(bench.config())), "models": bench.fingerprint("coarse", "fine")} | machine


def describe(bench: Bench, name: str) -> Record:
    """What a row is about."""
    return {
        "row": name,
        "title": ROWS[name].title,
        "ours": ROWS[name].ours,
        "dataset": bench.dataset.name,
        "case": bench.case.name,
        "split": bench.case.split,
        "trained_on": bench.case.split == "train",
        "mirroring": bench.mirroring or name == "nnunet_mirroring",
        "identity": identify(bench),
        "ratio": None,
        "agreement": None,
    }


def judge(bench: Bench, result: Path) -> Record:
    """All metrics of a result: means over labels, and each label's own."""
    volume = read_volume([result])
    labels, reference = bench.decided(volume.channels[0]), bench.reference
    spacing, tolerance = volume.grid.spacing, bench.dataset.tolerance
    by_label = {str(one): judge_label(labels == one, reference == one, spacing, tolerance) for one in bench.labels}
    names = next(iter(by_label.values()))
    means = {name: finite(mean(scores[name] for scores in by_label.values())) for name in names}
    finite_scores = {one: {key: finite(value) for key, value in scores.items()} for one, scores in by_label.items()}
    named = bench.model("fine").labels.values_of.items()
    dice_by_label = {name: dice(np.isin(labels, [*values]), np.isin(reference, [*values])) for name, values in named}
    return means | {"by_label": finite_scores, "dice_by_label": dice_by_label, "tolerance": tolerance}


def judge_label(
    found: NDArray[np.bool_], true: NDArray[np.bool_], spacing: Iterable[float], tolerance: float
) -> Mapping[str, float]:
    """All metrics of one label."""
    surfaces = Surfaces.between(found, true, tuple(spacing))
    found_objects, true_objects = label_objects(found), label_objects(true)
    return {
        "dice": dice(found, true),
        "iou": iou(found, true),
        "hd95": surfaces.hd95(),
        "surface_dice": surfaces.surface_dice(tolerance),
        "ap": average_precision(found_objects, true_objects),
        "recall": object_recall(found, true_objects),
    }


def mean(values: Iterable[float]) -> float:
    """The mean; infinite if a value is."""
    listed = list(values)
    return sum(listed) / len(listed)


def finite(value: float) -> float | None:
    """A number, or None where JSON has none for it: an infinite distance to an empty mask."""
    return value if math.isfinite(value) else None


def median(values: Iterable[float | None]) -> float | None:
    """The median of what is there."""
    return _of(statistics.median, values)


def highest(values: Iterable[float | None]) -> float | None:
    """The highest of what is there."""
    return _of(max, values)


def _of(summary: Any, values: Iterable[float | None]) -> float | None:
    listed = [value for value in values if value is not None]
    return summary(listed) if listed else None
