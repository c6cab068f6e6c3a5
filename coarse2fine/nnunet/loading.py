"""Loading a trained nnU-Net v2 model folder without running anything in it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from canvas import Triple, triple
from coarse2fine.errors import C2FError, ModelError
from coarse2fine.nnunet.checkpoint import OPERATIONS, Checkpoint, check_plans, find_folds, load_checkpoint, read_json
from coarse2fine.nnunet.labels import Labels
from coarse2fine.nnunet.model import Model, Scheme
from coarse2fine.nnunet.plans import check_label_resampling, demand, reader_of, resampling_of
from coarse2fine.resampling.operators import Method
from coarse2fine.system.terminal import plain, shown

with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints about environment variables that inference needs not
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

MOST_VOXELS = 1 << 28  # of a patch; the largest patches that fit into a GPU have a tenth
NETWORKS = {"PlainConvUNet": PlainConvUNet, "ResidualEncoderUNet": ResidualEncoderUNet}


def load_model(
    folder: Path | str,
    *,
    folds: tuple[str, ...] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    device: torch.device | str = "cpu",
    trust: bool = False,
    flat: bool = False,
) -> Model:
    """Load an nnU-Net v2 model folder without executing anything it contains.

    Args:
        folder: ``Trainer__Plans__Configuration`` folder with ``plans.json``, ``dataset.json`` and ``fold_*``.
        folds: Folds to average; None takes all numbered ones, else ``all``.
        checkpoint: File name in each fold.
        device: Where to run.
        trust: Unpickle checkpoints without restriction.
        flat: Whether a 2D configuration, and a reader of pictures, will do.

    Raises:
        ModelError: If something is missing or does not fit together.
        UntrustedModelError: If the folder names code outside the allowlists.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"model folder {folder} does not exist", "Give the folder that holds plans.json and fold_*.")
    plans, dataset = read_json(folder / "plans.json"), read_json(folder / "dataset.json")
    check_plans(plans, folder / "plans.json")
    names = folds or find_folds(folder, checkpoint)
    checkpoints = [load_checkpoint(folder / f"fold_{name}" / checkpoint, trust=trust) for name in names]
    with _well_formed(folder / "dataset.json"):
        labels, channels = _labels(dataset), _channels(dataset)
    with _well_formed(folder / "plans.json"):
        model = _planned(folder / "plans.json", plans, dataset, checkpoints[0], channels, flat=flat)
        inputs = channels + (len(labels.foreground) if model.cascade else 0)
        networks = [_network(_configuration_of(model), inputs, labels.heads, weights) for weights in checkpoints]
    device = torch.device(device)
    return dataclasses.replace(
        model,
        folder=folder,
        folds=names,
        networks=tuple(network.to(device) for network in networks),
        device=device,
        labels=labels,
    )


def load_plans(path: Path, configuration: str, *, flat: bool = False) -> Model:
    """A model that is yet to be trained: all that plans say, without networks and labels.

    Args:
        path: ``plans.json``, or the file under another name in nnU-Net's folder of preprocessed data.
        configuration: Name in the plans.
        flat: Whether a 2D configuration, and a reader of pictures, will do.

    Raises:
        ModelError: If the file is missing or malformed, or there is no such configuration that sees images alone.
        UntrustedModelError: If it names code outside the allowlists.
    """
    plans = read_json(path)
    check_plans(plans, path)
    if configuration not in plans["configurations"]:
        raise ModelError(
            f"{path} has no configuration {shown(configuration)}",
            f"It has {plain(', '.join(plans['configurations']))[:300] or 'none'}; choose with -c.",
        )
    untrained = Checkpoint(path, {}, configuration, "nnUNetTrainer", (), None)
    with _well_formed(path):
        settings = _configuration(PlansManager(dict(plans)), untrained)
        if settings.previous_stage_name is not None:
            raise ModelError(
                f"{path}: configuration {configuration} also sees labels of {settings.previous_stage_name}, which "
                "images alone do not have",
                f"Use -c {settings.previous_stage_name}, or another configuration that sees images alone.",
            )
        model = _planned(path, plans, {}, untrained, len(settings.normalization_schemes), flat=flat)
        demand(type(settings.batch_size) is int and settings.batch_size > 0, "batch_size", settings.batch_size)
    return model


def with_labels(model: Model, path: Path) -> Model:
    """A model of ``load_plans`` with the labels of a ``dataset.json``.

    Raises:
        ModelError: If the file is missing or malformed, or its images have other channels than the plans say.
    """
    dataset = read_json(path)
    with _well_formed(path):
        labels, channels = _labels(dataset), _channels(dataset)
    if channels != model.channels:
        raise ModelError(
            f"{path} names {channels} channel(s), the plans have {model.channels}",
            "Use plans that were made for this data set.",
        )
    return dataclasses.replace(model, labels=labels, dataset=dataset)


def planned_batch(model: Model) -> int:
    """Patches that nnU-Net trains on at once."""
    return int(_configuration_of(model).batch_size)


