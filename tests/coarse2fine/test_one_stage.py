"""One-stage mode against nnU-Net's own predictor, which loads, resamples, predicts and exports on its own."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import blobs, shared
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tiny_models import heed_labels
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from coarse2fine.config.reader import load_config
from coarse2fine.demo import ASSETS, IMAGE
from coarse2fine.errors import ModelError
from coarse2fine.io import Grid, Volume, read_volume
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import nnunet_predictor
from coarse2fine.pipeline import Pipeline
from coarse2fine.system.timing import Run

SPACING = (2.5, 0.8, 1.3)
KINDS = ("3d_lowres", "3d_fullres")
# Test case, and a crop of it that holds foreground.
SHARED_CASES = {
    "Dataset101_VNCMito": ("vnc_test", (slice(0, 18), slice(300, 600), slice(0, 300))),
    "Dataset104_LungLesion": ("lidc0001", (slice(76, 104), slice(60, 230), slice(230, 400))),
}
CASES: dict[str, dict[str, Any]] = {
    "binary": {},
    "multi-class": {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}},
    "regions": {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]},
    "two-channels": {"channels": 2},
    "three-folds": {"folds": ("0", "1", "2")},
    "ct": {"scheme": "CTNormalization"},
    "masked-norm": {"masked": True},
    "rescaled": {"scheme": "RescaleTo01Normalization", "seed": 3},
    "transposed": {"transpose": (1, 2, 0), "spacing": (1.0, 1.0, 2.0), "patch": (16, 16, 8)},
    "flat-axis-apart": {"spacing": (5.0, 1.0, 1.0)},
    "torch-resampling": {"resampler": "resample_torch_fornnunet"},
    "resampling-options-absent": {"options": {}, "spacing": (5.0, 1.0, 1.0)},
    "axis-apart-by-threshold": {"options": {"force_separate_z": None, "separate_z_anisotropy_threshold": 1.5}},
    "torch-modes": {
        "resampler": "resample_torch_fornnunet",
        "options": {"force_separate_z": True, "mode": "nearest-exact", "aniso_axis_mode": "linear"},
    },
    "no-resampling": {"resampler": "no_resampling_hack", "spacing": (1.0, 2.0, 3.0)},
    "running-statistics": {"norm_options": {"eps": 1e-5, "affine": True, "track_running_stats": True}, "seed": 2},
    "no-affine": {"norm_options": {"eps": 1e-3, "affine": False}},
    "no-mirroring-trained": {"mirror_axes": None},
    "larger-patch-than-volume": {"patch": (32, 64, 64)},
}


STEPS = {"ct": 0.8}
"""Tile steps of kinds that have another one than nnU-Net's default."""
MIRRORED = {"binary", "regions", "no-mirroring-trained"}
"""Kinds that run mirrored inputs, as nnU-Net does if nothing else is said: eight passes a tile, so not all do."""


RARE = {"binary", "three-folds", "no-affine", "rescaled", "larger-patch-than-volume", "no-mirroring-trained"}
"""Kinds that run with the tests that take long."""


def nnunet_labels(
    folder: Path, folds: tuple[str, ...], channels: list[np.ndarray], *, mirroring: bool = True, step: float = 0.5
) -> np.ndarray:
    """What nnU-Net's command line would write, computed by nnU-Net alone."""
    predictor = nnUNetPredictor(step, device=torch.device("cpu"), allow_tqdm=False, use_mirroring=mirroring)
    predictor.initialize_from_trained_model_folder(str(folder), folds, "checkpoint_final.pth")
    image = np.stack(channels).astype(np.float32)
    return predictor.predict_single_npy_array(image, {"spacing": list(SPACING)})


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in RARE)) for name in CASES])
def test_one_stage__any_kind_of_model__equals_nnunet(name: str, model_folder: Callable[..., Path]) -> None:
    """Every voxel gets nnU-Net's label, apart from ties that rounding breaks (at most one voxel in 10,000)."""
    options = CASES[name]
    folder = model_folder(**options)
    channels = [blobs((18, 40, 36), seed=seed) for seed in range(options.get("channels", 1))]
    with contextlib.redirect_stdout(io.StringIO()):
        folds = options.get("folds", ("all",))
        step = STEPS.get(name, 0.5)
        expected = nnunet_labels(folder, folds, channels, mirroring=name in MIRRORED, step=step)

    settings = ["mode=one-stage", f"fine.model={folder}", f"fine.tile_step={step}"]
    settings += [*([] if name in MIRRORED else ["fine.mirroring=false"])]
    config = load_config(None, settings)
    volume = Volume(tuple(channels), Grid(channels[0].shape, SPACING), name)
    result = Pipeline.from_config(config)(volume).labels

    assert result.shape == expected.shape
    assert len(np.unique(expected)) > 1
    assert (result != expected).mean() < 1e-4


