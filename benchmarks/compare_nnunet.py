"""coarse2fine against nnU-Net's own predictor, from file to file, on the same models: seconds, quality, memory.

Both sides run in this process and take turns; the order changes with every repetition. Each run reads the volume from
its file and writes labels to a file: ours as c2f-infer does it, nnU-Net's with its own reader, preprocessing, sliding
window, export and writer, without worker processes. Fine model, tile step and mirroring are the same. Imports and
loading the models (``load_s``) are in the seconds of neither side. There is no warm-up: the first run of each side
counts, medians tame it, and what coarse2fine remembers from earlier runs is dropped before each.

Peak memory is that of the whole process, in which both sides' models are loaded; nothing is subtracted. What the other
side has freed is handed back to the system before each run. As in c2f-infer, glibc is told to reuse freed memory, which
speeds up both sides.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import io
import json
import pstats
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.common.bench import portable_agent
from benchmarks.common.machine import PeakMemory, environment, forget, relative, use_threads
from benchmarks.common.merging import merged_file
from benchmarks.common.registry import (
    MissingDataError,
    choose_case,
    config_file,
    dataset_names,
    exit_code,
    find_model,
    load_dataset,
)
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import Config
from coarse2fine.evaluation.masks import dice, iou, leave_out, mean_over_labels
from coarse2fine.io import atomic_write, check_writable, find_cases, read_volume
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import nnunet_predictor
from coarse2fine.pipeline import Pipeline
from coarse2fine.report import RunReport
from coarse2fine.system.memory import SteadyHeap, keep_freed_memory
from coarse2fine.system.timing import Clock

SIDES = ("coarse2fine", "nnunet")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one side.

    Attributes:
        seconds: From file to file.
        network_s: Of these in network passes; for nnU-Net in its whole sliding window.
        peak_rss_mb: Peak resident memory of the process; None where it cannot be measured.
        report: What coarse2fine says about its run; None for nnU-Net.
    """

    seconds: float
    network_s: float
    peak_rss_mb: float | None
    report: RunReport | None


class Contest:
    """Both sides, loaded.

    Args:
        dataset: Its name.
        image: First channel of the test case.
        reference: Its true labels.
        config: Settings, with the model folders filled in.
        folder: Where the results go.
    """

    def __init__(self, dataset: str, image: Path, reference: Path, config: Config, folder: Path) -> None:
        self.dataset, self.reference, self.config = dataset, reference, config
        self._clock, self._memory = Clock[str](), PeakMemory()
        with self._clock.time("load"):
            self.pipeline = Pipeline.from_config(config)
        self.load_s = self._clock.seconds["load"]
        fine, settings = self.pipeline.fine, config.fine
        # A copy of its own: with several folds nnU-Net overwrites the weights of the network that it is given.
        copy = load_model(fine.folder, folds=fine.folds, checkpoint=settings.checkpoint, device=fine.device)
        predictor = nnunet_predictor(copy, tile_step=settings.tile_step, mirroring=settings.mirroring)
        timed = self._clock.time("network")(predictor.predict_sliding_window_return_logits)
        predictor.predict_sliding_window_return_logits = timed
        self.predictor, self.files = predictor, find_cases(image, fine.channels)[0].files
        self._stem, ending = reference.name.partition(".")[0], predictor.dataset_json["file_ending"]
        self.results = {side: folder / side / f"{self._stem}{ending}" for side in SIDES}
        for result in self.results.values():
            result.parent.mkdir(parents=True, exist_ok=True)

    def run(self, side: str) -> Run:
        """One run of one side, from file to file."""
        forget()
        self._clock.seconds.clear()
        self._memory.reset()
        report, result = None, self.results[side]
        with self._clock.time("total"):
            if side == "coarse2fine":
                report = self.pipeline.run_files(self.files, result, SteadyHeap()).report
            else:
                with contextlib.redirect_stdout(io.StringIO()):
                    inputs, output = [str(file) for file in self.files], str(result.with_name(self._stem))
                    self.predictor.predict_from_files_sequential([inputs], [output])
        peak, total, network = self._memory.read_mb(), self._clock.seconds["total"], self._clock.seconds["network"]
        return Run(total, report.network_s.total if report else network, peak, report)


def compare(contest: Contest, repeat: int, console: Console) -> dict[str, Any]:
    """Let both sides take turns, ``repeat`` times each; returns all figures, ready for JSON."""
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for turn in range(repeat):
        for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
            runs[side].append(contest.run(side))
            console.print(f"{turn + 1}/{repeat} {side}: {runs[side][-1].seconds:.2f} s", highlight=False)
    reports = [run.report for run in runs["coarse2fine"] if run.report]
    figures = {"dataset": contest.dataset, "mode": contest.config.mode, "repeat": repeat, "load_s": contest.load_s}
    return figures | speed(runs) | quality(contest) | effort(reports) | setting(contest)


