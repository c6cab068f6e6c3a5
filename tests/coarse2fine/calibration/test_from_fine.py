"""The fine model as the coarse one: how coarsely it looks, and on which cases that is chosen."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import blobs

from coarse2fine.calibration.cases import CalibrationCase
from coarse2fine.calibration.from_fine import coarse_from_fine
from coarse2fine.calibration.measure import measure
from coarse2fine.config.reader import load_config
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import Pipeline

SHAPE = (12, 28, 28)


def save(path: Path, array: np.ndarray) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 2.0))
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture(scope="module")
def fine(model_folder: Callable[..., Path]) -> Model:
    return load_model(model_folder(seed=10))  # of 2 x 1 x 1 mm


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[CalibrationCase]:
    folder, found = tmp_path_factory.mktemp("cases"), []
    for index in range(5):
        image = blobs(SHAPE, seed=index)
        truth = (np.random.default_rng(index).random(SHAPE) < 0.05) & (image != 0)
        files = save(folder / f"i{index}.nii", image), save(folder / f"l{index}.nii", truth.astype(np.uint8))
        found.append(CalibrationCase(f"c{index}", files[:1], files[1]))
    return found


@pytest.mark.long
def test_coarse_from_fine__cases_to_spare__takes_the_cheapest_look_that_keeps_the_promise(
    fine: Model, cases: list[CalibrationCase], tmp_path: Path
) -> None:
    """Measured on two of five cases, which are named; what is taken segments, with the one model in both places."""
    config = load_config(None, ["fine.mirroring=false", "fine.grow=0", "canvas.norm=canvas"])
    found = coarse_from_fine(config, fine, cases, tmp_path, 0.2)
    assert found.tuning == ("c1", "c3")
    assert [look.spacing for look in found.looks] == [(2, 2, 2), (3, 3, 3), (4, 4, 4)]
    kept = [look for look in found.looks if look.limit > -inf]
    best = min(kept, key=lambda look: look.cost)
    assert found.config.coarse.spacing == best.spacing
    assert found.config.rois.margin == tuple(np.ceil(np.array(best.spacing) / (2, 1, 1)).astype(int))
    tuned = [case for case in cases if case.name in found.tuning]
    (tmp_path / "again").mkdir()
    limits = [measure(case, found.config, fine, fine, tmp_path / "again") for case in tuned]
    assert min(one.limit(0.2) for one in limits if one) == best.limit
    result = Pipeline(found.config, fine, fine)(cases[0].read(fine))
    assert result.labels.shape == SHAPE
    assert result.report.boxes.selected


def test_coarse_from_fine__no_look_keeps_the_promise__takes_the_finest(
    fine: Model, cases: list[CalibrationCase], tmp_path: Path
) -> None:
    """Calibration then says that the coarse model is the limit."""
    config = load_config(None, ["rois.margin=[0, 0, 0]", "rois.min_voxels=100000"])
    found = coarse_from_fine(config, fine, cases, tmp_path, 0.01)
    assert [look.limit for look in found.looks] == [-inf] * 3
    assert [look.to_dict()["limit"] for look in found.looks] == [None] * 3
    assert found.config.coarse.spacing == (2, 2, 2)


def test_coarse_from_fine__few_cases_or_a_given_spacing__chooses_by_none(
    fine: Model, cases: list[CalibrationCase], tmp_path: Path
) -> None:
    """All cases are left for the promise; anisotropic voxels grow on the finer axes first."""
    found = coarse_from_fine(load_config(None, []), fine, cases[:3], tmp_path, 0.01)
    assert (found.tuning, found.looks, found.config.coarse.spacing) == ((), (), (2, 2, 2))
    given = load_config(None, ["coarse.spacing=[2, 4, 4]", "coarse.patch_size=[8, 8, 8]"])
    found = coarse_from_fine(given, fine, cases, tmp_path, 0.01)
    assert (found.tuning, found.config.coarse) == ((), given.coarse)
    assert not list(tmp_path.iterdir())


def test_coarse_from_fine__ct__looks_inside_of_the_body(
    model_folder: Callable[..., Path], cases: list[CalibrationCase], tmp_path: Path
) -> None:
    """Unless the settings say otherwise."""
    fine = load_model(model_folder(seed=10, scheme="CTNormalization"))
    found = coarse_from_fine(load_config(None, []), fine, cases[:3], tmp_path, 0.01)
    assert found.config.coarse.body_crop is not None
    kept = coarse_from_fine(load_config(None, ["coarse.body_crop=null"]), fine, cases[:3], tmp_path, 0.01)
    assert kept.config.coarse.body_crop is None
