"""Study 3: normal or abnormal radiographs, from 1, 10 and 100 % of the labels."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.pretraining.rows import Row, pseudo_values
from benchmarks.pretraining.studies import Setup
from benchmarks.pretraining.transformers import METHODS, RATE, SHAPE, begin, pretrained, schedule
from coarse2fine.finetune.examples import Examples
from coarse2fine.finetune.labels import read_labels
from coarse2fine.finetune.measures import auroc
from coarse2fine.finetune.pictures import of_pictures
from coarse2fine.finetune.shares import hold_out, take_share
from coarse2fine.finetune.tasks import Classification
from coarse2fine.finetune.tune import finetune
from coarse2fine.pretrain.pictures import Intensities, read_arrays

SHARES = {"1 %": 0.01, "10 %": 0.1, "100 %": 1.0}
TEST_SHARE = 0.3
STEPS, PRETRAINING_STEPS, BATCH = 100, 400, 16
DECAY = 0.65
SCRATCH = "scratch"
WITHOUT = "MAE 0.75, no layer decay"
ARMS: dict[str, tuple[str | None, float]] = {
    SCRATCH: (None, 1.0),
    **{method: (method, DECAY) for method in METHODS},
    WITHOUT: ("MAE 0.75", 1.0),
}
"""How each is pretrained, and its layer decay."""
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
    held = of_pictures(pictures.pixels, list(targets), pictures.table, test, intensities)
    for seed in setup.seeds:
        for labels, share in SHARES.items():
            part = train[take_share([patients[at] for at in train], targets[train], share, seed)]
            few = of_pictures(pictures.pixels, list(targets), pictures.table, part, intensities)
            for arm, (method, decay) in ARMS.items():
                if not setup.has(arm, labels, seed):
                    weights, steps = None, setup.steps or PRETRAINING_STEPS
                    if method is not None:
                        weights = pretrained(unlabelled, intensities, method, steps, seed, setup.work)
                    folder = setup.work / f"{arm}-{labels}-{seed}".replace(" ", "-")
                    score, cases = measure(weights, decay, few, held, setup.steps or STEPS, seed, folder)
                    yield [Row(arm, labels, seed, MEASURE, score, cases)]


def measure(
    weights: Path | None, decay: float, few: Examples, held: Examples, steps: int, seed: int, folder: Path
) -> tuple[float, tuple[float, ...]]:
    """AUROC on the held-out images after a training on few labels, and what each patient contributes to it."""
    folder.mkdir(parents=True, exist_ok=True)
    network, task = begin(weights, seed), Classification(("abnormal",))
    outcome = finetune(network, task, few, held, schedule(steps, seed, BATCH), folder, decay=decay)
    scores, truth = np.concatenate(outcome.found), np.concatenate(list(held.targets)) > 0
    shutil.rmtree(folder)
    cases = pseudo_values(lambda kept: auroc(scores[kept], truth[kept]), held.patients)
    return auroc(scores, truth), cases
