"""Sentences of pages."""

from __future__ import annotations

import pytest

from coarse2fine.measures import Measure
from coarse2fine.page.words import finding, names_of, share


def one(name: str, values: tuple[int, ...], voxels: int, components: int = 1) -> Measure:
    return Measure(name, values, voxels, voxels * 1000.0, "mm", components)


@pytest.mark.parametrize(
    ("measures", "words"),
    [
        ([], "Nothing was found"),
        ([one("lesion", (1,), 0, 0)], "Nothing was found"),
        ([one("lesion", (1,), 3, 2), one("cyst", (2,), 0, 0)], "2 components of lesion, 3 ml in all"),
        ([one("", (1,), 3, 1)], "1 component, 3 ml"),
        ([one("", (1,), 1), one("cyst", (2,), 2)], "2 labels, 3 ml in all: cyst 2 ml, label 1 1 ml"),
        (
            [one(name, (value,), value) for value, name in enumerate("abcde", 1)],
            "5 labels, 15 ml in all: e 5 ml, d 4 ml, c 3 ml and 2 more",
        ),
    ],
)
def test_finding__any_labels__is_one_sentence(measures: list[Measure], words: str) -> None:
    """Nothing, one label, several, and so many that the largest stand for all."""
    whole = sum(measure.volume for measure in measures)
    assert finding(measures, whole, "mm").replace("\xa0", " ") == words


def test_names_of__nested_regions__are_called_after_the_smallest() -> None:
    """The rim of a tumour is the whole tumour's, its core the core's; a value without a name says so."""
    measures = [one("tumour", (1, 2), 9), one("core", (2,), 4)]
    assert names_of(measures, [2, 1, 7]) == {1: "tumour", 2: "core", 7: "label 7"}


@pytest.mark.parametrize("part", [0.9995, 0.99999])
def test_share__nearly_all__is_not_called_all(part: float) -> None:
    """What was left out is not rounded away."""
    assert share(part) == "99.9 %"
    assert share(1.0) == "100 %"
