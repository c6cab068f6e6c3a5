"""How segmentation of volumes in stores scales: memory, workers, kills, and what a Gvoxel takes.

    python benchmarks/scale.py --out scale.json --threads 1
    python benchmarks/scale.py --out scale.json --parts kills --kills 100
    python benchmarks/scale.py --table scale.json

The volumes are the real stacks of the data set, tiled by mirroring; see ``scaling/volume.py``. Every run is a call of
``c2f-infer`` in a process of its own, but those that measure the engine's overhead. A part that the file holds already,
measured with the same options, is not measured again: a benchmark that was cut off goes on where it stopped. The
machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common.machine import environment, use_threads
from benchmarks.common.registry import Dataset, config_file, exit_code, find_case_files, find_model, load_dataset
from benchmarks.scaling.kills import kill_cycles
from benchmarks.scaling.runs import STAGES, Command, Measured, models_mb, run
from benchmarks.scaling.table import figures, markdown, summary
from benchmarks.scaling.volume import CHUNK, GIGA, Stacks, read_stacks, shape_for, write_volume
from benchmarks.studies.growth import count_tiles
from canvas import Triple, triple
from coarse2fine.config.reader import load_config
from coarse2fine.errors import C2FError
from coarse2fine.io import atomic_write
from coarse2fine.large.execution.engine import Engine, in_process, on_cluster
from coarse2fine.large.output import plan_output
from coarse2fine.large.run import segment_store
from coarse2fine.large.source import Source
from coarse2fine.nnunet.loading import load_model
from coarse2fine.system.memory import keep_freed_memory

Figures = dict[str, Any]
ONE_BY_ONE = "blocks.per_block=[1, 1, 1]"
DEPTH = 8
"""Times the stacks' sections in the largest volume: one cell of the em model is as deep as 64 of its 160 sections."""


@dataclass(slots=True)
class Bench:
    """What all parts measure with.

    Attributes:
        dataset: Its stacks, settings and models.
        options: The command line's.
        folder: For volumes and results.
        console: Told what was measured.
    """

    dataset: Dataset
    options: argparse.Namespace
    folder: Path
    console: Console

    def stacks(self) -> Stacks:
        """All stacks of the data set, side by side."""
        cases = find_case_files(self.dataset, self.options.data)
        return read_stacks([case.image for case in cases if case.image])

    def volume(self, shape: Triple) -> Path:
        """A volume of this shape."""
        return write_volume(self.stacks(), self.folder, shape, levels=self.options.levels)

    def model(self, role: str) -> Path:
        """The folder of a model."""
        return find_model(self.dataset, role, self.options.models)

    def small(self, times: int = 1) -> Triple:
        """Shape of a volume of so many times four small cells; it grows along x and y in turn.

        Not along z: one layer of cells stays one layer, so that the cells of all sizes are the same.
        """
        shape = [self.options.cell[0], 2 * self.options.cell[1], 2 * self.options.cell[2]]
        for turn in range(times.bit_length() - 1):
            shape[2 - turn % 2] *= 2
        return triple(shape)

    @property
    def small_cell(self) -> str:
        """The setting of small cells."""
        return f"blocks.cell={list(self.options.cell)}"

    @contextmanager
    def command(self, shape: Triple, *overrides: str) -> Iterator[Command]:
        """A call on a volume of this shape; its results are removed at the end."""
        models = (self.model("coarse"), self.model("fine"))
        volume = self.volume(shape)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            settings = (*self.options.overrides, *overrides)
            output = Path(folder) / "labels.zarr"
            yield Command(
                volume, output, config_file(self.dataset), models, settings, ("--instances",), self.options.threads
            )

    def tell(self, text: str) -> None:
        """Say what was measured."""
        self.console.print(text, highlight=False, soft_wrap=True)


def measure_memory(bench: Bench) -> Figures:
    """Peak memory of fresh processes on ever larger volumes, and of one that only loads the models."""
    rows: list[Figures] = []
    base = None
    for factor in bench.options.factors:
        shape = bench.small(factor)
        with bench.command(shape, bench.small_cell, ONE_BY_ONE) as command:
            base = base or models_mb(command)
            done = run(command)
        if done.main_mb is None or base is None:
            raise C2FError("peak memory can only be measured on Linux", "Leave out the part memory.")
        row = {"volume_times": factor, "shape": shape, "mvoxels": np.prod(shape).item() / 1e6}
        row |= {"cells": cells(done), "seconds": done.seconds, "counts": done.report["counts"]}
        rows.append(row | {"peak_rss_mb": done.main_mb, "beyond_models_mb": done.main_mb - base})
        bench.tell(f"memory {factor}x: {done.main_mb:.0f} MB, {done.seconds:.1f} s")
    peaks = [row["peak_rss_mb"] for row in rows]
    return {"models_mb": base, "sizes": rows, "largest_over_smallest": peaks[-1] / peaks[0]}


