"""Weights as files: safetensors, which cannot hold code, and the file that ``nnUNetv2_train`` begins with."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from coarse2fine.errors import ModelError
from coarse2fine.io import atomic_write
from coarse2fine.system.terminal import plain

WEIGHTS, NNUNET = "weights.safetensors", "nnunet.pth"

Tensors = Mapping[str, torch.Tensor]


def tensors_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; nnU-Net lists most under several, of which the first one counts."""
    return dict(chain(network.named_parameters(), network.named_buffers()))


def write_weights(folder: Path, network: nn.Module) -> None:
    """Write both files.

    Raises:
        OutputError: If they cannot be written.
    """
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    with atomic_write(folder / NNUNET) as path:
        torch.save({"network_weights": state}, path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors_of(network).items()}
    write_tensors(folder / WEIGHTS, tensors, {})


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
        raise ModelError(
            f"{path} is damaged or no safetensors file: {plain(str(error))[:200]}", "Copy it again, or train it anew."
        ) from None


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
    for name in (*wanted, *tensors):
        found, expected = (tuple(of[name].shape) if name in of else "missing" for of in (tensors, wanted))
        if found != expected:
            raise ModelError(
                f"{path} is of another network: {plain(name)[:200]} is {found} instead of {expected}", remedy
            )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
