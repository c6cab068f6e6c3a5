"""A kit that is made of a fine model and training cases only, and what it is worth on test cases.

    python benchmarks/prepare.py --dataset lung --out lung.json
    python benchmarks/prepare.py --dataset lung --kit KIT --out lung.json      # one that c2f-prepare has made

The kit comes from the command that users type. Each test case is then segmented with it, in one-stage mode with the
same fine model, and with the settings and the coarse model that were tuned by hand, without mirroring anywhere; and by
nnU-Net's own predictor, whose seconds over the others' are the ratios; all from file to file. The result has, per test
case, seconds, quality, the share of the true foreground outside of the kit's first boxes, runs with deadlines, and the
area under quality against time by order.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from rich.console import Console
from scipy import stats

from benchmarks.common.bench import Bench, run_nnunet
from benchmarks.common.machine import ROOT, environment, forget
from benchmarks.common.merging import merge_labels
from benchmarks.common.registry import (
    Case,
    Dataset,
    dataset_names,
    exit_code,
    find_case_files,
    find_model,
    load_dataset,
)
from benchmarks.deadlines import anytime_areas, measure_deadlines
from benchmarks.training.derived import derive
from coarse2fine.calibration.cases import foreground_of
from coarse2fine.calibration.kit import open_kit
from coarse2fine.calibration.misses import measure_case
from coarse2fine.config.reader import load_config
from coarse2fine.errors import C2FError
from coarse2fine.evaluation.masks import dice, iou, leave_out, mean_over_labels
from coarse2fine.io import atomic_write, read_volume
from coarse2fine.pipeline import Pipeline
from coarse2fine.system.memory import keep_freed_memory

Row = dict[str, Any]
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Contestants:
    """Who segments test cases.

    Attributes:
        kit: With the kit.
        one_stage: One-stage mode with its fine model.
        tuned: The hand-tuned settings; None where there are none.
        bench: The cases' data set, with its own models.
    """

    kit: Pipeline
    one_stage: Pipeline
    tuned: Pipeline | None
    bench: Bench


def make_kit(dataset: Dataset, kit: Path, minutes: float, options: Sequence[str]) -> None:
    """Make a kit by the command that users type; merged labels are written beside it first.

    Raises:
        C2FError: If it fails.
    """
    fine, cases = find_model(dataset, "fine"), ROOT / dataset.data
    if dataset.merged:
        own = kit.with_name(f"{kit.name}-cases")
        derive(cases, own, dataset.merged)
        cases = own
    command = [sys.executable, "-m", "coarse2fine.cli.prepare", "--fine-model", str(fine), "--minutes", str(minutes)]
    command += ["--cases", str(cases), "-o", str(kit), *options]
    if subprocess.run(command, check=False).returncode:
        raise C2FError("c2f-prepare failed", "What it printed says why.")


def contestants(dataset: Dataset, kit: Path, case: Case) -> Contestants:
    """Load all models and settings."""
    fine = json.dumps(str(find_model(dataset, "fine")))
    plain = ["fine.mirroring=false", f"fine.model={fine}"]
    accelerated = Pipeline.from_config(load_config(open_kit(kit), plain))
    one_stage = Pipeline.from_config(load_config(None, ["mode=one-stage", *plain]))
    bench = Bench(dataset, case)
    tuned = bench.pipeline() if dataset.config and bench.has("coarse") else None
    return Contestants(accelerated, one_stage, tuned, bench)


def measure(case: Case, who: Contestants, repeat: int, deadlines: bool) -> Row:
    """One test case: seconds, quality and what is missed; and if asked for, what deadlines and orders do."""
    if case.image is None:
        raise C2FError(f"{case.name} has no image", "Choose another data set.")
    volume, stored = read_volume([case.image]), np.asarray(read_volume([case.reference]).channels[0])
    truth = merge_labels(stored, who.bench.dataset.merged)
    fine = who.one_stage.fine
    row: Row = {"case": case.name}
    for name, pipeline in (("kit", who.kit), ("one_stage", who.one_stage), ("tuned", who.tuned)):
        if pipeline is None:
            continue
        seconds = []
        for _ in range(1 if name == "one_stage" else repeat):
            forget()
            with tempfile.TemporaryDirectory() as folder:
                before = time.perf_counter()
                result = pipeline.run_files([case.image], Path(folder) / case.reference.name)
                seconds.append(time.perf_counter() - before)
        labels = leave_out(result.labels, truth, fine.labels.ignore)
        reference = leave_out(truth, truth, fine.labels.ignore)
        scores = {
            metric.__name__: mean_over_labels(metric, labels, reference, fine.labels.foreground)
            for metric in (dice, iou)
        }
        row[name] = {"seconds": median(seconds), **scores, "warnings": list(result.report.warnings)}
    if who.kit.segmenter is not None:
        threshold = who.kit.config.rois.threshold
        missed = measure_case(who.kit.segmenter, volume, foreground_of(truth, fine), (threshold,))
        row |= {"missed": missed.misses[0].missed, "boxes": missed.misses[0].boxes}
        if not deadlines:
            return row
        row |= {"deadlines": measure_deadlines(who.bench.on(case), who.kit)}
        row |= {"anytime_area": anytime_areas(who.bench.on(case), who.kit)[0]}
    return row


def nnunet_seconds(bench: Bench) -> float:
    """What nnU-Net's own predictor takes for a case, from file to file."""
    with tempfile.TemporaryDirectory() as folder:
        forget()
        return run_nnunet(bench, Path(folder) / f"labels{bench.model('fine').dataset['file_ending']}").total_s


