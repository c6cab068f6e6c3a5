"""Study of records: does a report's network use the image, do images find reports, do losses at several depths help?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.pretraining.rows import Baselines, Row, pseudo_values
from benchmarks.pretraining.studies import Setup
from coarse2fine.finetune.measures import auroc
from coarse2fine.finetune.shares import hold_out
from coarse2fine.networks.vit import ViT, ViTShape, new_vit, seeded
from coarse2fine.pretrain.convirt import Convirt, convirt
from coarse2fine.pretrain.loop import pretrain
from coarse2fine.pretrain.mae_tokens import patch_blocks
from coarse2fine.pretrain.masking import Masking
from coarse2fine.pretrain.mrm import MaskedRecords, deep_blocks, masked_records
from coarse2fine.pretrain.objective import Method
from coarse2fine.pretrain.picture_crops import PictureCrops
from coarse2fine.pretrain.pictures import Intensities, Pixels, load_pictures
from coarse2fine.pretrain.record_source import Records, open_records, with_reports
from coarse2fine.pretrain.records.archive import read_reports
from coarse2fine.pretrain.records.contrast import found_among
from coarse2fine.pretrain.records.text import TextShape
from coarse2fine.pretrain.records.vocabulary import Vocabulary
from coarse2fine.pretrain.refers import VIEWS, Refers, refers
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.table import Table, read_table

TITLE = "Records: what reports teach about images"
RIGHT, SHUFFLED = "MRM, the right image", "MRM, another patient's image"
CHANCE, PLAIN, DEEP, UNTRAINED = "chance", "MRM", "deep MRM", "no pretraining"
WORDS, FOUND = "loss of hidden words", "own report among the 10 nearest"
EARLY = 2
PROBE = f"AUROC of a linear probe after block {EARLY}: COVID-19"
BASELINES: Baselines = {WORDS: (SHUFFLED,), FOUND: (CHANCE,), PROBE: (PLAIN,)}

SIZE, TEXT, HELD_OUT, MOST, DRAWS = 64, "notes", 1 / 3, 10, 8
SHAPE = ViTShape(1, (SIZE, SIZE), (8, 8), width=96, depth=4, heads=3)
ENTRIES, LENGTH, RATE = 1500, 64, 2e-3
STEPS = {PLAIN: 300, DEEP: 300, "ConVIRT": 120, "REFERS": 60}
BATCH = {PLAIN: 16, DEEP: 16, "ConVIRT": 32, "REFERS": 32}
ABOUT = (
    f"Radiographs of the COVID-19 image data collection at {SIZE} x {SIZE}, with the notes of their cases; a third of "
    "the patients is held out, the same for all seeds. The vocabulary is that of the other notes and of the reports of "
    f"Indiana University, {ENTRIES} entries. Transformers 96 wide, 4 blocks for images in patches of 8 pixels, 2 for "
    f"reports of at most {LENGTH} tokens; AdamW, "
    + ", ".join(f"{name} {steps} steps of {BATCH[name]} patients" for name, steps in STEPS.items())
    + f". The loss of hidden words is the cross-entropy in nats, half of the words hidden, over {DRAWS} masks, "
    "for each patient with the own image, and with those of others. Reports are looked for among those of all "
    "patients who are held out, one of each; chance is 10 of their number. Probes are logistic regressions of the mean"
    " of all tokens, regularised by cross-validation over patients, on radiographs with notes and without."
)


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Radiographs, and who is held out.

    Attributes:
        table: Of all.
        pixels: Of all.
        intensities: Of those that are learned from.
        train, held: Numbers of rows.
        vocabulary: Of the words that may be known.
    """

    table: Table
    pixels: Pixels
    intensities: Intensities
    train: NDArray[np.intp]
    held: NDArray[np.intp]
    vocabulary: Vocabulary

    def images(self, rows: Sequence[int] | NDArray[np.intp]) -> torch.Tensor:
        """Whole, as networks see them."""
        return torch.from_numpy(self.intensities.normalise(self.pixels[np.asarray(rows)]))

    def records(self, views: int | None) -> Records:
        """To learn from."""
        part = self.table.take(self.train)
        told = with_reports(part, TEXT)
        crops = PictureCrops(self.pixels[self.train[told]], self.intensities)
        return open_records(crops, part.take(told), TEXT, self.vocabulary, length=LENGTH, views=views)

    def cases(self) -> NDArray[np.intp]:
        """The first record of every patient who is held out."""
        part = self.table.take(self.held)
        first = {part.patients[row]: row for row in reversed(with_reports(part, TEXT))}
        return self.held[sorted(first.values())]


def load(folder: Path) -> Data:
    """Everything that is learned from and tested on."""
    table = read_table(folder / "table.csv")
    pixels = load_pictures(table.files, (SIZE, SIZE))
    train, held = hold_out(table.patients, HELD_OUT, 0)
    texts = [table.column(TEXT)[row] for row in train] + read_reports(folder / "nlmcxr_reports.tgz")
    return Data(table, pixels, Intensities.of(pixels[train]), train, held, Vocabulary.train(texts, ENTRIES))


def study(setup: Setup) -> Iterator[Sequence[Row]]:
    """Train each method with each seed, and measure it on patients who are held out."""
    data = load(setup.data / "radiographs")
    for seed in setup.seeds:
        if not setup.has(UNTRAINED, "none", seed):
            yield [_probe(UNTRAINED, new_vit(SHAPE, seed), data, seed), _chance(data, seed)]
        for name in STEPS:
            measured = RIGHT if name == PLAIN else name
            if not setup.has(measured, "none", seed):
                yield _measure(name, data, seed, setup)


