"""Volumes in stores, read crop by crop."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from conftest import blobs
from raw_data import save_volume

from canvas import Box
from coarse2fine.cli.pretrain import main
from coarse2fine.errors import VolumeError
from coarse2fine.io import LazyArray
from coarse2fine.nnunet.loading import load_plans
from coarse2fine.nnunet.model import Model
from coarse2fine.pretrain import stores
from coarse2fine.pretrain.crops import Volumes, find_images

SPACING = (2.5, 1.2, 1.0)


@pytest.fixture(scope="module")
def model(model_folder: Callable[..., Path]) -> Model:
    return load_plans(model_folder() / "plans.json", "3d_fullres")


def write_store(folder: Path, image: np.ndarray, spacing: tuple[float, ...] | None = SPACING) -> Path:
    """OME-NGFF 0.4, written by zarr-python, or a bare array if there is no spacing."""
    if spacing is None:
        zarr.create_array(folder, data=image, chunks=(7, 10, 9), zarr_format=2)
        return folder
    group = zarr.open_group(folder, mode="w", zarr_format=2)
    group.create_array("0", data=image, chunks=(7, 10, 9))
    axes = [{"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": list(spacing)}]}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return folder


@pytest.mark.parametrize("axes", [3, 2])
def test_open__store__crops_are_those_of_the_same_volume_in_a_file(
    axes: int, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """In 3D and as slices; statistics are taken in parts that are smaller than the volume."""
    flat: dict[str, Any] = {"patch": (16, 16), "spacing": (1.0, 1.0)}
    name, options = ("2d", flat) if axes == 2 else ("3d_fullres", {})
    model = load_plans(model_folder(**options, transpose=(1, 0, 2)) / "plans.json", name, flat=True)
    image = blobs((20, 40, 33))
    save_volume(tmp_path / "files" / "a.nii.gz", image, SPACING)
    write_store(tmp_path / "stores" / "a.zarr", image)
    patch = model.patch[3 - axes :]
    with pytest.MonkeyPatch.context() as context:
        context.setattr(stores, "_MOST", 16)
        sources = [
            Volumes(find_images(tmp_path / where, model), model, patch).open(tmp_path / where)
            for where in ("files", "stores")
        ]
    assert sources[0].volumes[0].shape == sources[1].volumes[0].shape
    batches = [source.draw(5, np.random.default_rng(0))["images"].numpy() for source in sources]
    assert np.allclose(*batches, atol=1e-4)


def test_open__store__only_crops_are_read_when_its_statistics_are_known(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill: what was scanned is not scanned again."""
    write_store(tmp_path / "a.zarr", blobs((20, 40, 33)))
    data = Volumes(find_images(tmp_path / "a.zarr", model), model, model.patch)
    first = data.open(tmp_path).draw(1, np.random.default_rng(0))["images"]
    reads: list[int] = []
    read = LazyArray.__getitem__

    def counting(array: LazyArray, key: Any) -> Any:
        voxels = read(array, key)
        reads.append(voxels.size)
        return voxels

    monkeypatch.setattr(LazyArray, "__getitem__", counting)
    again = data.open(tmp_path)
    assert not reads
    assert np.array_equal(again.draw(1, np.random.default_rng(0))["images"], first)
    assert 0 < sum(reads) < 20 * 40 * 33 / 2


def test_find_images__stores_and_files__are_both_found(model: Model, tmp_path: Path) -> None:
    """A folder of stores, one with files beside them, and a single store; never a hidden one."""
    image = blobs((20, 40, 33))
    write_store(tmp_path / "b.zarr", image)
    write_store(tmp_path / ".c.zarr", image)
    assert [case.name for case in find_images(tmp_path, model)] == ["b.zarr"]
    save_volume(tmp_path / "a.nii.gz", image, SPACING)
    assert [case.name for case in find_images(tmp_path, model)] == ["b.zarr", "a"]
    assert [case.name for case in find_images(tmp_path / "b.zarr", model)] == ["b.zarr"]


def test_open__store_with_more_channels_than_the_plans__one_of_them_will_do(model: Model, tmp_path: Path) -> None:
    """As the message says; a model that normalises within a mask needs the whole volume."""
    pair = np.stack([blobs((20, 40, 33)), blobs((20, 40, 33), seed=1)])
    zarr.create_array(tmp_path / "a.zarr", data=pair, chunks=(1, 7, 10, 9), zarr_format=2)
    said: dict[str, Any] = {"axes": "czyx", "spacing": SPACING, "unit": "mm"}
    cases = find_images(tmp_path / "a.zarr", model)
    with pytest.raises(VolumeError, match=r"a\.zarr has 2 channel\(s\), the plans 1") as raised:
        Volumes(cases, model, model.patch, said=said).open(tmp_path)
    assert "--channel" in raised.value.remedy
    crops = Volumes(cases, model, model.patch, said=said | {"channel": 1}).open(tmp_path)
    wanted = stores.open_stored(cases[0], model, said | {"channel": 1}, tmp_path / "0.json").view
    whole = wanted.read(Box.whole(wanted.shape))
    assert np.allclose(crops.volumes[0][(slice(None), *Box.whole(wanted.shape).slices)], whole)


def test_open__store_and_plans_that_normalise_within_a_mask__is_refused(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The same volume in a file, as the message says, is taken."""
    model = load_plans(model_folder(masked=True) / "plans.json", "3d_fullres")
    write_store(tmp_path / "a.zarr", blobs((20, 40, 33)))
    with pytest.raises(VolumeError, match="use_mask_for_norm") as raised:
        Volumes(find_images(tmp_path / "a.zarr", model), model, model.patch).open(tmp_path)
    assert "NIfTI" in raised.value.remedy
    save_volume(tmp_path / "files" / "a.nii.gz", blobs((20, 40, 33)), SPACING)
    Volumes(find_images(tmp_path / "files", model), model, model.patch).open(tmp_path)


def test_main__store_without_spacing__is_refused_until_it_is_given(
    model_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the options that the message names; of volumes in files they have no meaning."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    write_store(tmp_path / "in" / "a.zarr", blobs((20, 40, 33)), None)
    words = ["--plans", str(model_folder() / "plans.json"), "-o", str(tmp_path / "out"), "--block", "4"]
    words += ["--steps", "2", "--batch", "1", "--device", "cpu", "--rate", "1e-3"]
    assert main([*words, "--images", str(tmp_path / "in")]) == 1
    told = capsys.readouterr().err
    assert "does not say its spacing" in told
    assert "--spacing, --unit" in told
    assert not (tmp_path / "out").exists()
    given = ["--spacing", "2.5", "1.2", "1", "--unit", "mm"]
    assert main([*words, "--images", str(tmp_path / "in"), *given]) == 0
    card = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert card["stores"][0]["spacing"] == list(SPACING)
    save_volume(tmp_path / "files" / "a.nii.gz", blobs((20, 40, 33)), SPACING)
    assert main([*words, "--images", str(tmp_path / "files"), *given]) == 1
    assert "--spacing has no meaning here, but for stores" in capsys.readouterr().err