@pytest.mark.parametrize(
    "name",
    ["regions", "transposed", *(pytest.param(name, marks=pytest.mark.long) for name in ("binary", "torch-modes"))],
)
def test_one_stage__with_probabilities__equals_nnunet(name: str, model_folder: Callable[..., Path]) -> None:
    """Also outside of what nnU-Net crops to; labels are those that it gives when it keeps probabilities."""
    folder, image = model_folder(**CASES[name]), np.pad(blobs((18, 40, 36)), 2)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
    with contextlib.redirect_stdout(io.StringIO()):
        predictor.initialize_from_trained_model_folder(str(folder), ("all",), "checkpoint_final.pth")
        properties = {"spacing": list(SPACING)}
        labels, expected = predictor.predict_single_npy_array(
            image[None].astype(np.float32), properties, save_or_return_probabilities=True
        )

    config = load_config(None, ["mode=one-stage", f"fine.model={folder}", "fine.mirroring=false"])
    result = Pipeline.from_config(config)(Volume((image,), Grid(image.shape, SPACING), name), probabilities=True)

    assert result.probabilities is not None
    assert (result.probabilities.shape, result.probabilities.dtype) == (expected.shape, np.float32)
    np.testing.assert_allclose(result.probabilities, expected, atol=2e-3)
    assert (result.labels != labels).mean() < 1e-4


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("demo", marks=pytest.mark.long),
        *(pytest.param(f"{data}/{kind}", marks=pytest.mark.shared) for data in SHARED_CASES for kind in KINDS),
    ],
)
def test_one_stage__trained_model_on_a_crop__equals_nnunet(name: str) -> None:
    """Trained models on a crop of a real volume: the shipped ones always, others where ../shared is present."""
    if name == "demo":
        folder, image, crop = ASSETS / "fine", IMAGE, (slice(76, 104), slice(10, 130), slice(160, 290))
    else:
        data, _, kind = name.partition("/")
        folder = shared(f"models/{data}/nnUNetTrainer__smallPlans__{kind}")
        image = shared(f"data/{data}/imagesTs/{SHARED_CASES[data][0]}_0000.nii.gz")
        crop = SHARED_CASES[data][1]
    whole = read_volume([image])
    voxels = np.ascontiguousarray(whole.channels[0][crop])
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
    with contextlib.redirect_stdout(io.StringIO()):
        predictor.initialize_from_trained_model_folder(str(folder), ("all",), "checkpoint_final.pth")
        expected = predictor.predict_single_npy_array(
            voxels[None].astype(np.float32), {"spacing": list(whole.grid.spacing)}
        )

    config = load_config(None, ["mode=one-stage", f"fine.model={folder}", "fine.mirroring=false"])
    volume = Volume((voxels,), Grid(voxels.shape, whole.grid.spacing), name)
    result = Pipeline.from_config(config)(volume).labels

    assert expected.any()
    assert (result != expected).mean() < 1e-5