def speed(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Seconds and memory of both sides: medians, the highest peaks, and every single run."""
    figures: dict[str, Any] = {}
    for side, suffix in zip(SIDES, ("", "_nnunet"), strict=True):
        names = ("seconds", "network_s", "peak_rss_mb")
        lists: dict[str, list[Any]] = {name: [getattr(run, name) for run in runs[side]] for name in names}
        figures[f"seconds{suffix}"] = statistics.median(lists["seconds"])
        figures[f"network_s{suffix}"] = statistics.median(lists["network_s"])
        figures[f"peak_rss_mb{suffix}"] = max(filter(None, lists["peak_rss_mb"]), default=None)
        figures[f"runs{suffix}"] = lists
    return figures | {"ratio": figures["seconds_nnunet"] / figures["seconds"]}


def quality(contest: Contest) -> dict[str, Any]:
    """Both results, as the last run wrote them, against the reference and each other."""
    names = contest.pipeline.fine.labels
    paths = [contest.results[side] for side in SIDES] + [contest.reference]
    ours, theirs, reference = (read_volume([path]).channels[0] for path in paths)
    judged = [leave_out(labels, reference, names.ignore) for labels in (ours, theirs, reference)]
    return {
        "dice": mean_over_labels(dice, judged[0], judged[2], names.foreground),
        "dice_nnunet": mean_over_labels(dice, judged[1], judged[2], names.foreground),
        "iou": mean_over_labels(iou, judged[0], judged[2], names.foreground),
        "iou_nnunet": mean_over_labels(iou, judged[1], judged[2], names.foreground),
        "agreement": mean_over_labels(dice, ours, theirs, names.foreground),
        "different_voxels": int(np.count_nonzero(ours != theirs)),
    }


def effort(reports: Sequence[RunReport]) -> dict[str, Any]:
    """Where coarse2fine's time went, as medians over its runs, and what it looked at in the last one."""
    last = reports[-1]
    timings = [asdict(report.timing_s) for report in reports]
    timing = {stage: statistics.median(one[stage] for one in timings) for stage in timings[-1]}
    return {
        "case": last.case,
        "overhead": statistics.median(report.overhead_s / report.timing_s.total for report in reports),
        "overhead_s": statistics.median(report.overhead_s for report in reports),
        "io_s": statistics.median(report.timing_s.read + report.timing_s.write for report in reports),
        "timing_s": timing,
        "canvases": last.canvases.count,
        "fill": last.canvases.fill,
        "boxes": asdict(last.boxes),
        "coverage": asdict(last.coverage),
        "warnings": list(last.warnings),
    }


def setting(contest: Contest) -> dict[str, Any]:
    """With what, how and on what this was measured; paths are relative to the repository."""
    config, fine = contest.config.to_dict(), contest.pipeline.fine
    for stage in ("coarse", "fine"):
        config[stage]["model"] = config[stage]["model"] and relative(Path(config[stage]["model"]))
    config["assign"]["agent"] = portable_agent(config["assign"]["agent"])
    predict = f"-step_size {contest.config.fine.tile_step}{'' if contest.config.fine.mirroring else ' --disable_tta'}"
    model = f"-m {config['fine']['model']} -f {' '.join(fine.folds)} -chk {contest.config.fine.checkpoint}"
    return {
        "models": {stage: config[stage]["model"] for stage in ("coarse", "fine")},
        "config": config,
        "commands": {
            "benchmark": shlex.join(["python", "benchmarks/compare_nnunet.py", *sys.argv[1:]]),
            "nnunet": f"nnUNetv2_predict_from_modelfolder -i IMAGES -o OUTPUT {model} {predict} -device {fine.device}",
        },
        "environment": environment(fine.device),
    }


def results_table(results: dict[str, Any]) -> Table:
    """Both sides next to each other."""
    threads = results["environment"]["threads"]
    table = Table("", title=f"{results['case']}, {results['mode']}, {threads} thread(s)", title_justify="left")
    table.add_column("coarse2fine", justify="right")
    table.add_column("nnU-Net", justify="right")
    rows = (
        (f"seconds, median of {results['repeat']}", "seconds", ".2f"),
        ("  of these in the network", "network_s", ".2f"),
        ("Dice", "dice", ".4f"),
        ("IoU", "iou", ".4f"),
        ("peak memory of the process, MB", "peak_rss_mb", ".0f"),
    )
    for title, key, form in rows:
        pair = (results[key], results[f"{key}_nnunet"])
        table.add_row(title, *("unknown" if value is None else format(value, form) for value in pair))
    table.add_row("loading its models, s", f"{results['load_s']:.2f}", "by the same loader")
    table.add_row("Dice between them", f"{results['agreement']:.4f}", f"{results['different_voxels']} voxels differ")
    table.add_row("times faster", f"{results['ratio']:.2f}", style="bold")
    return table


def effort_table(figures: dict[str, Any]) -> Table:
    """What coarse2fine did."""
    table = Table(title="coarse2fine", title_justify="left", show_header=False)
    coverage = figures["coverage"]
    table.add_row("seconds", ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in figures["timing_s"].items()))
    table.add_row("not network or files", f"{figures['overhead_s']:.2f} s, {figures['overhead']:.1%}")
    table.add_row("boxes", ", ".join(f"{count} {name}" for name, count in figures["boxes"].items()))
    table.add_row("canvases", f"{figures['canvases']:.0f}, {figures['fill']:.0%} filled")
    table.add_row("looked at", f"{coverage['volume']:.2%} of the volume, {coverage['heatmap_mass']:.1%} of the heatmap")
    table.add_row("warnings", "; ".join(figures["warnings"]) or "none")
    return table


