"""What the page says of a fine model that is not good enough yet."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import record
from conftest import import_benchmark

learning = import_benchmark("page.learning")
findings = import_benchmark("page.findings")
registry = import_benchmark("common.registry")


@pytest.fixture
def dataset() -> Any:
    return registry.load_dataset("brain").model_copy(update={"aim": 0.8, "models": {"fine": "D/fine"}})


def summary(dice: float) -> Any:
    return findings.summarise("brain", "dice", [record("one_stage", 9.0, dice)])


def put_curve(folder: Path, *scores: float) -> Path:
    """A training of 50 steps for each score."""
    file = folder / "D" / "fine" / "training.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    curve = [(50 * (index + 1), score) for index, score in enumerate(scores)]
    file.write_text(json.dumps({"steps": 50 * len(scores), "total": 1000, "seconds": 1.0, "curve": curve}))
    return folder


@pytest.mark.parametrize(
    ("scores", "dice", "told"),
    [
        ([0.1, 0.2, 0.3, 0.4], 0.35, "rose by 0.100 in the last quarter of 200 steps: time is missing"),
        ([0.1, 0.5, 0.9, 0.9], 0.6, "0.300 above that of test cases: data are missing"),
        ([0.1, 0.5, 0.6, 0.6], 0.6, "the network is too small, or its recipe poor"),
        ([0.4], 0.3, "of 50 steps"),
    ],
)
def test_learning__aim_is_missed__says_what_is_missing(
    dataset: Any, tmp_path: Path, scores: list[float], dice: float, told: str
) -> None:
    """Time, data or network; with the curve."""
    text, table = learning.learning(dataset, summary(dice), put_curve(tmp_path, *scores))
    assert f"has a mean Dice of {dice:.3f}; the aim is 0.8. " in text
    assert told in text
    assert f"| {scores[-1]:.3f} |" in table


def test_learning__aim_is_reached__is_one_sentence(dataset: Any, tmp_path: Path) -> None:
    """No curve is shown; and without an aim, a curve or one-stage mode there is nothing to say."""
    models = put_curve(tmp_path, 0.5, 0.9)
    assert list(learning.learning(dataset, summary(0.85), models)) == [
        "One-stage mode with the fine model has a mean Dice of 0.850; the aim is 0.8, which is reached."
    ]
    assert not list(learning.learning(dataset.model_copy(update={"aim": None}), summary(0.5), models))
    assert not list(learning.learning(dataset, summary(0.5), tmp_path / "elsewhere"))
    nothing = findings.summarise("brain", "dice", [record("nnunet", 9.0, 0.5)])
    assert not list(learning.learning(dataset, nothing, models))


def test_thin__long_curve__has_eight_means_of_equal_parts() -> None:
    """Each at its last step; a short one stays as it is."""
    curve = [(step, float(step % 2)) for step in range(1, 161)]
    assert learning.thin(curve) == [(20 * part, 0.5) for part in range(1, 9)]
    assert learning.thin(curve[:3]) == curve[:3]


def test_missing__examples__are_right() -> None:
    """As in its docstring."""
    assert doctest.testmod(learning).attempted == 2
    assert not doctest.testmod(learning).failed
