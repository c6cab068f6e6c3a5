"""A training's model folder: weights to start from, how far the training has come, and what inference needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.registry import MissingDataError
from coarse2fine.coarse_training.publish import write_checkpoint
from coarse2fine.errors import ModelError
from coarse2fine.io import atomic_write
from coarse2fine.nnunet.checkpoint import find_folds, load_checkpoint, read_json

ALL = "all"
"""The fold of a model that was trained on all training cases."""
OUTPUT_LAYERS = ".seg_layers."
"""In the names of the weights of the layers that have an output per label."""


def progress_file(fold: str) -> str:
    """Where a fold's progress is kept, in the model folder."""
    return "training.json" if fold == ALL else f"training_{fold}.json"


def check_fold(folder: Path, fold: str) -> None:
    """Make sure that a folder holds either one model of all cases, or cross-fitted ones: inference averages all folds.

    Raises:
        ModelError: If both would be in it.
    """
    there = [one.name.removeprefix("fold_") for one in folder.glob("fold_*")]
    if any((one == ALL) != (fold == ALL) for one in there):
        raise ModelError(
            f"{folder} holds fold '{sorted(there)[0]}', and inference would average it with fold '{fold}'",
            "Write cross-fitted models to a folder of their own (-o).",
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training has come, as in ``training.json``, or ``training_0.json`` of fold 0.

    Attributes:
        steps: Training steps so far.
        total: Steps that the learning rate is planned for.
        seconds: Time that they took.
        curve: (steps, pseudo-Dice of nnU-Net's validation patches) after each epoch; those of earlier trainings, too,
            whose weights this one started from.
        before: Steps of these.
    """

    steps: int
    total: int
    seconds: float = 0.0
    curve: tuple[tuple[int, float], ...] = ()
    before: int = 0

    @classmethod
    def of(cls, folder: Path, total: int, fold: str = ALL, start: Path | None = None) -> Progress:
        """Of a fold of the model folder to be written, if a training of as many steps was begun there.

        Args:
            folder: The model folder.
            total: Steps of the training.
            fold: Of the model folder.
            start: Model folder of the same labels whose weights a new training starts from.

        Raises:
            MissingDataError: If one of another length was.
        """
        file = folder / progress_file(fold)
        if not file.exists():
            earlier = start / progress_file(ALL) if start else file
            if not earlier.exists():
                return cls(0, total)
            known = cls.read(read_json(earlier))
            return cls(0, total, curve=known.curve, before=known.before + known.steps)
        found = read_json(file)
        if found["total"] != total:
            raise MissingDataError(
                f"{file} tells of a training of {found['total']} steps, not {total}",
                f"Give --steps {found['total']} to go on, or another folder (-o).",
            )
        return cls.read(found)

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Progress:
        """What ``publish`` has written."""
        curve = tuple((int(steps), float(pseudo)) for steps, pseudo in found["curve"])
        return cls(found["steps"], found["total"], found["seconds"], curve, found.get("before", 0))

    def after(self, epoch: int, pseudo: float, seconds: float) -> Progress:
        """One epoch further."""
        steps = self.steps + epoch
        curve = (*self.curve, (self.before + steps, round(pseudo, 4)))
        return Progress(steps, self.total, self.seconds + seconds, curve, self.before)


def load_weights(network: torch.nn.Module, folder: Path, fold: str | None = None) -> bool:
    """Fill a network with the weights of a model folder's fold; None for the first one.

    A model of other labels gives all but its output layers, as nnU-Net's own pretrained weights do.

    Returns:
        Whether the output layers came with the rest.

    Raises:
        ModelError: If there are no weights, or they belong to another network.
    """
    fold = fold or find_folds(folder, "checkpoint_final.pth")[0]
    checkpoint = load_checkpoint(folder / f"fold_{fold}" / "checkpoint_final.pth")
    weights, own = checkpoint.read(checkpoint.weights), network.state_dict()
    outputs = [name for name in own if OUTPUT_LAYERS in name]
    equal = all(name in weights and weights[name].shape == own[name].shape for name in outputs)
    if not equal:
        weights = {**weights, **{name: own[name] for name in outputs}}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(f"{folder} holds another network: {reason}", "Start from the fine model.") from None
    return equal


def strip(checkpoint: Path, target: Path) -> None:
    """Write what inference needs of a checkpoint, with weights in half precision, which loaders convert back."""
    trained = load_checkpoint(checkpoint)
    write_checkpoint(target, trained.read(trained.weights), trained.configuration, trained.mirror_axes)


def publish(trained: Path, target: Path, checkpoint: Path, progress: Progress, fold: str = ALL) -> None:
    """Copy a fold of a trained model folder without what only training needs, and see that it can be loaded."""
    (target / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        with atomic_write(target / name) as path:
            shutil.copyfile(trained / name, path)
    strip(checkpoint, target / f"fold_{fold}" / "checkpoint_final.pth")
    from coarse2fine.nnunet.loading import load_model

    load_model(target)
    with atomic_write(target / progress_file(fold)) as path:
        path.write_text(json.dumps(asdict(progress), indent=1) + "\n")
