"""How network outputs become labels, compared with nnU-Net's own label manager."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from coarse2fine.nnunet.labels import Labels

PLAIN = {"background": 0, "a": 1, "b": 2, "c": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": [3]}


def managed(names: dict[str, Any], order: tuple[int, ...] | None) -> tuple[LabelManager, Labels]:
    """Both sides."""
    manager = LabelManager(names, order)
    heads = manager.num_segmentation_heads
    foreground = tuple(sorted(set(manager.all_labels) - {0}))
    return manager, Labels(names, heads, foreground, tuple(order or ()))


@pytest.mark.parametrize(
    ("names", "order"),
    [({"background": 0, "a": 1}, None), (PLAIN, None), (REGIONS, (1, 2, 3)), (REGIONS, (3, 2, 1))],
    ids=["binary", "classes", "regions", "regions painted the other way round"],
)
def test_from_logits__any_labels__are_nnunets(names: dict[str, Any], order: tuple[int, ...] | None) -> None:
    """Logits are whole numbers, so that ties and regions at exactly one half come often."""
    manager, labels = managed(names, order)
    logits = np.random.default_rng(0).integers(-2, 3, (labels.heads, 6, 7, 8)).astype(np.float32)
    expected = manager.convert_logits_to_segmentation(torch.from_numpy(logits)).numpy()
    found = labels.from_logits(torch.from_numpy(logits)).numpy()
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == labels.dtype
    np.testing.assert_array_equal(labels.is_foreground(torch.from_numpy(logits)).numpy(), found != 0)
    assert len(np.unique(found)) == (len(names) if order != (3, 2, 1) else len(np.unique(expected)))


@pytest.mark.parametrize("names", [PLAIN, REGIONS], ids=["classes", "regions"])
def test_foreground_probability__any_logits__is_what_nnunets_probabilities_say(names: dict[str, Any]) -> None:
    """One minus the background's, or the most probable region's."""
    manager, labels = managed(names, (1, 2, 3) if names is REGIONS else None)
    logits = torch.from_numpy(np.random.default_rng(1).normal(0, 3, (labels.heads, 3, 4, 5)).astype(np.float32))
    probabilities = manager.apply_inference_nonlin(logits)
    expected = probabilities.amax(0) if names is REGIONS else probabilities[1:].sum(0)
    torch.testing.assert_close(labels.foreground_probability(logits), expected)


@pytest.mark.parametrize(("names", "order"), [(PLAIN, None), (REGIONS, (1, 2, 3))])
def test_foreground_probability__part_of_a_volume__is_the_same_to_the_last_bit(
    names: dict[str, Any], order: tuple[int, ...] | None
) -> None:
    """Whatever the size of the part, so that it does not matter in which pieces a volume is worked off."""
    labels, random = managed(names, order)[1], np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(0, 5, (labels.heads, 2, 23, 29)).astype(np.float32))
    for heads in (None, [labels.heads - 1]):
        whole = labels.foreground_probability(logits, heads)
        for _ in range(60):
            (y, end_y), (x, end_x) = (sorted(random.choice(size + 1, 2, replace=False)) for size in (23, 29))
            part = labels.foreground_probability(logits[:, :, y:end_y, x:end_x], heads)
            assert torch.equal(part, whole[:, y:end_y, x:end_x])


@pytest.mark.parametrize("names", [PLAIN, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("chosen", [("b",), ("c", "a"), ("a", "b", "c")], ids="+".join)
def test_foreground_probability__some_heads__is_their_share_of_nnunets_probabilities(
    names: dict[str, Any], chosen: tuple[str, ...]
) -> None:
    """The sum over classes, which exclude each other; of regions, which do not, the largest; never more than 1."""
    named = dict(zip(("background", "a", "b", "c"), names.values(), strict=True))
    manager, labels = managed(named, (1, 2, 3) if names is REGIONS else None)
    logits = torch.from_numpy(np.random.default_rng(2).normal(0, 9, (labels.heads, 30, 40, 50)).astype(np.float32))
    logits[0] -= 20  # so that sums are near 1, and rounding matters
    probabilities = manager.apply_inference_nonlin(logits).numpy().astype(np.float64)
    first = 0 if names is REGIONS else 1
    parts = [probabilities["abc".index(name) + first] for name in chosen]
    found = labels.foreground_probability(logits, [labels.head_of[name] for name in chosen]).numpy()
    np.testing.assert_allclose(found, np.max(parts, 0) if names is REGIONS else np.sum(parts, 0), atol=1e-6)
    assert found.max() <= 1


HEADS: dict[str, tuple[dict[str, Any], tuple[int, ...] | None]] = {
    "in another order than their values": ({"c": 3, "background": 0, "a": 1, "b": 2}, None),
    "lists of one value": ({"background": 0, "a": [1], "b": [2]}, None),
    "two names of one label": ({"background": 0, "a": 1, "also a": 1, "b": 2}, None),
    "a second name of background": ({"background": 0, "nothing": 0, "a": 1}, None),
    "ignore": ({"background": 0, "a": 1, "b": 2, "ignore": 3}, None),
    "regions": ({"core": [2, 3], "background": 0, "whole": [1, 2, 3], "ignore": 4}, (2, 1)),
    "a region of background": ({"background": 0, "void": [0], "whole": [1, 2], "core": 2}, (1, 2)),
}


@pytest.mark.parametrize("kind", HEADS)
def test_head_of__any_labels__is_where_nnunet_puts_them(kind: str) -> None:
    """Classes by value, regions in the order of the file; neither background nor what is ignored has a name there."""
    names, order = HEADS[kind]
    manager, labels = managed(names, order)
    known = {name: value for name, value in names.items() if name != "ignore" and np.any(np.atleast_1d(value))}
    places = manager.foreground_regions if manager.has_regions else manager.all_labels
    values = {
        name: tuple(of) if isinstance(of, list) and len(of) > 1 else int(np.max(of)) for name, of in known.items()
    }
    assert labels.head_of == {name: places.index(value) for name, value in values.items()}
    assert set(labels.head_of.values()) == set(range(0 if order else 1, manager.num_segmentation_heads))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (({"background": 0, "a": 1, "b": 2}, None), ({"b": 2, "a": [1], "background": 0}, None), True),
        (({"background": 0, "a": 1, "ignore": 2}, None), ({"background": 0, "a": 1}, None), True),
        (({"background": 0, "a": 1, "b": 2}, None), ({"background": 0, "a": 2, "b": 1}, None), False),
        (({"background": 0, "a": 1}, None), ({"background": 0, "b": 1}, None), False),
        (({"background": 0, "a": 1}, None), ({"background": 0, "a": 1, "b": 2}, None), False),
        ((REGIONS, (1, 2, 3)), (REGIONS | {"whole": [3, 2, 1]}, (1, 2, 3)), True),
        ((REGIONS, (1, 2, 3)), (REGIONS, (3, 2, 1)), False),
        ((REGIONS, (1, 2, 3)), (dict(sorted(REGIONS.items())), (1, 2, 3)), False),
        ((REGIONS, (1, 2, 3)), ({"background": 0, "whole": 1, "core": 2, "inner": 3}, None), False),
    ],
    ids=[
        *("written otherwise", "ignore", "values swapped", "another name", "one more"),
        *("regions", "painted the other way round", "in another order", "regions and classes"),
    ],
)
def test_agree_with__two_models__equal_values_mean_the_same(one: Any, other: Any, same: bool) -> None:
    """Names and values, and what regions paint; not how the file writes them, and not what is never a result."""
    (_, mine), (_, its) = managed(*one), managed(*other)
    assert mine.agree_with(its) == its.agree_with(mine) == same
    assert mine.agree_with(mine)


def test_left_out__regions__are_those_that_reach_beyond_the_chosen_ones() -> None:
    """Who looks for the whole looks for its core, too; another name of a chosen label is not left out."""
    _, regions = managed(REGIONS, (1, 2, 3))
    assert regions.left_out(["whole"]) == []
    assert regions.left_out(["inner"]) == ["whole", "core"]
    _, classes = managed({"background": 0, "a": 1, "also a": 1, "b": 2, "ignore": 3}, None)
    assert classes.left_out(["a"]) == ["b"]


@pytest.mark.parametrize(("highest", "dtype"), [(255, np.uint8), (256, np.uint16)])
def test_dtype__highest_label__fits(highest: int, dtype: type) -> None:
    """The smallest type that holds it."""
    assert Labels({}, 2, (1, highest), ()).dtype is dtype
