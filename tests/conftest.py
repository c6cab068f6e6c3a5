"""Tiny but real nnU-Net v2 model folders, written the way nnU-Net's trainer writes them; and agents for them."""

from __future__ import annotations

import importlib
import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from assignnet.learn.agent import Agent, AgentCard, save_agent
from assignnet.learn.network import AssignNetwork, NetworkSize
from assignnet.learn.supervised import GainNetwork
from coarse2fine.config.reader import load_config
from coarse2fine.fine.sizes import plan_sizes
from coarse2fine.nnunet.loading import load_model
from coarse2fine.selection.features import FeatureSettings, feature_card
from coarse2fine.selection.selector import cost_model_of

collect_ignore = ["support/mutants.py"]  # a script, which needs mutmut

SHARED = Path(__file__).parents[2] / "shared"

torch.set_num_threads(1)  # on tiny volumes threads cost more than they bring

SPLINE = "resample_data_or_seg_to_shape"
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
FEATURES = [4, 8, 8]


def resampling(name: str, order: int) -> tuple[str, dict[str, Any]]:
    if name == "resample_torch_fornnunet":
        return name, {"is_seg": False, "force_separate_z": None}
    return name, {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}


def write_model(
    folder: Path,
    *,
    labels: dict[str, Any] | None = None,
    regions_class_order: Sequence[int] | None = None,
    channels: int = 1,
    folds: Sequence[str] = ("all",),
    patch: Sequence[int] = (8, 16, 16),
    spacing: Sequence[float] = (2.0, 1.0, 1.0),
    transpose: Sequence[int] = (0, 1, 2),
    scheme: str = "ZScoreNormalization",
    masked: bool = False,
    resampler: str = "resample_data_or_seg_to_shape",
    mirror_axes: Sequence[int] | None = (0, 1, 2),
    cascade: bool = False,
    reader: str = "SimpleITKIO",
    seed: int = 0,
    options: dict[str, Any] | None = None,
    norm: type[nn.Module] = nn.InstanceNorm3d,
    norm_options: dict[str, Any] | None = None,
    trainer: str = "nnUNetTrainer",
) -> Path:
    """Write a model folder with random weights; its outputs vary from voxel to voxel in all classes."""
    labels = labels or {"background": 0, "lesion": 1}
    foreground = [name for name in labels if name not in ("background", "ignore")]
    heads = len(foreground) + (0 if regions_class_order else 1)
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": FEATURES,
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 3,
            "strides": STRIDES,
            "n_conv_per_stage": [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": norm_options or {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": "tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "spacing": list(spacing),
        "normalization_schemes": [scheme] * channels,
        "use_mask_for_norm": [masked] * channels,
        "architecture": architecture,
        "batch_dice": False,
    }
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        name, defaults = resampling(resampler, order)
        configuration[f"resampling_fn_{what}"] = name
        given = {"is_seg": what == "seg", **({"order": order} if name == SPLINE else {}), **(options or {})}
        configuration[f"resampling_fn_{what}_kwargs"] = (
            {} if name == "no_resampling_hack" else defaults | {"is_seg": what == "seg"} if options is None else given
        )
    if cascade:
        configuration["previous_stage"] = "3d_lowres"
    name = "3d_cascade_fullres" if cascade else "3d_fullres"
    configurations = {name: configuration}
    if cascade:
        configurations["3d_lowres"] = configuration | {"previous_stage": None}
    statistics = {"mean": 90.0, "std": 40.0, "percentile_00_5": 10.0, "percentile_99_5": 200.0}
    plans = {
        "dataset_name": "Dataset999_Tiny",
        "plans_name": "tinyPlans",
        "configurations": configurations,
        "image_reader_writer": reader,
        "label_manager": "LabelManager",
        "experiment_planner_used": "none",
        "transpose_forward": list(transpose),
        "transpose_backward": np.argsort(transpose).tolist(),
        "foreground_intensity_properties_per_channel": {str(channel): statistics for channel in range(channels)},
    }
    dataset = {
        "channel_names": {str(channel): "EM" for channel in range(channels)},
        "labels": labels,
        "file_ending": ".nii.gz",
        "numTraining": 1,
    }
    if regions_class_order:
        dataset["regions_class_order"] = list(regions_class_order)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    inputs = channels + (len(foreground) if cascade else 0)
    for index, fold in enumerate(folds):
        torch.manual_seed(seed + index)
        network = PlainConvUNet(
            inputs,
            3,
            FEATURES,
            nn.Conv3d,
            3,
            STRIDES,
            1,
            heads,
            1,
            True,
            norm,
            norm_options or {"eps": 1e-5, "affine": True},
            None,
            None,
            nn.LeakyReLU,
            {"inplace": True},
        )
        for key, statistic in network.named_buffers():  # as training leaves them: not 0 and 1
            if statistic.is_floating_point():
                statistic.copy_(torch.rand_like(statistic) + ("var" in key))
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        torch.save(
            {
                "network_weights": network.state_dict(),
                "trainer_name": trainer,
                "init_args": {"configuration": name, "plans": plans, "fold": fold, "dataset_json": dataset},
                "inference_allowed_mirroring_axes": None if mirror_axes is None else tuple(mirror_axes),
                # nnU-Net's training log holds NumPy scalars, which PyTorch's restricted unpickler refuses by default.
                "logging": {"mean_fg_dice": [np.float64(0.5)], "lrs": [np.float32(0.01)]},
                "_best_ema": np.float64(0.5),
            },
            folder / f"fold_{fold}" / "checkpoint_final.pth",
        )
    return folder


