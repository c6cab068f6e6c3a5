"""A training's model folder: weights to start from, how far the training has come, and what inference needs."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.common.registry import MissingDataError
from coarse2fine.coarse_training.publish import write_checkpoint
from coarse2fine.errors import ModelError
from coarse2fine.io import atomic_write
from coarse2fine.nnunet.checkpoint import find_folds, load_checkpoint, read_json

ALL = "all"
"""The fold of a model that was trained on all training cases."""


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
        curve: (steps, pseudo-Dice of nnU-Net's validation patches) after each epoch.
    """

    steps: int
    total: int
    seconds: float = 0.0
    curve: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, folder: Path, total: int, fold: str = ALL) -> Progress:
        """Of a fold of the model folder to be written, if a training of as many steps was begun there.

        Raises:
            MissingDataError: If one of another length was.
        """
        file = folder / progress_file(fold)
        if not file.exists():
            return cls(0, total)
        found = read_json(file)
        if found["total"] != total:
            raise MissingDataError(
                f"{file} tells of a training of {found['total']} steps, not {total}",
                f"Give --steps {found['total']} to go on, or another folder (-o).",
            )
        return cls(found["steps"], total, found["seconds"], tuple((int(a), float(b)) for a, b in found["curve"]))

    def after(self, epoch: int, pseudo: float, seconds: float) -> Progress:
        """One epoch further."""
        steps = self.steps + epoch
        return Progress(steps, self.total, self.seconds + seconds, (*self.curve, (steps, round(pseudo, 4))))


def load_weights(network: torch.nn.Module, folder: Path, fold: str | None = None) -> None:
    """Fill a network with the weights of a model folder's fold; None for the first one.

    Raises:
        ModelError: If there are none, or they belong to another network.
    """
    fold = fold or find_folds(folder, "checkpoint_final.pth")[0]
    checkpoint = load_checkpoint(folder / f"fold_{fold}" / "checkpoint_final.pth")
    weights = checkpoint.read(checkpoint.weights)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(f"{folder} holds another network: {reason}", "Start from the fine model.") from None


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
