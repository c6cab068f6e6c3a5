"""Study 2: the product. Two networks trained on few labels, then the pipeline end to end; a coarse one of brains."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.common.registry import MissingDataError
from benchmarks.pretraining.arms import fresh, learn, pretrained, segment
from benchmarks.pretraining.rows import Row
from benchmarks.pretraining.small import (
    CONFIGURATION,
    Image,
    Network,
    case_names,
    classes_of,
    read_examples,
    small_model,
    whole,
)
from benchmarks.pretraining.studies import Setup
from coarse2fine.coarse_training.publish import write_model
from coarse2fine.config.reader import load_config
from coarse2fine.evaluation.masks import dice as mask_dice
from coarse2fine.evaluation.masks import iou
from coarse2fine.finetune.examples import Examples
from coarse2fine.finetune.measures import dice, mean
from coarse2fine.io import read_volume
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import Pipeline
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.settings import Settings
from coarse2fine.pretrain.weights import Tensors

EM, UNLABELLED, BRAIN = "Dataset101_VNCMito", "vnc_unlabelled", "Dataset501_BrainMALF"
STAGES = {
    "coarse": Network((45.0, 18.4, 18.4), (16, 32, 32), (8, 16, 32, 64), flat=2),
    "fine": Network((45.0, 4.6, 4.6), (16, 64, 64), (8, 16, 32, 64), flat=2),
}
BRAINS = Network((3.0, 3.0, 3.0), (40, 48, 40), (16, 32, 64, 64), batch=1)
STEPS, BRAIN_STEPS, PRETRAINING_STEPS = 400, 300, 300
PIECES = 8  # of a stack
EIGHTH = "an eighth"
LABELS = (2, 5)
TEST = 5  # brains, the first of 9 by name
RATE = 3e-3
MIRROR = (0, 1, 2)  # axes of EM along which patches may be mirrored; in brains left and right have labels of their own
ARMS = ("scratch", "mae")

TITLE = "The product: mitochondria with an eighth of the labels, and brains with 2 or 5"
ABOUT = f"""
**EM.** Networks pretrained (masked autoencoding, {PRETRAINING_STEPS} steps) on a stack of the same tissue without \
labels. A coarse network (18.4 nm in plane) and a fine one (4.6 nm), nnU-Net's U-Net with \
{STAGES["fine"].features} channels, are trained for {STEPS} steps on an eighth of the labels: a piece of each of two \
training stacks, others with each seed. Then the pipeline of `c2f-infer` segments the test stack of 20 x 1024 x 384 \
voxels. This is one case, so the interval is over seeds alone. Coarse recall: the share of true foreground in the \
boxes that the fine network gets to see.

**Brains.** A coarse network of 17 structures at {BRAINS.spacing[0]:g} mm with {BRAINS.features} channels and patches \
of {BRAINS.patch}, which hold most of a brain, pretrained on the 14 training images, trained for {BRAIN_STEPS} steps \
on 2 or 5 labelled ones; Dice at {BRAINS.spacing[0]:g} mm on {TEST} test brains, of all structures as one, and the \
mean over structures.

