"""Labelled volumes in nnU-Net's raw layout, seen as inference sees them and kept on the disk while they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from coarse2fine.errors import ConfigError
from coarse2fine.finetune.examples import Examples
from coarse2fine.finetune.run import Labelled, Settings
from coarse2fine.finetune.shares import hold_out, take_share
from coarse2fine.finetune.tasks import Segmentation
from coarse2fine.io import LabelledCase, atomic_write, find_labelled_cases, read_volume
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.labels import read_labels
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.pretrain.crops import about_files, prepare
from coarse2fine.system.timing import Ticks

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ChosenVolumes:
    """Volumes to learn from and those held out; each counts as a patient.

    Attributes:
        model: Of ``load_plans``, with labels.
        train: All to learn from, of which a share is used.
        test: Held out: those of ``imagesTs`` if they have labels, else a share of ``imagesTr``.
    """

    model: Model
    train: tuple[LabelledCase, ...]
    test: tuple[LabelledCase, ...]

    @property
    def about(self) -> dict[str, Any]:
        """All that a result depends on, as JSON has it."""
        files = [path for one in (*self.train, *self.test) for path in (*one.images, one.labels)]
        return {
            "configuration": self.model.configuration,
            "train": [one.name for one in self.train],
            "test": [one.name for one in self.test],
            "files": about_files(files),
        }

    @property
    def task(self) -> Segmentation:
        """Names of the classes, in the order of their numbers."""
        names = self.model.labels.names
        return Segmentation(tuple(sorted(names, key=lambda name: int(names[name]))))


def choose_volumes(folder: Path, model: Model, settings: Settings) -> ChosenVolumes:
    """Find volumes, and hold some out.

    Args:
        folder: With ``imagesTr`` and ``labelsTr``; volumes of ``imagesTs`` and ``labelsTs`` are tested on.
        model: Of ``load_plans``, with labels.
        settings: Shares and seed.

    Raises:
        C2FError: If a folder or a file is missing, nothing would be left, or labels overlap or are partly unknown.
    """
    names, numbers = model.labels.names, [0, *model.labels.foreground]
    if model.labels.regions or model.labels.ignore is not None or sorted(map(int, names.values())) != numbers:
        raise ConfigError(
            f"{folder / 'dataset.json'} has regions or the label ignore",
            "Train with nnUNetv2_train -pretrained_weights.",
        )
    find = partial(find_labelled_cases, folder, model.channels, model.reader)
    volumes = find("Tr")
    if (folder / "imagesTs").is_dir() and (folder / "labelsTs").is_dir():
        return ChosenVolumes(model, tuple(volumes), tuple(find("Ts")))
    train, test = hold_out([one.name for one in volumes], settings.test_share, settings.schedule.seed)
    return ChosenVolumes(model, tuple(volumes[at] for at in train), tuple(volumes[at] for at in test))


def load_volumes(
    chosen: ChosenVolumes,
    patch: tuple[int, ...],
    settings: Settings,
    folder: Path,
    progress: Ticks = lambda done, total: None,
) -> Labelled:
    """Prepare volumes, and take a share of those to learn from.

    Args:
        chosen: Which.
        patch: Of the network.
        settings: Share and seed.
        folder: Where to keep them while they are needed.
        progress: Told of every volume.

    Raises:
        C2FError: If something cannot be read or does not fit, or the share leaves nothing.
    """
    whole = [*chosen.train, *chosen.test]
    pairs = []
    for number, volume in enumerate(whole, 1):
        pairs.append(prepare_labelled(volume, chosen.model, folder))
        progress(number, len(whole))
    names = [one.name for one in whole]
    images, targets = zip(*pairs, strict=True)
    every = Examples(images, targets, names, names)
    learn = every.take(range(len(chosen.train)))
    part = learn.take(take_share(learn.patients, learn.present, settings.share, settings.schedule.seed))
    notes = (f"labels of {len(part)} volumes, of {len(learn)} to learn from",)
    held = every.take(range(len(learn), len(every)))
    return Labelled(chosen.task, part, held, patch, notes=notes, model=chosen.model)


def prepare_labelled(volume: LabelledCase, model: Model, folder: Path) -> tuple[Array, Array]:
    """A volume on the working grid with its labels, from the disk.

    Returns:
        The image, shape (channels, z, y, x), and labels, shape (z, y, x), each voxel's the one that most of it has.

    Raises:
        VolumeError: If one of the two cannot be read, or they do not fit each other or the model.
    """
    folder.mkdir(exist_ok=True)
    image = np.load(prepare(volume.images, model, folder / f"{volume.name}.npy"), mmap_mode="r", allow_pickle=False)
    path = folder / f"{volume.name}.labels.npy"
    if not path.exists():
        read = read_volume(volume.images, [model.reader])
        view = view_volume(read, model)
        labels = view.turn.array(read_labels(volume.labels, model, read))
        resized = resize_labels(np.asarray(labels)[view.crop.slices], view.shape, model.labels.heads)
        with atomic_write(path, needed=resized.nbytes) as temporary, temporary.open("wb") as file:
            np.save(file, resized)
    return image, np.load(path, mmap_mode="r", allow_pickle=False)


def resize_labels(labels: Array, shape: Sequence[int], classes: int) -> Array:
    """Labels on another grid over the same space: the class that is most at each place, interpolated linearly.

    As nnU-Net resamples labels; on ties the higher class wins.
    """
    if labels.shape == tuple(shape):
        return np.ascontiguousarray(labels)
    most, found = torch.zeros(tuple(shape)), np.zeros(tuple(shape), labels.dtype)
    for label in range(classes):
        mask = torch.from_numpy((labels == label).astype(np.float32))
        share = F.interpolate(mask[None, None], tuple(shape), mode="trilinear", align_corners=False)[0, 0]
        found[(share >= most).numpy()] = label
        most = torch.maximum(most, share)
    return found
