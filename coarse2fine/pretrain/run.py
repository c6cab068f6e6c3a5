"""A pretraining from a folder of images to weights, which goes on where it was cut off."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any, Protocol

import torch

from coarse2fine.networks.vit import ViT
from coarse2fine.pretrain.claim import claim
from coarse2fine.pretrain.loop import Told, pretrain
from coarse2fine.pretrain.methods import Task, method_of
from coarse2fine.pretrain.objective import Source
from coarse2fine.pretrain.state import STATE
from coarse2fine.pretrain.weights import WEIGHTS, fill, read_tensors, write_weights
from coarse2fine.system.timing import Ticks

CARD, PREPARED = "pretraining.json", "volumes"


class Data(Protocol):
    """What is learned from."""

    @property
    def about(self) -> Mapping[str, Any]:
        """All of it that the result depends on, as JSON has it."""

    def open(self, folder: Path, progress: Ticks) -> Source:
        """Prepare whatever takes time in a folder, unless it is there, and say how far that is."""


def run(
    task: Task,
    data: Data,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    weights: Path | None = None,
    prepared: Ticks = lambda done, total: None,
    told: Told = lambda done: None,
) -> bool:
    """Pretrain, or go on with it.

    Args:
        task: What learns, and what users chose.
        data: From what.
        folder: For weights and curve, and all that is between. Whatever is in it was made by the same settings.
        device: Where to work.
        weights: To begin with; None: random ones.
        prepared: Told of images that have been prepared.
        told: Told of every piece of the training.

    Returns:
        Whether there was anything to do; not if it was finished before.

    Raises:
        C2FError: If something is missing or does not fit, or the folder is another pretraining's.
    """
    method, network = method_of(task), task.network
    if weights is not None:
        fill(network, read_tensors(weights)[0], weights, "Use weights of a pretraining of the same network.")
    claim(folder, CARD, card(task, data, weights))
    if (folder / WEIGHTS).exists():  # the last file that is written
        return False
    (folder / PREPARED).mkdir(exist_ok=True)
    source = data.open(folder / PREPARED, prepared)
    network.to(device)
    pretrain(network, method, source, task.settings.schedule, folder, told)
    write_weights(folder, network, getattr(source, "intensities", None))  # which volumes have in their plans
    (folder / STATE).unlink(missing_ok=True)
    shutil.rmtree(folder / PREPARED, ignore_errors=True)
    return True


def card(task: Task, data: Data, weights: Path | None) -> dict[str, Any]:
    """All that the result depends on, as JSON has it."""
    values = asdict(task.settings)
    schedule = values.pop("schedule")
    if schedule["seconds"] == inf:
        schedule["seconds"] = None
    about = {
        "network": asdict(task.network.shape) if isinstance(task.network, ViT) else "plans",
        **values,
        **schedule,
        **data.about,
        "weights": None if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    return dict(json.loads(json.dumps(about)))
