"""Reading model folders that come from strangers: plans and checkpoints that cannot execute code.

nnU-Net resolves class names from ``plans.json`` by import and loads checkpoints with full pickle; either runs whatever
the author of a model folder wants. Here names are looked up in fixed tables and checkpoints are unpickled by PyTorch's
restricted unpickler, which builds tensors, containers and the few NumPy scalars that nnU-Net's training log holds.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from coarse2fine.errors import ModelError, UntrustedModelError

OPERATIONS: Mapping[str, Callable[..., nn.Module]] = {
    "torch.nn.modules.conv.Conv3d": nn.Conv3d,
    "torch.nn.Conv3d": nn.Conv3d,
    "torch.nn.modules.instancenorm.InstanceNorm3d": nn.InstanceNorm3d,
    "torch.nn.InstanceNorm3d": nn.InstanceNorm3d,
    "torch.nn.modules.batchnorm.BatchNorm3d": nn.BatchNorm3d,
    "torch.nn.BatchNorm3d": nn.BatchNorm3d,
    "torch.nn.modules.dropout.Dropout3d": nn.Dropout3d,
    "torch.nn.Dropout3d": nn.Dropout3d,
    "torch.nn.LeakyReLU": nn.LeakyReLU,
    "torch.nn.modules.activation.LeakyReLU": nn.LeakyReLU,
    "torch.nn.ReLU": nn.ReLU,
    "torch.nn.modules.activation.ReLU": nn.ReLU,
    "torch.nn.GELU": nn.GELU,
    "torch.nn.modules.activation.GELU": nn.GELU,
}
NETWORKS = frozenset({"PlainConvUNet", "ResidualEncoderUNet"})
NETWORK_MODULES = ("dynamic_network_architectures.architectures.unet",
                   "dynamic_network_architectures.architectures.residual_unet")
RESAMPLERS = frozenset({"resample_data_or_seg_to_shape", "resample_torch_fornnunet", "no_resampling_hack"})
NORMALIZATIONS = frozenset({"ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization",
                            "RGBTo01Normalization"})
# Names that nnU-Net would import when its own objects are built from the plans.
PLANS_NAMES: Mapping[str, frozenset[str]] = {
    "label_manager": frozenset({"LabelManager"}),
    "image_reader_writer": frozenset({"SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient",
                                      "NaturalImage2DIO", "Tiff3DIO"}),
}
CONFIGURATION_NAMES: Mapping[str, frozenset[str]] = {
    "preprocessor_name": frozenset({"DefaultPreprocessor"}),
    "resampling_fn_data": RESAMPLERS,
    "resampling_fn_seg": RESAMPLERS,
    "resampling_fn_probabilities": RESAMPLERS,
}
IMPORTABLE_KEYS = frozenset({"conv_op", "norm_op", "dropout_op", "nonlin"})


def _numpy_globals() -> list[Any]:
    """The NumPy reconstructors in real checkpoints: scalars of plain numeric types, as in nnU-Net's training log."""
    numeric = (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)
    scalar = np.float64(0).__reduce__()[0]
    # Checkpoints written by NumPy 1 name the module numpy.core, by NumPy 2 numpy._core.
    aliases = [(scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")]
    return [*aliases, np.dtype, *(type(np.dtype(kind)) for kind in numeric)]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder.

    Raises:
        ModelError: If the file is missing, unreadable, or not a JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist", "Give an nnU-Net v2 model folder: one that holds plans.json, "
                         "dataset.json and fold_* (usually named Trainer__Plans__Configuration).") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "Copy the model folder again.") from None
    if not isinstance(document, dict):
        raise ModelError(f"{path} is not a JSON object", "Copy the model folder again.")
    return document


def _refuse(path: Path, key: str, value: object) -> UntrustedModelError:
    return UntrustedModelError(
        f"{path}: {key} is {value!r}, which is not in the list of things that a model folder may name",
        "Use a model trained with nnU-Net's standard networks. Names outside this list could run any code.")


