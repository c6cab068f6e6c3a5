"""Study 4: lungs on radiographs, from 1, 10 and 100 % of the masks; stands in for the pneumothorax of SIIM."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.pretraining.rows import Row
from benchmarks.pretraining.studies import Setup
from benchmarks.pretraining.transformers import RATE, SHAPE, begin, pretrained, schedule
from coarse2fine.finetune.examples import Examples
from coarse2fine.finetune.measures import dice
from coarse2fine.finetune.pictures import find_masks, load_masks, of_pictures
from coarse2fine.finetune.shares import hold_out, take_share
from coarse2fine.finetune.tasks import Segmentation
from coarse2fine.finetune.tune import finetune
from coarse2fine.pretrain.pictures import Intensities, load_pictures
from coarse2fine.pretrain.table import read_table

SHARES = {"1 %": 0.01, "10 %": 0.1, "100 %": 1.0}
TEST_SHARE = 0.3
STEPS, PRETRAINING_STEPS, BATCH = 80, 400, 8
DECAY = 0.65
SCRATCH = "scratch"
ARMS: dict[str, tuple[str | None, float]] = {
    SCRATCH: (None, 1.0),
    "MAE 0.75": ("MAE 0.75", DECAY),
    "MAE 0.75, no layer decay": ("MAE 0.75", 1.0),
}
"""How each is pretrained, and its layer decay."""
MEASURE = "Dice"

TITLE = "Lungs on radiographs: 1, 10 or 100 % of the masks"
ABOUT = f"""
400 frontal radiographs with lung masks (COVID-19 image data collection, masks by v7labs) at {SHAPE.image[0]} x \
{SHAPE.image[1]}. {TEST_SHARE:.0%} of the patients are held out, the same ones with each seed; mean Dice of the lungs \
over their images, each a case. A transformer {SHAPE.width} wide with {SHAPE.depth} blocks and patches of \
{SHAPE.patch[0]} pixels, pretrained for {PRETRAINING_STEPS} steps on all images of the other patients, with masks or \
not (crops of half to all of the area), then trained in full with a light decoder for {STEPS} steps on the masks of a \
share of these patients, as from scratch: AdamW, highest rate {RATE:g}, {BATCH} images a step. 1 % is two or three \
patients. Pretrained networks learn with a layer decay of {DECAY}, but for the row that says so.
"""
BASELINES = {MEASURE: (SCRATCH,)}


def study(setup: Setup) -> Iterator[Sequence[Row]]:
    """Train and measure what is not there yet."""
    data = setup.data / "radiographs"
    whole = read_table(data / "table.csv")
    table, files = find_masks(whole, data / "lung_masks")
    height, width = SHAPE.image
    pixels, (masks, _) = load_pictures(table.files, (height, width)), load_masks(files, (height, width))
    train, test = hold_out(table.patients, TEST_SHARE, seed=0)
    held_out = {table.patients[at] for at in test}
    others = [row.file for row in whole.rows if row.patient not in held_out]
    unlabelled = load_pictures(others, (height, width))
    intensities = Intensities.of(unlabelled)
    held = of_pictures(pixels, list(masks), table, test, intensities)
    for seed in setup.seeds:
        for labels, share in SHARES.items():
            part = train[take_share([table.patients[at] for at in train], np.ones((len(train), 1)), share, seed)]
            few = of_pictures(pixels, list(masks), table, part, intensities)
            for arm, (method, decay) in ARMS.items():
                if not setup.has(arm, labels, seed):
                    weights, steps = None, setup.steps or PRETRAINING_STEPS
                    if method is not None:
                        weights = pretrained(unlabelled, intensities, method, steps, seed, setup.work)
                    folder = setup.work / f"{arm}-{labels}-{seed}".replace(" ", "-")
                    scores = measure(weights, decay, few, held, setup.steps or STEPS, seed, folder)
                    yield [Row(arm, labels, seed, MEASURE, float(np.mean(scores)), tuple(scores))]


def measure(
    weights: Path | None, decay: float, few: Examples, held: Examples, steps: int, seed: int, folder: Path
) -> list[float]:
    """Dice of each held-out image after a training on few masks."""
    folder.mkdir(parents=True, exist_ok=True)
    network, task = begin(weights, seed), Segmentation(("background", "lungs"))
    outcome = finetune(network, task, few, held, schedule(steps, seed, BATCH), folder, decay=decay)
    shutil.rmtree(folder)
    return [float(dice(*pair, task.outputs)[0]) for pair in zip(outcome.found, held.targets, strict=True)]