def _measure(name: str, data: Data, seed: int, setup: Setup) -> list[Row]:
    """Train one method, and measure what is asked of it."""
    network, objective = new_vit(SHAPE, seed), _objective(name, data, seed)
    steps = setup.steps or STEPS[name]
    schedule = Schedule(
        steps, BATCH[name], seed, RATE, optimizer="adamw", decay=0.05, warm_up=0.1, fall="cosine", piece=30
    )
    folder = setup.work / f"{name.replace(' ', '-')}-{seed}"
    folder.mkdir(exist_ok=True)
    source = data.records(VIEWS if isinstance(objective, Refers) else None)
    pretrain(network, Method({name: objective}), source, schedule, folder)
    network.eval()
    objective.heads.eval()
    with torch.no_grad():
        if isinstance(objective, Convirt | Refers):
            return [_found(name, network, objective, data, seed)]
        return [*_words(name, network, objective, data, seed), _probe(name, network, data, seed)]


def _objective(name: str, data: Data, seed: int) -> Convirt | Refers | MaskedRecords:
    text = TextShape(data.vocabulary.size, LENGTH, SHAPE.width, depth=2, heads=3)
    with seeded(seed):
        if name == "ConVIRT":
            return convirt(new_vit(SHAPE, seed), text, width=128)
        if name == "REFERS":
            return refers(new_vit(SHAPE, seed), text, width=128)
        blocks = deep_blocks(SHAPE.depth) if name == DEEP else ()
        masking = Masking(patch_blocks(SHAPE), "random", 0.75)
        return masked_records(SHAPE, masking, text, data.vocabulary.continues, blocks=blocks, normalised=name != DEEP)


def _words(name: str, network: ViT, objective: MaskedRecords, data: Data, seed: int) -> list[Row]:
    """The loss of hidden words with the right image and with another patient's, the same masks for both and for all."""
    if name != PLAIN:
        return []
    cases = data.cases()
    images = data.images(cases)
    words = data.vocabulary.encode([data.table.column(TEXT)[row] for row in cases], LENGTH)
    losses = np.zeros((2, len(cases)))
    for draw in range(DRAWS):
        generator = np.random.default_rng((7, draw))
        views = objective.views({"images": images, "words": words}, generator)
        covered = views["covered"].nonzero()[:, 0].numpy()
        others = images[_others(len(cases), generator)]
        for kind, seen in enumerate((images, others)):
            each = objective.word_losses(network, {**views, "images": seen}).double().numpy()
            losses[kind] += np.bincount(covered, each) / np.bincount(covered) / DRAWS
    return [
        Row(kind, "none", seed, WORDS, float(values.mean()), tuple(values.tolist()), less=True)
        for kind, values in zip((RIGHT, SHUFFLED), losses, strict=True)
    ]


def _others(count: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """For each one another one, all different."""
    order = generator.permutation(count)
    others = np.empty(count, np.intp)
    others[order] = np.roll(order, 1)
    return others


def _found(name: str, network: ViT, objective: Convirt | Refers, data: Data, seed: int) -> Row:
    cases, texts = data.cases(), data.table.column(TEXT)
    if isinstance(objective, Refers):
        images = objective.of_images(network, torch.stack([data.images(_views(data, case)) for case in cases]))
    else:
        images = objective.of_images(network, data.images(cases))
    reports = objective.of_reports(data.vocabulary.encode([texts[case] for case in cases], LENGTH))
    hits = found_among(images, reports, MOST)
    return Row(name, "none", seed, FOUND, float(hits.mean()), tuple(hits.tolist()))


def _views(data: Data, case: int) -> NDArray[np.intp]:
    """Pictures of the same patient with the same report, the first ones again where there are fewer."""
    texts, patients = data.table.column(TEXT), data.table.patients
    same = [row for row in range(len(texts)) if (texts[row], patients[row]) == (texts[case], patients[case])]
    return np.resize(same, VIEWS)


def _chance(data: Data, seed: int) -> Row:
    count = len(data.cases())
    chance = min(1.0, MOST / count)
    return Row(CHANCE, "none", seed, FOUND, chance, (chance,) * count)


def _probe(name: str, network: ViT, data: Data, seed: int) -> Row:
    """A linear classifier of tokens after an early block, of all radiographs."""
    ill = np.array([finding.startswith("COVID-19") for finding in data.table.column("finding")])
    patients = np.array(data.table.patients)
    with torch.no_grad():
        tokens = network.eval().embed(data.images(range(len(ill))))
        for block in network.blocks[:EARLY]:
            tokens = block(tokens)
    features = tokens[:, 1:].mean(1).double().numpy()
    folds = list(GroupKFold(5).split(data.train, groups=patients[data.train]))
    classifier = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=5, cv=folds, scoring="neg_log_loss", class_weight="balanced", max_iter=1000, random_state=0
        ),
    )
    classifier.fit(features[data.train], ill[data.train])
    scores, truth = classifier.decision_function(features[data.held]), ill[data.held]

    def measure(kept: NDArray[np.bool_]) -> float:
        return auroc(scores[kept], truth[kept])

    whole = measure(np.ones(len(truth), bool))
    return Row(name, "none", seed, PROBE, whole, pseudo_values(measure, patients[data.held].tolist()))
