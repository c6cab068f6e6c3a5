"""Regions as text, for all commands that take a part of a volume."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from canvas import Box
from coarse2fine.errors import ConfigError
from coarse2fine.io import Grid
from coarse2fine.io.region import parse_region

EM = Grid((64, 500, 600), (40.0, 4.0, 8.0), "nm", origin=(4000.0, 400.0, 80.0))
CT = Grid((64, 500, 600), (0.1, 0.7, 0.7), "mm")


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [
        ("0:64,100:200,:", (0, 100, 0), (64, 200, 600)),
        ("3:,:7,599:600", (3, 0, 599), (64, 7, 600)),
        (" 1 : 2 , 3 : 4 , 5 : 6 ", (1, 3, 5), (2, 4, 6)),
        ("0:2000nm,400:800nm,80nm:160nm", (0, 100, 10), (50, 200, 20)),
        (":1um,0.4:0.8um,600nm:", (0, 100, 75), (25, 200, 600)),
        ("0:2000nm,10:20,:", (0, 10, 0), (50, 20, 600)),
    ],
)
def test_parse_region__voxels_or_lengths__per_axis(
    text: str, start: tuple[int, int, int], stop: tuple[int, int, int]
) -> None:
    """The origin does not count: regions begin at the first voxel."""
    assert parse_region(text, EM) == Box(start, stop)


def test_parse_region__length_within_a_voxel__takes_all_that_it_touches() -> None:
    assert parse_region("41:79nm,3:5nm,:", EM) == Box((1, 0, 0), (2, 2, 600))


def test_parse_region__decimal_spacing__has_no_rounding_error() -> None:
    """0.3 / 0.1 is 2.9999999999999996, and 0.7 * 3 / 0.7 is 2.9999999999999996."""
    assert parse_region("0.3:0.6mm,2.1:4.2mm,:", CT) == Box((3, 3, 0), (6, 6, 600))


def test_parse_region__neighbouring_lengths__leave_no_gap() -> None:
    """Regions that share an end in nm share it in voxels, or overlap."""
    ends = range(0, 2001, 250)
    boxes = [parse_region(f"{a}:{b}nm,:,:", EM) for a, b in pairwise(ends)]
    assert all(second.start[0] <= first.stop[0] for first, second in pairwise(boxes))
    assert (boxes[0].start[0], boxes[-1].stop[0]) == (0, 50)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (":,:", r"has 2 axes instead of 3\n.*START:STOP"),
        ("", "has 1 axes instead of 3"),
        (":,5,:", "'5' is no range for axis y"),
        (":,1:2:3,:", "no range for axis y"),
        (":,:,a:b", "'a:b' is no range for axis x"),
        (":,:,1:2px", "no range for axis x"),
        ("1.5:3,:,:", "1.5 on axis z is no whole number of voxels"),
        ("nm:3,:,:", "axis z has a unit without a number"),
        ("40nm:3,:,:", "axis z has a unit at START only"),
        (":,0:501,:", "outside of the volume, whose axis y has 500 voxels or 2000 nm"),
        (":,:,-1:5", "outside of the volume, whose axis x has 600 voxels"),
        ("2561:2600nm,:,:", "outside of the volume, whose axis z has 64 voxels or 2560 nm"),
        ("700:,:,:", "outside of the volume"),
        ("5:5,:,:", "is empty: voxels 5:5 on axis z, which has 64 voxels"),
        (":,9:3,:", "is empty: voxels 9:3 on axis y"),
        ("64:,:,:", "is empty"),
    ],
)
def test_parse_region__wrong__says_what(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_region(text, EM)


def refusal(text: str, grid: Grid) -> str:
    """The remedy of a region that is refused."""
    with pytest.raises(ConfigError, match="region") as caught:
        parse_region(text, grid)
    return caught.value.remedy


@pytest.mark.parametrize(
    "text", ["0:4", "0:4,0:4", "a:b,:,:", "4,:,:", "nm:4,:,:", ":4,0:nm,:", "0.5:2,:,:", "0:1.5,:,:"]
)
def test_remedy__form_of_a_region__each_example_is_taken(text: str) -> None:
    """The examples in the message name what they say."""
    grid = Grid((70, 300, 300), (40.0, 4.0, 4.0), "nm")
    remedy = refusal(text, grid)
    examples = re.findall(r"[\w:]+,[\w:]+,[\w:]*", remedy)
    assert [parse_region(example, grid) for example in examples] == [
        Box((0, 100, 0), (64, 200, 300)),
        Box((0, 100, 0), (64, 200, 300)),
    ]


@pytest.mark.parametrize(
    ("text", "mended", "remedy"),
    [
        ("0nm:400,:,:", "0nm:400nm,:,:", "Add it to STOP"),
        ("4:4,:,:", "4:5,:,:", "STOP must be greater than START"),
        (":,9:4,:", ":,4:9,:", "STOP must be greater than START"),
        ("0:71,:,:", "0:70,:,:", "Stay between 0 and 70 voxels"),
        ("-1:4,:,:", "0:4,:,:", "Stay between 0 and 70 voxels"),
    ],
)
def test_remedy__ends_of_a_region__are_taken(text: str, mended: str, remedy: str) -> None:
    grid = Grid((70, 300, 300), (40.0, 4.0, 4.0), "nm")
    assert remedy in refusal(text, grid)
    assert parse_region(mended, grid).volume
