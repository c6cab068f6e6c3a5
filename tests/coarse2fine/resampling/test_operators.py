"""Resampling by matrices against nnU-Net's own resampling functions."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from torch.nn import functional as F

from canvas import Box
from coarse2fine.errors import ModelError
from coarse2fine.nnunet.plans import resampling_of
from coarse2fine.resampling import operators as resample
from coarse2fine.resampling.operators import (
    MODES,
    Axis,
    Bounds,
    Floats,
    Load,
    Method,
    Resampling,
    axis_operator,
    plan_resampling,
    stretch,
)

SPLINE, TORCH = "resample_data_or_seg_to_shape", "resample_torch_fornnunet"
# shape before, shape after, spacing before, spacing after: plain, flat first axis, flat by the target, flat middle axis
GRIDS = {
    "shrink-and-stretch": ((30, 60, 50), (20, 33, 61), (2.0, 1.0, 1.0), (3.0, 1.8, 0.8)),
    "flat-in-plane-only": ((20, 60, 50), (20, 33, 25), (45.0, 4.6, 4.6), (45.0, 9.0, 9.0)),
    "flat-all-axes": ((20, 60, 50), (12, 33, 25), (5.0, 1.0, 1.0), (8.0, 2.0, 2.0)),
    "flat-middle-axis": ((40, 20, 50), (20, 30, 25), (1.0, 5.0, 1.0), (2.0, 3.0, 2.0)),
    "flat-last-axis": ((40, 50, 20), (20, 25, 30), (1.0, 1.0, 5.0), (2.0, 2.0, 3.0)),
    "at-the-threshold": ((20, 30, 32), (20, 24, 25), (3.0, 1.0, 1.0), (3.0, 1.25, 1.28)),
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
    "torch": (Method("torch", "linear", "nearest-exact"), resample_torch_fornnunet),
}
# Options as plans hold them, absent ones too, where nnU-Net's functions have defaults of their own.
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "spline-all-absent": (SPLINE, {}),
    "spline-decides": (SPLINE, {"force_separate_z": None}),
    "spline-forced": (SPLINE, {"force_separate_z": True, "order": 2, "order_z": 1}),
    "spline-threshold": (SPLINE, {"force_separate_z": None, "separate_z_anisotropy_threshold": 1.5, "order_z": 1}),
    "spline-high-threshold": (SPLINE, {"force_separate_z": None, "separate_z_anisotropy_threshold": 99}),
    "torch-all-absent": (TORCH, {}),
    "torch-forbidden": (TORCH, {"force_separate_z": False}),
    "torch-modes": (TORCH, {"mode": "nearest", "aniso_axis_mode": "linear", "num_threads": 1}),
    "torch-more-modes": (TORCH, {"mode": "nearest-exact", "aniso_axis_mode": "nearest", "is_seg": False}),
    "torch-other-names": (TORCH, {"mode": "bilinear", "aniso_axis_mode": "trilinear"}),
    "torch-threshold": (TORCH, {"separate_z_anisotropy_threshold": 1.5}),
    "none": ("no_resampling_hack", {}),
}
FUNCTIONS = {
    SPLINE: resample_data_or_seg_to_shape,
    TORCH: resample_torch_fornnunet,
    "no_resampling_hack": no_resampling_hack,
}


def read_from(data: Floats) -> Load:
    """Gives parts of an array."""
    return lambda box: torch.from_numpy(data[box.slices].copy())


def bounds_of(data: Floats, resampling: Resampling) -> Bounds:
    """What scikit-image clips to: the range of the volume, or of each slice that it resizes alone."""
    axes = tuple(axis for axis in range(3) if axis != resampling.apart) if resampling.apart is not None else None
    return torch.as_tensor(data.min(axis=axes)), torch.as_tensor(data.max(axis=axes))


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
    whole = resampling(read_from(data), Box.whole(after), bounds)
    part = Box((3, 5, 7), (9, 20, 22))
    region = resampling(read_from(data), part, bounds)

    np.testing.assert_allclose(whole, expected, atol=3e-5)
    np.testing.assert_allclose(region, expected[part.slices], atol=3e-5)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("grid", ["shrink-and-stretch", "flat-all-axes", "flat-middle-axis"])
def test_resampling_of__options_of_plans__mean_what_they_mean_to_nnunet(grid: str, name: str) -> None:
    """Given or absent, an option changes the result as it changes that of the function which nnU-Net would call."""
    before, after, spacing_before, spacing_after = GRIDS[grid]
    function, options = OPTIONS[name]
    configuration = {"resampling_fn_data": function, "resampling_fn_data_kwargs": options}
    data = np.random.default_rng(0).normal(size=before).astype(np.float32)
    expected = FUNCTIONS[function](data[None].copy(), after, spacing_before, spacing_after, **options)[0]
    method = resampling_of(configuration, "data", Path("plans.json"))
    resampling = plan_resampling(before, after, spacing_before, spacing_after, method)
    result = resampling(read_from(data), Box.whole(resampling.shape_out), bounds_of(data, resampling))
    np.testing.assert_allclose(result, expected, atol=3e-5)


@pytest.mark.parametrize(
    ("function", "options", "names", "mended"),
    [
        (SPLINE, {"mode": "linear"}, "'mode'", {}),
        (TORCH, {"order": 3, "mode": "nearest"}, "'order'", {"mode": "nearest"}),
        ("no_resampling_hack", {"is_seg": False}, "'is_seg'", {}),
        (TORCH, {"mode": "area"}, "'area'", {"mode": "nearest-exact"}),
        (TORCH, {"aniso_axis_mode": "bicubic"}, "'bicubic'", {"aniso_axis_mode": "trilinear"}),
    ],
)
def test_resampling_of__unknown_option__is_refused_by_name_and_works_without(
    function: str, options: dict[str, Any], names: str, mended: dict[str, Any]
) -> None:
    """What nnU-Net's function would not take, or we do not support, is no silent default; the remedy helps."""
    configuration = {"resampling_fn_data": function, "resampling_fn_data_kwargs": options}
    with pytest.raises(ModelError, match=names) as error:
        resampling_of(configuration, "data", Path("some/plans.json"))
    assert "some/plans.json" in str(error.value)
    if "area" not in names and "bicubic" not in names:
        with pytest.raises(TypeError):  # nnU-Net refuses it, too
            FUNCTIONS[function](np.zeros((1, 4, 4, 4), np.float32), (5, 5, 5), (1, 1, 1), (1, 1, 1), **options)
    resampling_of(configuration | {"resampling_fn_data_kwargs": mended}, "data", Path("plans.json"))


