"""2D configurations: crops of slices and of pictures, as nnU-Net would see them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import blobs
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image
from raw_data import save_volume
from tiny_models import TinyModel, network_of

from coarse2fine.errors import ImageError, ModelError
from coarse2fine.nnunet.loading import load_plans, new_network
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain.crops import Volumes, find_images, find_slices
from coarse2fine.pretrain.table import find_pictures
from coarse2fine.pretrain.weights import NNUNET, write_weights

FLAT: dict[str, Any] = {"patch": (16, 24), "spacing": (1.5, 1.0)}


def flat_model(model_folder: Callable[..., Path], **options: Any) -> Model:
    return load_plans(model_folder(**FLAT | options) / "plans.json", "2d", flat=True)


def nnunets_own(model: Model, image: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Preprocessed by nnU-Net; shape (channels, z, y, x)."""
    manager = PlansManager(dict(model.plans))
    dataset = {"labels": {"background": 0, "a": 1}}
    found, _, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        image.astype(np.float32), None, {"spacing": list(spacing)}, manager, manager.get_configuration("2d"), dataset
    )
    return np.asarray(found)


def is_part_of(crop: np.ndarray, volume: np.ndarray) -> bool:
    """Whether a crop (channels, y, x) is somewhere in a slice."""
    windows = np.lib.stride_tricks.sliding_window_view(volume, (len(volume), 1, *crop.shape[1:]))
    return bool(np.isclose(windows[0, ..., 0, :, :], crop[0], atol=1e-3).all(axis=(-1, -2)).any())


def test_open__volumes_with_a_2d_configuration__slices_as_nnunet_sees_them(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Turned, normalised, resampled in the plane only; crops are parts of single slices."""
    model = flat_model(model_folder, transpose=(1, 0, 2), patch=(16, 16))
    image = blobs((40, 9, 30))
    save_volume(tmp_path / "images" / "a.nii.gz", image, (1.2, 3.0, 0.8))
    crops = Volumes(find_images(tmp_path / "images", model), model, model.patch[1:]).open(tmp_path)
    wanted = nnunets_own(model, image[None], (1.2, 3.0, 0.8))
    assert wanted.shape[1] > 1
    assert crops.volumes[0].shape == wanted.shape
    assert np.allclose(crops.volumes[0], wanted, atol=2e-4)
    batch = crops.draw(4, np.random.default_rng(0))["images"]
    assert batch.shape == (4, 1, 16, 16)
    assert all(is_part_of(crop.numpy(), wanted) for crop in batch)
    assert new_network(model, 1, 0)(batch).shape == batch.shape


@pytest.mark.parametrize("channels", [1, 3])
def test_open__pictures_with_a_2d_configuration__as_nnunets_reader_gives_them(
    channels: int, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Grey or in colours, each in its own size."""
    model = flat_model(model_folder, reader="NaturalImage2DIO", channels=channels, spacing=(1.0, 1.0))
    (tmp_path / "in" / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "more/b.png")):
        pixels = np.random.default_rng(number).integers(1, 255, (20 + number, 30, 3), np.uint8)
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(tmp_path / "in" / name)
    cases = find_slices(find_pictures(tmp_path / "in"))
    crops = Volumes(cases, model, model.patch[1:]).open(tmp_path)
    for case, volume in zip(cases, [crops.volumes[0], crops.volumes[1]], strict=True):
        image, properties = NaturalImage2DIO().read_images([str(case.files[0])])
        assert np.allclose(volume, nnunets_own(model, image, properties["spacing"]), atol=2e-4)
    assert crops.draw(2, np.random.default_rng(0))["images"].shape == (2, channels, 16, 24)


def test_open__picture_with_other_channels_than_the_plans__is_refused(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Converted to grey as the message says, it is taken; grey counts as three equal channels."""
    (tmp_path / "in").mkdir()
    grey = flat_model(model_folder, reader="NaturalImage2DIO", spacing=(1.0, 1.0))
    colour = flat_model(model_folder, reader="NaturalImage2DIO", spacing=(1.0, 1.0), channels=3)
    image = Image.fromarray(np.random.default_rng(0).integers(1, 255, (20, 30, 3), np.uint8))
    image.save(tmp_path / "in" / "a.png")
    cases = find_slices(find_pictures(tmp_path / "in"))
    with pytest.raises(ImageError, match=r"a\.png has 3 channels, the plans 1"):
        Volumes(cases, grey, (16, 24)).open(tmp_path)
    image.convert("L").save(tmp_path / "in" / "a.png")
    assert Volumes(cases, grey, (16, 24)).open(tmp_path).volumes[0].shape == (1, 1, 20, 30)
    volume = Volumes(cases, colour, (16, 24)).open(tmp_path / "in").volumes[0]
    assert np.array_equal(volume[0], volume[2])


def test_write_weights__2d_network__nnunets_loader_takes_every_tensor_but_those_of_segmentation(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Key by key."""
    model = flat_model(model_folder)
    network = new_network(model, 1, 3)
    write_weights(tmp_path, network)
    theirs = network_of(TinyModel(**FLAT, labels={"background": 0, "a": 1, "b": 2}), 0)
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    with contextlib.redirect_stdout(io.StringIO()):
        load_pretrained_weights(theirs, tmp_path / NNUNET)
    ours, after = network.state_dict(), theirs.state_dict()
    assert set(before) == set(ours)
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name] if ".seg_layers." in name else ours[name])


def test_load_plans__2d_configuration__only_where_slices_will_do(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Who segments volumes refuses it; plans that contradict themselves are refused by everybody."""
    path = model_folder(**FLAT) / "plans.json"
    model = load_plans(path, "2d", flat=True)
    assert (model.flat, model.patch, model.divisor, model.spacing) == (True, (1, 16, 24), (1, 4, 4), (0.0, 1.5, 1.0))
    with pytest.raises(ModelError, match="is a 2D model"):
        load_plans(path, "2d")
    plans = json.loads(path.read_text())
    configuration = plans["configurations"]["2d"]
    for change, says in (
        ({"spacing": [1.0, 1.0, 1.0]}, r"spacing is \(1"),
        ({"patch_size": [16, 18]}, "strides is"),
        ({"patch_size": [16, 0]}, "patch_size is"),
    ):
        plans["configurations"]["2d"] = configuration | change
        (tmp_path / "plans.json").write_text(json.dumps(plans))
        with pytest.raises(ModelError, match=says):
            load_plans(tmp_path / "plans.json", "2d", flat=True)
    configuration["architecture"]["arch_kwargs"]["conv_op"] = "torch.nn.modules.conv.Conv3d"
    plans["configurations"]["2d"] = configuration
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ModelError, match="conv_op is"):
        load_plans(tmp_path / "plans.json", "2d", flat=True)