def new_network(model: Model, outputs: int, seed: int) -> nn.Module:
    """A network as the plans describe it, without deep supervision, with weights that nnU-Net begins with.

    Args:
        model: Of ``load_plans``.
        outputs: Of the network, in the place of classes.
        seed: Fixes the weights.
    """
    settings = _configuration_of(model)
    with _well_formed(model.folder), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build(settings, model.channels, outputs)
        return network.apply(network.initialize)  # type: ignore[arg-type]


@contextlib.contextmanager
def _well_formed(path: Path) -> Iterator[None]:
    """Turns whatever nonsense in a file makes its readers raise into an error that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of plans in nnU-Net's older format, which work
            yield
    except (C2FError, MemoryError):
        raise
    except Exception as error:  # a stranger's JSON may hold any value in any place
        reason = plain(f"{type(error).__name__}: {error}".partition("\n")[0][:300])
        raise ModelError(
            f"{path} is incomplete or malformed: {reason}", f"Use the {path.name} that nnU-Net wrote with this model."
        ) from error


def _planned(
    path: Path,
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    checkpoint: Checkpoint,
    channels: int,
    *,
    flat: bool,
) -> Model:
    """All that plans and a checkpoint's description say of a model: without networks, folds and labels."""
    manager = PlansManager(dict(plans))
    configuration = _configuration(manager, checkpoint)
    is_flat = flat and len(configuration.patch_size) == 2
    reader = reader_of(plans, dataset, path, flat=is_flat)
    patch, divisor, spacing = _geometry(configuration, checkpoint, flat=is_flat)
    transpose = _transpose(plans)
    schemes = _schemes(manager, configuration, channels, path)
    cascade = configuration.previous_stage_name is not None
    data_method, logit_method = _resampling(configuration, path, cascade=cascade)
    return Model(
        folder=path,
        configuration=checkpoint.configuration,
        folds=(),
        networks=(),
        device=torch.device("cpu"),
        patch=patch,
        divisor=divisor,
        spacing=spacing,
        transpose=transpose,
        channels=channels,
        cascade=cascade,
        labels=Labels({}, 0, (), ()),
        schemes=schemes,
        reader=reader,
        data_method=data_method,
        logit_method=logit_method,
        mirror_axes=checkpoint.mirror_axes,
        trainer=checkpoint.trainer,
        plans=plans,
        dataset=dataset,
        flat=is_flat,
    )


def _configuration_of(model: Model) -> ConfigurationManager:
    return PlansManager(dict(model.plans)).get_configuration(model.configuration)


def _configuration(manager: PlansManager, checkpoint: Checkpoint) -> ConfigurationManager:
    """The checkpoint's configuration."""
    name = checkpoint.configuration
    if name not in manager.plans["configurations"]:
        raise ModelError(
            f"{checkpoint.path} was trained for configuration {shown(name)}, which is not in plans.json",
            "Use the plans.json that belongs to this checkpoint.",
        )
    return manager.get_configuration(name)


def _patch(patch: Any, checkpoint: Checkpoint) -> Triple:
    """Input size of the network, which must be three-dimensional."""
    is_size = isinstance(patch, list) and all(type(edge) is int and edge > 0 for edge in patch)
    demand(is_size and math.prod(patch) <= MOST_VOXELS, "patch_size", patch)
    if len(patch) != 3:
        raise ModelError(
            f"{checkpoint.path} is a {len(patch)}D model: configuration {checkpoint.configuration!r} has the "
            f"patch {patch}",
            "Use the model of a 3D configuration, such as 3d_fullres.",
        )
    return triple(patch)


def _geometry(
    configuration: ConfigurationManager, checkpoint: Checkpoint, *, flat: bool = False
) -> tuple[Triple, Triple, tuple[float, float, float]]:
    """Patch, what the edges of inputs must be multiples of, and voxel size; see ``Model.flat``."""
    first: list[Any] = [1] if flat else []
    patch = _patch([*first, *configuration.patch_size] if flat else configuration.patch_size, checkpoint)
    strides = np.array([[*first, *stride] for stride in configuration.pool_op_kernel_sizes])
    if flat:
        operation = configuration.network_arch_init_kwargs["conv_op"]
        demand(str(operation).endswith("Conv2d"), "conv_op", operation)
    divisor = triple(np.prod(strides, axis=0))
    demand(bool((strides > 0).all()) and not any(np.mod(patch, divisor)), "strides", strides.tolist())
    spacing = tuple(float(size) for size in configuration.spacing)
    demand(len(spacing) == 3 - len(first) and all(0 < size < np.inf for size in spacing), "spacing", spacing)
    z, y, x = [0.0, *spacing][-3:]
    return patch, divisor, (z, y, x)


def _transpose(plans: Mapping[str, Any]) -> Triple:
    """Axis of the file that becomes each axis of the working grid."""
    transpose = triple(plans["transpose_forward"])
    demand(sorted(transpose) == [0, 1, 2], "transpose_forward", transpose)
    return transpose


def _resampling(configuration: ConfigurationManager, path: Path, *, cascade: bool) -> tuple[Method, Method]:
    """How images are resampled, and how outputs are brought back."""
    data, logits = (resampling_of(configuration.configuration, what, path) for what in ("data", "probabilities"))
    if logits.library == "none" != data.library:
        raise ModelError(
            f"{path}: images are resampled, but outputs are not brought back (no_resampling_hack)",
            "Name the same kind of function in resampling_fn_data and resampling_fn_probabilities.",
        )
    if cascade:
        check_label_resampling(configuration.configuration, path)
    return data, logits