def _nearest(before: int, after: int, kind: type) -> np.ndarray:
    return np.floor((np.arange(after, dtype=kind) + kind(0.5)) * (kind(before) / kind(after)))


@pytest.mark.parametrize("mode", MODES)
def test_axis__pairs_of_sizes__takes_the_voxels_that_torch_takes(mode: str) -> None:
    """In PyTorch's single precision, whether the matrix is kept or its rows are made: not one neighbouring slice."""
    pairs = [(before, after) for before in range(1, 79) for after in range(1, 79) if before != after]
    # Some, and all whose nearest voxel depends on the precision in which it is looked for.
    delicate = [
        pair for pair in pairs if (np.diff([_nearest(*pair, kind) for kind in (np.float32, float)], axis=0)).any()
    ]
    assert len(delicate) > 30
    for before, after in [*pairs[::11], *delicate]:
        ramp = torch.arange(before, dtype=torch.float32)
        volume = ramp.view(1, 1, before, 1, 1).expand(1, 2, before, 2, 2).contiguous()
        volume_mode = "trilinear" if mode == "linear" else mode
        expected = F.interpolate(volume, (after, 2, 2), mode=volume_mode)[0, 0, :, 0, 0].numpy()
        for axis in (axis_operator.__wrapped__(before, after, mode), Axis(before, after, mode)):
            rows, low, high = axis.rows(0, after)
            np.testing.assert_allclose(rows @ ramp.numpy()[low:high], expected, rtol=1e-5, atol=1e-4)


def test_resampling__small_box__reads_only_its_surroundings() -> None:
    """The spline's long reach is cut where it no longer matters: a box needs little input around it."""
    data = np.random.default_rng(0).normal(size=(64, 200, 200)).astype(np.float32)
    resampling = plan_resampling(data.shape, (64, 400, 400), (1.0, 1.0, 1.0), (1.0, 0.5, 0.5), Method("spline", 3))
    read: list[Box] = []

    def load(box: Box) -> torch.Tensor:
        read.append(box)
        return read_from(data)(box)

    resampling(load, Box((30, 200, 200), (32, 220, 220)))
    assert max(box.stop[1] for box in read) - min(box.start[1] for box in read) < 50