@pytest.mark.parametrize("name", ["binary", "regions", "transposed", "torch-resampling"])
def test_one_stage__cascade__equals_nnunets_two_stages(name: str, model_folder: Callable[..., Path]) -> None:
    """The second stage gets the first one's exported labels, resampled by nnU-Net's function, as in nnU-Net."""
    options = CASES[name]
    plain = {key: value for key, value in options.items() if key not in ("spacing", "patch")}
    coarse = model_folder(**plain, spacing=(4.0, 2.0, 1.5), seed=5)
    fine = model_folder(**options, cascade=True, seed=7)
    heed_labels(fine / "fold_all" / "checkpoint_final.pth")
    image = blobs((18, 40, 36))
    image[:, :3] = 0  # so that something is outside of the non-zero region
    image[:4, 3:9] = 0
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
    properties, voxels = {"spacing": list(SPACING)}, image[None].astype(np.float32)
    with contextlib.redirect_stdout(io.StringIO()):
        predictor.initialize_from_trained_model_folder(str(coarse), ("all",), "checkpoint_final.pth")
        first = predictor.predict_single_npy_array(voxels, properties)[None].astype(np.float32)
        predictor.initialize_from_trained_model_folder(str(fine), ("all",), "checkpoint_final.pth")
        expected = predictor.predict_single_npy_array(voxels, properties, first)
        ignoring = predictor.predict_single_npy_array(voxels, properties, np.zeros_like(first))

    settings = ["coarse.tile_step=0.5", "coarse.mirroring=false", "fine.mirroring=false", "fine.use_prior=true"]
    models = [f"coarse.model={coarse}", f"fine.model={fine}"]
    pipeline = Pipeline.from_config(load_config(None, ["mode=one-stage", *settings, *models]))
    volume = Volume((image,), Grid(image.shape, SPACING), name)
    result = pipeline(volume).labels
    assert (result != expected).mean() < 1e-4
    assert (expected != ignoring).mean() > 0.01

    alone = load_config(None, ["mode=one-stage", "fine.mirroring=false", "fine.use_prior=true", models[1]])
    with pytest.raises(ModelError, match="no coarse model"):
        Pipeline.from_config(alone)
    given = Pipeline.from_config(alone, previous=True)
    assert (given(volume, previous=first[0].astype(np.uint8)).labels != expected).mean() < 1e-4
    assert (given(volume, previous=np.zeros(image.shape, np.uint8)).labels != ignoring).mean() < 1e-4


def test_run__previous_labels_given__replace_the_coarse_ones_in_boxes(model_folder: Callable[..., Path]) -> None:
    """Boxes that hold everything get what a cascade gets of them in one-stage mode."""
    fine = model_folder(cascade=True, seed=7)
    heed_labels(fine / "fold_all" / "checkpoint_final.pth")
    models = [f"coarse.model={model_folder(spacing=(4.0, 2.0, 2.0), seed=5)}", f"fine.model={fine}"]
    settings = ["fine.use_prior=true", "fine.mirroring=false", *models]
    boxes = ["mode=two-stage", "rois.threshold=0", "rois.window=[99, 199, 199]"]
    image = blobs((12, 24, 24))
    volume = Volume((image,), Grid(image.shape, SPACING), "case")
    labels = np.zeros(image.shape, np.uint8)
    labels[3:9, 4:15, 5:20] = 1
    whole = Pipeline.from_config(load_config(None, ["mode=one-stage", *settings]))
    boxed = Pipeline.from_config(load_config(None, [*boxes, *settings]))
    expected = whole(volume, previous=labels).labels
    assert (boxed(volume, previous=labels).labels != expected).mean() < 0.01  # blended otherwise, as without a cascade
    assert (boxed(volume).labels != expected).mean() > 0.05


def test_one_stage__spacing_for_the_previous_stage__is_that_of_its_plans_for_the_run(
    model_folder: Callable[..., Path],
) -> None:
    """A coarse model with the spacing of the settings gives what one gives whose plans say so."""
    fine = model_folder(cascade=True, seed=7)
    heed_labels(fine / "fold_all" / "checkpoint_final.pth")
    image = blobs((12, 24, 24))
    volume = Volume((image,), Grid(image.shape, SPACING), "case")
    results = []
    for own, setting in (((4.0, 2.0, 2.0), "[3.0, 1.5, 2.5]"), ((3.0, 1.5, 2.5), "null"), ((4.0, 2.0, 2.0), "null")):
        names = [f"coarse.model={model_folder(spacing=own, seed=5)}", f"fine.model={fine}", f"coarse.spacing={setting}"]
        settings = ["mode=one-stage", "fine.use_prior=true", "coarse.mirroring=false", "fine.mirroring=false", *names]
        results.append(Pipeline.from_config(load_config(None, settings))(volume).labels)
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[1] != results[2]).mean() > 0.01


