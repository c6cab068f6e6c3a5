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
    found = labels.from_logits(logits)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == labels.dtype
    assert len(np.unique(found)) == (len(names) if order != (3, 2, 1) else len(np.unique(expected)))


@pytest.mark.parametrize("names", [PLAIN, REGIONS], ids=["classes", "regions"])
def test_foreground_probability__any_logits__is_what_nnunets_probabilities_say(names: dict[str, Any]) -> None:
    """One minus the background's, or the most probable region's."""
    manager, labels = managed(names, (1, 2, 3) if names is REGIONS else None)
    logits = torch.from_numpy(np.random.default_rng(1).normal(0, 3, (labels.heads, 3, 4, 5)).astype(np.float32))
    probabilities = manager.apply_inference_nonlin(logits)
    expected = probabilities.amax(0) if names is REGIONS else probabilities[1:].sum(0)
    torch.testing.assert_close(labels.foreground_probability(logits), expected)


@pytest.mark.parametrize(("highest", "dtype"), [(255, np.uint8), (256, np.uint16)])
def test_dtype__highest_label__fits(highest: int, dtype: type) -> None:
    """The smallest type that holds it."""
    assert Labels({}, 2, (1, highest), ()).dtype is dtype
