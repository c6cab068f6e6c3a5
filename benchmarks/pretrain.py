"""Does pretraining help? One study of it, or the page that tells of all.

    python benchmarks/pretrain.py --study hippocampus --out benchmarks/results/pretraining/hippocampus.json
    python benchmarks/pretrain.py --page

Results are written after every training; the same command goes on where it was cut off. Every method is trained
with each seed, and as many steps as its baseline.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.common.machine import ROOT, SHARED, relative, use_threads
from benchmarks.common.registry import exit_code
from benchmarks.pretraining.page import make_page
from benchmarks.pretraining.results import Results, run
from benchmarks.pretraining.rows import Row
from benchmarks.pretraining.studies import STUDIES, Setup
from coarse2fine.system.memory import keep_freed_memory

RESULTS = ROOT / "benchmarks" / "results" / "pretraining"
PAGE = ROOT / "docs" / "pretraining-results.md"
HALVED = ("hippocampus", "product")
"""Studies whose networks can compute in bfloat16, all arms alike."""


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--study", choices=STUDIES)
    what.add_argument("--page", action="store_true", help="write the page from all results")
    add("--check", action="store_true", help="with --page: write nothing; exit code 1 if the page is not up to date")
    add("--out", type=Path, metavar="FILE", help="JSON file of results (benchmarks/results/pretraining/STUDY.json)")
    add("--seeds", type=int, default=3, metavar="N", help="seeds of each method (%(default)s)")
    add("--steps", type=int, metavar="N", help="steps of each training instead of the study's own, to try it out")
    add("--jobs", type=int, default=1, metavar="N", help="seeds at once, in processes of their own (%(default)s)")
    add("--bf16", action="store_true", help=f"of {' and '.join(HALVED)}, on a CPU that computes with bfloat16")
    add("--threads", type=int, default=1, metavar="N", help="of every library, in each process (%(default)s)")
    add("--data", type=Path, default=SHARED / "data", metavar="DIR", help="folder of the data sets (../shared/data)")
    add("--work", type=Path, metavar="DIR", help="for what is between (FILE.work, which is removed at the end)")
    return parser


def run_study(options: argparse.Namespace, console: Console) -> Results:
    """Run what the options say."""
    out = options.out or RESULTS / f"{options.study}.json"
    words = ["python", "benchmarks/pretrain.py", "--study", options.study, "--out", relative(out)]
    words += ["--seeds", str(options.seeds), *([] if options.steps is None else ["--steps", str(options.steps)])]
    words += ["--jobs", str(options.jobs)] if options.jobs > 1 else []
    words += ["--bf16"] if options.bf16 else []
    work = options.work or out.with_suffix(".work")
    setup = Setup(range(options.seeds), work, options.steps, options.data, bf16=options.bf16)

    def told(row: Row) -> None:
        about = f"{row.method}, {row.labels} labels, seed {row.seed}: {row.measure} {row.value:.4f}"
        console.print(about, markup=False, highlight=False, soft_wrap=True)

    results = run(options.study, out, setup, shlex.join(words), jobs=options.jobs, told=told)
    if options.work is None:
        shutil.rmtree(work, ignore_errors=True)
    console.print(f"{len(results.rows)} rows, {results.seconds:.0f} s -> {out}", markup=False, soft_wrap=True)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if min(options.seeds, options.threads, options.jobs, 1 if options.steps is None else options.steps) < 1:
        parser.error("--seeds, --steps, --jobs and --threads are at least 1")
    if options.bf16 and options.study not in HALVED:
        parser.error(f"--bf16 is for {' and '.join(HALVED)}")
    console = Console(stderr=False, width=None if sys.stdout.isatty() else 150)
    if options.page:
        return exit_code(lambda: make_page(RESULTS, PAGE, check=options.check), console)
    if arguments is None:
        use_threads(options.threads)
    keep_freed_memory()
    return exit_code(lambda: run_study(options, console), console)


if __name__ == "__main__":
    sys.exit(main())
