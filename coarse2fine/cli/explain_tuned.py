"""What ``c2f-explain`` does with the folder of a fine-tuning."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch.nn import functional as F

from canvas import triple
from coarse2fine.cli.explain_picture import check_picture, write_picture
from coarse2fine.errors import ModelError, VolumeError
from coarse2fine.explain.gradcam import Method, find_layer, layer_map
from coarse2fine.explain.scores import found_in, score_of
from coarse2fine.explain.volumes import Explanation, Subject, find_head
from coarse2fine.finetune.load import Loaded
from coarse2fine.finetune.tasks import Segmentation
from coarse2fine.nnunet.labels import Labels
from coarse2fine.pretrain.pictures import Intensities, read_picture


def subject_of_tuned(loaded: Loaded, label: str, layer: str | None, device: torch.device) -> Subject:
    """An output of a network that has learned from volumes.

    Raises:
        ConfigError: If there is no such label or layer.
        ModelError: If it has learned from pictures.
    """
    if loaded.model is None or len(loaded.size) != 3:
        raise ModelError(f"{loaded.folder} has learned from pictures", "Name a picture.")
    head = _head(loaded, label)
    find_layer(loaded.network, layer or loaded.layer)
    dense = isinstance(loaded.task, Segmentation)
    names = loaded.outputs if dense else {}
    model = replace(
        loaded.model,
        folder=loaded.folder,
        networks=(loaded.network.to(device),),
        device=device,
        patch=triple(loaded.size),
        labels=Labels(dict(names), len(names), tuple(range(1, len(names))), ()),
    )
    return Subject(model, head, layer or loaded.layer, dense)


def explain_tuned_picture(options: argparse.Namespace, loaded: Loaded, device: torch.device, console: Console) -> None:
    """Explain a picture, which the network sees in the size that it has learned.

    Raises:
        C2FError: If it cannot be done; before the network runs, if it is because of options.
    """
    head = _head(loaded, options.label)
    check_picture(options)
    layer = options.layer or loaded.layer
    write_picture(options, map_of(loaded, Path(options.input), head, layer, options.method, device), console)


def map_of(loaded: Loaded, file: Path, head: int, layer: str, method: Method, device: torch.device) -> Explanation:
    """The map of an output, and the pixels that it explains; both of the picture's own size, as a single slice.

    Raises:
        C2FError: If the picture cannot be read or has other channels, or there is no such layer.
    """
    seen = loaded.intensities
    if seen is None:
        raise ModelError(f"{loaded.folder} has learned from volumes", "Name a volume.")
    original, inputs = read_picture(file), _inputs(loaded, seen, file)
    found, outputs = layer_map(
        loaded.network.to(device), inputs.to(device), layer, score_of(head), method=method, conserve=True
    )
    dense = outputs.ndim == 4
    explained = found_in(outputs, head) if dense else torch.zeros_like(found, dtype=torch.bool)
    size = original.shape[1:]
    heat = F.interpolate(found[None], size, mode="bilinear", align_corners=False)[0].cpu().numpy()
    outlines = F.interpolate(explained[None].float(), size, mode="bilinear", align_corners=False)[0].cpu().numpy()
    values = np.asarray(heat / (float(heat.max()) or 1.0), np.float32)
    return Explanation(values, outlines > 0.5, layer, dense)


def _inputs(loaded: Loaded, seen: Intensities, file: Path) -> torch.Tensor:
    """The picture as the network sees it; shape (1, channels, *size)."""
    pixels = read_picture(file, loaded.size)
    if len(pixels) != len(seen.mean):
        raise VolumeError(
            f"{file} has {len(pixels)} channel(s), the network takes {len(seen.mean)}",
            "Give a picture like those of the fine-tuning.",
        )
    return torch.from_numpy(seen.normalise(pixels))[None]


def _head(loaded: Loaded, label: str) -> int:
    return find_head(label, loaded.outputs, f"that {loaded.folder} tells")