def measure_overhead(bench: Bench) -> Figures:
    """The same blocks in this process and on one worker, which takes turns with it.

    The worker is started beforehand, and both load the models anew for each run: what is left are the cluster's
    messages. The first turn warms up and does not count.
    """
    seconds: dict[str, list[float]] = {"in_process": [], "one_worker": []}
    with bench.command(bench.small(2), bench.small_cell, ONE_BY_ONE) as command, on_cluster(workers=1) as worker:
        for turn in range(bench.options.repeat + 1):
            order = [("in_process", in_process()), ("one_worker", worker)]
            for name, engine in order[:: 1 - 2 * (turn % 2)]:
                took = segment(command, engine)
                if turn:
                    seconds[name].append(took)
                    bench.tell(f"overhead {name}: {took:.2f} s")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": seconds, "engine_overhead": medians["one_worker"] / medians["in_process"] - 1}


def segment(command: Command, engine: Engine) -> float:
    """What ``c2f-infer`` does for a command, in this process; returns seconds."""
    models = [f"{stage}.model={json.dumps(str(path))}" for stage, path in zip(STAGES, command.models, strict=True)]
    config = load_config(command.config, [*models, *command.overrides])
    keep_freed_memory(steady=True)
    where, inputs, work = str(command.output), str(command.volume), command.work
    output = plan_output(where, objects="--instances" in command.options, overwrite=True, inputs=inputs, work=work)
    report = segment_store(config, Source(inputs), output, work, engine)
    shutil.rmtree(work)
    return report.seconds["total"]


def measure_workers(bench: Bench) -> Figures:
    """The same volume with one and with two workers."""
    rows = []
    with bench.command(bench.small(4), bench.small_cell, ONE_BY_ONE) as command:
        for count in (1, 2):
            own = command.on("--workers", str(count), output=command.output.with_name(f"{count}.zarr"))
            done = run(replace(own, threads=1))
            rows.append({"workers": count, "command_s": done.seconds, "seconds": done.report["seconds"]})
            bench.tell(f"workers {count}: {done.report['seconds']['total']:.1f} s")
    one, two = (row["seconds"] for row in rows)
    return {
        "runs": rows,
        "scaling": one["total"] / two["total"],
        "scaling_segment": one["segment"] / two["segment"],
    }


def measure_kills(bench: Bench) -> Figures:
    """Kills at random times; the cells are as small as a result's chunks allow, so that there are many blocks."""
    depth, height, width = bench.options.cell
    shape = (depth, max(2 * CHUNK[1], height), max(2 * CHUNK[2], width))
    with bench.command(shape, f"blocks.cell={[depth, *CHUNK[1:]]}", ONE_BY_ONE) as command:
        return kill_cycles(replace(command, threads=1), bench.options.kills, bench.options.seed, bench.console)


def measure_gvoxel(bench: Bench) -> Figures:
    """A large volume with one worker for each core, and the sliding window of nnU-Net on parts of it."""
    workers = os.cpu_count() or 1
    shape = shape_for(bench.options.gvoxels, bench.stacks(), DEPTH)
    gvoxels = np.prod(shape).item() / GIGA
    with bench.command(shape) as command:
        done = run(replace(command.on("--workers", str(workers)), threads=1))
    bench.tell(f"{gvoxels:.2f} Gvoxels: {done.seconds:.0f} s")
    plain = _one_stage(bench, shape, done.report["layout"]["cells"], workers)
    seconds = done.report["seconds"]
    result = {
        "shape": shape,
        "gvoxels": gvoxels,
        "workers": workers,
        "command_s": done.seconds,
        "s_per_gvoxel": seconds["total"] / gvoxels,
        **{name: done.report[name] for name in ("seconds", "work_s", "counts")},
        **{name: done.report["layout"][name] for name in ("per_block", "coarse_level")},
        "cells": cells(done),
        "failures": len(done.report["failures"]),
        "main_mb": done.main_mb,
        "largest_worker_mb": done.workers_mb,
        "one_stage": plain,
        "s_per_gvoxel_one_stage": plain["seconds_extrapolated"] / gvoxels,
    }
    return result | {"ratio": result["s_per_gvoxel_one_stage"] / result["s_per_gvoxel"]}


def _one_stage(bench: Bench, shape: Triple, edges: Sequence[Sequence[int]], workers: int) -> Figures:
    """What the sliding window would take on a whole volume, from the time that its tiles take in some cells of it.

    All workers are busy with a cell each at the same time. Only time inside of the fine stage counts, and each tile of
    the volume counts once, though cells run those at their faces twice: both are in favour of the sliding window.
    """
    random = np.random.default_rng(bench.options.seed)
    rows: list[Figures] = []
    with bench.command(shape, f"blocks.cell={[b - a for a, b, *_ in edges]}", ONE_BY_ONE) as command:
        for turn in range(bench.options.picks):
            region = _row_of_cells(edges, workers, random)
            place = command.on(
                "--mode", "one-stage", "--workers", str(workers), "--region", region,
                output=command.output.with_name(f"{turn}.zarr"),
            )  # fmt: skip
            done = run(replace(place, threads=1))
            fine, tiles = done.report["work_s"]["fine"], done.report["counts"]["canvases"]
            busy = min(workers, cells(done))
            row = {
                "region": region,
                "cells": cells(done),
                "tiles": tiles,
                "segment_s": done.report["seconds"]["segment"],
            }
            rows.append(row | {"s_per_tile": fine / busy / tiles})
            bench.tell(f"one-stage {region}: {rows[-1]['s_per_tile']:.3f} s per tile")
        config = load_config(command.config, command.overrides)
    total = count_tiles(shape, load_model(bench.model("fine")), config.fine.tile_step)
    per_tile = statistics.median(row["s_per_tile"] for row in rows)
    return {"extrapolated": True, "picks": rows, "tiles": total, "seconds_extrapolated": per_tile * total}


