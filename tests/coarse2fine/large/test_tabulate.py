"""A table of the objects of a store: what measures of the whole volume in memory say, whatever the cells."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from large_volumes import SPACING
from store_bench import IMAGE, Bench

from canvas import Box
from coarse2fine.io import Grid, Volume
from coarse2fine.large.tabulate import join_parts, parts_of
from coarse2fine.measures import columns_of, measure, row_of


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.usefixtures("small_chunks", "bright_networks")
@pytest.mark.parametrize("shards", [None, pytest.param("8,16,80", marks=pytest.mark.long)])
def test_segment_store__table__has_a_row_for_each_object_as_a_whole(shards: str | None, bench: Bench) -> None:
    """Objects over several cells are measured as one; all columns but percentiles are those of files; a region too."""
    region, path = Box((0, 4, 12), (8, 32, 160)), bench.folder / "objects.csv"
    report = bench(objects=True, region=region, table=path, shards=shards)
    labels, image = bench.labels(), IMAGE[region.slices]
    grid = Grid(IMAGE.shape, SPACING).part(region)
    expected = measure((labels != 0).astype(np.uint8), Volume((image,), grid, "in"), {"lesion": (1,)}, objects=True)
    found = rows_of(path)
    assert len(found) == len(expected) == report.counts["objects"] > 3
    assert tuple(found[0]) == columns_of("mm", 1, objects=True)
    for one in expected:
        row = min(found, key=lambda row: abs(float(row["centroid_x_mm"]) - one.place.centroid[0]))
        for name, value in row_of(one).items():
            if name[-3:] in ("_p5", "p50", "p95"):
                assert row[name] == ""
            elif isinstance(value, float):
                assert float(row[name]) == pytest.approx(value, rel=1e-6), name
            elif name not in ("object", "name"):
                assert row[name] == str(value), name
        assert (labels == int(row["object"])).sum() == one.voxels
    assert [int(row["voxels"]) for row in found] == sorted((one.voxels for one in expected), reverse=True)


@given(seed=st.integers(0, 999), cut=st.integers(1, 39))
def test_join_parts__any_division__gives_what_all_together_gives(seed: int, cut: int) -> None:
    """Means and spreads, too, of values that are large beside how much they differ."""
    random = np.random.default_rng(seed)
    numbers = np.r_[random.integers(1, 6, 40), 3].astype(np.uint64)
    places, values = random.integers(0, 99, (41, 3)), 1e6 + random.random((2, 41))
    pieces = (slice(cut), slice(cut, None))
    joined = join_parts(
        [parts_of(numbers[part], numbers[part] % 2, places[part], list(values[:, part])) for part in pieces]
    )
    for index, number in enumerate(joined["number"]):
        mine = numbers == number
        assert joined["voxels"][index] == mine.sum()
        assert joined["label"][index] == number % 2
        np.testing.assert_array_equal(joined["sum"][index], places[mine].sum(0))
        np.testing.assert_array_equal(joined["low"][index], places[mine].min(0))
        np.testing.assert_array_equal(joined["high"][index], places[mine].max(0) + 1)
        np.testing.assert_allclose(joined["mean"][index], values[:, mine].mean(1))
        np.testing.assert_allclose(joined["squares"][index] / mine.sum(), values[:, mine].var(1), atol=1e-6)
    assert set(joined["number"]) == set(numbers)


@pytest.mark.long
@pytest.mark.usefixtures("small_chunks", "bright_networks")
def test_segment_store__table_of_nothing__has_its_columns(bench: Bench) -> None:
    """Programs that read it find what they look for."""
    bench(objects=True, table=bench.folder / "t.tsv", overrides=["rois.min_voxels=1e9"])
    (line,) = (bench.folder / "t.tsv").read_text().splitlines()
    assert tuple(line.split("\t")) == columns_of("mm", 1, objects=True)
