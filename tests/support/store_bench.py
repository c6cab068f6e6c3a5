"""Bars in a store, and a folder in which runs over it take place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from scipy.ndimage import label as label_with_scipy

from canvas import Box
from coarse2fine.config.reader import load_config
from coarse2fine.large.execution.engine import in_process
from coarse2fine.large.output import plan_output
from coarse2fine.large.phases import Settings
from coarse2fine.large.report import StoreReport
from coarse2fine.large.run import segment_store
from coarse2fine.large.source import Source
from coarse2fine.system.timing import Progress, silent

CHUNK, SHAPE = (4, 8, 20), (8, 32, 160)
# Masks are followed far out of their cell, which is 8 x 16 x 40 voxels; a block holds two of these.
SETTINGS = [
    "fine.mirroring=false",
    "fine.grow=9",
    "fine.large_boxes=native",
    "fine.grow_step=[2, 8, 8]",
    "blocks.halo=[4, 16, 24]",
    "blocks.cell=[8, 16, 40]",
    "blocks.per_block=[1, 1, 2]",
]
COARSE, FINE = 150, 60  # intensities that the networks see
PHASES = {
    "scan": ("segment", "ScanBlock", 4),
    "segment": ("segment", "SegmentBlock", 4),
    "merge": ("segment", "MergeCell", 4),
    "number": ("objects", "NumberCell", 8),
    "pair": ("objects", "PairCell", 8),
    "renumber": ("objects", "RenumberCell", 8),
    "level-1": ("run", "BuildBlock", 1),
}


def image_of_bars() -> np.ndarray:
    """Objects over cells' borders in y and x, of which the coarse network sees the bright part only."""
    image = np.ones(SHAPE, np.uint8)
    for z, y, bright, dim in [
        ((2, 6), (2, 6), (30, 40), (40, 60)),
        ((0, 4), (8, 12), (4, 20), (20, 30)),
        ((2, 6), (10, 26), (100, 110), (110, 116)),
        ((4, 8), (18, 24), (122, 140), (110, 122)),
        ((2, 4), (28, 32), (70, 78), (60, 70)),
    ]:
        for (low, high), value in ((dim, 120), (bright, 200)):
            image[slice(*z), slice(*y), low:high] = value
    image[0, 0, 0] = 90  # which only the fine network would see
    return image


IMAGE = image_of_bars()
EXPECTED = IMAGE > FINE
EXPECTED[0, 0, 0] = False


@dataclass
class Bench:
    """A folder with an input, where runs take place."""

    folder: Path
    image: Path
    progress: Progress = silent

    def __call__(
        self,
        name: str = "out.zarr",
        *,
        overrides: Sequence[str] = (),
        region: Box | None = None,
        mask: Path | None = None,
        shards: str | None = None,
        objects: bool = False,
        overwrite: bool = False,
        **settings: Any,
    ) -> StoreReport:
        """Run; the work folder is that of the result's name."""
        source, work = Source(str(self.image), region=region, mask=None if mask is None else str(mask)), self.work(name)
        options = {"objects": objects, "overwrite": overwrite, "shards": shards}
        output = plan_output(self.where(name), inputs=source.where, work=work, **options)
        config = load_config(None, [*SETTINGS, *overrides])
        with in_process() as engine:
            return segment_store(
                config, source, output, work, engine, Settings(**({"retries": 0} | settings)), self.progress
            )

    def where(self, name: str) -> str:
        prefix, _, last = name.rpartition("://")
        return f"{prefix}://{self.folder / last}" if prefix else str(self.folder / name)

    def work(self, name: str) -> Path:
        return self.folder / f"{name.rpartition('/')[2]}.c2f"

    def labels(self, name: str = "out.zarr", level: int = 0) -> np.ndarray:
        return zarr.open_group(self.folder / name, mode="r")[str(level)][:]


def assert_same_objects(numbers: np.ndarray, mask: np.ndarray) -> None:
    """Each connected part of the mask has a number of its own."""
    expected, count = label_with_scipy(mask, np.ones((3, 3, 3)))
    pairs = np.unique(np.stack([numbers.ravel().astype(np.int64), expected.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(numbers)) == count + 1
    assert ((numbers != 0) == mask).all()
