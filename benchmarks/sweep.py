"""Quality and effort of several settings on one case: how defaults were chosen.

    python benchmarks/sweep.py --dataset em --case vnc_a --vary canvas.norm=canvas,slot,case --set fine.grow=0

Settings are chosen on training cases (``--case``); the test case is for reporting.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common.registry import MissingDataError, dataset_names
from benchmarks.compare_nnunet import load
from coarse2fine.errors import C2FError
from coarse2fine.evaluation.masks import dice, iou, leave_out
from coarse2fine.io import read_volume
from coarse2fine.system.memory import keep_freed_memory

COLUMNS = ("setting", "Dice", "IoU", "canvases", "fill", "grown", "volume seen", "heatmap seen", "seconds")


def combinations(varied: Sequence[str]) -> list[tuple[str, ...]]:
    """All combinations of ``key=a,b,c`` lists, each as ``key=value`` overrides."""
    choices = []
    for text in varied:
        key, _, values = text.partition("=")
        choices.append([f"{key}={value}" for value in values.split(",")])
    return list(itertools.product(*choices))


def measure(options: argparse.Namespace, setting: tuple[str, ...]) -> tuple[str, ...]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        options.overrides = [*options.fixed, *setting]
        contest = load(options, Path(folder))
        run = contest.run("coarse2fine")
        files = contest.results["coarse2fine"], contest.reference
        labels, reference = (read_volume([file]).channels[0] for file in files)
        ignore = contest.pipeline.fine.labels.ignore
        found, true = (leave_out(one, reference, ignore) > 0 for one in (labels, reference))
    if run.report is None:
        raise MissingDataError("the run has no report", "")
    report = run.report
    figures = (
        f"{dice(found, true):.3f}",
        f"{iou(found, true):.3f}",
        f"{report.canvases.count:.0f}",
        f"{report.canvases.fill:.2f}",
        str(report.boxes.grown),
        f"{report.coverage.volume:.1%}",
        f"{report.coverage.heatmap_mass:.1%}",
        f"{run.seconds:.1f}",
    )
    return (" ".join(setting), *figures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", required=True, choices=dataset_names())
    parser.add_argument("--case", help="default: the test case")
    parser.add_argument("--models", default="ours", help="ours, shared, or a folder")
    parser.add_argument("--vary", action="append", default=[], metavar="KEY=A,B,C", help="may be repeated")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="fixed")
    parser.set_defaults(mode="accelerated", mirroring=False, data=None)
    options, console = parser.parse_args(arguments), Console(width=None if sys.stdout.isatty() else 150)
    keep_freed_memory()
    table = Table(title=f"{options.dataset}, {options.case or 'test case'} {' '.join(options.fixed)}".strip())
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "setting" else "right")
    try:
        for setting in combinations(options.vary):
            table.add_row(*measure(options, setting))
    except C2FError as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
