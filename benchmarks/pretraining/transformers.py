"""Tiny vision transformers for the studies of radiographs: pretrained once for each seed, then begun with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coarse2fine.networks.vit import ViT, ViTShape, new_vit
from coarse2fine.pretrain.loop import pretrain
from coarse2fine.pretrain.methods import Task, method_of
from coarse2fine.pretrain.picture_crops import PictureCrops
from coarse2fine.pretrain.pictures import Intensities, Pixels
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.settings import Settings
from coarse2fine.pretrain.weights import WEIGHTS, load_vit, write_weights

SHAPE = ViTShape(channels=1, image=(64, 64), patch=(8, 8), width=64, depth=4, heads=4)
BATCH = 32
RATE = 1e-3
CENTRE = 0.5
"""Sigma of masks and crops near the centre."""
METHODS: Mapping[str, Mapping[str, Any]] = {
    "MAE 0.75": {"objective": "mae", "ratio": 0.75},
    "MAE 0.9": {"objective": "mae", "ratio": 0.9},
    "MAE 0.75, centre": {"objective": "mae", "ratio": 0.75, "centre": CENTRE},
    "rotation": {"objective": "rotation"},
}
"""Ways to pretrain, as ``Settings`` have them."""


def schedule(steps: int, seed: int, batch: int = BATCH) -> Schedule:
    """Of pretraining and fine-tuning alike."""
    return Schedule.of_transformers(steps, batch, seed, rate=RATE, piece=max(1, steps))


def pretrained(pixels: Pixels, intensities: Intensities, method: str, steps: int, seed: int, work: Path) -> Path:
    """The weights of a pretraining, which is done unless it was.

    Args:
        pixels: To learn from, shape (n, 1, height, width); crops of them are brought to the transformer's size.
        intensities: How they are normalised.
        method: One of ``METHODS``.
        steps: Of training.
        seed: Of everything random.
        work: Where to; the folder is named after method and seed.
    """
    folder = work / f"{method.replace(' ', '-').replace(',', '')}-{seed}"
    if not (folder / WEIGHTS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        network = new_vit(SHAPE, seed)
        settings = Settings(schedule(steps, seed), **METHODS[method])
        learned = method_of(Task(network, SHAPE.image, settings))
        height, width = SHAPE.image
        crops = PictureCrops(pixels, intensities, (height, width), sigma=settings.sigma)
        pretrain(network, learned, crops, settings.schedule, folder)
        write_weights(folder, network, intensities)
    return folder / WEIGHTS


def begin(weights: Path | None, seed: int, drop_path: float = 0.0) -> ViT:
    """A transformer with these weights, or random ones."""
    return new_vit(SHAPE, seed, drop_path) if weights is None else load_vit(weights, drop_path)
