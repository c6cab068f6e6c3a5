"""What a model folder says that could have no effect here: options of resampling, the reader and the trainer's name.

An option that nnU-Net would not take is refused by name: passed over, it would change results without a word. So could
a trainer that builds another network than the plans describe, with parameters of the same shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coarse2fine.errors import ModelError, UntrustedModelError
from coarse2fine.io.files.readers import PICTURES, READERS, Reader, default_reader
from coarse2fine.resampling.operators import ANISOTROPY, MODES, Method
from coarse2fine.system.terminal import shown

_ANISOTROPIC = ("force_separate_z", "separate_z_anisotropy_threshold")
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "resample_data_or_seg_to_shape": ("is_seg", "order", "order_z", *_ANISOTROPIC),
    # The second to fourth change how PyTorch computes, not what comes out for images.
    "resample_torch_fornnunet": (
        "is_seg",
        "num_threads",
        "device",
        "memefficient_seg_resampling",
        *_ANISOTROPIC,
        "mode",
        "aniso_axis_mode",
    ),
    "no_resampling_hack": (),
}
IN_PLANE = {mode: mode for mode in MODES} | {"bilinear": "linear"}  # in the plane PyTorch sees two axes
APART = {mode: mode for mode in MODES} | {"trilinear": "linear"}  # and along the axis apart three


# nnU-Net's own trainers; of those that take networks of the plans only nnUNetTrainerBN changes them (``nnunet.py``).
_OWN = re.compile(
    r"nnUNetTrainer(_?(BN|Adam|Adan|VanillaAdam|\den\d|Benchmark|noDataLoading|CELoss|CosAnneal|DA5|Segord0|ord0|DASegOrd0"
    r"|DiceCELoss|noSmooth|DiceLoss|DiceTopK10Loss|Topk10Loss|LS01|NoDA|NoDeepSupervision|NoMirroring|noDummy2DDA"
    r"|onlyMirror01|probabilisticOversampling|warmup|\d+epochs?|1500ep|0\d\d))*"
)


def trainer_doubts(folder: Path, trainer: str) -> tuple[str, ...]:
    """A warning if nobody here knows what a trainer does to the network.

    Args:
        folder: Of the model.
        trainer: Name of the class that trained it, as in its checkpoint; never resolved.
    """
    if _OWN.fullmatch(trainer):
        return ()
    return (
        f"{folder} was trained by {shown(trainer)}, which is none of nnU-Net's own trainers: if it builds another "
        "network than plans.json describes, results are wrong; compare one case with those of nnU-Net itself",
    )


def demand(is_valid: bool, key: str, value: object) -> None:
    """Refuse a value that would only fail when a volume is processed.

    Raises:
        ValueError: Naming key and value; callers know the file.
    """
    if not is_valid:
        raise ValueError(f"{key} is {shown(value)}")


def resampling_of(configuration: Mapping[str, Any], what: str, path: Path) -> Method:
    """How a configuration resamples.

    Args:
        configuration: From the plans, inheritance resolved.
        what: ``data`` or ``probabilities``.
        path: Of the plans, for messages.

    Raises:
        ModelError: If there is an option that nnU-Net's function does not take.
        ValueError: If a value cannot be.
    """
    name, options = _options(configuration, what, path)
    demand(options.get("is_seg", False) is False, f"resampling_fn_{what}_kwargs.is_seg", options.get("is_seg"))
    if name == "no_resampling_hack":
        return Method("none")
    is_torch = name == "resample_torch_fornnunet"
    separate = options.get("force_separate_z", None if is_torch else False)  # the functions' own defaults
    threshold = options.get("separate_z_anisotropy_threshold", ANISOTROPY)
    demand(separate is None or type(separate) is bool, f"resampling_fn_{what}_kwargs.force_separate_z", separate)
    demand(type(threshold) in (int, float), f"resampling_fn_{what}_kwargs.separate_z_anisotropy_threshold", threshold)
    if is_torch:
        inner, apart = options.get("mode", "linear"), options.get("aniso_axis_mode", "nearest-exact")
        modes = _mode(what, "mode", inner, IN_PLANE, path), _mode(what, "aniso_axis_mode", apart, APART, path)
        return Method("torch", *modes, separate, threshold)
    orders = options.get("order", 3), options.get("order_z", 0)
    demand(all(type(order) is int and 0 <= order <= 5 for order in orders), f"resampling_fn_{what}_kwargs", options)
    return Method("spline", *orders, separate, threshold)


def check_label_resampling(configuration: Mapping[str, Any], path: Path) -> None:
    """Refuse options of ``resampling_fn_seg`` that nnU-Net does not take; a cascade's labels go through it.

    Raises:
        ModelError: Naming the option.
        ValueError: If it does not resample labels.
    """
    name, options = _options(configuration, "seg", path)
    is_labels = name == "no_resampling_hack" or options.get("is_seg") is True
    demand(is_labels, "resampling_fn_seg_kwargs.is_seg", options.get("is_seg"))


def _options(configuration: Mapping[str, Any], what: str, path: Path) -> tuple[str, dict[str, Any]]:
    """Name and options of a function, all of them known."""
    key = f"resampling_fn_{what}"
    name, options = configuration[key], dict(configuration[f"{key}_kwargs"])
    for option in options:
        if option not in OPTIONS[name]:
            raise ModelError(
                f"{path}: {key}_kwargs has the option {shown(option)}, which nnU-Net's {name} does not take",
                f"Remove it there; {name} takes {', '.join(OPTIONS[name]) or 'none'}.",
            )
    return name, options


def _mode(what: str, option: str, value: object, known: Mapping[str, str], path: Path) -> str:
    """A mode of PyTorch's ``interpolate`` by the name of what it does along one axis."""
    if not isinstance(value, str) or value not in known:
        raise ModelError(
            f"{path}: resampling_fn_{what}_kwargs.{option} is {shown(value)}, which is not supported",
            f"Use a model that was planned with one of {', '.join(known)}.",
        )
    return known[value]


def reader_of(plans: Mapping[str, Any], dataset: Mapping[str, Any], path: Path, *, flat: bool = False) -> Reader:
    """The image reader that the plans at a path name; where they name none, the one that nnU-Net would plan with.

    Args:
        plans: Content of ``plans.json``.
        dataset: Content of ``dataset.json``.
        path: Of the plans, for messages.
        flat: Whether a reader of pictures will do.

    Raises:
        ModelError: If it reads pictures and that will not do.
        UntrustedModelError: If it is none of nnU-Net's.
    """
    key = "image_reader_writer"
    name = plans.get(key)
    if name is None:
        path, key = path.with_name("dataset.json"), "overwrite_image_reader_writer"
        name = dataset.get(key)
    if name in (None, "None"):
        ending = dataset.get("file_ending")
        return default_reader(ending.lower() if isinstance(ending, str) else "")
    if isinstance(name, str) and name in READERS:
        return READERS[name]
    if flat and name == PICTURES.name:
        return PICTURES
    if name == PICTURES.name:
        raise ModelError(
            f"{path}: {key} is {shown(name)}, which reads 2D images",
            "Use a model that was trained on volumes, such as one of configuration 3d_fullres.",
        )
    raise UntrustedModelError(
        f"{path}: {key} is {shown(name)}, which is none of nnU-Net's readers of volumes",
        f"If one of {', '.join(READERS)} gives the same voxels of these images, write its name there instead.",
    )
