"""How coarsely to look."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest

from coarse2fine.coarse_training.plan import MOST_PATCH, Contents, look_at, plan_coarse
from coarse2fine.errors import VolumeError
from coarse2fine.io.volume import Grid, Volume
from coarse2fine.nnunet.loading import load_model


@pytest.mark.parametrize(
    ("diameter", "spacing"),
    [(2.0, (2.0, 2.0, 2.0)), (6.0, (3.0, 3.0, 3.0)), (100.0, (4.0, 4.0, 4.0))],
)
def test_plan_coarse__small_and_large_objects__lie_on_two_voxels_within_bounds(
    model_folder: Callable[..., Path], diameter: float, spacing: tuple[float, float, float]
) -> None:
    """The voxel follows the smallest objects, but is two to four of the fine model's shortest edges."""
    fine = load_model(model_folder(spacing=(1.5, 1.0, 1.0)))
    cases = [Contents((100.0, 200.0, 150.0), (diameter,) * 2)]

    plan = plan_coarse(cases, fine)

    assert plan.spacing == spacing
    assert prod(plan.patch) <= MOST_PATCH * 1.5  # rounded up to what the network can halve
    assert len(plan.features) == len(plan.strides) == len(plan.kernels) >= 3


def test_plan_coarse__thick_slices__keep_their_thickness(model_folder: Callable[..., Path]) -> None:
    """An axis on which the fine model sees coarsely anyway is left as it is, and halved later than others."""
    fine = load_model(model_folder(spacing=(45.0, 4.6, 4.6)))

    plan = plan_coarse([Contents((900.0, 4700.0, 1700.0), (300.0,))], fine)

    assert plan.spacing == (45.0, 18.4, 18.4)
    assert plan.strides[1] == (1, 2, 2)


def test_plan_coarse__nothing_to_find__is_refused(model_folder: Callable[..., Path]) -> None:
    """There is nothing to plan for."""
    with pytest.raises(VolumeError, match="no case has an object"):
        plan_coarse([Contents((10.0, 10.0, 10.0), ())], load_model(model_folder()))


def test_look_at__objects_of_two_labels__are_measured_apart(model_folder: Callable[..., Path]) -> None:
    """Touching objects of different labels are two, specks do not count, and sizes are those of the non-zero part."""
    fine = load_model(model_folder(labels={"background": 0, "a": 1, "b": 2}))
    image, labels = np.zeros((12, 20, 20), np.int16), np.zeros((12, 20, 20), np.uint8)
    image[1:11, 2:18, 3:19] = 50
    labels[2:6, 4:8, 4:8], labels[2:6, 4:8, 8:12], labels[9, 15, 15] = 1, 2, 1

    found = look_at(Volume((image,), Grid((12, 20, 20), (2.0, 1.0, 1.0)), "case"), labels, fine)

    assert found.size == (20.0, 16.0, 16.0)
    assert found.diameters == pytest.approx([(6 * 4 * 4 * 4 * 2 / np.pi) ** (1 / 3)] * 2)
