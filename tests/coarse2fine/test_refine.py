"""The second look: who is chosen, what is segmented, and what stands elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from large_volumes import bright_models

from assignnet import Roi, RoiTree
from canvas import Box
from coarse2fine.coarse.heatmap import CoarseResult, look_coarsely
from coarse2fine.config.reader import load_config
from coarse2fine.fine.sizes import plan_sizes
from coarse2fine.io.turn import Turn
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import WorkingView, open_view
from coarse2fine.refine import Refined, refine
from coarse2fine.selection.selector import find_chooser
from coarse2fine.system.timing import Clock

SHAPE = (16, 48, 48)
SPOTS = [Box.of((6, y, x), (4, 6, 6)) for y, x in ((6, 6), (6, 34), (34, 6))]
"""Objects; the fine network sees them all, the coarse one sees each of them one voxel larger in y."""


@pytest.fixture(scope="module")
def models(model_folder: Callable[..., Path]) -> tuple[Model, Model]:
    """Each calls foreground what is brighter than its level: 0.5 and 1."""
    return bright_models(model_folder(scheme="NoNormalization"), coarse=0.5, fine=1.0)


def look(models: tuple[Model, Model], settings: list[str]) -> tuple[Refined, CoarseResult, WorkingView]:
    """The second look at three spots, each a region of its own with less and less score."""
    image = np.full(SHAPE, 0.1, np.float32)
    for spot in SPOTS:
        image[spot.grow((0, 1, 0)).slices] = 0.75
        image[spot.slices] = 2
    coarse_model, fine = models
    config = load_config(None, ["canvas.norm=canvas", "fine.grow=0", *settings])
    plan, view, quiet = plan_sizes(config, fine), open_view([image], (2.0, 1.0, 1.0), fine), lambda done, total: None
    coarse = look_coarsely(view, coarse_model, fine, config.coarse, Clock(), quiet)
    rois = tuple(Roi(spot, 0.9 - 0.2 * number, 50.0) for number, spot in enumerate(SPOTS))
    tree = RoiTree(rois, tuple((roi,) for roi in rois), SHAPE)
    chooser = find_chooser(config, plan, coarse_model, fine)
    return refine(tree, view, fine, coarse, chooser, config, plan, Clock(), quiet), coarse, view


def spots(*numbers: int) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    for number in numbers:
        labels[SPOTS[number].slices] = 1
    return labels


def test_refine__all_regions__are_segmented_by_the_fine_network(models: tuple[Model, Model]) -> None:
    """The fine network's own, smaller objects come out; the tree is the one that was given."""
    refined, _, _ = look(models, ["assign.agent=all_parents"])
    np.testing.assert_array_equal(refined.writer.finish(), spots(0, 1, 2))
    assert {roi.box for roi in refined.chosen} == set(SPOTS) == {roi.box for roi in refined.tree.parents}
    assert not refined.unpacked


def test_refine__rule_that_leaves_out__decides_what_is_looked_at(models: tuple[Model, Model]) -> None:
    """What nobody chose stays background, though the coarse network saw it."""
    refined, coarse, _ = look(models, ["assign.agent=top_k"])
    kept = sorted(SPOTS.index(roi.box) for roi in refined.chosen)
    assert 0 < len(kept) < 3
    assert kept == list(range(len(kept)))  # those with the highest score
    np.testing.assert_array_equal(refined.writer.finish(), spots(*kept))
    assert (coarse.heatmap[SPOTS[2].slices] > 0.9).all()


def test_refine__outside_coarse__keeps_coarse_labels_where_nobody_looked(models: tuple[Model, Model]) -> None:
    """Inside the boxes the fine network decides, around them and in what was left out the coarse one."""
    refined, coarse, view = look(models, ["assign.agent=top_k", "fine.outside=coarse"])
    expected = np.asarray(coarse.labels_in(Box.whole(view.shape), view.shape)).copy()
    for roi in refined.chosen:
        expected[roi.box.slices] = 1
    np.testing.assert_array_equal(refined.writer.finish(), expected)
    assert expected.sum() > spots(0, 1, 2).sum()


def test_refine__track__tells_what_the_fine_network_decided(models: tuple[Model, Model]) -> None:
    """The boxes that were chosen, background in them included, and nothing else."""
    refined, coarse, view = look(models, ["assign.agent=top_k"])
    config = load_config(None, ["canvas.norm=canvas", "fine.grow=0", "assign.agent=top_k"])
    plan, quiet = plan_sizes(config, models[1]), lambda done, total: None
    chooser = find_chooser(config, plan, *models)
    wide = dataclasses.replace(refined.tree.parents[0], box=SPOTS[0].grow((1, 2, 2)))
    tree = RoiTree((wide,), ((wide,),), SHAPE)
    expected = np.zeros(SHAPE, bool)
    expected[wide.box.slices] = True
    for turn in (view.turn, Turn((0, 2, 1), (False, True, False))):  # as stored, and as a file may store it
        turned = dataclasses.replace(view, turn=turn)
        tracked = refine(tree, turned, models[1], coarse, chooser, config, plan, Clock(), quiet, track=True)
        labels, decided = tracked.writer.finish(), tracked.writer.decided()
        assert decided is not None
        np.testing.assert_array_equal(turn.array(decided), expected)
        np.testing.assert_array_equal(turn.array(labels), spots(0))
