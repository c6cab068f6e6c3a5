"""Reading model folders that come from strangers: plans and checkpoints that cannot execute code.

nnU-Net resolves class names from ``plans.json`` by import and loads checkpoints with full pickle; either runs whatever
the author of a model folder wants. Here names are looked up in fixed tables, and nothing that a checkpoint names is
built (``archive.py``). Folders also get damaged and edited by hand, so every value is checked before anything is built
from it, and what it may cost is bounded before it is spent.
"""

from __future__ import annotations

import json
import pickle
import shlex
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coarse2fine.errors import ModelError, UntrustedModelError
from coarse2fine.nnunet.archive import Archive, DamagedError, RefusedNameError, StoredTensor, UnusualError
from coarse2fine.system.device import is_host
from coarse2fine.system.terminal import plain, shown

_LAYERS = {  # by module of torch.nn; 2D ones are never built, but plans usually have a 2d configuration, too
    "conv": ("Conv2d", "Conv3d"),
    "instancenorm": ("InstanceNorm2d", "InstanceNorm3d"),
    "batchnorm": ("BatchNorm2d", "BatchNorm3d"),
    "dropout": ("Dropout2d", "Dropout3d"),
    "activation": ("LeakyReLU", "ReLU", "GELU"),
}
OPERATIONS: Mapping[str, Callable[..., nn.Module]] = {
    f"torch.nn.{prefix}{name}": getattr(nn, name)
    for module, names in _LAYERS.items()
    for name in names
    for prefix in ("", f"modules.{module}.")
}
NETWORKS = frozenset({"PlainConvUNet", "ResidualEncoderUNet"})
NETWORK_MODULES = (
    "dynamic_network_architectures.architectures.unet",
    "dynamic_network_architectures.architectures.residual_unet",
)
RESAMPLERS = frozenset({"resample_data_or_seg_to_shape", "resample_torch_fornnunet", "no_resampling_hack"})
NORMALIZATIONS = frozenset(
    {"ZScoreNormalization", "CTNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"}
)
# Names that nnU-Net would import when its own objects are built from the plans.
PLANS_NAMES: Mapping[str, frozenset[str]] = {
    "label_manager": frozenset({"LabelManager"}),
}
CONFIGURATION_NAMES: Mapping[str, frozenset[str]] = {
    "preprocessor_name": frozenset({"DefaultPreprocessor"}),
    "resampling_fn_data": RESAMPLERS,
    "resampling_fn_seg": RESAMPLERS,
    "resampling_fn_probabilities": RESAMPLERS,
}
IMPORTABLE_KEYS = frozenset({"conv_op", "norm_op", "dropout_op", "nonlin"})


