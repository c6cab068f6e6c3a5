"""A fine-tuned network with its head, made again from the folder of a fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import nn

from coarse2fine.errors import ModelError
from coarse2fine.finetune.begin import image_of
from coarse2fine.finetune.heads import Tuned, put_head
from coarse2fine.finetune.tasks import Classification, Segmentation
from coarse2fine.networks.features import channels_of, middle_stage
from coarse2fine.networks.vit import ViT
from coarse2fine.nnunet.loading import load_plans, new_network
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.pictures import Intensities
from coarse2fine.pretrain.weights import WEIGHTS, fill, is_vit, load_vit, read_intensities, read_tensors, tensors_of

CARD, HEAD, PLANS, MODEL = "finetuning.json", "head.safetensors", "plans.json", "model"
_CLASSES, _LABELS = "segmentation", "classification"  # in what the head's file says of itself
_CONFIGURATION = "configuration"
_AGAIN = "Copy the folder again, or fine-tune anew."


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A network that has learned from labelled pictures or volumes.

    Attributes:
        folder: Of the fine-tuning.
        network: With its head.
        task: What it tells of images.
        size: Height and width that pictures are brought to; shape (z, y, x) of the windows in which it sees volumes.
        intensities: How pictures are normalised; None: it sees volumes.
        model: Of ``load_plans``, by which it sees volumes; of pictures the plans of the network, if it has some.
        layer: Where maps are made of it if nothing is said: of a transformer what comes out of the first block, as
            later ones may have spread what they found over all places; of nnU-Net's the encoder's middle stage.
    """

    folder: Path
    network: Tuned
    task: Classification | Segmentation
    size: tuple[int, ...]
    intensities: Intensities | None
    model: Model | None
    layer: str

    @property
    def outputs(self) -> dict[str, int]:
        """The number of each label's output."""
        names = self.task.labels if isinstance(self.task, Classification) else self.task.classes
        return {name: number for number, name in enumerate(names)}


def about(task: Classification | Segmentation, model: Model | None = None) -> dict[str, str]:
    """What the head's file says of itself."""
    known = {_LABELS if isinstance(task, Classification) else _CLASSES: json.dumps(asdict(task))}
    return known if model is None else {**known, _CONFIGURATION: model.configuration}


def is_tuned(folder: Path) -> bool:
    """Whether it is the folder of a fine-tuning."""
    return (folder / CARD).is_file()


def load_tuned(folder: Path) -> Loaded:
    """The network of a fine-tuning.

    Raises:
        ModelError: If it has not ended, has a model folder instead, or a file is damaged.
    """
    if (folder / MODEL).is_dir():
        raise ModelError(f"{folder} is a fine-tuning that has made a model folder", f"Name that: {folder / MODEL}.")
    for name in (WEIGHTS, HEAD):
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} does not exist", "Run the fine-tuning to its end.")
    tensors, said = read_tensors(folder / HEAD)
    task, intensities = _task(said, folder / HEAD), read_intensities(folder / WEIGHTS)
    model = load_plans(folder / PLANS, said[_CONFIGURATION], flat=True) if _CONFIGURATION in said else None
    network = _network(folder / WEIGHTS, task, model)
    size = network.shape.image if isinstance(network, ViT) else image_of(model) if model else ()
    if intensities is not None and (len(intensities.mean) != channels_of(network) or len(size) != 2):
        raise ModelError(
            f"{folder / WEIGHTS} normalises pictures of {len(intensities.mean)} channel(s), and its network sees "
            f"images of {channels_of(network)} channel(s) with {len(size)} axes",
            _AGAIN,
        )
    if intensities is None and (model is None or len(size) != 3):
        raise ModelError(f"{folder} says neither how pictures nor how volumes are seen", _AGAIN)
    tuned = put_head(network, task, frozen="normalise.running_mean" in tensors)
    own = {id(one) for one in tensors_of(network).values()}
    body = {name: one for name, one in tensors_of(tuned).items() if id(one) in own}
    fill(tuned, {**tensors, **body}, folder / HEAD, _AGAIN)
    return Loaded(folder, tuned.eval(), task, size, intensities, model, _layer(network))


def _network(path: Path, task: Classification | Segmentation, model: Model | None) -> nn.Module:
    """The network without its head."""
    if is_vit(path):
        return load_vit(path)
    if model is None:
        raise ModelError(f"{path} is of a network of nnU-Net's, and {path.with_name(HEAD)} names no plans", _AGAIN)
    network = new_network(model, task.outputs, 0)
    fill(network, read_tensors(path)[0], path, _AGAIN)
    return network


def _layer(network: nn.Module) -> str:
    if isinstance(network, ViT):
        return "network.blocks.0"
    return f"network.encoder.stages.{middle_stage(network)}"


def _task(said: Mapping[str, str], path: Path) -> Classification | Segmentation:
    kinds: dict[str, type[Classification] | type[Segmentation]] = {_LABELS: Classification, _CLASSES: Segmentation}
    try:
        ((key, text),) = ((key, said[key]) for key in kinds if key in said)
        task: Classification | Segmentation = TypeAdapter(kinds[key]).validate_json(text)
    except (ValueError, ValidationError):
        raise ModelError(f"{path} does not say what it tells of images", _AGAIN) from None
    return task
