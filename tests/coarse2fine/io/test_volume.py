"""Grids of volumes and of their parts."""

import numpy as np
import pytest
import SimpleITK as sitk

from canvas import Box
from coarse2fine.io import Grid

TURN = (0.8, -0.6, 0.0, 0.0, 0.0, -1.0, 0.6, 0.8, 0.0)
BOX = Box((2, 1, 3), (6, 9, 5))


@pytest.mark.parametrize("direction", [None, TURN])
def test_part__box_of_a_grid__lies_where_simpleitk_cuts_it(direction: tuple[float, ...] | None) -> None:
    """Place, shape and spacing of a cut are those of SimpleITK's, also along turned axes."""
    grid = Grid((7, 10, 6), (2.5, 0.7, 0.9), origin=(-340.125, 187.5, -166.25), direction=direction, nifti=b"whole")
    image = sitk.GetImageFromArray(np.zeros(grid.shape, np.uint8))
    image.SetSpacing(grid.spacing[::-1])
    image.SetOrigin(grid.origin[::-1])
    image.SetDirection(grid.cosines)
    z, y, x = BOX.slices
    cut, part = image[x, y, z], grid.part(BOX)
    assert part.shape == sitk.GetArrayViewFromImage(cut).shape
    assert (part.spacing, part.cosines) == (cut.GetSpacing()[::-1], cut.GetDirection())
    assert part.origin == pytest.approx(cut.GetOrigin()[::-1])
    assert part.nifti is None