def _channels(dataset: Mapping[str, Any]) -> int:
    """Number of image channels."""
    names = dataset.get("modality", dataset.get("channel_names"))  # if both are there, nnU-Net counts the former
    demand(isinstance(names, dict | list) and len(names) > 0, "channel_names", names)
    return len(names)


def _labels(dataset: Mapping[str, Any]) -> Labels:
    """Label rules of ``dataset.json``, as nnU-Net's LabelManager reads them."""
    manager = LabelManager(dict(dataset["labels"]), dataset.get("regions_class_order"))
    regions = tuple(int(label) for label in manager.regions_class_order) if manager.has_regions else ()
    foreground = tuple(int(label) for label in manager.foreground_labels)
    heads = int(manager.num_segmentation_heads)
    demand(all(0 <= label <= np.iinfo(np.uint16).max for label in foreground), "labels", dataset["labels"])
    demand(set(regions) <= {0, *foreground}, "regions_class_order", regions)
    return Labels(dict(dataset["labels"]), heads, foreground, regions)


def _network(configuration: ConfigurationManager, inputs: int, heads: int, checkpoint: Checkpoint) -> nn.Module:
    """Build the network from allowlisted names and fill in one fold's weights.

    It is built without memory first (PyTorch's ``meta`` device), so that one of the wrong size costs nothing.
    """
    changes: dict[str, Any] = {}
    if checkpoint.trainer == "nnUNetTrainerBN":  # the one of nnU-Net's trainers that changes a network of these kinds
        changes = {
            "norm_op": f"torch.nn.BatchNorm{len(configuration.patch_size)}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        }
    with torch.device("meta"):
        network = _build(configuration, inputs, heads, changes)
    blank = network.state_dict(keep_vars=True)
    expected = {name: tuple(tensor.shape) for name, tensor in blank.items()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    if expected != found:
        raise ModelError(
            f"{checkpoint.path} does not fit the network in plans.json: {_difference(expected, found)}",
            "Use plans.json, dataset.json and checkpoints of the same training; trainers that change the network "
            "itself are not supported.",
        )
    # A parameter has several names; as when a state is loaded, the last one counts, and nothing is read twice.
    names = {id(tensor): name for name, tensor in blank.items()}
    values = checkpoint.read(names.values())
    for name in list(values):
        values[name] = values[name].detach().to(blank[name].dtype).contiguous()
        if not values[name].isfinite().all():
            raise ModelError(
                f"{checkpoint.path}: {name} holds numbers that are not finite",
                "Use another checkpoint or fold: this training has failed.",
            )
    network.load_state_dict({name: values[names[id(tensor)]] for name, tensor in blank.items()}, assign=True)
    return network.eval().requires_grad_(False)


def _build(
    configuration: ConfigurationManager, inputs: int, heads: int, changes: Mapping[str, Any] = MappingProxyType({})
) -> nn.Module:
    """The network that a configuration describes, from allowlisted names; changes are to what the plans say."""
    arguments = {**configuration.network_arch_init_kwargs, **changes}
    for key in configuration.network_arch_init_kwargs_req_import:
        arguments[key] = None if arguments[key] is None else OPERATIONS[arguments[key]]
    build = NETWORKS[configuration.network_arch_class_name.rpartition(".")[2]]
    arguments["deep_supervision"] = False  # whatever the plans say, as in nnU-Net
    network: nn.Module = build(input_channels=inputs, num_classes=heads, **arguments)
    return network


def _difference(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """The first parameter in which two networks differ."""
    name = next(name for name in (*expected, *found) if expected.get(name) != found.get(name))
    have, want = (shown(shapes[name]) if name in shapes else "missing" for shapes in (found, expected))
    return f"{plain(name)[:200]} is {have} instead of {want}"


def _schemes(
    manager: PlansManager, configuration: ConfigurationManager, channels: int, path: Path
) -> tuple[Scheme, ...]:
    """Normalisation of each channel."""
    if len(configuration.normalization_schemes) != channels:
        raise ModelError(
            f"{path} has normalization_schemes for {len(configuration.normalization_schemes)} "
            f"channel(s), dataset.json has {channels}",
            "Use plans.json and dataset.json of the same training.",
        )
    schemes = []
    for channel, (name, masked) in enumerate(
        zip(configuration.normalization_schemes, configuration.use_mask_for_norm, strict=True)
    ):
        values = [0.0] * 4
        if name == "CTNormalization":  # no other scheme uses the statistics of the data set
            numbers = manager.foreground_intensity_properties_per_channel[str(channel)]
            values = [float(numbers[key]) for key in ("mean", "std", "percentile_00_5", "percentile_99_5")]
            demand(bool(np.isfinite(values).all()), f"foreground_intensity_properties_per_channel.{channel}", numbers)
        schemes.append(Scheme(name, bool(masked), *values))
    return tuple(schemes)
