"""A fine-tuned vision transformer with its head, made again from the folder of a fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from coarse2fine.errors import ModelError
from coarse2fine.finetune.heads import Tuned, put_head
from coarse2fine.finetune.tasks import Classification, Segmentation
from coarse2fine.pretrain.pictures import Intensities
from coarse2fine.pretrain.weights import WEIGHTS, fill, is_vit, load_vit, read_intensities, read_tensors, tensors_of

CARD, HEAD = "finetuning.json", "head.safetensors"
_CLASSES, _LABELS = "segmentation", "classification"  # in what the head's file says of itself
_AGAIN = "Copy the folder again, or fine-tune anew."


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A transformer that has learned from labelled pictures.

    Attributes:
        network: With its head.
        task: What it tells of them.
        size: Height and width that they are brought to.
        intensities: How they are normalised.
        layer: Where maps are made of it if nothing is said: what the last block's attention sees.
    """

    network: Tuned
    task: Classification | Segmentation
    size: tuple[int, ...]
    intensities: Intensities
    layer: str

    @property
    def outputs(self) -> dict[str, int]:
        """The number of each label's output."""
        names = self.task.labels if isinstance(self.task, Classification) else self.task.classes
        return {name: number for number, name in enumerate(names)}


def about_task(task: Classification | Segmentation) -> dict[str, str]:
    """What the head's file says of itself."""
    return {_LABELS if isinstance(task, Classification) else _CLASSES: json.dumps(asdict(task))}


def is_tuned(folder: Path) -> bool:
    """Whether it is the folder of a fine-tuning."""
    return (folder / CARD).is_file()


def load_tuned(folder: Path) -> Loaded:
    """The network of a fine-tuning.

    Raises:
        ModelError: If it has not ended, is no transformer that learned from pictures, or a file is damaged.
    """
    for name in (WEIGHTS, HEAD):
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} does not exist", "Run the fine-tuning to its end.")
    intensities = read_intensities(folder / WEIGHTS)
    if intensities is None or not is_vit(folder / WEIGHTS):
        raise ModelError(
            f"{folder} holds no vision transformer that learned from pictures",
            f"Of volumes, name the model folder in it: {folder / 'model'}.",
        )
    network = load_vit(folder / WEIGHTS)
    if network.shape.channels != len(intensities.mean):
        raise ModelError(f"{folder / WEIGHTS} normalises {len(intensities.mean)} channels of another number", _AGAIN)
    tensors, about = read_tensors(folder / HEAD)
    task = _task(about, folder / HEAD)
    tuned = put_head(network, task, frozen="normalise.running_mean" in tensors)
    own = {id(one) for one in tensors_of(network).values()}
    body = {name: one for name, one in tensors_of(tuned).items() if id(one) in own}
    fill(tuned, {**tensors, **body}, folder / HEAD, _AGAIN)
    layer = f"network.blocks.{network.shape.depth - 1}.norm1"
    return Loaded(tuned.eval(), task, network.shape.image, intensities, layer)


def _task(about: Mapping[str, str], path: Path) -> Classification | Segmentation:
    kinds: dict[str, type[Classification] | type[Segmentation]] = {_LABELS: Classification, _CLASSES: Segmentation}
    try:
        ((key, text),) = ((key, about[key]) for key in kinds if key in about)
        task: Classification | Segmentation = TypeAdapter(kinds[key]).validate_json(text)
    except (ValueError, ValidationError):
        raise ModelError(f"{path} does not say what it tells of pictures", _AGAIN) from None
    return task
