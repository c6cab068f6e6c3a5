"""Statistics of a volume from those of its parts, against NumPy on the whole volume."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from fractions import Fraction
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canvas import Box
from coarse2fine.preprocessing.statistics import Scan, blank_scan, join_scans, nonzero_box, scan_part

INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32"]


@st.composite
def volumes(draw: st.DrawFn) -> list[np.ndarray]:
    """One or two channels: values of the whole type or of a narrow range anywhere in it, in boxes among zeros."""
    dtype = np.dtype(draw(st.sampled_from([*INTEGERS, "float32", "float64"])))
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    ends = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (-1000, 1000)
    low = draw(st.integers(*ends))
    low, high = draw(st.sampled_from([ends, (low, min(low + 300, ends[1]))]))
    channels = [np.zeros(shape, dtype) for _ in range(draw(st.integers(1, 2)))]
    for _ in range(draw(st.integers(1, 2))):
        corners = [sorted(draw(st.tuples(*[st.integers(0, edge)] * 2))) for edge in shape]
        inner = tuple(slice(a, b) for a, b in corners)
        for channel in channels:
            channel[inner] = rng.uniform(low, high, channel[inner].shape).astype(dtype)
    return channels


def parts_of(shape: tuple[int, ...], edges: list[list[int]]) -> Iterator[Box]:
    """Boxes between the edges, which together are the volume."""
    ends = [sorted({0, size, *(edge % size for edge in row)}) for size, row in zip(shape, edges, strict=True)]
    for z, y, x in itertools.product(*(itertools.pairwise(row) for row in ends)):
        yield Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))


def scan_in_parts(channels: list[np.ndarray], parts: list[Box]) -> Scan:
    """The scan, after every part of it has been through a file."""
    scans = [scan_part([raw[part.slices] for raw in channels], part.start, (0, 1, 2)) for part in parts]
    return join_scans([Scan.from_dict(json.loads(json.dumps(scan.to_dict()))) for scan in scans], channels[0].shape)


@settings(deadline=None, max_examples=150)
@given(volumes(), st.lists(st.lists(st.integers(0, 99), max_size=3), min_size=3, max_size=3), st.randoms())
def test_join_scans__any_division_and_order__equals_numpy_on_the_crop(
    channels: list[np.ndarray], edges: list[list[int]], random: object
) -> None:
    """Sums of integers are exact; the crop and the extremes in it, of all and of each slice, are those of the crop."""
    parts = list(parts_of(channels[0].shape, edges))
    random.shuffle(parts)  # type: ignore[attr-defined]
    scan = scan_in_parts(channels, parts)
    assert scan.crop == nonzero_box(channels)
    for index, (found, raw) in enumerate(zip(scan.channels, channels, strict=True)):
        inside = raw[scan.crop.slices]
        assert (found.low, found.high) == (inside.min(), inside.max())
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            here = scan.crop.slices[axis]
            np.testing.assert_array_equal(found.lows[axis][here], inside.min(axis=others))
            np.testing.assert_array_equal(found.highs[axis][here], inside.max(axis=others))
        mean, std = scan.mean_and_std(index)
        values = [Fraction(value) for value in inside.ravel().tolist()]
        expected = sum(values) / len(values)
        variance = sum((value - expected) ** 2 for value in values) / len(values)
        if raw.dtype.kind in "iu":
            assert (found.total, found.squares) == (sum(values), sum(value**2 for value in values))
            assert (mean, std) == pytest.approx((float(expected), sqrt(variance)), rel=1e-12)
        else:
            scale = float(np.abs(inside).max())
            assert (mean, std) == pytest.approx((float(expected), sqrt(variance)), rel=1e-9, abs=1e-6 * scale)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_join_scans__whole_range_of_a_type__sums_are_exact_in_one_piece_or_many(dtype: str) -> None:
    """Not a bit depends on the division, so neither do results."""
    ends = np.iinfo(dtype)
    raw = np.random.default_rng(0).integers(ends.min, ends.max, (9, 8, 7), dtype=dtype, endpoint=True)
    raw[0, 0, :2] = ends.min, ends.max
    whole, pieces = (
        scan_in_parts([raw], list(parts_of(raw.shape, edges))) for edges in ([[], [], []], [[4], [3], [2]])
    )
    assert whole == pieces
    assert whole.mean_and_std(0) == pieces.mean_and_std(0)
    values = raw.ravel().tolist()
    assert (whole.channels[0].total, whole.channels[0].squares) == (sum(values), sum(value**2 for value in values))


def test_join_scans__share_of_the_volume__speaks_of_what_was_read() -> None:
    """Nothing is cropped that nobody has seen, and slices that nobody has seen have the extremes of the others."""
    raw = np.zeros((6, 4, 4), np.int16)
    raw[1:5, 1:3, 1:3] = np.random.default_rng(0).integers(5, 90, (4, 2, 2))
    seen = [Box((0, 0, 0), (2, 4, 4)), Box((4, 0, 0), (6, 4, 4))]
    scan = scan_in_parts([raw], seen)
    read = np.concatenate([raw[part.slices] for part in seen])
    assert scan.crop == Box.whole(raw.shape)
    assert scan.count == read.size
    assert scan.mean_and_std(0) == pytest.approx((read.mean(), read.std()))
    assert (scan.channels[0].low, scan.channels[0].high) == (0, read.max())
    assert scan.channels[0].highs[0] == [0, raw[1].max(), *[read.max()] * 2, raw[4].max(), 0]


def test_blank_scan__equals_the_scan_of_zeros() -> None:
    """The stand-in is what the scan of an empty volume gives, but for slices."""
    zeros = [np.zeros((3, 4, 5), np.uint8)] * 2
    assert blank_scan(2, (3, 4, 5)) == join_scans([scan_part(zeros, (0, 0, 0), ())], (3, 4, 5))


def test_nonzero_box__random_volumes__equals_brute_force() -> None:
    """The box of non-zero voxels is found without a mask of the volume."""
    rng = np.random.default_rng(0)
    for density in (0.0, 0.0005, 0.01, 0.5):
        channels = [np.where(rng.random((9, 12, 10)) < density, 7, 0) for _ in range(2)]
        found = np.argwhere((channels[0] != 0) | (channels[1] != 0))
        expected = Box.whole((9, 12, 10)) if not len(found) else Box(tuple(found.min(0)), tuple(found.max(0) + 1))
        assert nonzero_box(channels) == expected