def _row_of_cells(edges: Sequence[Sequence[int]], count: int, random: np.random.Generator) -> str:
    """A region of some cells beside each other along the axis that has most of them."""
    long = max(range(3), key=lambda axis: len(edges[axis]))
    parts = []
    for axis, ends in enumerate(edges):
        wanted = min(count if axis == long else 1, len(ends) - 1)
        first = int(random.integers(len(ends) - wanted))
        parts.append(f"{ends[first]}:{ends[first + wanted]}")
    return ",".join(parts)


def cells(done: Measured) -> int:
    """Cells of a run."""
    return int(np.prod([len(edges) - 1 for edges in done.report["layout"]["cells"]]))


PARTS: Mapping[str, tuple[Callable[[Bench], Figures], tuple[str, ...]]] = {
    "memory": (measure_memory, ("cell", "factors")),
    "overhead": (measure_overhead, ("cell", "repeat")),
    "workers": (measure_workers, ("cell",)),
    "kills": (measure_kills, ("cell", "kills", "seed")),
    "gvoxel": (measure_gvoxel, ("gvoxels", "picks", "seed")),
}
"""How each part is measured, and the options that it depends on besides ``COMMON``."""
COMMON = ("threads", "levels", "overrides")


def measure(options: argparse.Namespace, console: Console) -> None:
    """Measure what the options ask for, part by part."""
    parts = json.loads(options.out.read_text(encoding="utf-8"))["parts"] if options.out.exists() else {}
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(load_dataset("em"), options, options.work, console)
    for name in options.parts:
        part, names = PARTS[name]
        wanted = json.loads(json.dumps({key: getattr(options, key) for key in (*COMMON, *names)}))
        if parts.get(name, {}).get("options") == wanted:
            console.print(f"{name}: measured already", highlight=False)
            continue
        about = {"date": time.strftime("%Y-%m-%d"), "options": wanted, "environment": environment()}
        parts[name] = {**about, **part(bench)}
        with atomic_write(options.out) as path:
            path.write_text(json.dumps({**summary(parts), "parts": parts}, indent=1) + "\n", encoding="utf-8")
    table = Table("", "figure", title=options.out.name, title_justify="left")
    for what, value in figures(parts):
        table.add_row(what, value)
    console.print(table)


def three(text: str) -> Triple:
    """Three integers of the command line, separated by commas."""
    return triple(int(part) for part in text.split(","))


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, metavar="FILE", help="JSON file for the results")
    place.add_argument("--table", type=Path, metavar="FILE", help="print such a file as Markdown, and measure nothing")
    add("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    add("--data", type=Path, metavar="DIR", help="where the data lie, if not where the data set's file says")
    add("--models", default="ours", help="ours: benchmarks/models, then ../shared/models; shared; or a folder")
    add("--work", type=Path, metavar="DIR", help="for volumes, which are kept, and results (default: a temporary one)")
    add("--gvoxels", type=float, default=1.0, metavar="N", help="at least so many in part gvoxel (default: 1)")
    add("--kills", type=int, default=20, metavar="N", help="kills (default: 20)")
    add("--threads", type=int, default=1, metavar="N", help="threads of every library in runs without workers")
    add("--levels", type=int, choices=(1, 2, 3), default=3, help="scale levels of the volumes (default: 3)")
    add("--cell", type=three, default=(20, 512, 512), metavar="Z,Y,X", help="cells of all parts but gvoxel")
    add("--factors", type=int, nargs="+", default=[1, 2, 4, 8, 16], metavar="N", help="sizes in part memory")
    add("--repeat", type=int, default=5, metavar="N", help="turns in part overhead (default: 5)")
    add("--picks", type=int, default=3, metavar="N", help="places that are run one-stage in part gvoxel (default: 3)")
    add("--seed", type=int, default=0, metavar="N", help="of kills and places (default: 0)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a setting")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = build_parser().parse_args(arguments)
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    if options.table:
        print(markdown(json.loads(options.table.read_text(encoding="utf-8"))["parts"]))
        return 0
    use_threads(options.threads)
    if options.work:
        return exit_code(lambda: measure(options, console), console)
    with tempfile.TemporaryDirectory() as folder:
        options.work = Path(folder)
        return exit_code(lambda: measure(options, console), console)


if __name__ == "__main__":
    sys.exit(main())
