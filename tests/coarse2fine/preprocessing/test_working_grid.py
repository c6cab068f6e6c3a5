"""Normalisation and cropping on demand against nnU-Net's preprocessor on the whole volume."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nnunetv2
import numpy as np
import pytest
from conftest import blobs
from large_volumes import lazy_volume, scan_of
from nnunetv2.preprocessing.normalization.default_normalization_schemes import RGBTo01Normalization
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from canvas import Box
from coarse2fine.errors import VolumeError
from coarse2fine.io import Grid, Volume
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import nnunet_predictor
from coarse2fine.nnunet.plans import trainer_doubts
from coarse2fine.preprocessing.statistics import join_scans, scan_part
from coarse2fine.preprocessing.working_grid import open_view, spacing_doubts, volume_doubts

SPACING = (2.5, 0.8, 1.3)


OPTIONS: list[dict[str, Any]] = [
    {"scheme": "ZScoreNormalization"},
    {"scheme": "ZScoreNormalization", "masked": True},
    {"scheme": "CTNormalization"},
    {"scheme": "RescaleTo01Normalization"},
    {"scheme": "NoNormalization"},
    {"transpose": (2, 0, 1)},
    {"spacing": (9.0, 1.0, 1.0)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_read__any_scheme__equals_nnunets_preprocessing(
    options: dict[str, Any], model_folder: Callable[..., Path]
) -> None:
    """Every box has the values that nnU-Net's preprocessor gives the whole volume there."""
    model = load_model(model_folder(**options))
    image = blobs((20, 44, 38))
    image[:9, :20, :12] = 0  # a corner that is not cropped away, but outside of the non-zero region
    predictor = nnunet_predictor(model, tile_step=0.5, mirroring=False)
    expected, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        image[None].astype(np.float32),
        None,
        {"spacing": list(SPACING)},
        predictor.plans_manager,
        predictor.configuration_manager,
        dict(model.dataset),
    )

    view = open_view([image], SPACING, model)
    box = Box((1, 5, 6), (4, 19, 15))

    assert view.shape == expected.shape[1:]
    assert [list(edge) for edge in zip(view.crop.start, view.crop.stop, strict=True)] == properties[
        "bbox_used_for_cropping"
    ]
    # nnU-Net sums its statistics in single precision, hence the tolerance.
    np.testing.assert_allclose(view.read(Box.whole(view.shape)), expected, atol=2e-4)
    np.testing.assert_allclose(view.read(box), expected[(slice(None), *box.slices)], atol=2e-4)


def test_read__box_outside_of_volume__is_padded_with_zero(model_folder: Callable[..., Path]) -> None:
    """What sticks out of the volume is 0, what lies inside is the volume."""
    model = load_model(model_folder())
    view = open_view([blobs((20, 44, 38))], SPACING, model)
    inside = Box.of((0, 0, 0), (4, 6, 5))
    padded = view.read(inside.grow((3, 2, 1)))
    np.testing.assert_array_equal(
        padded[:, 3:7, 2:8, 1:6], view.read(inside.grow((3, 2, 1)).clip(Box.whole(view.shape)))[:, :4, :6, :5]
    )
    assert (padded[:, :3] == 0).all()
    assert (padded[:, :, :2] == 0).all()


def test_open_view__wrong_number_of_channels__names_both_numbers(model_folder: Callable[..., Path]) -> None:
    """A two-channel model refuses a one-channel volume."""
    with pytest.raises(VolumeError, match=r"1 channel.*needs 2"):
        open_view([blobs((10, 20, 20))], SPACING, load_model(model_folder(channels=2)))


@pytest.mark.parametrize(
    "options", [*(options for options in OPTIONS if not options.get("masked")), {"spacing": (0.6, 3.0, 0.6)}], ids=str
)
def test_read__statistics_from_a_scan__equal_those_of_the_whole_volume(
    options: dict[str, Any], model_folder: Callable[..., Path]
) -> None:
    """A volume that is read by region is cropped, normalised and clipped as one in memory, and not read before."""
    model, image = load_model(model_folder(**options)), blobs((20, 44, 38))
    reads: list[Box] = []
    parts = [Box((0, 0, 0), (7, 44, 38)), Box((7, 0, 0), (20, 20, 38)), Box((7, 20, 0), (20, 44, 38))]
    scan = join_scans([scan_part([image[part.slices]], part.start, (0, 1, 2)) for part in parts], image.shape)
    whole = open_view([image], SPACING, model)
    view = open_view(lazy_volume(image, SPACING, reads).channels, SPACING, model, scan=scan)
    assert not reads
    assert (view.crop, view.shape, view.full) == (whole.crop, whole.shape, whole.full)
    for found, expected in zip(view.bounds[0], whole.bounds[0], strict=True):
        if whole.resampling.overshoots:
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    box = Box.whole(view.shape)
    np.testing.assert_allclose(view.read(box), whole.read(box), atol=1e-5)


