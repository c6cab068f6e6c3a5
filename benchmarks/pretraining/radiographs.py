"""Study 3: normal or abnormal radiographs, from 1, 10 and 100 % of the labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.pretraining.rows import Row, pseudo_values
from benchmarks.pretraining.studies import Setup
from benchmarks.pretraining.transformers import (
    DECAY,
    METHODS,
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
from coarse2fine.finetune.labels import read_labels
from coarse2fine.finetune.measures import auroc
from coarse2fine.finetune.pictures import of_pictures
from coarse2fine.finetune.shares import hold_out, take_share
from coarse2fine.finetune.tasks import Classification
from coarse2fine.pretrain.pictures import Intensities, read_arrays

STEPS, BATCH = 100, 16
ARMS = arms_of(*METHODS)
MEASURE = "AUROC"

TITLE = "Radiographs: 1, 10 or 100 % of the labels"
ABOUT = f"""
1000 radiographs of NIH ChestX-ray14 at 64 x 64, half of them abnormal. {TEST_SHARE:.0%} of the patients are held out, \
the same ones with each seed; AUROC of abnormal on their images, whose patients are the cases. A transformer \
{SHAPE.width} wide with {SHAPE.depth} blocks and patches of {SHAPE.patch[0]} pixels, pretrained for \
{PRETRAINING_STEPS} steps on all images of the other patients without labels (crops of half to all of the area), then \
trained in full for {STEPS} steps on the labels of a share of these patients, as from scratch: AdamW, highest rate \
{RATE:g}, {BATCH} images a step. Pretrained networks learn with a layer decay of {DECAY}, but for the row that says so.
"""
BASELINES = {MEASURE: (SCRATCH,)}


def study(setup: Setup) -> Iterator[Sequence[Row]]:
    """Train and measure what is not there yet."""
    pictures = read_arrays(setup.data / "radiographs" / "nih1000_64.npz")
    patients = pictures.table.patients
    train, test = hold_out(patients, TEST_SHARE, seed=0)
    unlabelled = pictures.take(train.tolist()).pixels
    intensities = Intensities.of(unlabelled)
    _, targets = read_labels(pictures.table, ["abnormal"])

    def labelled(share: float, seed: int) -> Examples:
        chosen = take_share([patients[at] for at in train], targets[train], share, seed)
        return of_pictures(pictures.pixels, list(targets), pictures.table, train[chosen], intensities)

    held = of_pictures(pictures.pixels, list(targets), pictures.table, test, intensities)
    truth, task = np.concatenate(list(held.targets)) > 0, Classification(("abnormal",))
    compared = Comparison(ARMS, task, unlabelled, intensities, labelled, held, STEPS, BATCH)
    for arm, labels, seed, outcome in compared.outcomes(setup, SHARES):
        scores = np.concatenate(outcome.found)

        def measure(kept: NDArray[np.bool_], scores: NDArray[np.floating] = scores) -> float:
            return auroc(scores[kept], truth[kept])

        yield [Row(arm, labels, seed, MEASURE, auroc(scores, truth), pseudo_values(measure, held.patients))]
