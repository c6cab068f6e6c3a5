"""Labels from files, in the voxel order of their image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from coarse2fine.io import read_volume
from coarse2fine.nnunet.loading import load_model
from coarse2fine.preprocessing.labels import read_labels


@pytest.mark.parametrize("name", ["SimpleITKIOWithReorient", "NibabelIOWithReorient"])
def test_read_labels__stored_otherwise_than_their_image__are_turned_as_nnunet_does(
    tmp_path: Path, name: str, model_folder: Callable[..., Path]
) -> None:
    """Where the model's reader turns images and labels, each is turned by its own header."""
    truth = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 2, (4, 5, 6)).astype(np.uint8), np.eye(4))
    for code, file in (("PIL", "image.nii.gz"), ("LAS", "labels.nii.gz")):
        turn = ornt_transform(io_orientation(np.eye(4)), axcodes2ornt(code))
        nibabel.save(truth.as_reoriented(turn), tmp_path / file)
    image = read_volume([tmp_path / "image.nii.gz"])
    labels = read_labels(tmp_path / "labels.nii.gz", load_model(model_folder(reader=name)), image)
    np.testing.assert_array_equal(labels, image.channels[0])
