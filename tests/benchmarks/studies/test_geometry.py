"""What the experiments compute without a network: grids over one region of space, objects, mirroring, medians."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import benchmark_module, import_benchmark
from rich.console import Console

from canvas import Box, Canvas, Placement
from coarse2fine.errors import C2FError

geometry = benchmark_module("studies.geometry")


def test_painted__grid_of_another_size__holds_voxels_whose_centres_are_inside(geometry: ModuleType) -> None:
    """Box edges fall between voxels of the other grid."""
    boxes, volume, shape = [Box((1, 2, 0), (4, 7, 5)), Box((3, 0, 4), (5, 3, 9))], (5, 7, 9), (8, 5, 20)
    painted = geometry.painted(boxes, volume, shape)
    for index in np.ndindex(shape):
        centre = (np.array(index) + 0.5) / shape * volume
        expected = any((box.start <= centre).all() and (centre < box.stop).all() for box in boxes)
        assert painted[index] == expected


def test_block_average__edges_that_do_not_divide__is_the_mean_of_each_block(geometry: ModuleType) -> None:
    """Blocks are as equal as integers allow, and together they are the whole."""
    mask = np.random.default_rng(1).random((7, 5, 10)) > 0.6
    found = geometry.block_average(mask, (3, 5, 4))
    assert found.shape == (3, 1, 3)
    for i, j in np.ndindex(3, 3):
        block = mask[i * 7 // 3 : (i + 1) * 7 // 3, :, j * 10 // 3 : (j + 1) * 10 // 3]
        assert found[i, 0, j] == pytest.approx(block.mean())


def test_ground_of__voxels_on_which_nobody_decided__are_background(geometry: ModuleType, tmp_path: Path) -> None:
    """The label that dataset.json calls ignore is no object, and no part of the heatmap."""
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[1:3, 1:3, 1:3], truth[:, 5:, 5:] = 1, 2
    (tmp_path / "labelsTs").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(truth), str(tmp_path / "labelsTs/a.nii.gz"))
    case = import_benchmark("common.registry").Case("a", "test", None, tmp_path / "labelsTs/a.nii.gz")
    bench = geometry.MaskBench(SimpleNamespace(config="covid"), case)
    for labels, seen in (({"ignore": 2}, truth == 1), ({"other": 2}, truth != 0)):
        bench.__dict__.pop("reference", None)
        described = {"labels": {"background": 0, "lesion": 1, **labels}}
        (tmp_path / "dataset.json").write_text(json.dumps(described))
        assert ((bench.reference != 0) == seen).all()
        assert geometry.ground_of(bench).heat.values.sum() == pytest.approx(seen.sum() / truth.size, rel=1e-6)


def test_objects_of__touching_labels__are_objects_of_their_own(geometry: ModuleType) -> None:
    """Components are those of one label; corners connect."""
    truth = np.array([[[1, 1, 2, 2], [0, 0, 0, 0], [1, 0, 0, 2], [0, 1, 0, 0]]])
    ids = geometry.objects_of(truth)
    assert (ids != 0).tolist() == (truth != 0).tolist()
    groups = {tuple(map(tuple, np.argwhere(ids == one)[:, 1:].tolist())) for one in np.unique(ids[ids != 0])}
    assert groups == {((0, 0), (0, 1)), ((0, 2), (0, 3)), ((2, 0), (3, 1)), ((2, 3),)}


def test_share_wanted__context_and_resizing__counts_the_boxes_part_of_each_slot(geometry: ModuleType) -> None:
    """Painted by hand: of a slot that shows twice the box, half is wanted."""
    place = Placement(0, Box((0, 0, 0), (2, 4, 4)), Box((0, 0, 0), (4, 4, 4)), Box((0, 0, 0), (2, 2, 2)))
    assert geometry.share_wanted([Canvas((2, 2, 8), (1, 1, 4), (place,))]) == pytest.approx(4 / 32)


def test_mirror__several_times__is_symmetric_and_compact() -> None:
    """Each half is the other's mirror image; the longest axes are those that grow."""
    mirror, array = import_benchmark("studies.growth").mirror, np.random.default_rng(0).random((2, 6, 5))
    assert [mirror(array, factor).shape for factor in (1, 2, 4, 8)] == [(2, 6, 5), (2, 6, 10), (2, 12, 10), (2, 12, 20)]
    tiled = mirror(array, 4)
    assert (tiled == tiled[:, ::-1]).all()
    assert (tiled == tiled[..., ::-1]).all()
    assert (tiled[:, :6, :5] == array).all()


def test_grow__three_times__is_refused() -> None:
    """Mirroring can only double."""
    with pytest.raises(C2FError, match="powers of two"):
        import_benchmark("studies.growth").grow(None, (1, 3), Console(quiet=True))


def test_median_rows__repeats__keep_what_is_equal_and_take_medians() -> None:
    """Only clocks differ between repeats."""
    repeats = [[{"who": "a", "known": True, "total_s": seconds, "peak_mb": None}] for seconds in (3.0, 1.0, 2.0)]
    assert import_benchmark("experiments").median_rows(repeats) == [
        {"who": "a", "known": True, "total_s": 2.0, "peak_mb": None}
    ]
