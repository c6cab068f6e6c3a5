"""A fine-tuning from labelled images to a folder of weights, predictions and measures; goes on where it was cut off."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isnan
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coarse2fine.coarse_training.publish import write_model
from coarse2fine.finetune.examples import Examples
from coarse2fine.finetune.load import CARD, HEAD, MODEL, PLANS, about
from coarse2fine.finetune.measures import Measure, dice
from coarse2fine.finetune.policy import Policy
from coarse2fine.finetune.tasks import Classification, Segmentation
from coarse2fine.finetune.tune import Outcome, finetune
from coarse2fine.io import atomic_write
from coarse2fine.networks.vit import ViT
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.claim import claim
from coarse2fine.pretrain.loop import Told
from coarse2fine.pretrain.pictures import Intensities
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.state import STATE
from coarse2fine.pretrain.weights import tensors_of, write_tensors, write_weights

METRICS, PREDICTIONS = "metrics.json", "predictions.csv"


@dataclass(frozen=True, slots=True)
class Settings:
    """What users choose of a fine-tuning.

    Attributes:
        schedule: How long and how fast.
        share: Of the patients to learn from whose labels are used.
        test_share: Of all patients that are held out, where nothing else says which.
        frozen: Whether only the head learns.
        layer_decay: Of rates from layer to layer.
        drop_path: Chance that the last block of a transformer is left out for an image.
        augment: See ``Policy.parse``.
        mirror: Axes along which half of the images are mirrored.
    """

    schedule: Schedule
    share: float = 1.0
    test_share: float = 0.2
    frozen: bool = False
    layer_decay: float = 1.0
    drop_path: float = 0.0
    augment: str = "none"
    mirror: tuple[int, ...] = ()

    @property
    def policy(self) -> Policy:
        """How training images are changed."""
        return Policy.parse(self.augment, self.mirror)


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """What is to be learned, and from what.

    Attributes:
        task: What labels ask for.
        train: To learn from.
        test: To measure on.
        patch: Shape of crops.
        intensities: How pictures were normalised; None: volumes.
        notes: What there is to say of it.
        model: Of ``load_plans``, by which volumes are seen, or the network of pictures was made.
    """

    task: Classification | Segmentation
    train: Examples
    test: Examples
    patch: tuple[int, ...]
    intensities: Intensities | None = None
    notes: tuple[str, ...] = ()
    model: Model | None = None


def run(
    network: nn.Module,
    data: Labelled,
    settings: Settings,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    told: Told = lambda done: None,
) -> Outcome:
    """Fine-tune, or go on with it.

    Args:
        network: With the weights to begin with.
        data: What is to be learned.
        settings: What users choose.
        folder: Is claimed already, see ``is_finished``.
        device: Where to work.
        told: Told of every piece of the training.

    Raises:
        C2FError: If something does not fit.
    """
    outcome = finetune(
        network.to(device),
        data.task,
        data.train,
        data.test,
        settings.schedule,
        folder,
        patch=data.patch,
        policy=settings.policy,
        decay=settings.layer_decay,
        frozen=settings.frozen,
        told=told,
    )
    write_weights(folder, network, data.intensities)
    own = {id(one) for one in tensors_of(network).values()}
    beyond = {name: one for name, one in tensors_of(outcome.tuned).items() if id(one) not in own}
    head = {name: one.detach().cpu().contiguous() for name, one in beyond.items()}
    write_tensors(folder / HEAD, head, about(data.task, data.model))
    write_plans(folder, data, network, settings)
    write_predictions(folder / PREDICTIONS, data.task, data.test, outcome.found)
    write_metrics(folder / METRICS, data, outcome.measures)
    (folder / STATE).unlink(missing_ok=True)
    return outcome


def write_plans(folder: Path, data: Labelled, network: nn.Module, settings: Settings) -> None:
    """What is needed to see volumes as the network does, or to make it again; nothing of a transformer of pictures.

    Of a network of nnU-Net's that segments volumes that is a model folder, which ``nnUNetv2_predict`` and ``c2f-infer``
    take; otherwise the plans.

    Raises:
        OutputError: If it cannot be written.
    """
    model = data.model
    if model is None:
        return
    if isinstance(data.task, Segmentation) and data.intensities is None and not isinstance(network, ViT):
        mirror = settings.mirror or None
        write_model(folder / MODEL, model.plans, model.dataset, network.state_dict(), model.configuration, mirror)
        return
    with atomic_write(folder / PLANS) as path:
        path.write_text(json.dumps(dict(model.plans), indent=1), encoding="utf-8")


def is_finished(folder: Path, settings: Settings, known: Mapping[str, Any]) -> bool:
    """Make the folder this fine-tuning's; says whether it has ended there already.

    Raises:
        C2FError: If it is another's, or cannot be written.
    """
    values = asdict(settings)
    schedule = values.pop("schedule")
    schedule["seconds"] = None if schedule["seconds"] == inf else schedule["seconds"]
    claim(folder, CARD, dict(json.loads(json.dumps({**values, **schedule, **known}))), "fine-tuning")
    return (folder / METRICS).exists()  # the last file that is written


def write_predictions(path: Path, task: Classification | Segmentation, test: Examples, found: Sequence[Any]) -> None:
    """A table with a line for each image that was held out: probabilities of labels, or Dice of classes.

    Raises:
        OutputError: If it cannot be written.
    """
    if isinstance(task, Classification):
        columns, values = task.labels, found
    else:
        columns = tuple(f"dice {name}" for name in task.classes[1:])
        values = [dice(*pair, task.outputs) for pair in zip(found, test.targets, strict=True)]
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "patient", *columns))
        for name, patient, row in zip(test.names, test.patients, values, strict=True):
            writer.writerow((name, patient, *("" if isnan(value) else f"{value:.6g}" for value in row)))


def write_metrics(path: Path, data: Labelled, measures: Mapping[str, Measure]) -> None:
    """Measures with their intervals, and how many images and patients they come from; null where not defined.

    Raises:
        OutputError: If it cannot be written.
    """

    def number(value: float) -> float | None:
        return None if isnan(value) else round(float(value), 6)

    counts = {
        name: {"images": len(part), "patients": len(set(part.patients))}
        for name, part in (("train", data.train), ("test", data.test))
    }
    document = {
        "measures": {
            name: {"value": number(one.value), "interval": [number(end) for end in one.interval]}
            for name, one in measures.items()
        },
        **counts,
        "notes": list(data.notes),
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
