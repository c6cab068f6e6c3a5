"""From what a trainer has written to a model folder: what inference needs, and no more."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from coarse2fine.io import atomic_write


def write_checkpoint(
    target: Path, weights: Mapping[str, torch.Tensor], configuration: str, mirror_axes: Sequence[int] | None
) -> None:
    """Write what inference needs of a training, with weights in half precision, which loaders convert back.

    nnU-Net's own predictor takes it, too.

    Args:
        target: The checkpoint; its folder exists.
        weights: The network's state.
        configuration: Name in the plans.
        mirror_axes: Axes that may be mirrored.
    """
    # nnU-Net's state dict lists many tensors under several names; converted once, they are also stored once.
    halves = {tensor.data_ptr(): tensor.half() for tensor in weights.values()}
    content = {
        "network_weights": {name: halves[tensor.data_ptr()] for name, tensor in weights.items()},
        "trainer_name": "nnUNetTrainer",  # what else a training did is nothing to inference
        "init_args": {"configuration": configuration},
        "inference_allowed_mirroring_axes": mirror_axes,
    }
    with atomic_write(target) as path:
        torch.save(content, path)


def write_model(
    folder: Path,
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    configuration: str,
    mirror_axes: Sequence[int] | None,
) -> None:
    """Write a model folder of one fold, ``all``; arguments as of ``write_checkpoint``."""
    fold = folder / "fold_all"
    fold.mkdir(parents=True, exist_ok=True)
    for name, content in (("plans.json", plans), ("dataset.json", dataset)):
        with atomic_write(folder / name) as path:
            path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    write_checkpoint(fold / "checkpoint_final.pth", weights, configuration, mirror_axes)