Steps, what an eighth is, and patches and channels for brains were chosen by single trainings from scratch, on \
training cases alone: on two brains, measured on four others, and on an eighth of the stacks, measured on other parts \
of them. One thing was seen on the test stack before: with an eighth in a single place the first training from \
scratch reached an IoU of 0.004 there, which is why pieces of both stacks were tried.
"""
IOU, RECALL, ANY, EACH = (
    "EM: IoU end to end",
    "EM: coarse recall",
    "brains: Dice of all structures",
    "brains: mean Dice",
)
BASELINES = dict.fromkeys((IOU, RECALL, ANY, EACH), ("scratch",))


def study(setup: Setup) -> Iterator[Sequence[Row]]:
    """Train and measure what is not there yet."""
    yield from brains(setup)
    yield from em(setup)


def em(setup: Setup) -> Iterator[Sequence[Row]]:
    """The pipeline on the test stack."""
    missing = [(arm, seed) for seed in setup.seeds for arm in ARMS if not setup.has(arm, EIGHTH, seed)]
    if not missing:
        return
    data = setup.data / EM
    models = {name: small_model(data, network, setup.work / name) for name, network in STAGES.items()}
    train = {name: read_examples(data, "Tr", case_names(data, "Tr"), model) for name, model in models.items()}
    for arm, seed in missing:
        folders = {}
        for name, model in models.items():
            weights = weights_of(setup, arm, name, seed, model, STAGES[name], partial(unlabelled, setup.data, model))
            few, chosen = eighth(train[name], seed), schedule(setup.steps or STEPS, seed, STAGES[name])
            network = fresh(model, seed, weights, bf16=setup.bf16)
            learn(network, model, few, STAGES[name].patch, chosen, setup.work / f"training-{arm}-{name}-{seed}", MIRROR)
            folders[name] = setup.work / f"{name}-model-{seed}"
            write_model(folders[name], model.plans, model.dataset, network.state_dict(), CONFIGURATION, MIRROR)
        yield [Row(arm, EIGHTH, seed, measure, value) for measure, value in end_to_end(data, folders).items()]


def brains(setup: Setup) -> Iterator[Sequence[Row]]:
    """The coarse network of brains."""
    data = setup.data / BRAIN
    model = small_model(data, BRAINS, setup.work / "brains")
    train = read_examples(data, "Tr", case_names(data, "Tr"), model)
    test = read_examples(data, "Ts", case_names(data, "Ts")[:TEST], model)
    classes = len(classes_of(model))
    for seed in setup.seeds:
        order = np.random.default_rng(seed).permutation(len(train))
        for count in LABELS:
            for arm in ARMS:
                if setup.has(arm, str(count), seed):
                    continue
                weights = weights_of(setup, arm, "brains", seed, model, BRAINS, lambda: train.images)
                network = fresh(model, seed, weights, bf16=setup.bf16)
                chosen = schedule(setup.steps or BRAIN_STEPS, seed, BRAINS)
                few, folder = train.take(order[:count]), setup.work / f"training-{arm}-{count}-{seed}"
                learn(network, model, few, BRAINS.patch, chosen, folder)
                found = segment(network, model, test.images, BRAINS.patch)
                pairs = list(zip(found, test.targets, strict=True))
                each = tuple(mean(dice(*pair, classes)) for pair in pairs)
                together = tuple(mask_dice(labels > 0, target > 0) for labels, target in pairs)
                yield [
                    Row(arm, str(count), seed, measure, float(np.mean(scores)), scores)
                    for measure, scores in ((ANY, together), (EACH, each))
                ]


def weights_of(
    setup: Setup, arm: str, name: str, seed: int, model: Model, network: Network, images: Callable[[], Sequence[Image]]
) -> Tensors | None:
    """Weights to begin with; None from scratch."""
    if arm == "scratch":
        return None
    settings = Settings(schedule(setup.steps or PRETRAINING_STEPS, seed, network), arm, block=8)
    folder = setup.work / f"{arm}-{name}-{seed}"
    return pretrained(model, images(), network.patch, settings, folder, bf16=setup.bf16)


def schedule(steps: int, seed: int, network: Network) -> Schedule:
    """Of all trainings."""
    return Schedule(
        steps, network.batch, seed, RATE, optimizer="adamw", decay=0.01, warm_up=0.1, fall="cosine", piece=steps
    )


def unlabelled(data: Path, model: Model) -> list[Image]:
    """The stack without labels, as a network sees it.

    Raises:
        MissingDataError: If it is not there.
    """
    files = sorted((data / UNLABELLED).glob("*.nii.gz"))
    if not files:
        raise MissingDataError(f"{data / UNLABELLED} holds no stack", "Name the folder of the data sets (--data).")
    return [whole(view_volume(read_volume([file]), model)) for file in files]


def eighth(stacks: Examples, seed: int) -> Examples:
    """An eighth of each of two stacks, cut across their longer side, in different places; others with each seed."""
    images, targets = [], []
    for number, (image, target) in enumerate(zip(stacks.images, stacks.targets, strict=True)):
        part, size = (seed + number * PIECES // len(stacks)) % PIECES, image.shape[2]
        inside = slice(size * part // PIECES, size * (part + 1) // PIECES)
        images.append(image[:, :, inside])
        targets.append(target[:, inside])
    return Examples(images, targets, stacks.patients, stacks.names)


def end_to_end(data: Path, folders: dict[str, Path]) -> dict[str, float]:
    """The pipeline on the first test case."""
    (name, *_) = case_names(data, "Ts")
    models = [f"{stage}.model={json.dumps(str(folder.resolve()))}" for stage, folder in folders.items()]
    pipeline = Pipeline.from_config(load_config(None, [*models, "fine.mirroring=false", "device=cpu"]))
    volume = read_volume([data / "imagesTs" / f"{name}_0000.nii.gz"])
    result = pipeline(volume)
    true = read_volume([data / "labelsTs" / f"{name}.nii.gz"]).channels[0] > 0
    view = view_volume(volume, pipeline.fine)
    inside = np.asarray(view.turn.array(true))[view.crop.slices]
    seen = np.zeros_like(inside)
    for box in result.boxes:
        seen[box.slices] = True
    return {IOU: iou(result.labels > 0, true), RECALL: float(inside[seen].sum() / max(true.sum(), 1))}
