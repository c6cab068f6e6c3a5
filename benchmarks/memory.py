"""How much memory a run from file to file takes beyond its models, as volumes grow.

    python benchmarks/memory.py --out benchmarks/results/memory.json
    python benchmarks/memory.py --mvoxels 8 --coarse-model COARSE --fine-model FINE --image scan.nii.gz --out m.json

Each volume is the image repeated along its first axis, or its first slices, in its own voxel type. Every size runs in
a process of its own. Beyond is its peak during the run, less what it held before, when models were loaded and each had
run once, and less the volume in its own voxel type and its labels. The exit code is 1 if that is more than 1 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common.machine import PeakMemory, environment, use_threads
from coarse2fine.config.reader import load_config
from coarse2fine.demo import ASSETS, IMAGE
from coarse2fine.io import atomic_write
from coarse2fine.pipeline import Pipeline
from coarse2fine.system.memory import keep_freed_memory

SIZES = (8.0, 64.0, 254.0, 1000.0)
MOST_MB = 1000.0
_LABEL_MB = 1.0  # for each million voxels


@dataclass(frozen=True, slots=True)
class Row:
    """One size.

    Attributes:
        mvoxels: Millions of voxels.
        labels: Classes that the fine model tells apart, the background among them.
        boxes: That were looked at.
        seconds: Of the run.
        volume_mb, labels_mb: What these take.
        peak_mb: Of the process while it ran, beyond what it held before.
        beyond_mb: Beside volume and labels.
    """

    mvoxels: float
    labels: int
    boxes: int
    seconds: float
    volume_mb: float
    labels_mb: float
    peak_mb: float
    beyond_mb: float


def write_volume(source: Path, slices: int, path: Path) -> int:
    """Write an image repeated, or cut off, along its first axis; bytes of a voxel."""
    image = sitk.ReadImage(str(source))
    voxels = sitk.GetArrayViewFromImage(image)
    tiled = sitk.GetImageFromArray(np.concatenate([voxels] * ceil(slices / len(voxels)))[:slices])
    tiled.SetSpacing(image.GetSpacing())
    tiled.SetDirection(image.GetDirection())
    sitk.WriteImage(tiled, str(path))
    return int(voxels.itemsize)


def measure(source: Path, mvoxels: float, settings: Sequence[str]) -> Row:
    """Run one size in this process.

    Raises:
        C2FError: If it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        width, height, _ = sitk.ReadImage(str(source)).GetSize()
        slices = max(round(mvoxels * 1e6 / (width * height)), 1)
        itemsize = write_volume(source, slices, place / "volume.nii")
        pipeline = Pipeline.from_config(load_config(None, settings))
        for model in (pipeline.coarse, pipeline.fine):
            if model is not None:
                model.forward(torch.zeros(1, model.channels, *model.patch), mirroring=False)
        memory = PeakMemory()
        memory.reset()
        before, start = memory.read_mb(), time.perf_counter()
        report = pipeline.run_files([place / "volume.nii"], place / "labels.nii.gz").report
        seconds, peak = time.perf_counter() - start, memory.read_mb()
    if before is None or peak is None:
        raise SystemExit("memory can be measured on Linux only, where /proc/self/clear_refs can be written")
    millions = slices * width * height / 1e6
    sizes = {"volume_mb": millions * itemsize, "labels_mb": millions * _LABEL_MB, "peak_mb": peak - before}
    beyond = sizes["peak_mb"] - sizes["volume_mb"] - sizes["labels_mb"]
    found = {name: round(value, 1) for name, value in sizes.items()}
    return Row(
        round(millions, 3),
        len(pipeline.fine.labels.values_of) + 1,
        report.boxes.selected,
        round(seconds, 1),
        **found,
        beyond_mb=round(beyond, 1),
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--image", type=Path, default=IMAGE, metavar="FILE", help="what volumes are made of (the demo's CT)")
    add("--coarse-model", type=Path, default=ASSETS / "coarse", metavar="DIR", help="(the demo's)")
    add("--fine-model", type=Path, default=ASSETS / "fine", metavar="DIR", help="(the demo's)")
    add("--mvoxels", type=float, nargs="+", default=list(SIZES), metavar="N", help="sizes in million voxels")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of the run")
    add("--threads", type=int, default=None, metavar="N", help="of every library")
    add("--out", type=Path, required=True, metavar="FILE", help="JSON file of results")
    add("--one", action="store_true", help=argparse.SUPPRESS)  # what the processes for each size are started with
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    models = [f"coarse.model={options.coarse_model.resolve()}", f"fine.model={options.fine_model.resolve()}"]
    if options.one:
        keep_freed_memory()
        use_threads(options.threads)
        row = measure(options.image, options.mvoxels[0], [*models, "device=cpu", *options.set])
        options.out.write_text(json.dumps(asdict(row)), encoding="utf-8")
        return 0
    rows = [run_alone(options, size) for size in options.mvoxels]
    document: dict[str, Any] = {"environment": environment(), "settings": options.set, "rows": [*map(asdict, rows)]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.out) as path:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    table = Table(*Row.__slots__)
    for row in rows:
        table.add_row(*(f"{value:g}" for value in asdict(row).values()))
    Console().print(table)
    return int(any(row.beyond_mb > MOST_MB for row in rows))


def run_alone(options: argparse.Namespace, size: float) -> Row:
    """Run one size in a process of its own.

    Raises:
        SystemExit: If it fails; it has said why.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        words = ["--one", "--mvoxels", size, "--out", file.name, "--image", options.image]
        words += ["--coarse-model", options.coarse_model, "--fine-model", options.fine_model]
        words += [word for value in options.set for word in ("--set", value)]
        words += [] if options.threads is None else ["--threads", options.threads]
        done = subprocess.run([sys.executable, "-m", "benchmarks.memory", *map(str, words)], check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        return Row(**json.loads(Path(file.name).read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main())
