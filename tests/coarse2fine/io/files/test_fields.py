"""Fields of text headers, as strangers may fill them: they are checked before any library sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from coarse2fine.errors import VolumeError
from coarse2fine.io.files.fields import axis_count, integers, reals

FILE = Path("a.nrrd")


def test_axis_count__one_to_eight__is_that_number() -> None:
    """As many as the formats know."""
    assert [axis_count(FILE, "dimension", str(axes)) for axes in range(1, 9)] == list(range(1, 9))


@pytest.mark.parametrize("text", ["0", "-1", "9", "999999999999999999", "3 3", "", "x", "3.0"])
def test_axis_count__anything_else__is_refused_with_field_and_value(text: str) -> None:
    """None of them reaches a library."""
    with pytest.raises(VolumeError, match=f"a.nrrd: the header says dimension = '{text}'"):
        axis_count(FILE, "dimension", text)


@pytest.mark.parametrize("read", [integers, reals])
@pytest.mark.parametrize("text", ["1 2", "1 2 3 4", "", "1 2 x", "1 2 nan", "1 2 1e999"])
def test_numbers__too_few_too_many_or_of_another_kind__are_refused(read: Callable[..., object], text: str) -> None:
    """Three were expected."""
    assert read(FILE, "sizes", "1 2\t3", 3) == (1, 2, 3)
    with pytest.raises(VolumeError, match=f"sizes = '{text}'"):
        read(FILE, "sizes", text, 3)
