"""Study 1: two structures of the hippocampus from 2, 5 and 20 labelled MR images of 100."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.pretraining.arms import fresh, learn, pretrained, segment
from benchmarks.pretraining.rows import Row
from benchmarks.pretraining.small import Network, case_names, classes_of, read_examples, small_model
from benchmarks.pretraining.studies import Setup
from coarse2fine.cli import finetune, pretrain
from coarse2fine.cli.chain import load_chain
from coarse2fine.finetune.examples import Examples
from coarse2fine.finetune.measures import dice, mean
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.methods import METHODS as OBJECTIVES
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.settings import Settings
from coarse2fine.pretrain.weights import Tensors

NETWORK = Network((2.0, 2.0, 2.0), (16, 24, 16), (8, 16, 32), batch=2)
BLOCK = 4  # voxels along the longest edge of what MAE hides
LABELS = (2, 5, 20)
STEPS = 300
TEST = 20  # cases, the first of 40 by name
RATES = {"scratch": 3e-3, "scratch, a third of the rate": 1e-3}
METHODS = {"mae": 800, "rotation": 800, "rotation-mae": 800, "dira": 120}
"""Shipped chains, or else objectives of ``c2f-pretrain``, and their steps; dira's take five times as long as mae's."""
LEFT_RIGHT = (2,)  # axis along which training images may be mirrored

TITLE = "Hippocampus: 2, 5 or 20 labels"
ABOUT = f"""
MR images around the hippocampus (Medical Segmentation Decathlon, task 4; 100 training cases), seen at \
{NETWORK.spacing[0]:g} mm. Two structures, mean Dice of both on {TEST} test cases at that resolution. nnU-Net's U-Net \
with {NETWORK.features} channels, patches of {NETWORK.patch}, {NETWORK.batch} a step. Pretrained on all 100 training \
images without labels ({", ".join(f"{name}: {steps} steps" for name, steps in METHODS.items())}; rotation-mae is the \
shipped chain, half of the steps for each; mae hides three quarters of blocks of {BLOCK} voxels); then, as from \
scratch, {STEPS} steps (AdamW, cosine, warm-up of a tenth, mirrored from left to right) on 2, 5 or 20 labelled ones, \
which are others with each seed. Pretrained networks learn at one rate ({max(RATES.values()):g}), those from scratch \
at two, of which the better one counts. Resolution, patches a step and rates were chosen by trainings of 400 steps \
from scratch alone, on two labelled cases and measured on 15 other training cases, so that every seed finds both \
structures; the steps were then cut for time. The test cases had no part in it.
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
    weights = None if method in RATES else taught(setup, model, train, method, seed)
    chosen = schedule(setup.steps or STEPS, seed, RATES.get(method, max(RATES.values())))
    network = fresh(model, seed, weights, bf16=setup.bf16)
    learn(network, model, few, NETWORK.patch, chosen, setup.work / f"training-{method}-{len(few)}-{seed}", LEFT_RIGHT)
    found, classes = segment(network, model, test.images, NETWORK.patch), len(classes_of(model))
    return [mean(dice(*pair, classes)) for pair in zip(found, test.targets, strict=True)]


def taught(setup: Setup, model: Model, train: Examples, method: str, seed: int) -> Tensors | None:
    """Weights of a method's pretraining, which is done once for each seed, whatever the number of labels."""
    weights: Tensors | None = None
    objectives = objectives_of(method)
    for objective in objectives:
        folder = setup.work / f"{method}-{seed}-{objective}"
        steps = setup.steps or METHODS[method] // len(objectives)
        settings = Settings(schedule(steps, seed, max(RATES.values())), objective, block=BLOCK)
        weights = pretrained(model, train.images, NETWORK.patch, settings, folder, weights, bf16=setup.bf16)
    return weights


def objectives_of(method: str) -> list[str]:
    """What is learned, one after the other: by the stages of a shipped chain, or just that."""
    if method in OBJECTIVES:
        return [method]
    chain = load_chain(Path(method), pretrain.build_parser(chained=True), finetune.build_parser())
    return [str(stage.options["objective"]) for stage in chain.stages]


def schedule(steps: int, seed: int, rate: float) -> Schedule:
    """Of all trainings."""
    return Schedule(
        steps, NETWORK.batch, seed, rate, optimizer="adamw", decay=0.01, warm_up=0.1, fall="cosine", piece=steps
    )
