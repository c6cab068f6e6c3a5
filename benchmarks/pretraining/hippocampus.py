"""Study 1: two structures of the hippocampus from 2, 5 and 20 labelled MR images of 100."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.pretraining.arms import fresh, learn, pretrained, segment
from benchmarks.pretraining.rows import Row
from benchmarks.pretraining.small import Network, case_names, classes_of, read_examples, small_model
from benchmarks.pretraining.studies import Setup
from coarse2fine.finetune.examples import Examples
from coarse2fine.finetune.measures import dice, mean
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.settings import Settings

NETWORK = Network((1.5, 1.5, 1.5), (24, 32, 24), (8, 16, 32), batch=2)
LABELS = (2, 5, 20)
STEPS, PRETRAINING_STEPS = 200, 300
TEST = 20  # cases, the first of 40 by name
RATES = {"scratch": 3e-3, "scratch, a third of the rate": 1e-3}
METHODS = ("mae", "rotation", "exemplar", "mae+rotation")
LEFT_RIGHT = (2,)  # axis along which training images may be mirrored

TITLE = "Hippocampus: 2, 5 or 20 labels"
ABOUT = f"""
MR images around the hippocampus (Medical Segmentation Decathlon, task 4; 100 training cases), seen at 1.5 mm. Two \
structures, mean Dice of both on {TEST} test cases at that resolution. nnU-Net's U-Net with {NETWORK.features} \
channels, patches of {NETWORK.patch}, {NETWORK.batch} a step. Pretrained for {PRETRAINING_STEPS} steps on all 100 \
training images without labels; then, as from scratch, {STEPS} steps (AdamW, cosine, warm-up of a tenth, mirrored from \
left to right) on 2, 5 or 20 labelled ones, which are others with each seed. Pretrained networks learn at one rate \
({max(RATES.values()):g}), those from scratch at two, of which the better one counts.
"""
MEASURE = "Dice"
BASELINES = {MEASURE: tuple(RATES)}


def study(setup: Setup) -> Iterator[Sequence[Row]]:
    """Train and measure what is not there yet."""
    data = setup.data / "Dataset506_Hippocampus"
    model = small_model(data, NETWORK, setup.work)
    train = read_examples(data, "Tr", case_names(data, "Tr"), model)
    test = read_examples(data, "Ts", case_names(data, "Ts")[:TEST], model)
    for seed in setup.seeds:
        order = np.random.default_rng(seed).permutation(len(train))
        for count in LABELS:
            few = train.take(order[:count])
            for method in (*RATES, *METHODS):
                if not setup.has(method, str(count), seed):
                    scores = measure(setup, model, train, few, test, method, seed)
                    yield [Row(method, str(count), seed, MEASURE, float(np.mean(scores)), tuple(scores))]


def measure(
    setup: Setup, model: Model, train: Examples, few: Examples, test: Examples, method: str, seed: int
) -> list[float]:
    """Dice of each test case after a training on few labels, from scratch or after a pretraining on all images."""
    weights = None
    if method not in RATES:
        settings = Settings(schedule(setup.steps or PRETRAINING_STEPS, seed, max(RATES.values())), method, block=8)
        weights = pretrained(model, train.images, NETWORK.patch, settings, setup.work / f"{method}-{seed}")
    chosen = schedule(setup.steps or STEPS, seed, RATES.get(method, max(RATES.values())))
    network = fresh(model, seed, weights)
    learn(network, model, few, NETWORK.patch, chosen, setup.work / f"training-{method}-{len(few)}-{seed}", LEFT_RIGHT)
    found, classes = segment(network, model, test.images, NETWORK.patch), len(classes_of(model))
    return [mean(dice(*pair, classes)) for pair in zip(found, test.targets, strict=True)]


def schedule(steps: int, seed: int, rate: float) -> Schedule:
    """Of all trainings."""
    return Schedule(
        steps, NETWORK.batch, seed, rate, optimizer="adamw", decay=0.01, warm_up=0.1, fall="cosine", piece=steps
    )
