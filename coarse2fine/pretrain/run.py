"""A pretraining from a folder of images to weights, which goes on where it was cut off."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch

from coarse2fine.errors import ConfigError, OutputError
from coarse2fine.io import Case, atomic_write, make_own
from coarse2fine.nnunet.loading import new_network
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.blocks import Blocks
from coarse2fine.pretrain.crops import open_crops
from coarse2fine.pretrain.loop import Told, pretrain
from coarse2fine.pretrain.mae import MaskedAutoencoding
from coarse2fine.pretrain.masking import Kind, Masking
from coarse2fine.pretrain.objective import Method
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.state import STATE
from coarse2fine.pretrain.weights import NNUNET, fill, read_tensors, write_weights
from coarse2fine.system.terminal import shown
from coarse2fine.system.timing import Ticks

CARD, VOLUMES = "pretraining.json", "volumes"


@dataclass(frozen=True, slots=True)
class Settings:
    """What users choose of a pretraining.

    Attributes:
        objective: What to learn: ``mae``.
        mask, ratio, block, centre: See ``Masking``; ``block`` is the longest edge of blocks in voxels, ``centre`` the
            sigma of both masks and crops, None: all places alike.
        norm_pix: Whether blocks are normalised before they are compared.
        loss_everywhere: Whether visible voxels count, too.
        schedule: How long and how fast.
    """

    schedule: Schedule
    objective: str = "mae"
    mask: Kind = "random"
    ratio: float | None = None
    block: int = 16
    centre: float | None = None
    norm_pix: bool = False
    loss_everywhere: bool = False

    @property
    def sigma(self) -> float:
        """Width of the density of masks and crops."""
        return inf if self.centre is None else self.centre

    def method(self, patch: Sequence[int]) -> Method:
        """What to learn from patches of a shape.

        Raises:
            ConfigError: If no mask can be drawn with these settings.
        """
        masking = Masking(Blocks.of(patch, self.block), self.mask, self.ratio, self.sigma)
        return Method({"mae": MaskedAutoencoding(masking, self.norm_pix, self.loss_everywhere)})


def run(
    cases: Sequence[Case],
    model: Model,
    settings: Settings,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    weights: Path | None = None,
    prepared: Ticks = lambda done, total: None,
    told: Told = lambda done: None,
) -> bool:
    """Pretrain, or go on with it.

    Args:
        cases: Images.
        model: Of ``load_plans``.
        settings: What users choose.
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
    method = settings.method(model.patch)
    network = new_network(model, model.channels, settings.schedule.seed)
    if weights is not None:
        fill(network, read_tensors(weights)[0], weights, "Use weights of a pretraining with the same plans.")
    _claim(folder, card(cases, model, settings, weights))
    if (folder / NNUNET).exists():  # the last file that is written
        return False
    (folder / VOLUMES).mkdir(exist_ok=True)
    crops = open_crops(cases, model, folder / VOLUMES, settings.sigma, prepared)
    network.to(device)
    pretrain(network, method, crops, settings.schedule, folder, told)
    write_weights(folder, network)
    (folder / STATE).unlink(missing_ok=True)
    shutil.rmtree(folder / VOLUMES, ignore_errors=True)
    return True


def card(cases: Sequence[Case], model: Model, settings: Settings, weights: Path | None) -> dict[str, Any]:
    """All that the result depends on, as JSON has it."""
    values = asdict(settings)
    schedule = values.pop("schedule")
    if schedule["seconds"] == inf:
        schedule["seconds"] = None
    files = [file for case in cases for file in case.files if file.is_file()]
    about = {
        **values,
        **schedule,
        "configuration": model.configuration,
        "plans": hashlib.sha256(json.dumps(model.plans, sort_keys=True).encode()).hexdigest(),
        "weights": None if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest(),
        "images": [case.name for case in cases],
        "files": [[file.name, file.stat().st_size, int(file.stat().st_mtime)] for file in files],
    }
    return dict(json.loads(json.dumps(about)))


def _claim(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Make the folder this pretraining's, or see that it is.

    Raises:
        OutputError: If it holds something else, or cannot be written.
        ConfigError: If it is another pretraining's, naming the first setting that differs.
    """
    try:
        make_own(folder, private=False)
    except OSError as error:
        raise OutputError(f"cannot create {folder}: {error.strerror}", "Choose another folder.") from error
    path = folder / CARD
    if path.exists():
        known = _read_card(path)
        for key in (*wanted, *known):
            if known.get(key) != wanted.get(key):
                raise ConfigError(
                    f"{folder} holds a pretraining with other settings: {key} is {shown(known.get(key))} there, "
                    f"{shown(wanted.get(key))} here",
                    "Choose another folder (-o); to begin it with the weights of this one, add --weights.",
                )
        return
    others = [other.name for other in sorted(folder.iterdir()) if not other.name.startswith(".")]
    if others:
        raise OutputError(f"{folder} holds other things, such as {shown(others[0])}", "Choose a new folder (-o).")
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(dict(wanted), indent=1), encoding="utf-8")


def _read_card(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        known = None
    if not isinstance(known, dict):
        raise ConfigError(f"{path} is damaged", "Choose another folder (-o).")
    return known