def test_resampling__overshoot__is_clipped_to_the_given_range() -> None:
    """A step edge overshoots under cubic splines; with bounds it stays in the input's range, as in nnU-Net."""
    data = np.zeros((16, 16, 16), np.float32)
    data[8:] = 1
    resampling = plan_resampling(data.shape, (24, 24, 24), (1, 1, 1), (0.67, 0.67, 0.67), Method("spline", 3))
    free = resampling(read_from(data), Box.whole((24, 24, 24)))
    clipped = resampling(read_from(data), Box.whole((24, 24, 24)), bounds_of(data, resampling))
    assert free.max() > 1.01
    assert clipped.max() == 1
    assert clipped.min() == 0


@given(st.integers(1, 60), st.integers(1, 60))
def test_stretch__any_sizes__loses_no_voxel_and_keeps_a_constant(before: int, after: int) -> None:
    """Every input counts when crops shrink to less than half, in proportion; a constant stays what it is."""
    matrix = stretch(before, after)
    assert matrix.shape == (after, before)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-5)
    if before >= 2 * after:
        np.testing.assert_allclose(matrix.sum(0), after / before, rtol=1e-3, atol=1e-6)


def test_stretch__to_a_quarter__is_the_mean_of_what_each_voxel_covers() -> None:
    """A voxel that is bright alone does not vanish between two samples; to a half it is linear interpolation."""
    np.testing.assert_allclose(stretch(8, 2) @ np.arange(8), [1.5, 5.5], rtol=1e-6)
    linear = F.interpolate(torch.eye(8)[None], 4, mode="linear")[0].T.numpy()
    np.testing.assert_allclose(stretch(8, 4), linear, atol=1e-6)


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("sizes", [(300, 170), (170, 300), (300, 299), (90, 360), (5, 9)], ids=str)
def test_axis__too_long_for_a_matrix__has_the_rows_of_one(
    sizes: tuple[int, int], order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are made on demand, at both ends and anywhere between, are those of the matrix that is not kept."""
    kept = axis_operator.__wrapped__(*sizes, order)
    monkeypatch.setattr(resample, "LARGEST_MATRIX", 1)
    made = axis_operator.__wrapped__(*sizes, order)
    assert kept.matrix is not None
    assert made.matrix is None
    for start, stop in [(0, 3), (sizes[1] // 2, sizes[1] // 2 + 2), (sizes[1] - 1, sizes[1]), (0, sizes[1])]:
        rows, low, high = made.rows(start, stop)
        full = np.zeros((stop - start, sizes[0]), np.float32)
        full[:, low:high] = rows
        np.testing.assert_allclose(full, kept.matrix[start:stop], atol=3e-7)
        assert high - low < 100 + sizes[0] * (stop - start) / sizes[1]


@given(st.data(), st.integers(1, 40), st.integers(1, 40), st.floats(-3, 40), st.floats(0.05, 5))
def test_plan_resampling__places_of_outputs_given__interpolates_there(
    data: st.DataObject, before: int, after: int, first: float, step: float
) -> None:
    """As NumPy interpolates; beyond its ends the input goes on as it ends."""
    values = np.random.default_rng(before).normal(size=(1, 1, before)).astype(np.float32)
    same = (1.0, 1.0, 1.0)
    resampling = plan_resampling(
        values.shape, (1, 1, after), same, same, Method("torch", "linear"), (None, None, (first, step))
    )
    start = data.draw(st.integers(0, after - 1))
    found = resampling(read_from(values), Box((0, 0, start), (1, 1, after)))[0, 0]
    places = first + step * np.arange(start, after)
    np.testing.assert_allclose(found, np.interp(places, np.arange(before), values[0, 0]), atol=1e-3)


@pytest.mark.alone
@pytest.mark.parametrize("order", [3, "linear"])
def test_span__long_axis__is_that_of_all_rows_and_takes_no_matrix_of_them(order: int | str) -> None:
    """Memory would grow with the square of the axis: of 6000 slices it was 1.3 GB for splines."""
    axis = resample.axis_operator(6000, 2001, order)
    assert axis.matrix is None
    for start, stop in [(0, 2001), (17, 1500)]:
        tracemalloc.start()
        found = resample._span(axis, start, stop)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found == axis.rows(start, stop)[1:]
        assert peak < 10e6
