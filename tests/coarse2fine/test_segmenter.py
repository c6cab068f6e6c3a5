"""The second look: who is chosen, what is segmented, and what stands elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from large_volumes import bright_models

from assignnet import Roi, RoiTree
from canvas import Box
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.reader import load_config
from coarse2fine.errors import ConfigError, ModelError
from coarse2fine.fine.inputs import VolumeNorm
from coarse2fine.fine.segment import FineStage
from coarse2fine.io.turn import Turn
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import open_view
from coarse2fine.segmenter import Segmented, Segmenter, check_models, make_segmenter
from coarse2fine.system.timing import Run

SHAPE = (16, 48, 48)
SPOTS = [Box.of((6, y, x), (4, 6, 6)) for y, x in ((6, 6), (6, 34), (34, 6))]
"""Objects; the fine network sees them all, the coarse one sees each of them one voxel larger in y."""


@pytest.fixture(scope="module")
def models(model_folder: Callable[..., Path]) -> tuple[Model, Model]:
    """Each calls foreground what is brighter than its level: 0.5 and 1."""
    return bright_models(model_folder(scheme="NoNormalization"), coarse=0.5, fine=1.0)


def look(models: tuple[Model, Model], settings: list[str]) -> tuple[Segmented, Scene, Segmenter]:
    """The second look at three spots, each a region of its own with less and less score."""
    image = np.full(SHAPE, 0.1, np.float32)
    for spot in SPOTS:
        image[spot.grow((0, 1, 0)).slices] = 0.75
        image[spot.slices] = 2
    coarse_model, fine = models
    config = load_config(None, ["canvas.norm=canvas", "fine.grow=0", *settings])
    view = open_view([image], (2.0, 1.0, 1.0), fine)
    segmenter = make_segmenter(config, coarse_model, FineStage.of(fine, config))
    scene = Scene(view, segmenter.heatmap(view, Run()))
    rois = tuple(Roi(spot, 0.9 - 0.2 * number, 50.0) for number, spot in enumerate(SPOTS))
    tree = RoiTree(rois, tuple((roi,) for roi in rois), SHAPE)
    return segmenter.segment(tree, scene, Run()), scene, segmenter


def spots(*numbers: int) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    for number in numbers:
        labels[SPOTS[number].slices] = 1
    return labels


def test_segment__all_regions__are_segmented_by_the_fine_network(models: tuple[Model, Model]) -> None:
    """The fine network's own, smaller objects come out; the tree is the one that was given."""
    found, _, _ = look(models, ["assign.agent=all_parents"])
    np.testing.assert_array_equal(found.writer.finish(), spots(0, 1, 2))
    assert {roi.box for roi in found.chosen} == set(SPOTS) == {roi.box for roi in found.tree.parents}
    assert not found.unpacked


def test_segment__rule_that_leaves_out__decides_what_is_looked_at(models: tuple[Model, Model]) -> None:
    """What nobody chose stays background, though the coarse network saw it."""
    found, scene, _ = look(models, ["assign.agent=top_k"])
    kept = sorted(SPOTS.index(roi.box) for roi in found.chosen)
    assert 0 < len(kept) < 3
    assert kept == list(range(len(kept)))  # those with the highest score
    np.testing.assert_array_equal(found.writer.finish(), spots(*kept))
    assert (scene.coarse.heatmap[SPOTS[2].slices] > 0.9).all()


def test_segment__outside_coarse__keeps_coarse_labels_where_nobody_looked(models: tuple[Model, Model]) -> None:
    """Inside the boxes the fine network decides, around them and in what was left out the coarse one."""
    found, scene, _ = look(models, ["assign.agent=top_k", "fine.outside=coarse"])
    expected = np.asarray(scene.coarse.labels_in(Box.whole(SHAPE), SHAPE)).copy()
    for roi in found.chosen:
        expected[roi.box.slices] = 1
    np.testing.assert_array_equal(found.writer.finish(), expected)
    assert expected.sum() > spots(0, 1, 2).sum()


