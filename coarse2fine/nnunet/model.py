"""nnU-Net v2 models: safe loading, what the plans say, forward pass. Only this room imports nnunetv2."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from canvas import Triple, triple
from coarse2fine.errors import ModelError
from coarse2fine.io.files.readers import Reader
from coarse2fine.nnunet.labels import Labels
from coarse2fine.resampling.operators import Method
from coarse2fine.system.device import CPU, autocast

with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints about environment variables that inference needs not
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager


@dataclass(frozen=True, slots=True)
class Scheme:
    """Intensity normalisation of one channel, as the plans ask for it.

    Attributes:
        name: nnU-Net's class name.
        masked: Statistics come from the non-zero region only, and voxels outside of it stay as they are.
        mean, std, low, high: Data set statistics for CT: mean, standard deviation, 0.5 and 99.5 percentile.
    """

    name: str
    masked: bool
    mean: float
    std: float
    low: float
    high: float


@dataclass(slots=True, eq=False)
class Trial:
    """Whether a model may compute in bfloat16, found out on a volume's first input that shows foreground.

    Attributes:
        passed: None until it is known; set back to that before each volume, so that no result depends on others.
    """

    passed: bool | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A trained nnU-Net v2 configuration, ready to run.

    Attributes:
        folder: Where it came from.
        configuration: Name in the plans, such as ``3d_fullres``.
        folds: Names of the folds whose outputs are averaged.
        networks: One network per fold, in evaluation mode, on ``device``.
        device: Where they are.
        patch: Input size the network was trained with, (z, y, x) of the working grid.
        divisor: Edges of any input must be multiples of these, because the network halves its feature maps.
        spacing: Voxel size of the working grid, in the unit of the training data.
        transpose: Axis of the file, counted in (z, y, x), that becomes each axis of the working grid.
        channels: Image channels.
        cascade: Whether the previous stage's labels are further input channels.
        labels: How outputs become labels.
        schemes: Normalisation of each channel.
        reader: Through which of nnU-Net's readers the training images went.
        data_method: Resampling of images.
        logit_method: Resampling of outputs.
        mirror_axes: Axes that mirroring may flip.
        trainer: Name of the class that trained it.
        plans: Parsed ``plans.json``; checked against the allowlists.
        dataset: Parsed ``dataset.json``.
        flat: Whether the network is two-dimensional: patch and divisor are 1 along the working grid's first axis, and
            its spacing is that of each volume, written as 0.
        precision: What networks compute in on the CPU; GPUs mix precisions as nnU-Net does there.
        trial: What is known of bfloat16, if it may take the precision's place; see ``nnunet.precision``.
    """

    folder: Path
    configuration: str
    folds: tuple[str, ...]
    networks: tuple[nn.Module, ...]
    device: torch.device
    patch: Triple
    divisor: Triple
    spacing: tuple[float, float, float]
    transpose: Triple
    channels: int
    cascade: bool
    labels: Labels
    schemes: tuple[Scheme, ...]
    reader: Reader
    data_method: Method
    logit_method: Method
    mirror_axes: tuple[int, ...]
    trainer: str
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    flat: bool = False
    precision: torch.dtype = torch.float32
    trial: Trial | None = None

    @property
    def untranspose(self) -> Triple:
        """Axis of the working grid that becomes each axis of the file."""
        return triple(np.argsort(self.transpose))

    def forward(self, batch: torch.Tensor, *, mirroring: bool, fold: int | None = None) -> torch.Tensor:
        """Network outputs, averaged over folds and mirrored inputs.

        Args:
            batch: Normalised input, shape (n, channels, z, y, x).
            mirroring: Also run flipped inputs, along all combinations of the axes that training allowed.
            fold: Run only this fold.

        Returns:
            Logits, shape (n, heads, z, y, x), on the model's device.
        """
        networks = self.networks if fold is None else (self.networks[fold],)
        axes = self.mirror_axes if mirroring else ()
        flips = [flip for count in range(1, len(axes) + 1) for flip in itertools.combinations(axes, count)]
        batch = batch.to(self.device)
        total: torch.Tensor | None = None
        with torch.inference_mode(), autocast(self.device, self.precision):
            for network in networks:
                logits = network(batch)
                for flip in flips:
                    dims = [axis + 2 for axis in flip]
                    logits += torch.flip(network(torch.flip(batch, dims)), dims)
                logits /= len(flips) + 1
                total = logits if total is None else total + logits
        if total is None:
            raise ModelError(f"{self.folder} has no network", "Load the model with load_model.")
        return total / len(networks) if len(networks) > 1 else total


def resample_labels(
    model: Model, labels: NDArray[np.integer[Any]], shape: Triple, spacing: tuple[float, float, float]
) -> NDArray[np.integer[Any]]:
    """The previous stage's labels on a cascade's working grid, by nnU-Net's own function.

    Args:
        model: The cascade.
        labels: Shape (z, y, x), transposed and cropped like the images.
        shape: Of the working grid.
        spacing: Voxel size of the labels.
    """
    manager = PlansManager(dict(model.plans)).get_configuration(model.configuration)
    result: NDArray[np.integer[Any]] = manager.resampling_fn_seg(labels[None], shape, spacing, model.spacing)[0]
    return result


@lru_cache(maxsize=8)
def gaussian(shape: Triple, device: torch.device) -> torch.Tensor:
    """nnU-Net's weight of each voxel of a tile: highest in the centre, never zero; half precision."""
    # On the CPU, as nnU-Net looks for zeros in it, for which a program would wait.
    return compute_gaussian(shape, sigma_scale=1 / 8, value_scaling_factor=10, device=CPU).to(device)


def tile_starts(size: Triple, tile: Triple, step: float) -> Iterator[Triple]:
    """Corners of nnU-Net's sliding window over a volume that is at least as large as the tile, in its order."""
    return (triple(corner) for corner in itertools.product(*compute_steps_for_sliding_window(size, tile, step)))


def nnunet_predictor(model: Model, *, tile_step: float, mirroring: bool) -> Any:
    """nnU-Net's own predictor over the same networks: the reference for results and for speed.

    The networks were built and filled by :func:`load_model`, so nothing in the model folder is executed. nnU-Net gets a
    network of its own, because it loads the weights of every fold into it.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(
            tile_step_size=tile_step,
            use_mirroring=mirroring,
            device=model.device,
            perform_everything_on_device=True,  # where it can, it says; it prints so, too
            allow_tqdm=False,
        )
        manager = PlansManager(dict(model.plans))
        parameters = [
            {name: value.clone() for name, value in network.state_dict().items()} for network in model.networks
        ]
        predictor.manual_initialization(
            copy.deepcopy(model.networks[0]),
            manager,
            manager.get_configuration(model.configuration),
            parameters,
            dict(model.dataset),
            "nnUNetTrainer",
            model.mirror_axes or None,
        )
    return predictor
