"""The benchmark: how fast and how good, against every alternative, on one data set.

    python benchmarks/run.py --dataset em --repeat 3 --threads 2
    python benchmarks/run.py --dataset em --experiments selection packing
    python benchmarks/run.py --list

Each row segments a case from file to file; rows take turns. ``results.json`` in the output folder is a list of rows and
holds every finished run, so that a benchmark that was cut off goes on where it stopped. ``results_page.py`` turns the
results of all data sets into a page.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.bench import Bench
from benchmarks.common.machine import ROOT, environment, use_threads
from benchmarks.common.registry import (
    Case,
    Dataset,
    MissingDataError,
    dataset_names,
    exit_code,
    find_case_files,
    load_dataset,
)
from benchmarks.experiments import EXPERIMENTS, run_experiment
from benchmarks.rows.ladder import Store, measure_rows
from benchmarks.rows.methods import ROWS
from benchmarks.studies.geometry import MaskBench
from coarse2fine.config.validation import did_you_mean
from coarse2fine.errors import ConfigError
from coarse2fine.io import atomic_write
from coarse2fine.system.memory import keep_freed_memory

COLUMNS = (
    "total_s",
    "ratio",
    "dice",
    "iou",
    "hd95",
    "surface_dice",
    "ap",
    "agreement",
    "canvases",
    "fill",
    "peak_rss_mb",
)
FORMS = {"total_s": ".2f", "ratio": ".2f", "hd95": ".1f", "canvases": ".0f", "fill": ".2f", "peak_rss_mb": ".0f"}


def choose_names(wanted: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    """Names that are known, in their order; ``all`` stands for every one.

    Raises:
        ConfigError: If one is unknown.
    """
    for name in wanted:
        if name not in (*known, "all"):
            raise ConfigError(f"no {what} named '{name}'", f"{did_you_mean(name, known)} --list shows all.".strip())
    return [name for name in known if name in wanted or "all" in wanted]


def choose_cases(dataset: Dataset, names: Sequence[str], data: Path | None) -> list[Case]:
    """The named cases, or all test cases.

    Raises:
        MissingDataError: If one is not there.
    """
    cases = find_case_files(dataset, data)
    there = [case.name for case in cases]
    missing = [name for name in names if name not in there]
    if missing:
        raise MissingDataError(f"'{dataset.name}' has no case '{missing[0]}' here", f"There are: {', '.join(there)}.")
    return [case for case in cases if (case.name in names if names else case.split == "test")]


def results_table(rows: Sequence[dict[str, Any]], case: str) -> Table:
    """The rows of one case."""
    table = Table(title=case, title_justify="left")
    for name in ("row", *COLUMNS):
        table.add_column(name, justify="left" if name == "row" else "right")
    for row in rows:
        if row["case"] == case:
            cells = (row.get(name) for name in COLUMNS)
            texts = [
                "" if cell is None else format(cell, FORMS.get(name, ".3f"))
                for name, cell in zip(COLUMNS, cells, strict=True)
            ]
            table.add_row(row["row"], *texts)
    return table


def note_session(folder: Path) -> None:
    """Add to ``environment.json`` with what, when and on what this was run."""
    file = folder / "environment.json"
    sessions = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    command = shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]])
    sessions.append({"command": command, "date": time.strftime("%Y-%m-%d"), "environment": environment()})
    with atomic_write(file) as path:
        path.write_text(json.dumps(sessions, indent=1) + "\n", encoding="utf-8")


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure what the options ask for."""
    dataset = load_dataset(options.dataset)
    experiments = choose_names(options.experiments, list(EXPERIMENTS), "experiment")
    rows = choose_names(options.rows if options.rows is not None else [] if experiments else ["all"], list(ROWS), "row")
    folder = options.out or ROOT / "benchmarks" / "results" / dataset.name
    cases = choose_cases(dataset, options.cases, options.data)
    folder.mkdir(parents=True, exist_ok=True)
    note_session(folder)
    for case in cases:
        bench: Bench | MaskBench
        if case.image is None:
            bench = MaskBench(dataset, case, options.overrides)
            console.print(f"{dataset.name} {case.name}: references only, so no rows are run", highlight=False)
        else:
            settings = {"source": options.models, "overrides": options.overrides, "mirroring": options.mirroring}
            bench = Bench(dataset, case, **settings)
            if rows:
                store = Store(folder)
                measure_rows(bench, rows, max(1, options.repeat), store, console)
                console.print(results_table(store.rows, case.name))
        for name in experiments:
            if EXPERIMENTS[name].needs_image and case.image is None:
                console.print(f"{name}: skipped, it needs images", highlight=False)
                continue
            target = folder / "experiments" if len(cases) == 1 else folder / "experiments" / case.name
            path = run_experiment(name, bench, target, console, max(1, options.repeat))
            console.print(f"{name}: {path}", highlight=False, soft_wrap=True)


def show_list(console: Console) -> None:
    """Everything there is to choose from."""
    for title, names in (
        ("data sets", [f"{name}: {load_dataset(name).title}" for name in dataset_names()]),
        ("rows", [f"{name}: {row.title}" for name, row in ROWS.items()]),
        ("experiments", [f"{name}: {experiment.title}" for name, experiment in EXPERIMENTS.items()]),
    ):
        console.print(title, *(f"  {name}" for name in names), sep="\n", highlight=False, soft_wrap=True)


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--dataset", metavar="NAME", help="see --list")
    add("--list", action="store_true", help="show all data sets, rows and experiments")
    add("--cases", nargs="+", default=[], metavar="CASE", help="default: all test cases")
    add("--rows", nargs="+", metavar="ROW", help="default: all, or none if experiments are asked for")
    add("--experiments", nargs="+", default=[], metavar="NAME", help="or all (default: none)")
    add("--repeat", type=int, default=3, metavar="N", help="turns, in each of which every row is run (default: 3)")
    add("--out", type=Path, metavar="DIR", help="default: benchmarks/results/<data set>")
    add("--data", type=Path, metavar="DIR", help="where the data lie, if not where the data set's file says")
    add("--models", default="ours", help="ours: benchmarks/models, then ../shared/models; shared; or a folder")
    add("--mirroring", action="store_true", help="mirror the fine model's inputs in every row")
    add("--threads", type=int, metavar="N", help="threads of every library (default: what each chooses)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a setting")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    if options.list:
        show_list(Console())
        return 0
    if options.dataset is None:
        parser.error("name a --dataset; --list shows all")
    use_threads(options.threads)
    keep_freed_memory()  # as c2f-infer does; all rows gain as much
    return exit_code(lambda: run(options, console), console)


if __name__ == "__main__":
    sys.exit(main())
