"""Tiny but real nnU-Net v2 model folders, written the way nnU-Net's trainer writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

SPLINE = "resample_data_or_seg_to_shape"
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
FEATURES = [4, 8, 8]
STATISTICS = {"mean": 90.0, "std": 40.0, "percentile_00_5": 10.0, "percentile_99_5": 200.0}


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """What a model folder says of itself, as far as tests vary it."""

    labels: Mapping[str, Any] | None = None
    regions_class_order: Sequence[int] | None = None
    channels: int = 1
    folds: Sequence[str] = ("all",)
    patch: Sequence[int] = (8, 16, 16)
    spacing: Sequence[float] = (2.0, 1.0, 1.0)
    transpose: Sequence[int] = (0, 1, 2)
    scheme: str = "ZScoreNormalization"
    masked: bool = False
    resampler: str = SPLINE
    mirror_axes: Sequence[int] | None = (0, 1, 2)
    cascade: bool = False
    reader: str = "SimpleITKIO"
    seed: int = 0
    options: Mapping[str, Any] | None = None  # of the resampler
    norm: type[nn.Module] = nn.InstanceNorm3d
    norm_options: Mapping[str, Any] | None = None
    trainer: str = "nnUNetTrainer"

    @property
    def flat(self) -> bool:
        """Whether it is a 2D configuration."""
        return len(self.patch) == 2

    @property
    def strides(self) -> list[list[int]]:
        return [stride[-len(self.patch) :] for stride in STRIDES]

    @property
    def known_labels(self) -> Mapping[str, Any]:
        return self.labels or {"background": 0, "lesion": 1}

    @property
    def foreground(self) -> list[str]:
        return [name for name in self.known_labels if name not in ("background", "ignore")]

    @property
    def configuration(self) -> str:
        return "2d" if self.flat else "3d_cascade_fullres" if self.cascade else "3d_fullres"

    @property
    def norm_kwargs(self) -> dict[str, Any]:
        return dict(self.norm_options or {"eps": 1e-5, "affine": True})


def write_model(folder: Path, **options: Any) -> Path:
    """Write a model folder with random weights; its outputs vary from voxel to voxel in all classes."""
    model = TinyModel(**options)
    plans, dataset = plans_of(model), dataset_of(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for index, fold in enumerate(model.folds):
        checkpoint = {
            "network_weights": network_of(model, model.seed + index).state_dict(),
            "trainer_name": model.trainer,
            "init_args": {"configuration": model.configuration, "plans": plans, "fold": fold, "dataset_json": dataset},
            "inference_allowed_mirroring_axes": None if model.mirror_axes is None else tuple(model.mirror_axes),
            # nnU-Net's training log holds NumPy scalars, which PyTorch's restricted unpickler refuses by default.
            "logging": {"mean_fg_dice": [np.float64(0.5)], "lrs": [np.float32(0.01)]},
            "_best_ema": np.float64(0.5),
        }
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def network_of(model: TinyModel, seed: int) -> PlainConvUNet:
    """A network with random weights, and with statistics as training leaves them: not 0 and 1."""
    torch.manual_seed(seed)
    network = PlainConvUNet(
        model.channels + (len(model.foreground) if model.cascade else 0),
        3,
        FEATURES,
        nn.Conv2d if model.flat else nn.Conv3d,
        3,
        model.strides,
        1,
        len(model.foreground) + (0 if model.regions_class_order else 1),
        1,
        True,
        nn.InstanceNorm2d if model.flat else model.norm,
        model.norm_kwargs,
        None,
        None,
        nn.LeakyReLU,
        {"inplace": True},
    )
    for key, statistic in network.named_buffers():
        if statistic.is_floating_point():
            statistic.copy_(torch.rand_like(statistic) + ("var" in key))
    return network


def plans_of(model: TinyModel) -> dict[str, Any]:
    """``plans.json``."""
    configurations = {model.configuration: configuration_of(model)}
    if model.cascade:
        configurations["3d_lowres"] = configuration_of(model) | {"previous_stage": None}
    return {
        "dataset_name": "Dataset999_Tiny",
        "plans_name": "tinyPlans",
        "configurations": configurations,
        "image_reader_writer": model.reader,
        "label_manager": "LabelManager",
        "experiment_planner_used": "none",
        "transpose_forward": list(model.transpose),
        "transpose_backward": np.argsort(model.transpose).tolist(),
        "foreground_intensity_properties_per_channel": {str(at): STATISTICS for at in range(model.channels)},
    }


def configuration_of(model: TinyModel) -> dict[str, Any]:
    """One entry of ``configurations`` in ``plans.json``."""
    configuration: dict[str, Any] = {
        "data_identifier": "tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(model.patch),
        "spacing": list(model.spacing),
        "normalization_schemes": [model.scheme] * model.channels,
        "use_mask_for_norm": [model.masked] * model.channels,
        "architecture": architecture_of(model),
        "batch_dice": False,
    }
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        configuration[f"resampling_fn_{what}"] = model.resampler
        configuration[f"resampling_fn_{what}_kwargs"] = resampling_kwargs(model, order, is_seg=what == "seg")
    return configuration | ({"previous_stage": "3d_lowres"} if model.cascade else {})


def architecture_of(model: TinyModel) -> dict[str, Any]:
    """What the plans say of the network that ``network_of`` makes."""
    axes = len(model.patch)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": FEATURES,
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [[3] * axes] * 3,
            "strides": model.strides,
            "n_conv_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": model.norm_kwargs,
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def resampling_kwargs(model: TinyModel, order: int, *, is_seg: bool) -> dict[str, Any]:
    """Options of the resampler: what nnU-Net's planner writes, or those of the test."""
    known: dict[str, Any] = {"is_seg": is_seg}
    if model.resampler == "no_resampling_hack":
        return {}
    if model.options is not None:
        return known | ({"order": order} if model.resampler == SPLINE else {}) | dict(model.options)
    if model.resampler == "resample_torch_fornnunet":
        return known | {"force_separate_z": None}
    return known | {"order": order, "order_z": 0, "force_separate_z": None}


def dataset_of(model: TinyModel) -> dict[str, Any]:
    """``dataset.json``."""
    dataset = {
        "channel_names": {str(channel): "EM" for channel in range(model.channels)},
        "labels": model.known_labels,
        "file_ending": ".nii.gz",
        "numTraining": 1,
    }
    if model.regions_class_order:
        dataset["regions_class_order"] = list(model.regions_class_order)
    return dataset


def heed_labels(checkpoint: Path) -> None:
    """Let a random cascade depend on the previous stage's labels as much as a trained one does."""
    content = torch.load(checkpoint, weights_only=False)
    content["network_weights"]["encoder.stages.0.0.convs.0.conv.weight"][:, 1:] *= 20
    torch.save(content, checkpoint)
