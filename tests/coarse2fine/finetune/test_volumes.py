"""Labelled volumes: on the working grid, held out, and refused where they do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import blobs
from raw_data import save_case, save_volume
from scipy import ndimage

from coarse2fine.errors import C2FError
from coarse2fine.finetune.run import Settings
from coarse2fine.finetune.volumes import choose_volumes, load_volumes, prepare_labelled, resize_labels
from coarse2fine.nnunet.loading import load_plans, with_labels
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.schedule import Schedule

SHAPE = (12, 24, 24)
LABELS = {"background": 0, "x": 1, "y": 2}


def image_of(name: str) -> np.ndarray:
    """Without zeros, which would be cropped."""
    return blobs(SHAPE, seed=ord(name)) + 200


def labels_of(image: np.ndarray) -> np.ndarray:
    """Bright, brighter."""
    return np.digitize(image, np.quantile(image, (0.6, 0.9)))


def dataset(folder: Path, **changes: Any) -> Path:
    """Write a description of the data."""
    document = {"labels": LABELS, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz", **changes}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder / "dataset.json"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Four volumes without a test set."""
    for name in "abcd":
        save_case(tmp_path / "raw", "Tr", name, image_of(name), labels_of(image_of(name)))
    dataset(tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def model(model_folder: Callable[..., Path], raw: Path) -> Model:
    return with_labels(load_plans(model_folder() / "plans.json", "3d_fullres"), raw / "dataset.json")


def settings(**changes: Any) -> Settings:
    return Settings(Schedule(1, 1), **changes)


def test_load_volumes__raw_data__image_and_labels_lie_on_each_other(raw: Path, model: Model, tmp_path: Path) -> None:
    """With voxels as the plans have them nothing is resampled; a quarter is held out, half of the rest is used."""
    chosen = choose_volumes(raw, model, settings(share=0.67, test_share=0.25))
    data = load_volumes(chosen, (8, 16, 16), settings(share=0.67), tmp_path / "work")
    assert (len(data.train), len(data.test)) == (2, 1)
    assert data.task.classes == ("background", "x", "y")
    for part in (data.train, data.test):
        for name, image, target in zip(part.names, part.images, part.targets, strict=True):
            voxels = image_of(name)
            assert np.array_equal(target, labels_of(voxels))
            assert np.corrcoef(image[0].ravel(), voxels.ravel())[0, 1] == pytest.approx(1, abs=1e-5)


def test_prepare_labelled__empty_border__is_cropped_from_labels_as_from_the_image(
    raw: Path, model: Model, tmp_path: Path
) -> None:
    """What is zero all around is not part of the working grid."""
    inside = (slice(2, 10), slice(3, 20), slice(0, 22))
    image = np.zeros(SHAPE, np.int16)
    image[inside] = image_of("a")[inside]
    save_case(raw, "Tr", "a", image, labels_of(image_of("a")))
    chosen = choose_volumes(raw, model, settings(test_share=0.25))
    volume = next(one for one in (*chosen.train, *chosen.test) if one.name == "a")
    _, target = prepare_labelled(volume, model, tmp_path / "work")
    assert np.array_equal(target, labels_of(image_of("a"))[inside])


def test_choose_volumes__a_test_set__is_what_is_tested_on(raw: Path, model: Model) -> None:
    """And everything else is learned from."""
    save_case(raw, "Ts", "e", image_of("e"), np.zeros(SHAPE))
    chosen = choose_volumes(raw, model, settings())
    assert [one.name for one in chosen.train] == list("abcd")
    assert [one.name for one in chosen.test] == ["e"]


def test_prepare_labelled__other_voxels__labels_follow_the_image(
    model_folder: Callable[..., Path], raw: Path, tmp_path: Path
) -> None:
    """On a grid twice as coarse the foreground still lies where the image is bright."""
    plans = load_plans(model_folder(spacing=(2.0, 2.0, 2.0)) / "plans.json", "3d_fullres")
    known = with_labels(plans, raw / "dataset.json")
    chosen = choose_volumes(raw, known, settings(test_share=0.25))
    data = load_volumes(chosen, (8, 16, 16), settings(), tmp_path / "work")
    image, target = data.train.images[0], data.train.targets[0]
    assert image.shape[1:] == target.shape == (12, 12, 12)
    assert image[0][target == 2].mean() > image[0][target == 1].mean() > image[0][target == 0].mean()


def test_resize_labels__smooth_shapes__is_what_scipy_makes_of_each_class() -> None:
    """Up and down along different axes; the same shape changes nothing."""
    labels = np.digitize(ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(9, 20, 24)), 3), (-0.02, 0.02))
    assert np.array_equal(resize_labels(labels, labels.shape, 3), labels)
    shape = (18, 10, 24)
    zoom = np.divide(shape, labels.shape)
    masks = [(labels == one).astype(float) for one in range(3)]
    shares = np.stack([ndimage.zoom(mask, zoom, order=1, grid_mode=True, mode="nearest") for mask in masks])
    clear = np.diff(np.sort(shares, 0), axis=0)[-1] > 1e-3  # else two classes have the same share
    assert clear.mean() > 0.8
    assert np.array_equal(resize_labels(labels, shape, 3)[clear], shares.argmax(0)[clear])


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"background": 0, "all": [1, 2], "y": 2}, "regions_class_order": [1, 2]},
        {"labels": {**LABELS, "ignore": 3}},
    ],
    ids=["regions", "ignore"],
)
def test_choose_volumes__labels_that_overlap_or_are_unknown__are_left_to_nnunet(
    raw: Path, model: Model, changes: dict[str, Any]
) -> None:
    """With plain labels it goes."""
    other = with_labels(model, dataset(raw, **changes))
    with pytest.raises(C2FError, match="has regions or the label ignore"):
        choose_volumes(raw, other, settings())
    assert choose_volumes(raw, with_labels(model, dataset(raw)), settings())


def test_choose_volumes__something_missing__is_named_and_added_it_goes(raw: Path, model: Model) -> None:
    """Labels of a case, a folder, and channels that the plans do not have."""
    save_volume(raw / "imagesTr" / "e_0000.nii.gz", image_of("e"))
    with pytest.raises(C2FError, match="case e has no labels"):
        choose_volumes(raw, model, settings())
    save_volume(raw / "labelsTr" / "e.nii.gz", np.zeros(SHAPE, np.uint8))
    assert len(choose_volumes(raw, model, settings()).train) == 4
    with pytest.raises(C2FError, match="imagesTr does not exist"):
        choose_volumes(raw.parent, model, settings())
    with pytest.raises(C2FError, match=r"names 2 channel\(s\), the plans have 1"):
        with_labels(model, dataset(raw, channel_names={"0": "T1", "1": "T2"}))
