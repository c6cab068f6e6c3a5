"""What ``c2f-explain`` does with a picture and the folder of a fine-tuning: a map of the picture's size."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch.nn import functional as F

from coarse2fine.config.validation import did_you_mean
from coarse2fine.errors import ConfigError, OutputError, VolumeError
from coarse2fine.explain.gradcam import Method, layer_map
from coarse2fine.explain.overlay import draw_flat_map
from coarse2fine.explain.scores import found_in, score_of
from coarse2fine.finetune.load import Loaded, load_tuned
from coarse2fine.finetune.tasks import Segmentation
from coarse2fine.io import atomic_write, check_writable
from coarse2fine.page.window import pick_window
from coarse2fine.pipeline import pick_device
from coarse2fine.pretrain.pictures import read_picture
from coarse2fine.system.terminal import plain, shown

_DEEPEST = 65535  # of a map's grey values


def explain_picture(options: argparse.Namespace, console: Console) -> None:
    """Explain one picture; whatever can be wrong with options is found before the network runs.

    Raises:
        C2FError: If it cannot be done.
    """
    if options.mask:
        raise ConfigError("--mask is for volumes", "Leave it out: what the network finds in the picture is explained.")
    loaded = load_tuned(options.model)
    head = _head(loaded, options.label, options.model)
    layer = options.layer or loaded.layer
    _check_outputs(options)
    heat, explained = map_of(loaded, Path(options.input), head, layer, options.method, pick_device(options.device))
    with atomic_write(options.output) as path:
        Image.fromarray((heat * _DEEPEST + 0.5).astype(np.uint16)).save(path, format="png")
    console.print(plain(f"{options.label}: {options.method} at layer {layer}"), soft_wrap=True)
    console.print(plain(f"written: {options.output}"), soft_wrap=True)
    if options.png:
        image = read_picture(Path(options.input)).mean(0)
        picture = draw_flat_map(pick_window(image, image, ct=False).grey(image), heat, explained, options.label)
        with atomic_write(options.png) as path:
            path.write_bytes(picture)
        console.print(plain(f"written: {options.png}"), soft_wrap=True)
    if isinstance(loaded.task, Segmentation) and not explained.any():
        console.print("it is found nowhere, and the map is 0 everywhere", style="yellow", soft_wrap=True)
    elif not heat.any():
        console.print(plain(f"nothing in layer {layer} speaks for it; the map is 0 everywhere"), style="yellow")


def map_of(
    loaded: Loaded, file: Path, head: int, layer: str, method: Method, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The map of an output, and the pixels that it explains; both of the picture's own size.

    Raises:
        C2FError: If the picture cannot be read or has other channels, or there is no such layer.
    """
    original, pixels = read_picture(file), read_picture(file, loaded.size)
    if len(pixels) != len(loaded.intensities.mean):
        raise VolumeError(
            f"{file} has {len(pixels)} channel(s), the network takes {len(loaded.intensities.mean)}",
            "Give a picture like those of the fine-tuning.",
        )
    network = loaded.network.to(device)
    inputs = torch.from_numpy(loaded.intensities.normalise(pixels))[None].to(device)
    found, outputs = layer_map(network, inputs, layer, score_of(head), method=method)
    dense = outputs.ndim == 4
    explained = found_in(outputs, head) if dense else torch.zeros_like(found, dtype=torch.bool)
    size = original.shape[1:]
    heat = F.interpolate(found[None], size, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
    outlines = F.interpolate(explained[None].float(), size, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
    return np.asarray(heat / (float(heat.max()) or 1.0), np.float32), outlines > 0.5


def _head(loaded: Loaded, label: str, folder: Path) -> int:
    known = loaded.outputs
    if label not in known:
        question = did_you_mean(label, known)
        raise ConfigError(
            f"{shown(label)} is no label that {folder} tells{'; ' + question if question else ''}",
            f"Name one of {', '.join(map(shown, known))}.",
        )
    return known[label]


def _check_outputs(options: argparse.Namespace) -> None:
    files = [options.output, *([options.png] if options.png else [])]
    taken = {Path(options.input).resolve()}
    for file in files:
        if file.resolve() in taken:
            raise OutputError(f"{file} is the input or another result of this run", "Choose another name.")
        taken.add(file.resolve())
        check_writable(file, options.overwrite, (".png",))
