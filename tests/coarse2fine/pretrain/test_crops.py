"""Crops of prepared volumes."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs
from raw_data import save_volume
from scipy.stats import chisquare

from canvas import Box
from coarse2fine.errors import VolumeError
from coarse2fine.io import read_volume
from coarse2fine.nnunet.loading import load_plans
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.pretrain.crops import Crops, Volumes, find_images, random_start


@pytest.fixture(scope="module")
def model(model_folder: Callable[..., Path]) -> Model:
    return load_plans(model_folder(transpose=(1, 0, 2)) / "plans.json", "3d_fullres")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_open__any_format__gives_what_inference_sees(model: Model, tmp_path: Path, suffix: str) -> None:
    """Turned, cropped, normalised and resampled, slab by slab: every crop is a part of the same view."""
    path = save_volume(tmp_path / "images" / f"a{suffix}", blobs((40, 20, 30)), (1.5, 3.0, 1.0))
    crops = Volumes(find_images(tmp_path / "images", model), model, model.patch).open(tmp_path)
    view = view_volume(read_volume([path], [model.reader]), model)
    assert view.turn.axes == (1, 0, 2)
    whole = view.read(Box.whole(view.shape))
    assert crops.volumes[0].shape == whole.shape
    assert np.allclose(crops.volumes[0], whole, atol=1e-5)
    for crop in crops.draw(3, np.random.default_rng(0))["images"].numpy():
        windows = np.lib.stride_tricks.sliding_window_view(crops.volumes[0], crop.shape)
        assert (windows == crop).all(axis=(-1, -2, -3, -4)).any()


def test_draw__volume_smaller_than_the_patch__lies_in_the_middle_of_zeros() -> None:
    """As nnU-Net pads; along the other axes crops differ."""
    volume = np.random.default_rng(0).normal(size=(2, 5, 30, 8)).astype(np.float32)
    crops = Crops((volume,), (8, 8, 8))
    batch = crops.draw(4, np.random.default_rng(1))["images"].numpy()
    assert batch.shape == (4, 2, 8, 8, 8)
    assert (batch[:, :, :2] == 0).all()
    assert (batch[:, :, 7:] == 0).all()
    assert (batch[:, :, 2:7] != 0).all()
    assert len({crop.tobytes() for crop in batch}) > 1


@pytest.mark.parametrize(("sigma", "floor"), [(inf, 0.1), (0.3, 0.1)])
def test_random_start__many_draws__have_the_density_of_their_centres(sigma: float, floor: float) -> None:
    """Chi-square of seeded draws; uniform for an infinite sigma, along the axis of the volume that leaves a choice."""
    shape, patch, draws = (12, 4), (4, 8), 4000
    generator = np.random.default_rng(0)
    starts = np.array([random_start(shape, patch, sigma, generator) for _ in range(draws)])
    assert (starts[:, 1] == -2).all()
    centres = (2 * np.arange(9) + 4) / 12 - 1
    density = floor + (1 - floor) * np.exp(-(centres**2) / (2 * sigma**2))
    counts = np.bincount(starts[:, 0], minlength=9)
    assert chisquare(counts, density / density.sum() * draws).pvalue > 0.01
    assert (chisquare(counts).pvalue > 0.01) == (sigma == inf)


def test_find_images__raw_data__are_those_to_train_on(model: Model, tmp_path: Path) -> None:
    """Nothing is learned from imagesTs."""
    save_volume(tmp_path / "imagesTr" / "a_0000.nii.gz", blobs((8, 8, 8)))
    save_volume(tmp_path / "imagesTs" / "b_0000.nii.gz", blobs((8, 8, 8)))
    assert [case.name for case in find_images(tmp_path, model)] == ["a"]


def test_find_images__nothing_that_is_a_volume__is_refused(model: Model, tmp_path: Path) -> None:
    """An empty folder, one that is not there, and channels that the plans do not have."""
    with pytest.raises(VolumeError, match="holds no volume"):
        find_images(tmp_path, model)
    with pytest.raises(VolumeError, match="does not exist"):
        find_images(tmp_path / "none", model)
    save_volume(tmp_path / "a_0000.nii.gz", blobs((8, 8, 8)))
    assert len(find_images(tmp_path, model)) == 1
    save_volume(tmp_path / "b_0000.nii.gz", blobs((8, 8, 8)))
    save_volume(tmp_path / "b_0001.nii.gz", blobs((8, 8, 8)))
    with pytest.raises(VolumeError, match="case b: its files do not match the 1 channel"):
        find_images(tmp_path, model)
