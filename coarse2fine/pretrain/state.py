"""A training that was cut off: all that going on needs, in one file that is replaced in one step and cannot hold code.

Random numbers need no state: those of each step follow from the seed and the step's number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from coarse2fine.errors import ModelError
from coarse2fine.pretrain.weights import Tensors, fill, read_tensors, tensors_of, write_tensors

STATE = "state.safetensors"
_OTHER = "Choose another output folder, or delete this file to begin anew."
_ABOUT = "pretraining"


@dataclass(frozen=True, slots=True)
class Point:
    """Of the training's curve: means over some steps.

    Attributes:
        step: How many steps were done.
        seconds: That they took, from the start.
        rate: Learning rate of the last one.
        losses: Of each objective, times its weight.
    """

    step: int
    seconds: float
    rate: float
    losses: dict[str, float]

    @property
    def loss(self) -> float:
        """The sum."""
        return sum(self.losses.values())


@dataclass(frozen=True, slots=True)
class Done:
    """How far a training is."""

    curve: tuple[Point, ...] = field(default_factory=tuple)

    @property
    def step(self) -> int:
        """Steps behind it."""
        return self.curve[-1].step if self.curve else 0

    @property
    def seconds(self) -> float:
        """Time behind it."""
        return self.curve[-1].seconds if self.curve else 0.0

    def to_json(self) -> list[dict[str, object]]:
        """The curve."""
        return [asdict(point) for point in self.curve]


Optimizers = Sequence[torch.optim.Optimizer]
"""The first one's state is kept as ``optimizer``, those of others as ``optimizer1`` and so on."""


def save_state(path: Path, network: nn.Module, heads: nn.Module, optimizers: Optimizers, done: Done) -> None:
    """Write everything.

    Raises:
        OutputError: If it cannot be written.
    """
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part, module in (("network", network), ("heads", heads))
        for name, tensor in tensors_of(module).items()
    }
    for part, optimizer in zip(_names(optimizers), optimizers, strict=True):
        for index, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                if value is not None:
                    tensors[f"{part}/{index}/{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    write_tensors(path, tensors, {_ABOUT: json.dumps(done.to_json())})


def load_state(path: Path, network: nn.Module, heads: nn.Module, optimizers: Optimizers) -> Done:
    """Fill everything, and say how far the training was; nothing is done if there is no file.

    Raises:
        ModelError: If the file is damaged, or of another network or optimiser.
    """
    if not path.exists():
        return Done()
    tensors, about = read_tensors(path)
    try:
        done = Done(tuple(Point(**point) for point in json.loads(about[_ABOUT])))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} does not say how far the training was ({error})", _OTHER) from None
    for part, module in (("network", network), ("heads", heads)):
        fill(module, _part(tensors, part), path, _OTHER)
    for part, optimizer in zip(_names(optimizers), optimizers, strict=True):
        _fill_optimizer(optimizer, _part(tensors, part), path)
    return done


def _names(optimizers: Optimizers) -> list[str]:
    return ["optimizer", *(f"optimizer{index}" for index in range(1, len(optimizers)))]


def _part(tensors: Tensors, name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def _fill_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, path: Path) -> None:
    document = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        known = index.isdecimal() and int(index) < len(parameters)
        if not known or tensor.shape not in (parameters[int(index)].shape, ()):
            raise ModelError(f"{path} is of another optimiser: {key[:200]} is {tuple(tensor.shape)}", _OTHER)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**document, "state": state})