def profile(contest: Contest, console: Console) -> None:
    """Print where coarse2fine's time goes: by stage in one run, by function in a second one under the profiler."""
    report = contest.run("coarse2fine").report
    console.print(effort_table(effort([report] if report else [])))
    profiler, text = cProfile.Profile(), io.StringIO()
    forget()
    profiler.runcall(contest.pipeline.run_files, contest.files, contest.results["coarse2fine"])
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(10)
    console.print(text.getvalue().strip(), markup=False, highlight=False, soft_wrap=True)


def load(options: argparse.Namespace, folder: Path) -> Contest:
    """Both sides as the options ask for them, with results in ``folder``.

    Raises:
        MissingDataError: If data or models are not there.
    """
    dataset = load_dataset(options.dataset)
    case = choose_case(dataset, options.case, options.data)
    if case.image is None:
        raise MissingDataError(f"'{dataset.name}' has references only, no images", "Choose another data set.")
    overrides = [f"mode={options.mode}", *(["fine.mirroring=true"] if options.mirroring else []), *options.overrides]
    stages = ("fine",) if options.mode == "one-stage" else ("fine", "coarse")
    overrides += [f"{stage}.model={json.dumps(str(find_model(dataset, stage, options.models)))}" for stage in stages]
    config = load_config(config_file(dataset), overrides)
    reference = merged_file(case.reference, dataset.merged, folder)
    return Contest(options.dataset, case.image, reference, config, folder)


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add, modes = parser.add_argument, ("accelerated", "two-stage", "one-stage")
    add("--dataset", required=True, choices=dataset_names(), help="test case, models and settings")
    add("--case", metavar="NAME", help="a training case, to tune settings on (default: the test case, to report)")
    add("--data", type=Path, metavar="DIR", help="where the data lie, if not where the data set's file says")
    add("--repeat", type=int, default=3, metavar="N", help="runs of each side (default: 3)")
    add("--mode", choices=modes, default="accelerated", help="of coarse2fine (default: accelerated)")
    add("--models", default="ours", help="ours: benchmarks/models, then ../shared/models; shared; or a folder")
    add("--mirroring", action="store_true", help="mirror the fine model's inputs, on both sides")
    add("--threads", type=int, metavar="N", help="threads of every library (default: what each chooses)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a setting")
    add("--out", type=Path, metavar="FILE", help="write the JSON there instead of to standard output")
    add("--keep", type=Path, metavar="DIR", help="keep both results in this folder")
    add("--profile", action="store_true", help="only show where coarse2fine's time goes")
    return parser


def run(options: argparse.Namespace, console: Console) -> None:
    """Compare or profile, and show the results."""
    if options.out:
        check_writable(options.out, overwrite=True)
    with tempfile.TemporaryDirectory() as temporary:
        contest = load(options, options.keep or Path(temporary))
        if options.profile:
            profile(contest, console)
            return
        results = compare(contest, max(1, options.repeat), console)
    if options.out:
        with atomic_write(options.out) as path:
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    else:
        print(json.dumps(results, indent=1))
    console.print(results_table(results), effort_table(results))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options, console = build_parser().parse_args(arguments), Console(stderr=True)
    use_threads(options.threads)
    keep_freed_memory()  # as c2f-infer does; nnU-Net's side gains as much
    return exit_code(lambda: run(options, console), console)


if __name__ == "__main__":
    sys.exit(main())
