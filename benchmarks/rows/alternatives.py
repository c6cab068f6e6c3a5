"""Other ways to choose where the fine network looks: what users have today, for comparison with coarse2fine.

Every method starts from the same :class:`Given` and differs in nothing but the choice of tiles. Models, precision, tile
step and mirroring are the same, and so are the coarse look, and our reading, lazy resampling and write-back, which are
faster than what the originals come with. On the CPU all of them run the *lean* network, as coarse2fine does, for else
they would lose by our faster layers and not by their choice. A tile is always the model's own patch at native
resolution.

The methods are rebuilt from papers and published code, whose sources each docstring names. No code of theirs is used
but MONAI's, which is called as a library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from numpy.typing import NDArray

from canvas import Box, Placement, Triple, triple
from coarse2fine.coarse.foreground import check_same_labels
from coarse2fine.coarse.heatmap import CERTAIN, CoarseResult, paint_coarse
from coarse2fine.fine.inputs import input_channels, input_reader
from coarse2fine.fine.writeback import LabelWriter, export_labels
from coarse2fine.nnunet.cpu_layers import lean
from coarse2fine.nnunet.model import Model, tile_starts
from coarse2fine.preprocessing.working_grid import WorkingView
from coarse2fine.regions.search_grid import box_mass, mass_inside
from coarse2fine.system.timing import Clock

CROP_MARGIN = 20.0
"""TotalSegmentator's ``crop_addon`` where it crops to a rough segmentation: mm there, the unit of the spacing here."""
LEAST_FOREGROUND = 1
"""Foreground voxels that a central window needs for its neighbours to be looked at; see ``centre_windows``."""
SHARE_OF_MASS = 0.99
"""Share of the heatmap's mass above the threshold that ``top_patches`` covers if no number of patches is given."""


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What every method starts from.

    Attributes:
        view: The fine model's view of the volume.
        model: The fine model.
        coarse: What the coarse network said, with the axes of the fine working grid.
        threshold: Heatmap voxels above it may be foreground (``rois.threshold``).
        tile_step: Distance of neighbouring tiles as a share of the tile, in (0, 1].
        mirroring: Whether the fine network averages over mirrored inputs.
    """

    view: WorkingView
    model: Model
    coarse: CoarseResult
    threshold: float
    tile_step: float
    mirroring: bool


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """What a method found.

    Attributes:
        labels: Shape (z, y, x) of the volume, in the file's axis order.
        tiles: Inputs that the fine network was given; folds and mirrored copies of one count once.
        network_s: Seconds in network passes.
    """

    labels: NDArray[np.unsignedinteger[Any]]
    tiles: int
    network_s: float


class _Tiles:
    """nnU-Net's sliding window over a region, tile by tile, of which some may be skipped.

    Each tile must be run or skipped once. Outputs go to the writer and are blended there with nnU-Net's Gaussian
    weights; no array of classes x volume exists.

    Args:
        given: Models and settings.
        region: Box of the working grid. The network sees nothing outside of it: where the region is smaller than a
            tile, it is padded with 0 on both sides, as nnU-Net pads.

    Attributes:
        boxes: Places of all tiles in nnU-Net's order; they stick out of the region where it is smaller than a tile.
        writer: Receives outputs; who wants other labels than background elsewhere paints them first.
    """

    def __init__(self, given: Given, region: Box) -> None:
        self._given, self._region, self._model = given, region, lean(given.model)
        self._read = input_reader(given.view, given.coarse if given.model.cascade else None)
        self._clock, self._run = Clock[str](), 0
        self.boxes = window_boxes(region, given.model.patch, given.tile_step)
        self.writer = LabelWriter(given.view, given.model)
        self.writer.expect(tile.clip(region) for tile in self.boxes)

    def run(self, index: int) -> torch.Tensor:
        """Let the network look at a tile; returns its outputs inside the region, shape (heads, z, y, x)."""
        placement, model = self._placement(index), self._model
        data = torch.zeros((input_channels(model), *model.patch), device=model.device)
        shown = placement.box.relative_to(placement.source).slices
        data[(slice(None), *shown)] = self._read(placement.box, placement.box.shape)
        with self._clock.time("network"):
            logits = model.forward(data[None], mirroring=self._given.mirroring)[0].float()
        self._run += 1
        self.writer.add(placement, logits)
        return logits[(slice(None), *shown)]

    def skip(self, index: int) -> None:
        """Do without a tile, and let what was waiting for it become labels."""
        placement = self._placement(index)
        nothing = Box.of(placement.box.start, (0, 0, 0))
        self.writer.add(placement, torch.zeros((self._model.labels.heads, 0, 0, 0)), nothing)

    def finish(self) -> Looked:
        """Labels, and what they cost."""
        return Looked(self.writer.finish(), self._run, self._clock.seconds["network"])

    def _placement(self, index: int) -> Placement:
        tile = self.boxes[index]
        return Placement(index, tile.clip(self._region), tile, Box.whole(tile.shape))


def window_boxes(region: Box, patch: Triple, step: float) -> list[Box]:
    """nnU-Net's sliding window over a region; none for an empty region.

    Args:
        region: Box of the working grid.
        patch: Tile size.
        step: Largest distance of neighbouring tiles, as a share of the tile.

    Returns:
        Tiles in nnU-Net's order. Where the region is smaller than a tile, they stick out of it evenly.

    >>> window_boxes(Box((2, 0, 0), (4, 8, 12)), (4, 8, 8), 0.5)
    [Box(start=(1, 0, 0), stop=(5, 8, 8)), Box(start=(1, 0, 4), stop=(5, 8, 12))]
    """
    if not region.volume:
        return []
    padded = triple(max(edge, tile) for edge, tile in zip(region.shape, patch, strict=True))
    origin = triple(
        start - (large - edge) // 2 for start, large, edge in zip(region.start, padded, region.shape, strict=True)
    )
    return [Box.of(corner, patch).shift(origin) for corner in tile_starts(padded, patch, step)]


def crop_foreground(given: Given, margin: float = CROP_MARGIN) -> Looked:
    """The sliding window inside one box around all coarse foreground, as TotalSegmentator does it.

    TotalSegmentator (Wasserthal et al. 2023, github.com/wasserth/TotalSegmentator) runs a 6 mm model first, crops the
    image to the bounding box of what that found and runs nnU-Net on the crop; if nothing was found the result is empty.
    Its ``python_api.py`` sets ``crop_addon = [20, 20, 20]`` for such crops, in mm, which ``cropping.py`` divides by the
    voxel size and rounds down. Its default, ``[3, 3, 3]``, remains for crops to a body mask (``--body_seg``).

    Foreground is what exceeds the given's threshold; TotalSegmentator takes labels. As there, the network sees nothing
    outside of the crop. Unlike there, intensities are normalised as of the whole case, as everywhere here.

    Args:
        given: What to look at.
        margin: Added on each side of the box, in the unit of the spacing.
    """
    whole = Box.whole(given.view.shape)
    region = foreground_box(given)
    if region.volume:
        region = region.grow(triple(int(margin / size) for size in given.model.spacing)).clip(whole)
    tiles = _Tiles(given, region)
    for index in range(len(tiles.boxes)):
        tiles.run(index)
    return tiles.finish()


def foreground_box(given: Given) -> Box:
    """The smallest box of the working grid that holds every heatmap voxel above the threshold; empty if there is none.

    A working-grid voxel that a heatmap voxel covers in part belongs to the box.
    """
    above, start, stop = given.coarse.heatmap > given.threshold, [], []
    if not above.any():
        return Box((0, 0, 0), (0, 0, 0))
    for axis, (small, large) in enumerate(zip(above.shape, given.view.shape, strict=True)):
        found = np.flatnonzero(above.any(axis=tuple({0, 1, 2} - {axis})))
        start.append(int(found[0]) * large // small)
        stop.append(-(-(int(found[-1]) + 1) * large // small))
    return Box(triple(start), triple(stop))


def masked_tiles(given: Given) -> Looked:
    """MONAI's sliding window, whose predictor skips tiles that the coarse mask does not touch.

    This is ``monai.inferers.SlidingWindowInferer`` with Gaussian blending and ``with_coord=True``, which tells the
    predictor where its tile lies (asked for in Project-MONAI/MONAI issue 6794). Where no heatmap voxel above the
    threshold reaches into a tile, the predictor answers "background for certain" without a network pass. As MONAI
    blends all tiles, that answer also counts against a neighbour's foreground where the two overlap.

    Three things are MONAI's own. It reads the volume as a whole and keeps the outputs of the whole working grid in
    single precision, classes x volume, which is what its users live with. Its tiles are a full step apart and the last
    one is moved back, while nnU-Net spreads them evenly. Its Gaussian lies half a voxel beside nnU-Net's.
    """
    view, model, clock = given.view, lean(given.model), Clock[str]()
    read = input_reader(view, given.coarse if model.cascade else None)
    whole, seen = Box.whole(view.shape), 0

    def predict(batch: torch.Tensor, where: Sequence[Sequence[slice]]) -> torch.Tensor:
        nonlocal seen
        # Along axes that MONAI pads these count from its padding, but there the only tile holds everything anyway.
        place = Box.of((axis.start for axis in where[0][2:]), model.patch).clip(whole)
        if given.coarse.peak_in(place, view.shape) <= given.threshold:
            return certain_background(model, batch)
        seen += 1
        with clock.time("network"):
            logits = model.forward(batch, mirroring=given.mirroring).float()
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
        return logits

    inferer = SlidingWindowInferer(
        roi_size=model.patch, sw_batch_size=1, overlap=1 - given.tile_step, mode="gaussian", with_coord=True
    )
    with torch.inference_mode():  # MONAI changes the outputs of the network in place
        data = read(whole, whole.shape)[None]
        outputs = cast(torch.Tensor, inferer(data, predict))
        logits = outputs[0].half()
    writer = LabelWriter(view, given.model)
    export_labels(writer, given.model, logits)
    return Looked(writer.finish(), seen, clock.seconds["network"])


def certain_background(model: Model, batch: torch.Tensor) -> torch.Tensor:
    """Outputs that mean background everywhere; a new array each time, shape (n, heads, z, y, x).

    Args:
        model: Its label rules: with regions every output is low, else that of the background is high.
        batch: Inputs, shape (n, channels, z, y, x).
    """
    logits = torch.zeros((len(batch), model.labels.heads, *batch.shape[2:]), device=batch.device)
    if model.labels.regions:
        logits -= CERTAIN
    else:
        logits[:, 0] = CERTAIN
    return logits


def centre_windows(given: Given, least: int = LEAST_FOREGROUND) -> Looked:
    """No coarse network: central windows first, and where they are empty nothing else at that height, as in FLARE22.

    Team Blackbean won the FLARE22 challenge with it (Huang et al. 2022, "Revisiting nnU-Net for Iterative Pseudo
    Labeling and Efficient Sliding Window Inference", doi 10.1007/978-3-031-23911-3_16; ``neural_network.py`` in
    github.com/Ziyan-Huang/FLARE22). There the grid has 3 x 3 windows in the plane around the image's centre. At each
    height the window in the middle comes first, and if less than 1000 of its voxels are foreground the other eight are
    skipped, its own outputs are dropped and so is the next height. Rules for single organs are left out here.

    Read for any data set: the grid is nnU-Net's, which covers the whole plane. Where it has an even number of windows
    along an axis the two in the middle are central. Outputs of central windows are kept and no height is jumped over,
    so less is lost than there. Heights are positions along the first axis of the working grid.

    Args:
        given: What to look at; its heatmap is not used.
        least: Foreground voxels that the central windows of a height need together for the others to be looked at. The
            original's 1000 would be too many for small lesions.
    """
    tiles, labels = _Tiles(given, Box.whole(given.view.shape)), given.model.labels
    for _, group in groupby(range(len(tiles.boxes)), key=lambda index: tiles.boxes[index].start[0]):
        plane = list(group)
        middle = central([tiles.boxes[index] for index in plane])
        centre = [index for index in plane if tiles.boxes[index] in middle]
        found = sum(int(labels.from_logits(tiles.run(index)).count_nonzero()) for index in centre)
        for index in plane:
            if index not in centre:
                (tiles.run if found >= least else tiles.skip)(index)
    return tiles.finish()


def central(plane: Sequence[Box]) -> set[Box]:
    """The windows in the middle of a plane's grid: one, or two along an axis with an even number of windows.

    Args:
        plane: Windows of one height.
    """
    middle = []
    for axis in (1, 2):
        starts = sorted({box.start[axis] for box in plane})
        middle.append(starts[(len(starts) - 1) // 2 : len(starts) // 2 + 1])
    return {box for box in plane if box.start[1] in middle[0] and box.start[2] in middle[1]}


def top_patches(given: Given, count: int | None = None) -> Looked:
    """The most promising patches at native resolution, coarse labels elsewhere, as No-More-Sliding-Window does it.

    NMSW (Jeon et al. 2025, arXiv 2501.10814, github.com/Youngseok0001/open_nmsw) scores the patches of a fixed
    overlapping grid with a small head on the coarse network, runs the fine network on the k best, blends these with
    Gaussian weights and keeps the coarse result where no patch lies. The head, and convolutions that merge coarse and
    fine outputs inside of patches, are trained together with both networks.

    Here nothing is trained, so that models can be any users have. A patch's score is the heatmap's mass above the
    threshold inside it, and inside of patches fine outputs count alone, which is NMSW without its aggregation module.
    The grid is nnU-Net's. Of patches with the same score the first in its order wins.

    Args:
        given: What to look at.
        count: Number of patches k; more than there are takes all. By default as many as together hold 99 % of the
            heatmap's mass above the threshold, which needs no reference; NMSW's k is chosen by hand.
    """
    coarse, shape = given.coarse, given.view.shape
    remedy = "Use two models trained on the same labels, or another row."
    check_same_labels(coarse.model, given.model, "coarse labels stand where no patch lies", remedy)
    tiles = _Tiles(given, Box.whole(shape))
    scores = [box_mass(coarse.heatmap, shape, tile, given.threshold) for tile in tiles.boxes]
    ranking = sorted(range(len(scores)), key=lambda index: -scores[index])
    if count is None:
        count = patches_for_mass(given, [tiles.boxes[index] for index in ranking])
    wanted = set(ranking[:count])
    paint_coarse(coarse, tiles.writer.labels)
    for index in range(len(tiles.boxes)):
        (tiles.run if index in wanted else tiles.skip)(index)
    return tiles.finish()


def patches_for_mass(given: Given, ranking: Sequence[Box], share: float = SHARE_OF_MASS) -> int:
    """How many patches from the top of a ranking hold a share of the heatmap's mass above the threshold.

    Args:
        given: Heatmap and threshold.
        ranking: Patches, best first; together they cover the working grid.
        share: Of the mass in their union, 0 to 1.

    Returns:
        The smallest such number; 0 if nothing is above the threshold.
    """
    heatmap, shape = given.coarse.heatmap, given.view.shape
    low, high = 0, len(ranking)
    while low < high:
        middle = (low + high) // 2
        if mass_inside(heatmap, shape, ranking[:middle], given.threshold) >= share:
            high = middle
        else:
            low = middle + 1
    return low


METHODS: Mapping[str, Callable[[Given], Looked]] = MappingProxyType(
    {
        "coarse_only": partial(top_patches, count=0),
        "lean_window": partial(centre_windows, least=0),
        "crop_foreground": crop_foreground,
        "masked_tiles": masked_tiles,
        "centre_windows": centre_windows,
        "top_patches": top_patches,
    }
)
"""Every method by its name, with its default settings.

``coarse_only`` and ``lean_window`` are the two ends: the coarse labels alone, and every tile. The latter shows what is
owed to the lean networks and the write-back alone, as no tile is skipped.
"""