class Counting(TorchDispatchMode):
    """Counts the operations of PyTorch that run while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.name()] += 1
        return func(*args, **(kwargs or {}))


def test_one_stage__on_the_cpu__convolves_by_lean_layers_alone(model_folder: Callable[..., Path]) -> None:
    """Twice as fast as nnU-Net's own, which the model keeps: they give its labels, too (the tests above)."""
    pipeline = Pipeline.from_config(
        load_config(None, ["mode=one-stage", "fine.mirroring=false", f"fine.model={model_folder()}"])
    )
    image = blobs((12, 24, 24))
    with Counting() as lean:
        pipeline(Volume((image,), Grid(image.shape, SPACING), "case"))
    with Counting() as plain:
        pipeline.fine.forward(torch.zeros(1, 1, *pipeline.fine.patch), mirroring=False)
    assert lean.seen["mkldnn::_convolution_pointwise"] > 0
    assert not any(name.startswith("aten::conv") for name in lean.seen)
    assert any(name.startswith("aten::conv") for name in plain.seen)


def test_one_stage__somebody_watches__is_told_of_every_tile(model_folder: Callable[..., Path]) -> None:
    """And how many there are, from the first one on."""
    steps: list[tuple[str, int, int]] = []
    pipeline = Pipeline.from_config(load_config(None, ["mode=one-stage", f"fine.model={model_folder()}"]))
    image = blobs((10, 24, 24)) + 1
    pipeline(Volume((image,), Grid(image.shape, (2.0, 1.0, 1.0)), "case"), Run(progress=lambda *s: steps.append(s)))
    assert steps == [("fine", tile, 8) for tile in range(1, 9)]


def test_one_stage__trainer_with_batch_norm__runs_the_network_it_built(model_folder: Callable[..., Path]) -> None:
    """A trainer that changes the network of the plans (batch instead of instance norms) runs as by nnU-Net."""
    folder = model_folder(norm=nn.BatchNorm3d, trainer="nnUNetTrainerBN", seed=2)
    image = blobs((18, 40, 36))
    model = load_model(folder)
    assert any(isinstance(layer, nn.BatchNorm3d) for layer in model.networks[0].modules())
    predictor = nnunet_predictor(model, tile_step=0.5, mirroring=False)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = predictor.predict_single_npy_array(image[None].astype(np.float32), {"spacing": list(SPACING)})
    config = load_config(None, ["mode=one-stage", f"fine.model={folder}", "fine.mirroring=false"])
    result = Pipeline.from_config(config)(Volume((image,), Grid(image.shape, SPACING), "case")).labels
    assert (result != expected).mean() < 1e-4
    assert len(np.unique(expected)) > 1


def test_one_stage__outputs_beyond_half_precision__stop_as_in_nnunet(model_folder: Callable[..., Path]) -> None:
    """Sums that overflow are no labels; with intensities like those of training, as the message says, it runs."""
    # An instance norm would take out what is wrong with the intensities.
    folder = model_folder(scheme="NoNormalization", norm=nn.BatchNorm3d, trainer="nnUNetTrainerBN")
    image = blobs((18, 40, 36)).astype(np.float32)
    wild = image * 1e7
    predictor = nnunet_predictor(load_model(folder), tile_step=0.5, mirroring=False)
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(RuntimeError, match="inf"):
        predictor.predict_single_npy_array(wild[None], {"spacing": list(SPACING)})
    pipeline = Pipeline.from_config(
        load_config(None, ["mode=one-stage", f"fine.model={folder}", "fine.mirroring=false"])
    )
    with pytest.raises(ModelError, match="too large for the half precision") as error:
        pipeline(Volume((wild,), Grid(image.shape, SPACING), "case"))
    assert "the intensities of the volume" in str(error.value)
    assert pipeline(Volume((image,), Grid(image.shape, SPACING), "case")).labels.shape == image.shape


@pytest.mark.long
def test_one_stage__mirroring_off__differs_from_mirroring_on(model_folder: Callable[..., Path]) -> None:
    """Mirroring reaches the network: without it the labels differ."""
    folder = model_folder()
    image = blobs((18, 40, 36))
    volume = Volume((image,), Grid(image.shape, SPACING), "case")
    on, off = (
        Pipeline.from_config(load_config(None, ["mode=one-stage", f"fine.model={folder}", f"fine.mirroring={value}"]))(
            volume
        ).labels
        for value in ("true", "false")
    )
    assert (on != off).any()
