"""One case of a command: from files to files, and what is told of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from coarse2fine.cli.bars import show_bars
from coarse2fine.config.schema import Config
from coarse2fine.io import Case, Volume, atomic_write
from coarse2fine.nnunet.model import Model
from coarse2fine.nnunet.properties import image_properties
from coarse2fine.pipeline import Pipeline, Result
from coarse2fine.report import RunReport
from coarse2fine.system.memory import SteadyHeap
from coarse2fine.system.terminal import plain
from coarse2fine.system.timing import Progress, silent

Read = Callable[[Sequence[Path]], Volume[NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Job:
    """A case, where labels and page go, where those of a cascade's previous stage are, and where it is looked at."""

    case: Case
    labels: Path
    previous: Path | None = None
    mask: Path | None = None
    page: Path | None = None

    def beside(self, ending: str) -> Path:
        """A file of the same name with another ending."""
        return self.labels.with_name(f"{self.case.name}{ending}")


@dataclass(frozen=True, slots=True)
class Work:
    """How the cases of a command are done; other processes get it as it is.

    Attributes:
        config: All settings.
        trust_checkpoint: Whether checkpoints may run code.
        probabilities: Whether these are written beside labels.
        previous: Whether every job has labels of the previous stage.
        measures, objects: Whether the report has those of labels, and of connected objects.
        viewer: Whether pages hold the volume itself.
        explain: Labels whose maps are on pages.
    """

    config: Config
    trust_checkpoint: bool = False
    probabilities: bool = False
    previous: bool = False
    measures: bool = False
    objects: bool = False
    viewer: bool = False
    explain: tuple[str, ...] = ()

    def pipeline(self, device: str | None = None) -> Pipeline:
        """Load the models.

        Args:
            device: Where they run, instead of where the settings say.
        """
        config = self.config if device is None else self.config.model_copy(update={"device": device})
        pipeline = Pipeline.from_config(config, trust_checkpoint=self.trust_checkpoint, previous=self.previous)
        if self.explain:
            from coarse2fine.explain.volumes import subject_of  # inference itself needs nothing of this

            for label in self.explain:
                subject_of(pipeline.fine, label, None)
        return pipeline


def segment_case(
    pipeline: Pipeline, job: Job, work: Work, progress: Progress = silent, read: Read | None = None
) -> RunReport:
    """Segment one case, and write all that is wanted of it.

    Args:
        pipeline: From ``work``.
        job: The case.
        work: What is wanted.
        progress: Told of every step.
        read: Reads the images.
    """
    volumes = []

    def keeping(files: Sequence[Path]) -> Volume[NDArray[Any]]:
        volumes.append((read or pipeline.read)(files))
        return volumes[0]

    result = pipeline.run_files(
        job.case.files,
        job.labels,
        SteadyHeap(progress),
        probabilities=work.probabilities,
        measures=work.measures,
        objects=work.objects,
        previous=job.previous,
        mask=job.mask,
        read=keeping if job.page else read,
    )
    if result.probabilities is not None:
        write_probabilities(job, result.probabilities, pipeline.fine)
    if job.page:
        from coarse2fine.page.case import write_case_page  # templates and pictures take long to import

        maps = explained(volumes[0], result, pipeline.fine, work.explain)
        write_case_page(volumes[0], result, pipeline.fine, job.page, viewer=work.viewer, maps=maps)
    return result.report


def explained(
    volume: Volume[NDArray[Any]], result: Result, fine: Model, labels: Sequence[str]
) -> list[tuple[str, bytes]]:
    """The map of each label that was found, in words and as a picture (PNG), for the voxels in which it was."""
    if not labels:
        return []
    from coarse2fine.explain.overlay import draw_map  # inference itself needs nothing of these
    from coarse2fine.explain.volumes import METHOD, explain_volume

    maps = []
    for label in labels:
        mask = np.isin(result.labels, sorted(fine.labels.values_of[label]))
        if mask.any():
            found = explain_volume(fine, volume, label, mask=mask)
            picture, number = draw_map(volume, found, title=label, ct=fine.schemes[0].name == "CTNormalization")
            maps.append((f"{label}, slice {number}: {METHOD} at layer {found.layer} of the fine network", picture))
    return maps


def write_probabilities(job: Job, probabilities: NDArray[np.float32], fine: Model) -> None:
    """Write ``CASE.npz`` and ``CASE.pkl`` as nnU-Net does: probabilities, and what its writers want of the image."""
    properties = image_properties(job.case.files, fine)
    with atomic_write(job.beside(".npz"), needed=probabilities.nbytes) as path, path.open("wb") as stream:
        np.savez_compressed(stream, probabilities=probabilities)
    with atomic_write(job.beside(".pkl")) as path:
        path.write_bytes(pickle.dumps(properties))


def tell_warnings(report: RunReport, console: Console) -> None:
    """What the user should know of one case."""
    for warning in report.warnings:
        console.print(plain(f"{report.case}: {warning}"), style="yellow", soft_wrap=True)


@contextmanager
def show_progress(console: Console, title: str) -> Iterator[Progress]:
    """One bar for each stage and one for the whole run; nothing unless stderr is a terminal."""
    stages = ("read", "coarse", "rois", "fine", "write")
    with show_bars(console, width=24) as bars:
        overall = bars.add_task(plain(title), total=len(stages))
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"  {stage}", total=total)
            bars.update(tasks[stage], completed=done, total=total)
            part = done / total if total else 1.0
            bars.update(overall, completed=stages.index(stage) + part)

        yield progress


def print_report(report: RunReport, output: Path, console: Console) -> None:
    """A few lines that say what happened."""
    table = Table(title=plain(f"{report.case}: {report.mode}"), title_justify="left", show_header=False, box=None)
    times = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in asdict(report.timing_s).items() if seconds >= 0.05)
    table.add_row("seconds", times)
    if report.mode != "one-stage":
        boxes = report.boxes
        table.add_row(
            "boxes",
            f"{boxes.selected} selected of {boxes.parents} parents, {boxes.children} children"
            + (f"; {boxes.dropped} dropped" if boxes.dropped else "")
            + (f"; {boxes.grown} grown" if boxes.grown else ""),
        )
        table.add_row("chosen by", plain(" ".join(report.agent[key] for key in ("kind", "name"))))
        table.add_row("canvases", f"{report.canvases.count:.0f}, {report.canvases.fill:.0%} filled")
        table.add_row(
            "looked at",
            f"{report.coverage.volume:.2%} of the volume, {report.coverage.heatmap_mass:.1%} of the heatmap",
        )
    if report.deadline:
        kept = report.deadline
        table.add_row("deadline", f"{kept.asked_s:.4g} s; {len(kept.left)} of {kept.boxes} boxes not reached")
    table.add_row("labels", ", ".join(f"{label}: {count} voxels" for label, count in report.labels.items()) or "none")
    table.add_row("written", plain(str(output)))
    console.print(table)