LAYER_COUNTS = (
    "n_stages",
    "n_conv_per_stage",
    "n_blocks_per_stage",
    "n_conv_per_stage_encoder",
    "n_conv_per_stage_decoder",
)
LAYER_OPTIONS = ("norm_op_kwargs", "dropout_op_kwargs", "nonlin_kwargs")
MOST_STAGES, MOST_LAYERS = 20, 200
"""Of a network; real ones have up to 8 and 40, and building a billion would take forever."""
MOST_JSON, MOST_PLANS = 16 << 20, 1 << 20
"""Bytes of a JSON file, and of plans.json, which is copied; real plans have some 20 KB, data sets a line per case."""
_COPY = "Copy the checkpoint again."
_TRUST = "If you trust its author as you trust a program, load it with --trust-checkpoint."


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder.

    Raises:
        ModelError: If the file is missing, unreadable, or not a JSON object.
    """
    try:
        most = MOST_PLANS if path.name == "plans.json" else MOST_JSON
        if (size := path.stat().st_size) > most:
            raise ModelError(f"{path} has {size} bytes, more than {most}", f"Use the {path.name} that nnU-Net wrote.")
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except FileNotFoundError:
        raise ModelError(
            f"{path} does not exist",
            "Give an nnU-Net v2 model folder: one that holds plans.json, "
            "dataset.json and fold_* (usually named Trainer__Plans__Configuration).",
        ) from None
    except PermissionError:
        raise _forbidden(path) from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, or a number too long
        raise ModelError(f"{path} cannot be read: {error}", "Copy the model folder again.") from None
    if not isinstance(document, dict):
        raise ModelError(f"{path} is not a JSON object", "Copy the model folder again.")
    return document


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the key {shown(name)} occurs twice")
        values[name] = value
    return values


def _refuse(path: Path, key: str, value: object) -> UntrustedModelError:
    return UntrustedModelError(
        f"{path}: {key} is {shown(value)}, which is not in the list of things that a model folder may name",
        "Use a model trained with nnU-Net's standard networks. Names outside this list could run any code.",
    )


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
    _check_names(plans, PLANS_NAMES, "", path)
    for name, configuration in configurations.items():
        prefix = f"configurations.{name}."
        _check_names(configuration, CONFIGURATION_NAMES, prefix, path)
        schemes = configuration.get("normalization_schemes", [])
        if not isinstance(schemes, list) or not all(_is_one_of(scheme, NORMALIZATIONS) for scheme in schemes):
            raise _refuse(path, f"{prefix}normalization_schemes", schemes)
        _check_layers(configuration, prefix, path)  # nnU-Net's older format has them here
        if "architecture" in configuration:
            _check_architecture(configuration["architecture"], f"{prefix}architecture", path)


def _check_names(section: Mapping[str, Any], allowed: Mapping[str, frozenset[str]], prefix: str, path: Path) -> None:
    """Refuse a section in which a key that names code has a value outside of its allowlist."""
    for key, names in allowed.items():
        if key in section and not _is_one_of(section[key], names):
            raise _refuse(path, f"{prefix}{key}", section[key])


def _is_one_of(value: object, names: frozenset[str] | Mapping[str, object]) -> bool:
    return isinstance(value, str) and value in names


def _check_architecture(architecture: object, key: str, path: Path) -> None:
    """Refuse an architecture that names unknown things, or whose layers get options that are no numbers."""
    arguments = architecture.get("arch_kwargs") if isinstance(architecture, dict) else None
    if not isinstance(architecture, dict) or not isinstance(arguments, dict):
        raise ModelError(
            f"{path}: {key} is not a description of a network", "Use the plans.json that nnU-Net wrote with this model."
        )
    module, _, name = str(architecture.get("network_class_name")).rpartition(".")
    if name not in NETWORKS or module not in NETWORK_MODULES:
        raise _refuse(path, f"{key}.network_class_name", architecture.get("network_class_name"))
    importable = architecture.get("_kw_requires_import")
    if not isinstance(importable, list) or not all(_is_one_of(argument, IMPORTABLE_KEYS) for argument in importable):
        raise _refuse(path, f"{key}._kw_requires_import", importable)
    for argument in sorted(IMPORTABLE_KEYS):
        value = arguments.get(argument)
        if value is not None and not _is_one_of(value, OPERATIONS):
            raise _refuse(path, f"{key}.arch_kwargs.{argument}", value)
    _check_layers(arguments, f"{key}.arch_kwargs.", path)
    for argument in LAYER_OPTIONS:
        options = arguments.get(argument) or {}
        if not isinstance(options, dict) or not all(isinstance(value, int | float) for value in options.values()):
            raise ModelError(
                f"{path}: {key}.arch_kwargs.{argument} is {shown(options)}",
                f"Options of layers are numbers, true or false: use the {path.name} that nnU-Net wrote.",
            )


def _check_layers(section: Mapping[str, Any], prefix: str, path: Path) -> None:
    """Refuse absurd numbers of layers."""
    for key in LAYER_COUNTS:
        value = section.get(key, 0)
        counts = value if isinstance(value, list) else [value]
        most = MOST_STAGES if key == "n_stages" else MOST_LAYERS
        if not all(type(count) is int and 0 <= count <= most for count in counts) or sum(counts) > most:
            raise ModelError(
                f"{path}: {prefix}{key} is {shown(value)}",
                f"Networks have up to {MOST_STAGES} stages with up to {MOST_LAYERS} layers: use the {path.name} that "
                "nnU-Net wrote with this model.",
            )


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What inference needs of one trained fold.

    Attributes:
        path: The file.
        weights: Tensors by parameter name, most of them not read yet.
        configuration: Name of the configuration in the plans, such as ``3d_fullres``.
        trainer: Name of nnU-Net's trainer class; recorded, never resolved.
        mirror_axes: Spatial axes (0 = z) that test-time mirroring may flip; empty if none.
        archive: The file whose tensors are read when they are needed; None if they are in memory.
    """

    path: Path
    weights: Mapping[str, torch.Tensor | StoredTensor]
    configuration: str
    trainer: str
    mirror_axes: tuple[int, ...]
    archive: Archive | None

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Some of the weights.

        Raises:
            ModelError: If the file holds fewer numbers than it says.
        """
        chosen = {name: self.weights[name] for name in names}
        stored = {name: tensor for name, tensor in chosen.items() if isinstance(tensor, StoredTensor)}
        read = {name: tensor for name, tensor in chosen.items() if isinstance(tensor, torch.Tensor)}
        if self.archive is None:
            return read
        try:
            return read | self.archive.read(stored)
        except (DamagedError, OSError) as error:
            raise _unreadable(self.path, str(error)) from None


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
        raise ModelError(
            f"{path} does not exist",
            "Name another checkpoint or fold (folds and checkpoint of the model's section), or copy the model again.",
        )
    archive = None if trust else _open_archive(path)
    content = _load_trusted(path) if archive is None else archive.content
    if not isinstance(content, dict):
        raise _no_checkpoint(path, f"it holds one {type(content).__name__}")
    for key, kind in (("network_weights", dict), ("init_args", dict), ("trainer_name", str)):
        if not isinstance(content.get(key), kind):
            raise _no_checkpoint(path, f"its {key} is {shown(content.get(key, 'missing'))}")
    configuration = content["init_args"].get("configuration")
    if not isinstance(configuration, str):
        raise _no_checkpoint(path, f"its configuration is {shown(configuration)}")
    axes = content.get("inference_allowed_mirroring_axes") or ()
    is_known = isinstance(axes, list | tuple) and all(type(axis) is int and axis in (0, 1, 2) for axis in axes)
    if not is_known or len(set(axes)) != len(axes):
        raise _no_checkpoint(path, f"inference_allowed_mirroring_axes {shown(axes)}")
    weights = _weights(content["network_weights"], path)
    return Checkpoint(path, weights, configuration, content["trainer_name"], tuple(axes), archive)


def _weights(found: Mapping[Any, Any], path: Path) -> dict[str, torch.Tensor | StoredTensor]:
    """Tensors by the name that they have in the network itself, not in its compiled or distributed wrapping."""
    weights: dict[str, torch.Tensor | StoredTensor] = {}
    for name, tensor in found.items():
        if not isinstance(name, str) or not (isinstance(tensor, StoredTensor) or _is_plain(tensor)):
            raise _no_checkpoint(path, "network_weights are not plain tensors")
        parts = [part for part in name.split(".") if part != "_orig_mod"]
        bare = ".".join(parts[1:] if parts[0] == "module" else parts)
        if bare in weights:
            raise _no_checkpoint(path, f"network_weights has {shown(bare)} twice")
        weights[bare] = tensor
    return weights


def _open_archive(path: Path) -> Archive:
    """The checkpoint, with nothing in it built."""
    try:
        return Archive(path)
    except RefusedNameError as name:
        raise UntrustedModelError(
            f"{path} names {plain(str(name))}, which could execute code",
            _TRUST,
        ) from None
    except PermissionError:
        raise _forbidden(path) from None
    except (DamagedError, OSError) as error:
        if isinstance(error, DamagedError) and _is_pickle(path):
            raise UntrustedModelError(
                f"{path} is a bare pickle, PyTorch's format until 2020, which could execute code",
                _TRUST,
            ) from None
        raise _unreadable(path, str(error), _TRUST if isinstance(error, UnusualError) else _COPY) from None


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(1) == pickle.PROTO


def _load_trusted(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats; what matters raises
            return torch.load(path, map_location="cpu", weights_only=False)
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes are still instructions to the unpickler, which fails in any way
        raise _unreadable(path, str(error).partition("\n")[0] or type(error).__name__) from None


def _is_plain(value: object) -> bool:
    """Whether a value is an ordinary array of real numbers: not sparse, quantized, or without memory."""
    return (
        isinstance(value, torch.Tensor)
        and type(value) in (torch.Tensor, nn.Parameter)
        and value.layout == torch.strided
        and is_host(value.device)
        and not value.is_quantized
        and not value.is_complex()
    )


def _forbidden(path: Path) -> ModelError:
    return ModelError(f"{path} may not be read", f"Give yourself the right to: chmod u+r {shlex.quote(str(path))}")


def _unreadable(path: Path, reason: str, remedy: str = _COPY) -> ModelError:
    return ModelError(f"{path} is damaged or no checkpoint that PyTorch writes today: {plain(reason)[:300]}", remedy)


def _no_checkpoint(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"{path} is not a checkpoint of nnU-Net v2 ({plain(reason)})",
        "Use checkpoint_final.pth or checkpoint_best.pth of a trained nnU-Net v2 model.",
    )


def find_folds(folder: Path, checkpoint: str) -> tuple[str, ...]:
    """Names of the folds in a model folder that hold the checkpoint: ("0", ..., "4"), else ("all",).

    As nnU-Net does, fold "all" is only taken when there are no numbered folds. Other folders, such as a copy of a fold
    under another name, are none.

    Raises:
        ModelError: If there is none.
    """
    found = sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}"))
    numbered = tuple(fold for fold in found if fold.isdecimal())
    if numbered or "all" in found:
        return numbered or ("all",)
    present = sorted({path.name for path in folder.glob("fold_*/*.pth")})
    remedy = "Copy the model folder again, with its folders fold_*."
    if present:
        remedy = f"Name one that is there (checkpoint of the model's section): {plain(', '.join(present))[:300]}"
    raise ModelError(f"{folder} has no fold with a {checkpoint}", remedy)
