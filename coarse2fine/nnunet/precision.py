"""bfloat16 on the CPU: only where the processor computes in it, and if asked to, only where labels stay.

A bfloat16 number has eight bits of mantissa where a single-precision one has 24. Processors with instructions for it
multiply it several times as fast, and maps take half of the memory. Sums are in single precision inside of each layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from coarse2fine.errors import ConfigError
from coarse2fine.nnunet.model import Model, Trial
from coarse2fine.system.device import autocast, has_bfloat16, mixes_precisions

LEAST_AGREEMENT = 0.995
"""Dice between the foreground of both precisions from which on labels count as kept."""


def in_precision(model: Model, name: Literal["auto", "fp32", "bf16"], *, exact: bool = False) -> Model:
    """The model as settings want it; the weights are shared.

    Args:
        model: In single precision.
        name: ``auto`` is bfloat16 on a CPU that has it, from a volume's first input on that shows foreground, if both
            precisions agree on it; else, and on other devices, it is single precision.
        exact: Whether ``auto`` must be single precision, because the result is to be nnU-Net's.

    Raises:
        ConfigError: If ``bf16`` is asked for where there is none.
    """
    there = has_bfloat16(model.device)
    if name == "bf16":
        if not there:
            raise ConfigError(
                f"fine.precision is bf16, but {model.device} does not compute in it, or is no CPU",
                "Set fine.precision: auto or fp32.",
            )
        return dataclasses.replace(model, precision=torch.bfloat16)
    return dataclasses.replace(model, trial=Trial()) if name == "auto" and there and not exact else model


def used_precision(model: Model) -> str:
    """What a model's networks computed in: ``fp32``, ``bf16``, or ``mixed`` on CUDA."""
    if mixes_precisions(model.device):
        return "mixed"
    half = model.precision == torch.bfloat16 or (model.trial is not None and model.trial.passed)
    return "bf16" if half else "fp32"


def in_both(model: Model, make: Callable[[Model], Model]) -> Model:
    """What ``make`` makes of a model; of one that is on trial, both precisions' networks, of which one is used."""
    if model.trial is None:
        return make(model)
    single, half = (
        make(dataclasses.replace(model, precision=precision, trial=None))
        for precision in (torch.float32, torch.bfloat16)
    )
    pairs = zip(single.networks, half.networks, strict=True)
    return dataclasses.replace(
        single, trial=model.trial, networks=tuple(TriedNetwork(one, other, model, model.trial) for one, other in pairs)
    )


class TriedNetwork(nn.Module):
    """A network in both precisions: single, until bfloat16 has shown on the middle of an input that it keeps labels.

    Args:
        single, rounded: The network in each.
        model: Whose it is.
        trial: What came of it, shared by all networks of the model.
    """

    def __init__(self, single: nn.Module, rounded: nn.Module, model: Model, trial: Trial) -> None:
        super().__init__()
        self.single, self.rounded, self.trial = single, rounded, trial
        self._divisor, self._regions = model.divisor, model.labels.regions

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Logits of shape (n, heads, z, y, x), single precision, for inputs (n, channels, z, y, x)."""
        if self.trial.passed is None:
            self.trial.passed = self._agree(self._middle(batch))
        if not self.trial.passed:
            result: torch.Tensor = self.single(batch)
            return result
        return self._in_bfloat16(batch)

    def _in_bfloat16(self, batch: torch.Tensor) -> torch.Tensor:
        with autocast(batch.device, torch.bfloat16):
            result: torch.Tensor = self.rounded(batch)
        return result.float()

    def _agree(self, part: torch.Tensor) -> bool | None:
        """Whether both find the same foreground; None if there is none."""
        one, other = self._foreground(self.single(part)), self._foreground(self._in_bfloat16(part))
        found = int(one.sum()) + int(other.sum())
        return 2 * int((one & other).sum()) / found >= LEAST_AGREEMENT if found else None

    def _foreground(self, logits: torch.Tensor) -> torch.Tensor:
        """Each output's foreground, boolean, shape (n, outputs, z, y, x)."""
        if self._regions:
            return logits > 0
        chosen = logits.argmax(1, keepdim=True)
        return torch.cat([chosen == label for label in range(1, logits.shape[1])], 1)

    def _middle(self, batch: torch.Tensor) -> torch.Tensor:
        """Half of the input along each axis, as far as networks take inputs of such edges."""
        for axis, divisor in enumerate(self._divisor, 2):
            edge = max(batch.shape[axis] // 2 // divisor, 1) * divisor
            batch = batch.narrow(axis, (batch.shape[axis] - edge) // 2, edge)
        return batch.contiguous()