@pytest.fixture(scope="session", autouse=True)
def signals_of_a_terminal() -> None:
    """A parent such as nohup may have switched signals off, which commands heed, and so do those that tests start."""
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a tiny model folder; arguments as of ``write_model``."""
    return lambda **options: write_model(tmp_path_factory.mktemp("models") / "T__P__C", **options)


def write_agent(
    folder: Path,
    models: tuple[Path, Path],
    overrides: Sequence[str] = (),
    *,
    features: FeatureSettings | None = None,
    kind: str = "gains",
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write an untrained agent that fits two model folders and settings; ``changes`` replace entries of its card.

    Kind ``gains`` believes the heatmap, kind ``policy`` chooses nearly everything in an order of its own.
    """
    settings = features or FeatureSettings()
    coarse, fine = (load_model(model) for model in models)
    config = load_config(None, overrides)
    cost_model = cost_model_of(config, plan_sizes(config, fine))
    nodes, volume = settings.size(coarse, fine)
    size = NetworkSize(nodes, volume, width=16, layers=1, heads=2)
    torch.manual_seed(seed)
    network: AssignNetwork | GainNetwork = GainNetwork(size)
    if kind == "policy":
        network = AssignNetwork(size)
        with torch.no_grad():  # scores that differ between regions, and stopping last
            network.pointer.stop.copy_(-network.pointer.key.weight.T @ network.pointer.score.weight[0].sign())
            network.pointer.score.weight.mul_(5)
    card: dict[str, Any] = {
        "kind": kind,
        "network": size,
        "features": feature_card(settings, coarse, fine),
        "problem": {
            "packing": "same_size" if cost_model.context is None else "same_scale",
            "large": cost_model.large,
            "slot": list(cost_model.slot),
            "native": list(cost_model.largest),
        },
        "metric": "dice",
        "weights": (0.01, 0.5),
        "training": {},
        "metrics": {},
    }
    save_agent(folder, Agent(AgentCard(**card | changes), network))
    return folder


def shared(name: str) -> Path:
    """A file or folder of developers' data and models, for tests that have the mark ``shared``."""
    if not (SHARED / name).exists():
        pytest.skip(f"../shared/{name} is not here: data and models for developers only")
    return SHARED / name


def blobs(shape: tuple[int, int, int], *, seed: int = 0, dtype: type = np.int16) -> np.ndarray:
    """A textured volume with bright blobs, and a zero border that nnU-Net crops away."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape).reshape(3, -1).T
    volume = rng.normal(80, 10, shape)
    for centre in rng.uniform(0.25, 0.75, (4, 3)) * shape:
        distance = np.linalg.norm((grid - centre) / (np.array(shape) / 10), axis=1).reshape(shape)
        volume += 100 * np.exp(-(distance**2))
    volume[:2], volume[:, :1], volume[..., -2:] = 0, 0, 0
    return volume.astype(dtype)


def import_benchmark(name: str) -> ModuleType:
    """A module of ``benchmarks/``."""
    return importlib.import_module(f"benchmarks.{name}")
