"""Weights as files: safetensors, which cannot hold code, and the file that ``nnUNetv2_train`` begins with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from math import prod
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from coarse2fine.errors import C2FError, ModelError
from coarse2fine.io import atomic_write
from coarse2fine.networks.vit import ViT, ViTShape
from coarse2fine.pretrain.pictures import Intensities
from coarse2fine.system.terminal import plain

WEIGHTS, NNUNET = "weights.safetensors", "nnunet.pth"

_VIT, _INTENSITIES = "vit", "intensities"  # in what a file says of itself
_AGAIN = "Copy it again, or train it anew."

T = TypeVar("T")
Tensors = Mapping[str, torch.Tensor]


def tensors_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; nnU-Net lists most under several, of which the first one counts.

    Buffers that follow from the network's shape are left out, as positions in a transformer.
    """
    known = network.state_dict()
    every = chain(network.named_parameters(), network.named_buffers())
    return {name: tensor for name, tensor in every if name in known}


def write_weights(folder: Path, network: nn.Module, intensities: Intensities | None = None) -> None:
    """Write both files; of a vision transformer only the first, from which ``load_vit`` makes it again.

    Args:
        folder: Where to.
        network: nnU-Net's, or a ``ViT``.
        intensities: How the pictures were normalised that it has learned from.

    Raises:
        OutputError: If they cannot be written.
    """
    about = {} if intensities is None else {_INTENSITIES: json.dumps(asdict(intensities))}
    if isinstance(network, ViT):
        about[_VIT] = json.dumps(asdict(network.shape))
    else:
        state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
        with atomic_write(folder / NNUNET) as path:
            torch.save({"network_weights": state}, path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors_of(network).items()}
    write_tensors(folder / WEIGHTS, tensors, about)


def load_vit(path: Path, drop_path: float = 0.0, image: Sequence[int] | None = None) -> ViT:
    """The vision transformer of a file.

    Args:
        path: Of ``write_weights``.
        drop_path: See ``ViT``.
        image: Shape of the images that it is to see, to which positions are interpolated; None: as it has learned.

    Raises:
        ModelError: If it is damaged, or of another network.
        ConfigError: If it cannot see such images.
    """
    shape, tensors = _vit_of(path)
    large = {f"blocks.{index}.mlp.0.weight": (4 * shape.width, shape.width) for index in range(shape.depth)}
    _check({"project.weight": (shape.width, shape.channels * prod(shape.patch))} | large, tensors, path, _AGAIN)
    network = ViT(shape if image is None else shape.seeing(image), drop_path)  # takes little more memory than the file
    fill(network, tensors, path, _AGAIN)
    return network


def vit_shape(path: Path) -> ViTShape:
    """The shape of a file's vision transformer; errors as of ``load_vit``."""
    return _vit_of(path)[0]


def _vit_of(path: Path) -> tuple[ViTShape, dict[str, torch.Tensor]]:
    tensors, about = read_tensors(path)
    shape = _read_about(path, about, _VIT, ViTShape)
    if shape is None:
        raise ModelError(f"{path} is of no vision transformer", "Name the weights of one (--network vit).")
    return shape, tensors


def is_vit(path: Path) -> bool:
    """Whether a file holds a vision transformer's weights; errors as of ``read_tensors``."""
    return _VIT in read_tensors(path)[1]


def read_intensities(path: Path) -> Intensities | None:
    """How the pictures were normalised that a file's network has learned from, if it was pictures; errors likewise."""
    return _read_about(path, read_tensors(path)[1], _INTENSITIES, Intensities)


def _read_about(path: Path, about: Mapping[str, str], key: str, kind: type[T]) -> T | None:
    """What a file says of itself."""
    if key not in about:
        return None
    try:
        return TypeAdapter(kind).validate_json(about[key])
    except (ValidationError, C2FError) as error:
        raise ModelError(f"{path}: what it says of its {key} cannot be: {plain(str(error))[:200]}", _AGAIN) from None


def write_tensors(path: Path, tensors: Tensors, about: Mapping[str, str]) -> None:
    """Write tensors, and some text with them, in one step."""
    with atomic_write(path) as temporary:
        # Not by its save_file, whose files nobody but their owner may read.
        temporary.write_bytes(save(dict(tensors), dict(about)))


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and text of a file.

    Raises:
        ModelError: If it is missing or no such file.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist", f"Name the {WEIGHTS} of a pretraining.")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is damaged or no safetensors file: {plain(str(error))[:200]}", _AGAIN) from None


def fill(network: nn.Module, tensors: Tensors, path: Path, remedy: str) -> None:
    """Give a network the weights of a file.

    Args:
        network: Its parameters and buffers are overwritten.
        tensors: By the names of ``tensors_of``.
        path: Where they come from, for messages.
        remedy: What to do if they do not fit.

    Raises:
        ModelError: If they are another network's, naming the first that differs.
    """
    wanted = tensors_of(network)
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    _check({name: shapes.get(name) for name in (*wanted, *tensors)}, tensors, path, remedy)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])


def _check(shapes: Mapping[str, tuple[int, ...] | None], tensors: Tensors, path: Path, remedy: str) -> None:
    """Refuse tensors of other shapes; None: none of this name may be there."""
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != shape:
            have, want = ("missing" if one is None else one for one in (found, shape))
            raise ModelError(f"{path} is of another network: {plain(name)[:200]} is {have} instead of {want}", remedy)
