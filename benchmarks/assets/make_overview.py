"""Draw the README's picture: what each stage sees of a brain with lesions.

It is also an example of using the stages one by one.

    python -m benchmarks.assets.make_overview
"""

from __future__ import annotations

import argparse
import colorsys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from assignnet import RULES, CostModel
from benchmarks.common.machine import ROOT
from benchmarks.common.registry import choose_case, find_model, load_dataset
from canvas import Box, Canvas, gather
from coarse2fine import (
    CoarseStage,
    Pipeline,
    build_tree,
    find_rois,
    load_config,
    plan_canvases,
    predict_heatmap,
    read_volume,
    view_volume,
)
from coarse2fine.page.orientation import as_displayed
from coarse2fine.preprocessing.working_grid import WorkingView
from coarse2fine.regions.detect import RoiSettings
from coarse2fine.system.device import to_host

TARGET = ROOT / "docs" / "overview.png"
RED = "#e8453c"


def main() -> None:
    """Run the stages and draw them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--out", type=Path, default=TARGET, metavar="FILE", help="PNG file to write")
    out = parser.parse_args().out
    dataset = load_dataset("ms")
    models = [f"{role}.model={find_model(dataset, role)}" for role in ("coarse", "fine")]
    pipeline = Pipeline.from_config(load_config(ROOT / "benchmarks" / "configs" / "ms.yaml", models))
    image = choose_case(dataset).image
    if image is None or pipeline.coarse is None:
        raise SystemExit("the data set ms has an image and a coarse model")
    volume = read_volume([image])
    view = view_volume(volume, pipeline.fine)
    coarse = predict_heatmap(
        CoarseStage(pipeline.coarse, pipeline.fine, pipeline.config.coarse), view_volume(volume, pipeline.coarse)
    )
    settings = RoiSettings(threshold=pipeline.config.rois.threshold, window=pipeline.stage.plan.window)
    rois = find_rois(coarse.heatmap, view.shape, settings)
    tree = build_tree(
        rois, coarse.heatmap, view.shape, threshold=settings.threshold, nms_threshold=0.75, nmm_threshold=0.35
    )
    boxes = [roi.box for roi in RULES["greedy"](tree, CostModel(slot=pipeline.stage.plan.slot))]
    canvases = plan_canvases(boxes, pipeline.config, pipeline.stage.plan, view.shape)
    labels = pipeline(volume).labels[view.crop.slices]
    if labels.shape != view.shape:
        raise SystemExit("the fine model is to work on the volume's own voxels")
    figure = draw(view, coarse.heatmap, boxes, canvases, labels)
    out.parent.mkdir(exist_ok=True)
    figure.savefig(out, dpi=75)
    print(f"wrote {out}")


def draw(
    view: WorkingView, heatmap: np.ndarray, boxes: list[Box], canvases: list[Canvas], labels: np.ndarray
) -> Figure:
    """Four panels, in the slice that cuts most boxes, as radiologists look at it.

    Args:
        view: The fine model's view of the volume.
        heatmap: Of the same part of space, shape (z, y, x).
        boxes: Of the view.
        canvases: With their crops; the one with most is shown.
        labels: Shape of the view.
    """

    def displayed(array: np.ndarray) -> np.ndarray:
        return as_displayed(array, view.grid)

    canvas = max(canvases, key=lambda one: len(one.placements))
    figure = Figure(figsize=(15, 4.3), facecolor="white", layout="constrained")
    panels = figure.subplots(1, 4, width_ratios=[1, 1, 1.25, 1])
    whole = displayed(to_host(view.read(Box.whole(view.shape)))[0])
    masks = [displayed(mask) for mask in masks_of(boxes, view.shape)]
    level = int(np.argmax([sum(bool(mask[z].any()) for mask in masks) for z in range(len(whole))]))
    colours = [colorsys.hsv_to_rgb(index * 0.382 % 1, 0.75, 0.95) for index in range(len(boxes))]
    for axes in (panels[0], panels[1], panels[3]):
        axes.imshow(whole[level], cmap="gray", vmin=-2, vmax=4, interpolation="bilinear")
    heat = displayed(heatmap)
    row = heat[int((level + 0.5) * len(heat) / len(whole))]
    high, wide = whole[level].shape
    panels[1].imshow(np.ma.masked_less(row, 0.1), cmap="autumn", vmin=0, vmax=1, alpha=0.8, extent=(0, wide, high, 0))
    for mask, colour in zip(masks, colours, strict=True):
        outline(panels[1], mask[level], colour)
    shown = to_host(gather(canvas, view.read, torch.zeros((1, *canvas.shape), device=view.device)))[0]
    draw_canvas(panels[2], canvas, shown, boxes, colours)
    if labels.any():
        found = (displayed(labels)[level] != 0).astype(float)
        panels[3].contour(found, levels=[0.5], colors=[RED], linewidths=1.3)
    titles = (
        "1  read the volume",
        f"2  coarse network: heatmap, {len(boxes)} boxes",
        f"3  fine network: {len(boxes)} crops on {len(canvases)} canvas{'es' if len(canvases) > 1 else ''}",
        "4  written back into the volume",
    )
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=12)
        axes.set_axis_off()
    return figure


def masks_of(boxes: list[Box], shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Each box as a mask, which can be turned like a volume."""
    masks = []
    for box in boxes:
        mask = np.zeros(shape, bool)
        mask[box.clip(Box.whole(shape)).slices] = True
        masks.append(mask)
    return masks


def outline(axes: Axes, mask: np.ndarray, colour: tuple[float, float, float]) -> None:
    """The rectangle of a mask in a slice."""
    if mask.any():
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        size = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
        axes.add_patch(Rectangle((columns[0] - 0.5, rows[0] - 0.5), *size, fill=False, color=colour, lw=1.3))


def draw_canvas(
    axes: Axes, canvas: Canvas, shown: np.ndarray, boxes: list[Box], colours: list[tuple[float, float, float]]
) -> None:
    """The canvas' layer with most crops, each framed in the colour of its box."""
    slots = [placement.slot for placement in canvas.placements]
    layer = max(range(shown.shape[0]), key=lambda z: sum(slot.start[0] <= z < slot.stop[0] for slot in slots))
    axes.imshow(shown[layer], cmap="gray", vmin=-2, vmax=4, interpolation="bilinear")
    for placement in canvas.placements:
        slot = placement.slot
        if slot.start[0] <= layer < slot.stop[0]:
            colour = colours[boxes.index(placement.box)] if placement.box in boxes else (1.0, 1.0, 1.0)
            corner, size = (slot.start[2] + 0.5, slot.start[1] + 0.5), (slot.shape[2] - 2, slot.shape[1] - 2)
            axes.add_patch(Rectangle(corner, *size, fill=False, color=colour, lw=1.8))


if __name__ == "__main__":
    main()
