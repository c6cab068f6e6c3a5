"""Study 4: lungs on radiographs, from 1, 10 and 100 % of the masks; stands in for the pneumothorax of SIIM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.pretraining.rows import Row
from benchmarks.pretraining.studies import Setup
from benchmarks.pretraining.transformers import (
    DECAY,
    PRETRAINING_STEPS,
    RATE,
    SCRATCH,
    SHAPE,
    SHARES,
    TEST_SHARE,
    Comparison,
    arms_of,
)
from coarse2fine.finetune.examples import Examples
from coarse2fine.finetune.measures import dice
from coarse2fine.finetune.pictures import find_masks, load_masks, of_pictures
from coarse2fine.finetune.shares import hold_out, take_share
from coarse2fine.finetune.tasks import Segmentation
from coarse2fine.pretrain.pictures import Intensities, load_pictures
from coarse2fine.pretrain.table import read_table

STEPS, BATCH = 80, 8
ARMS = arms_of("MAE 0.75")
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

    def labelled(share: float, seed: int) -> Examples:
        chosen = take_share([table.patients[at] for at in train], np.ones((len(train), 1)), share, seed)
        return of_pictures(pixels, list(masks), table, train[chosen], intensities)

    held, task = of_pictures(pixels, list(masks), table, test, intensities), Segmentation(("background", "lungs"))
    compared = Comparison(ARMS, task, unlabelled, intensities, labelled, held, STEPS, BATCH)
    for arm, labels, seed, outcome in compared.outcomes(setup, SHARES):
        scores = [float(dice(*pair, task.outputs)[0]) for pair in zip(outcome.found, held.targets, strict=True)]
        yield [Row(arm, labels, seed, MEASURE, float(np.mean(scores)), tuple(scores))]