def test_segment__track__tells_what_the_fine_network_decided(models: tuple[Model, Model]) -> None:
    """The boxes that were chosen, background in them included, and nothing else."""
    found, scene, segmenter = look(models, ["assign.agent=top_k"])
    view = scene.view
    wide = dataclasses.replace(found.tree.parents[0], box=SPOTS[0].grow((1, 2, 2)))
    tree = RoiTree((wide,), ((wide,),), SHAPE)
    expected = np.zeros(SHAPE, bool)
    expected[wide.box.slices] = True
    for turn in (view.turn, Turn((0, 2, 1), (False, True, False))):  # as stored, and as a file may store it
        turned = dataclasses.replace(scene, view=dataclasses.replace(view, turn=turn))
        tracked = segmenter.segment(tree, turned, Run(), track=True)
        labels, decided = tracked.writer.finish(), tracked.writer.decided()
        assert decided is not None
        np.testing.assert_array_equal(turn.array(decided), expected)
        np.testing.assert_array_equal(turn.array(labels), spots(0))


@pytest.mark.parametrize("alone", [True, False])
def test_segment__whether_boxes_stay_alone_is_settled__is_not_decided_anew(
    models: tuple[Model, Model], alone: bool
) -> None:
    """What holds for a whole volume holds in each of its parts, however few boxes lie there."""
    found, scene, segmenter = look(models, ["assign.agent=all_parents", "canvas.norm=case"])
    settled = segmenter.segment(found.tree, scene, Run(), norm=VolumeNorm(alone=alone))
    assert len(settled.fine.canvases) == (len(SPOTS) if alone else 1)
    assert (settled.fine.measured > 0) is not alone
    np.testing.assert_array_equal(settled.writer.finish(), spots(0, 1, 2))


KINDS: dict[str, dict[str, Any]] = {
    "fine": {},
    "cascade": {"cascade": True},
    "two channels": {"channels": 2},
    "liver": {"labels": {"background": 0, "liver": 1}},
}
PRIOR, ONE_STAGE, OUTSIDE = "fine.use_prior=true", "mode=one-stage", "fine.outside=coarse"


@pytest.mark.parametrize(
    ("wrong", "remedy", "mended"),
    [
        (("fine", "cascade"), "Set fine.use_prior: true", ("fine", "cascade", PRIOR)),
        (("fine", "fine", PRIOR), "Set fine.use_prior: false", ("fine", "fine")),
        (("fine", "fine", PRIOR), "or use a 3d_cascade_fullres model", ("fine", "cascade", PRIOR)),
        ((None, "cascade", PRIOR, ONE_STAGE), "Name one with --coarse-model", ("fine", "cascade", PRIOR, ONE_STAGE)),
        ((None, "fine"), "Name one with --coarse-model", ("fine", "fine")),
        (("cascade", "fine"), "Use a 3d_lowres model", ("fine", "fine")),
        (("fine", "two channels"), "Use two models trained on the same images", ("two channels", "two channels")),
        (("liver", "fine", OUTSIDE), "two models trained on the same labels", ("liver", "liver", OUTSIDE)),
        (
            ("fine", "fine", "coarse.patch_size=[7, 8, 8]"),
            "multiple of [2",
            ("fine", "fine", "coarse.patch_size=[8, 8, 8]"),
        ),
    ],
)
def test_check_models__what_does_not_fit__fits_if_done_as_the_message_says(
    model_folder: Callable[..., Path], wrong: tuple[Any, ...], remedy: str, mended: tuple[Any, ...]
) -> None:
    """Two models, and settings."""

    def check(coarse: str | None, fine: str, *settings: str) -> None:
        models = (None if kind is None else load_model(model_folder(**KINDS[kind])) for kind in (coarse, fine))
        check_models(load_config(None, settings), *models)

    with pytest.raises((ModelError, ConfigError)) as caught:
        check(*wrong)
    assert remedy in caught.value.remedy
    check(*mended)
