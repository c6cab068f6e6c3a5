"""Draw the README's picture: what each stage of the demo sees. It is also an example of using the stages one by one.

python benchmarks/assets/make_overview.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from assignnet import RULES, CostModel
from canvas import Canvas, Triple, gather
from coarse2fine import (
    CoarseStage,
    build_tree,
    find_rois,
    plan_canvases,
    predict_heatmap,
    read_volume,
    view_volume,
)
from coarse2fine.coarse.heatmap import CoarseResult
from coarse2fine.demo import IMAGE, demo_pipeline
from coarse2fine.io import Grid
from coarse2fine.page.orientation import as_displayed, display_axes
from coarse2fine.regions.detect import RoiSettings

TARGET = Path(__file__).parents[2] / "docs" / "overview.png"
WINDOW = {"cmap": "gray", "vmin": -1200, "vmax": 400, "interpolation": "bilinear"}
ACCENT = "#ff4d4d"


def main() -> None:
    """Run the stages on the demo volume and draw them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--out", type=Path, default=TARGET, metavar="FILE", help="PNG file to write")
    out = parser.parse_args().out
    pipeline, volume = demo_pipeline(), read_volume([IMAGE])
    if pipeline.coarse is None:
        raise SystemExit("the demo has a coarse model")
    coarse_view = view_volume(volume, pipeline.coarse)
    coarse = predict_heatmap(CoarseStage(pipeline.coarse, pipeline.fine, pipeline.config.coarse), coarse_view)
    view = view_volume(volume, pipeline.fine)
    settings = RoiSettings(threshold=pipeline.config.rois.threshold, window=pipeline.stage.plan.window)
    tree = build_tree(
        find_rois(coarse.heatmap, view.shape, settings),
        coarse.heatmap,
        view.shape,
        threshold=settings.threshold,
        nms_threshold=0.75,
        nmm_threshold=0.35,
    )
    boxes = [roi.box for roi in RULES["greedy"](tree, CostModel(slot=pipeline.stage.plan.slot))]
    canvas = plan_canvases(boxes, pipeline.config, pipeline.stage.plan, view.shape)[0]
    shown = gather(canvas, view.read, 1)[0]
    labels = pipeline(volume).labels
    figure = draw(volume.channels[0], volume.grid, coarse, view.shape, canvas, shown, labels)
    out.parent.mkdir(exist_ok=True)
    figure.savefig(out, dpi=90)
    print(f"wrote {out}")


def draw(
    image: NDArray[Any],
    grid: Grid,
    coarse: CoarseResult,
    fine: Triple,
    canvas: Canvas,
    shown: NDArray[np.float32],
    labels: NDArray[Any],
) -> Figure:
    """Four panels, coronal with the head on top: the volume, the heatmap with its box, the canvas, the result.

    The demo's models have the volume's own axis order, so what they see is turned as the volume is.
    """
    order, steps = display_axes(grid)
    aspect = grid.spacing[order[0]] / grid.spacing[order[2]]
    box = canvas.placements[0].box
    ends = [(box.start[i] * image.shape[i] / fine[i], box.stop[i] * image.shape[i] / fine[i]) for i in order]
    # A step of -1 counts from the axis' other end.
    ends = [
        (a, b) if step > 0 else (image.shape[axis] - b, image.shape[axis] - a)
        for (a, b), axis, step in zip(ends, order, steps, strict=True)
    ]
    slot = canvas.placements[0].slot
    middle = slot.start[order[1]] + slot.shape[order[1]] // 2
    image, heat, shown, labels = (as_displayed(array, grid) for array in (image, coarse.heatmap, shown, labels))
    if steps[1] < 0:
        middle = shown.shape[1] - 1 - middle
    row = int((labels != 0).sum(axis=(0, 2)).argmax())
    figure = Figure(figsize=(15, 4.6), facecolor="white", layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=[1, 1, 0.75, 1])
    flat = image[::-1, row]
    for axes in (panels[0], panels[1], panels[3]):
        axes.imshow(flat, aspect=aspect, **WINDOW)
    depth, width = flat.shape
    panels[1].imshow(
        np.ma.masked_less(heat[::-1, int(row * heat.shape[1] / image.shape[1])], 0.05),
        cmap="autumn",
        vmin=0,
        vmax=1,
        extent=(0, width, depth, 0),
        aspect=aspect,
        alpha=0.9,
        interpolation="nearest",
    )
    (z0, z1), (x0, x1) = ends[0], ends[2]
    panels[1].add_patch(Rectangle((x0, depth - z1), x1 - x0, z1 - z0, fill=False, color=ACCENT, lw=1.5))
    panels[2].imshow(shown[::-1, middle], cmap="gray", aspect=2.0, interpolation="bilinear")
    panels[3].contour((labels[::-1, row] != 0).astype(float), levels=[0.5], colors=[ACCENT], linewidths=1.5)
    titles = (
        "1  read the volume",
        "2  coarse network: heatmap, box",
        "3  fine network: crops on a canvas",
        "4  written back into the volume",
    )
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=12)
        axes.set_axis_off()
    return figure


if __name__ == "__main__":
    main()
