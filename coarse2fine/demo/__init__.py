"""``c2f-infer --demo``: a real CT and real models, small enough to ship."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from coarse2fine.config.reader import load_config, shipped_config
from coarse2fine.evaluation.masks import dice
from coarse2fine.io import LABEL_SUFFIXES, Volume, check_writable, read_volume, write_labels
from coarse2fine.nnunet.model import nnunet_predictor
from coarse2fine.pipeline import Pipeline
from coarse2fine.report import write_report
from coarse2fine.system.timing import Progress

ASSETS = Path(__file__).parent
IMAGE, REFERENCE = ASSETS / "lidc0001_0000.nii.gz", ASSETS / "lidc0001_reference.nii.gz"


@dataclass(frozen=True, slots=True)
class Score:
    """One way to segment the sample volume.

    Attributes:
        name: What ran.
        seconds: From file to file, without loading models.
        dice: Against the reference.
        found: Voxels of lesion.
    """

    name: str
    seconds: float
    dice: float
    found: int


def run_demo(output: Path, *, compare: bool, overwrite: bool, progress: Progress, console: Console) -> None:
    """Segment the sample volume and show what came of it.

    Args:
        output: Folder for ``labels.nii.gz``, ``page.html``, ``overlay.png`` and ``report.json``.
        compare: Also run nnU-Net's own predictor.
        overwrite: Replace files that exist.
        progress: Told about every step.
        console: Receives the table.
    """
    labels_file, page = output / "labels.nii.gz", output / "page.html"
    picture, report = output / "overlay.png", output / "report.json"
    check_writable(labels_file, overwrite, LABEL_SUFFIXES)
    for path in (page, picture, report):
        check_writable(path, overwrite)
    pipeline = demo_pipeline()
    result = pipeline.run_files([IMAGE], labels_file, progress)
    # Matplotlib and templates take long to import, and only what comes now needs them.
    from coarse2fine.demo.picture import draw_overlay
    from coarse2fine.page.case import write_case_page

    volume, reference = read_volume([IMAGE]), read_volume([REFERENCE]).channels[0] > 0
    write_case_page(volume, result, pipeline.fine, page, viewer=True)
    draw_overlay(volume, result.labels, reference, picture)
    write_report([result.report], report)
    scores = [score("coarse2fine", result.report.timing_s.total, result.labels, reference)]
    if compare:
        scores.append(run_nnunet(pipeline, volume, reference, console))
    console.print(table_of(scores))
    coverage = result.report.coverage
    console.print(
        f"The fine network saw {coverage.volume:.2%} of the volume and {coverage.heatmap_mass:.1%} of what "
        "the coarse network suspects.",
        highlight=False,
    )
    console.print(
        f"Open {page} in a browser; look at {picture}, {labels_file} and {report}, too.",
        highlight=False,
        soft_wrap=True,
    )


def demo_pipeline() -> Pipeline:
    """The pipeline with the shipped models."""
    return Pipeline.from_config(
        load_config(shipped_config("demo"), [f"coarse.model={ASSETS / 'coarse'}", f"fine.model={ASSETS / 'fine'}"])
    )


def run_nnunet(pipeline: Pipeline, volume: Volume, reference: NDArray[np.bool_], console: Console) -> Score:
    """nnU-Net's own predictor with the same fine model, tile step and mirroring, from file to file."""
    settings = pipeline.config.fine
    predictor = nnunet_predictor(pipeline.fine, tile_step=settings.tile_step, mirroring=settings.mirroring)
    with console.status("nnU-Net's own predictor looks at everything; this takes minutes ..."):
        start = time.perf_counter()
        image = np.stack(read_volume([IMAGE]).channels).astype(np.float32)
        labels = predictor.predict_single_npy_array(image, {"spacing": list(volume.grid.spacing)})
        with tempfile.TemporaryDirectory() as folder:
            write_labels(labels, volume.grid, Path(folder) / "labels.nii.gz")
        seconds = time.perf_counter() - start
    return score("nnU-Net's predictor", seconds, labels, reference)


def score(name: str, seconds: float, labels: NDArray[np.generic], reference: NDArray[np.bool_]) -> Score:
    """Compare a result with the reference."""
    found = labels != 0
    return Score(name, seconds, dice(found, reference), int(np.count_nonzero(found)))


def table_of(scores: list[Score]) -> Table:
    """The scores, with the speed-up over the slowest."""
    table = Table(title="Lung nodule, LIDC-IDRI-0001", title_justify="left")
    for name in ("", "seconds", "Dice", "voxels found", "times faster"):
        table.add_column(name, justify="right" if name else "left")
    slowest = max(score.seconds for score in scores)
    for row in scores:
        faster = f"{slowest / row.seconds:.1f}" if len(scores) > 1 else "run with --compare"
        table.add_row(row.name, f"{row.seconds:.1f}", f"{row.dice:.3f}", f"{row.found}", faster)
    return table