def check_plans(plans: Mapping[str, Any], path: Path) -> None:
    """Refuse plans that name anything outside the allowlists.

    Args:
        plans: Content of ``plans.json``.
        path: Where it came from, for messages.

    Raises:
        UntrustedModelError: Naming the key and its value.
        ModelError: If the plans have no configurations.
    """
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict) or not all(isinstance(value, dict) for value in configurations.values()):
        raise ModelError(f"{path} has no 'configurations'", "Use the plans.json of a trained nnU-Net v2 model.")
    for key, allowed in PLANS_NAMES.items():
        if key in plans and plans[key] not in allowed:
            raise _refuse(path, key, plans[key])
    for name, configuration in configurations.items():
        for key, allowed in CONFIGURATION_NAMES.items():
            if key in configuration and configuration[key] not in allowed:
                raise _refuse(path, f"configurations.{name}.{key}", configuration[key])
        for scheme in configuration.get("normalization_schemes", ()):
            if scheme not in NORMALIZATIONS:
                raise _refuse(path, f"configurations.{name}.normalization_schemes", scheme)
        if "architecture" in configuration:
            _check_architecture(configuration["architecture"], f"configurations.{name}.architecture", path)


def _check_architecture(architecture: Mapping[str, Any], key: str, path: Path) -> None:
    """Refuse an architecture whose class, operations or importable keys are unknown."""
    module, _, name = str(architecture.get("network_class_name")).rpartition(".")
    if name not in NETWORKS or module not in NETWORK_MODULES:
        raise _refuse(path, f"{key}.network_class_name", architecture.get("network_class_name"))
    importable = architecture.get("_kw_requires_import", ())
    if not set(importable) <= IMPORTABLE_KEYS:
        raise _refuse(path, f"{key}._kw_requires_import", importable)
    for argument in IMPORTABLE_KEYS:
        value = architecture.get("arch_kwargs", {}).get(argument)
        if value is not None and value not in OPERATIONS:
            raise _refuse(path, f"{key}.arch_kwargs.{argument}", value)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What inference needs of one trained fold.

    Attributes:
        path: The file.
        weights: Tensors by parameter name.
        configuration: Name of the configuration in the plans, such as ``3d_fullres``.
        trainer: Name of nnU-Net's trainer class; recorded, never resolved.
        mirror_axes: Spatial axes (0 = z) that test-time mirroring may flip; empty if none.
    """

    path: Path
    weights: dict[str, torch.Tensor]
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]


def load_checkpoint(path: Path, *, trust: bool = False) -> Checkpoint:
    """Read a checkpoint without executing anything in it.

    Args:
        path: nnU-Net v2 checkpoint (``.pth``).
        trust: Unpickle without restriction. Only for files from a source that may run code on this machine.

    Raises:
        UntrustedModelError: If the checkpoint holds objects outside the allowlist.
        ModelError: If it is missing, damaged or not an nnU-Net checkpoint.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist", "Name another checkpoint or fold, or copy the model again.")
    try:
        if trust:
            content = torch.load(path, map_location="cpu", weights_only=False)
        else:
            with torch.serialization.safe_globals(_numpy_globals()):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0]
        raise UntrustedModelError(
            f"{path} holds objects that could execute code: {reason}",
            "If you trust its author as you trust a program, load it with --trust-checkpoint.") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ModelError(f"{path} cannot be read: {error}".split("\n")[0], "Copy the checkpoint again.") from None
    try:
        weights = {name.removeprefix("module."): tensor for name, tensor in content["network_weights"].items()}
        axes = content.get("inference_allowed_mirroring_axes")
        return Checkpoint(path, weights, str(content["init_args"]["configuration"]), str(content["trainer_name"]),
                          tuple(int(axis) for axis in axes) if axes else ())
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a checkpoint of nnU-Net v2 (no {error})",
                         "Use checkpoint_final.pth or checkpoint_best.pth of a trained nnU-Net v2 model.") from None


def find_folds(folder: Path, checkpoint: str) -> tuple[str, ...]:
    """Names of the folds in a model folder that hold the checkpoint: ("0", ..., "4"), else ("all",).

    As nnU-Net does, fold "all" is only taken when there are no numbered folds.

    Raises:
        ModelError: If there is none.
    """
    found = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}"))
    numbered = tuple(fold for fold in found if fold != "all")
    if not found:
        present = ", ".join(sorted(str(path.relative_to(folder)) for path in folder.glob("fold_*/*.pth"))) or "none"
        raise ModelError(f"{folder} has no fold with a {checkpoint}", f"Checkpoints found there: {present}.")
    return numbered or ("all",)
