"""Resampling by matrices against nnU-Net's own resampling functions."""

from __future__ import annotations

import numpy as np
import pytest
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

from canvas import Box
from coarse2fine import resample
from coarse2fine.resample import Floats, Method, Resampling, axis_operator, plan_resampling, stretch

# shape before, shape after, spacing before, spacing after: plain, flat first axis, flat by the target, flat middle axis
GRIDS = {
    "shrink-and-stretch": ((30, 60, 50), (20, 33, 61), (2.0, 1.0, 1.0), (3.0, 1.8, 0.8)),
    "flat-in-plane-only": ((20, 60, 50), (20, 33, 25), (45.0, 4.6, 4.6), (45.0, 9.0, 9.0)),
    "flat-all-axes": ((20, 60, 50), (12, 33, 25), (5.0, 1.0, 1.0), (8.0, 2.0, 2.0)),
    "flat-middle-axis": ((40, 20, 50), (20, 30, 25), (1.0, 5.0, 1.0), (2.0, 3.0, 2.0)),
    "flat-last-axis": ((40, 50, 20), (20, 25, 30), (1.0, 1.0, 5.0), (2.0, 2.0, 3.0)),
}
METHODS = {
    "cubic": (
        Method("spline", 3, 0),
        lambda *a: resample_data_or_seg_to_shape(*a, order=3, order_z=0, force_separate_z=None),
    ),
    "linear": (
        Method("spline", 1, 0),
        lambda *a: resample_data_or_seg_to_shape(*a, order=1, order_z=0, force_separate_z=None),
    ),
    "torch": (Method("torch", 1, 0), resample_torch_fornnunet),
}


def bounds_of(data: Floats, resampling: Resampling) -> tuple[Floats, Floats]:
    """What scikit-image clips to: the range of the volume, or of each slice that it resizes alone."""
    axes = tuple(axis for axis in range(3) if axis != resampling.apart) if resampling.apart is not None else None
    return np.asarray(data.min(axis=axes)), np.asarray(data.max(axis=axes))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", GRIDS)
def test_resampling__whole_and_region__equal_nnunet(grid: str, method: str) -> None:
    """A whole volume, and any box of it alone, get nnU-Net's values up to float32 rounding."""
    before, after, spacing_before, spacing_after = GRIDS[grid]
    ours, reference = METHODS[method]
    data = np.random.default_rng(0).normal(size=before).astype(np.float32)
    expected = reference(data[None].copy(), after, spacing_before, spacing_after)[0]

    resampling = plan_resampling(before, after, spacing_before, spacing_after, ours)
    bounds = bounds_of(data, resampling)
    whole = resampling(lambda box: data[box.slices], Box.whole(after), bounds)
    part = Box((3, 5, 7), (9, 20, 22))
    region = resampling(lambda box: data[box.slices], part, bounds)

    np.testing.assert_allclose(whole, expected, atol=3e-5)
    np.testing.assert_allclose(region, expected[part.slices], atol=3e-5)


def test_resampling__small_box__reads_only_its_surroundings() -> None:
    """The spline's long reach is cut where it no longer matters: a box needs little input around it."""
    data = np.random.default_rng(0).normal(size=(64, 200, 200)).astype(np.float32)
    resampling = plan_resampling(data.shape, (64, 400, 400), (1.0, 1.0, 1.0), (1.0, 0.5, 0.5), Method("spline", 3))
    read: list[Box] = []

    def load(box: Box) -> Floats:
        read.append(box)
        return data[box.slices]

    resampling(load, Box((30, 200, 200), (32, 220, 220)))
    assert max(box.stop[1] for box in read) - min(box.start[1] for box in read) < 50


def test_resampling__overshoot__is_clipped_to_the_given_range() -> None:
    """A step edge overshoots under cubic splines; with bounds it stays in the input's range, as in nnU-Net."""
    data = np.zeros((16, 16, 16), np.float32)
    data[8:] = 1
    resampling = plan_resampling(data.shape, (24, 24, 24), (1, 1, 1), (0.67, 0.67, 0.67), Method("spline", 3))
    free = resampling(lambda box: data[box.slices], Box.whole((24, 24, 24)))
    clipped = resampling(lambda box: data[box.slices], Box.whole((24, 24, 24)), bounds_of(data, resampling))
    assert free.max() > 1.01
    assert clipped.max() == 1
    assert clipped.min() == 0


def test_stretch__shrinking_past_unused_voxels__keeps_all_columns() -> None:
    """Shrinking may skip the outermost voxels; the matrix still has a column for each of them."""
    matrix = stretch(8, 3)
    ramp = np.arange(8, dtype=np.float32)
    np.testing.assert_allclose(matrix @ ramp, [5 / 6, 3.5, 37 / 6], rtol=1e-5)


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("sizes", [(300, 170), (170, 300), (300, 299), (90, 360), (5, 9)], ids=str)
def test_axis__too_long_for_a_matrix__has_the_rows_of_one(
    sizes: tuple[int, int], order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are made on demand, at both ends and anywhere between, are those of the matrix that is not kept."""
    kept = axis_operator.__wrapped__(*sizes, "spline", order)
    monkeypatch.setattr(resample, "LARGEST_MATRIX", 1)
    made = axis_operator.__wrapped__(*sizes, "spline", order)
    assert kept.matrix is not None
    assert made.matrix is None
    for start, stop in [(0, 3), (sizes[1] // 2, sizes[1] // 2 + 2), (sizes[1] - 1, sizes[1]), (0, sizes[1])]:
        rows, low, high = made.rows(start, stop)
        full = np.zeros((stop - start, sizes[0]), np.float32)
        full[:, low:high] = rows
        np.testing.assert_allclose(full, kept.matrix[start:stop], atol=3e-7)
        assert high - low < 100 + sizes[0] * (stop - start) / sizes[1]


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("sizes", [(300, 170), (170, 300), (90, 360)], ids=str)
def test_axis__too_long_for_torchs_matrix__has_the_rows_of_one(
    sizes: tuple[int, int], order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likewise for models that resample with PyTorch."""
    kept = axis_operator.__wrapped__(*sizes, "torch", order)
    monkeypatch.setattr(resample, "LARGEST_MATRIX", 1)
    rows, low, high = axis_operator.__wrapped__(*sizes, "torch", order).rows(0, sizes[1])
    full = np.zeros(sizes[::-1], np.float32)
    full[:, low:high] = rows
    np.testing.assert_allclose(full, kept.matrix, atol=1e-5)