def test_open_view__masked_normalisation_of_a_scan__is_refused(model_folder: Callable[..., Path]) -> None:
    """The mask is that of the whole volume."""
    image, model = blobs((10, 20, 20)), load_model(model_folder(masked=True))
    with pytest.raises(VolumeError, match="use_mask_for_norm"):
        open_view([image], SPACING, model, scan=join_scans([scan_part([image], (0, 0, 0), ())], image.shape))


@pytest.mark.parametrize("options", [{}, {"transpose": (2, 0, 1)}, {"spacing": SPACING}], ids=str)
def test_within__part_of_the_grid__reads_the_same_voxels(
    options: dict[str, Any], model_folder: Callable[..., Path]
) -> None:
    """Boxes count from the window's start; around it lies what lies there in the volume, and 0 outside of that."""
    view = open_view([blobs((20, 44, 38))], SPACING, load_model(model_folder(**options)))
    window = Box((2, 3, 4), tuple(edge - 1 for edge in view.shape))
    part = view.within(window)
    assert part.shape == window.shape
    for box in (Box.whole(part.shape), Box((1, 2, 3), (4, 6, 5)), Box((-4, -2, -9), (3, 2, 4))):
        np.testing.assert_array_equal(part.read(box), view.read(box.shift(window.start)))
        np.testing.assert_array_equal(part.read(box, (4, 4, 4)), view.read(box.shift(window.start), (4, 4, 4)))


def test_spacing_doubts__other_unit__is_named_and_small_differences_are_not(model_folder: Callable[..., Path]) -> None:
    """Micrometres given as millimetres are far off; axes are the file's."""
    model = load_model(model_folder(spacing=(2.0, 1.0, 1.0), transpose=(1, 2, 0)))
    assert spacing_doubts((1.0, 2.0, 1.0), "mm", model) == ()
    assert spacing_doubts((3.9, 0.6, 1.0), "mm", model) == ()
    (doubt,) = spacing_doubts((1.0, 2.0, 0.1), "mm", model)
    assert "2 x 0.1 x 1 mm" in doubt
    assert "10 times" in doubt


@pytest.mark.parametrize("stored", [False, True])
def test_open_view__values_that_are_no_rgb__are_refused_as_in_nnunet(
    stored: bool, model_folder: Callable[..., Path]
) -> None:
    """nnU-Net's normalisation stops at values beyond 0 to 255; brought there, as the message says, the volume opens."""
    model = load_model(model_folder(scheme="RGBTo01Normalization"))
    image = blobs((12, 24, 24)).astype(np.int16)
    for wrong in (image - 1000, image + 1000):
        with pytest.raises(AssertionError, match="do not seem to be RGB"):
            RGBTo01Normalization(intensityproperties={}).run(wrong.copy())
        scan = scan_of(wrong) if stored else None
        with pytest.raises(VolumeError, match="0 to 255") as error:
            open_view([lazy_volume(wrong).channels[0] if stored else wrong], SPACING, model, scan=scan)
        assert "Bring the volume to 0 to 255" in error.value.remedy
        open_view([np.clip(wrong, 0, 255)], SPACING, model)


def test_trainer_doubts__any_trainer_of_nnunet__is_known() -> None:
    """Of nnU-Net's own trainers those that take networks from plans raise no doubt; others do, by name."""
    folder = Path(nnunetv2.__path__[0]) / "training"
    names = {
        name
        for file in folder.rglob("*.py")
        if "primus" not in file.name
        for name in re.findall(r"^class (nnUNetTrainer\w*)", file.read_text(), re.MULTILINE)
    }
    assert len(names) > 50
    assert not [name for name in names if trainer_doubts(Path("M"), name)]
    for other in ("nnUNetTrainerGELU", "MyTrainer", "nnUNetTrainerBNx"):
        (doubt,) = trainer_doubts(Path("M"), other)
        assert f"M was trained by '{other}'" in doubt


def test_volume_doubts__unknown_trainer__is_told(model_folder: Callable[..., Path]) -> None:
    """Whatever is run with such a model, in memory or from a store, its report says so."""
    known, unknown = (load_model(model_folder(trainer=name)) for name in ("nnUNetTrainer_100epochs", "MyTrainer"))
    volume = Volume((blobs((12, 24, 24)),), Grid((12, 24, 24), (2.0, 1.0, 1.0)), "case")
    assert volume_doubts(volume, [known, known]) == ()
    assert ["MyTrainer" in text for text in volume_doubts(volume, [unknown, known])] == [True]
