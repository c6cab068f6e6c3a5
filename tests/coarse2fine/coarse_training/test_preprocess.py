"""Cases as nnU-Net's loaders want them, beside what nnU-Net's own preprocessor makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from raw_data import save_volume

from coarse2fine.coarse_training.job import CONFIGURATION, PLANS
from coarse2fine.coarse_training.plan import coarse_plans, dataset_of, look_at, plan_coarse
from coarse2fine.coarse_training.preprocess import coarse_case, start_data, write_case
from coarse2fine.io import read_volume
from coarse2fine.nnunet.loading import load_model


@pytest.mark.parametrize("masked", [False, True])
def test_write_case__nnunets_own_loader__reads_what_its_preprocessor_makes(
    model_folder: Callable[..., Path], tmp_path: Path, masked: bool
) -> None:
    """The image, and the mask of what was zero, equal nnU-Net's; labels differ in that nothing small is lost."""
    fine = load_model(model_folder(spacing=(1.0, 1.0, 1.0), transpose=(1, 0, 2), masked=masked))
    voxels = blobs((20, 36, 32))
    voxels[:, 22:, :8] = 0
    image = save_volume(tmp_path / "case_0000.nii.gz", voxels, (1.0, 1.0, 2.0))
    labels = np.zeros((20, 36, 32), np.uint8)
    labels[5:12, 9:20, 9:17], labels[15, 30, 25] = 1, 1
    seg = save_volume(tmp_path / "case.nii.gz", labels, (1.0, 1.0, 2.0))
    volume = read_volume([image], [fine.reader])
    plan = plan_coarse([look_at(volume, labels, fine)], fine)
    plans, dataset, data = coarse_plans(plan, fine, "Dataset001_X"), dataset_of(fine, 1), tmp_path / "Dataset001_X"

    start_data(data, plans, dataset)
    write_case(data, "case", *coarse_case(volume, labels, fine, plan.spacing))

    folder = data / f"{PLANS}_{CONFIGURATION}"
    found, target, _, properties = infer_dataset_class(str(folder))(str(folder)).load_case("case")
    manager = PlansManager(json.loads((data / "plans.json").read_text()))
    expected, theirs, _ = DefaultPreprocessor(verbose=False).run_case(
        [str(image)], str(seg), manager, manager.get_configuration(CONFIGURATION), dict(dataset)
    )
    found, target = found[:], target[:]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-3
    assert set(np.unique(target)) == ({-1, 0, 1} if masked else {0, 1})
    theirs = theirs if masked else np.maximum(theirs, 0)
    assert ((target < 0) != (theirs < 0)).mean() < 0.05  # it takes the nearest voxel for the whole
    assert (target == 1).sum() > (theirs == 1).sum()
    assert len(properties["class_locations"][1]) == (target == 1).sum()