def summary(rows: Sequence[Row], card: dict[str, Any], kit: Pipeline) -> Row:
    """What all test cases say together."""
    losses = [row["one_stage"]["dice"] - row["kit"]["dice"] for row in rows]
    seconds = {
        name: median(row[name]["seconds"] for row in rows if name in row)
        for name in ("nnunet", "kit", "one_stage", "tuned")
        if name in rows[0]
    }
    promise = kit.config.promise
    missed = {row["case"]: row["missed"] for row in rows if "missed" in row}
    most = promise.miss if promise else 0.0
    return {
        "minutes": card["minutes"],
        "resumed": card["resumed"],
        "asked_loss": card["asked"]["loss"],
        "coarse": card["coarse"],
        "winner_mode": kit.config.mode,
        "ratio": seconds["nnunet"] / seconds["kit"],
        "one_stage_ratio": seconds["nnunet"] / seconds["one_stage"],
        "tuned_ratio": seconds["nnunet"] / seconds["tuned"] if "tuned" in seconds else None,
        "loss": mean(losses),
        "loss_interval": interval(losses),
        "promised_share": most,
        "promised_probability": promise.probability if promise else None,
        "promise_is_estimate": promise.crossed if promise else None,
        "missed": missed,
        "kept": sum(share <= most for share in missed.values()),
    }


def interval(losses: Sequence[float]) -> list[float] | None:
    """Two-sided Student interval of the mean; None of one case."""
    if len(losses) < 2:
        return None
    spread = float(np.std(losses, ddof=1)) / len(losses) ** 0.5
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(losses) - 1)) * spread
    return [mean(losses) - half, mean(losses) + half]


def run(options: argparse.Namespace, further: Sequence[str], console: Console) -> None:
    """Make the kit if none is named, measure all test cases, write the file."""
    dataset = load_dataset(options.dataset)
    cases = [case for case in find_case_files(dataset) if case.split == "test" and case.image is not None]
    with tempfile.TemporaryDirectory() as temporary:
        kit = options.kit or Path(temporary) / "kit"
        if options.kit is None:
            make_kit(dataset, kit, options.minutes, further)
        card = json.loads((kit / "card.json").read_text(encoding="utf-8"))
        who = contestants(dataset, kit, cases[0])
        rows = []
        for case in cases[: options.cases]:
            row = measure(case, who, options.repeat, not options.no_deadlines)
            rows.append(row | {"nnunet": {"seconds": nnunet_seconds(who.bench.on(case))}})
            console.print(rows[-1], markup=False, highlight=False, soft_wrap=True)
        found = {
            "dataset": dataset.name,
            "kit": {"made": "here" if options.kit is None else kit.name, "promise": card["promise"]},
            **summary(rows, card, who.kit),
            "rows": rows,
            "environment": environment(),
        }
    with atomic_write(options.out) as path:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    console.print({key: found[key] for key in ("minutes", "ratio", "tuned_ratio", "loss", "loss_interval", "missed")})


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", required=True, choices=dataset_names())
    add("--out", type=Path, required=True, metavar="FILE.json")
    add("--kit", type=Path, metavar="KIT", help="a kit that is there, instead of making one")
    add("--minutes", type=float, default=20.0, help="as of c2f-prepare (20)")
    add(
        "--repeat",
        type=int,
        default=3,
        help="runs with the kit and with hand-tuned settings; one-stage mode and nnU-Net run once",
    )
    add("--no-deadlines", action="store_true", help="leave out deadlines and orders, which take longest")
    add("--cases", type=int, metavar="N", help="only the first N test cases")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. What it does not know goes to c2f-prepare."""
    options, further = build_parser().parse_known_args(arguments)
    keep_freed_memory()
    console = Console()
    return exit_code(lambda: run(options, further, console), console)


if __name__ == "__main__":
    sys.exit(main())
