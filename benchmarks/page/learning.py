"""How far a data set's fine model is trained, beside what it is to reach."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.common.machine import ROOT
from benchmarks.common.markdown import table
from benchmarks.common.registry import Dataset
from benchmarks.page.findings import Summary
from benchmarks.training.model_folder import Progress

MODELS = ROOT / "benchmarks" / "models"
POINTS = 8
"""Of a curve, at most."""
RISING = 0.01
"""Gain of the last quarter of a curve over the quarter before from which on it still rises."""
ONE_STAGE = "one_stage"

Curve = Sequence[tuple[int, float]]


def learning(dataset: Dataset, summary: Summary, models: Path = MODELS) -> Iterator[str]:
    """Lines and a table for the page; nothing where no aim is set, or the training left no curve.

    Args:
        dataset: With an aim.
        summary: Its rows; one-stage mode's Dice is what is aimed at.
        models: Folder of the repository's own models.
    """
    file = models / dataset.models.get("fine", "") / "training.json"
    row = summary.find(ONE_STAGE)
    if dataset.aim is None or row is None or row["dice"] is None or not file.is_file():
        return
    progress = Progress.read(json.loads(file.read_text(encoding="utf-8")))
    reached = f"One-stage mode with the fine model has a mean Dice of {row['dice']:.3f}; the aim is {dataset.aim:g}"
    if row["dice"] >= dataset.aim:
        yield f"{reached}, which is reached."
        return
    yield f"{reached}. {missing(progress.curve, row['dice'])}"
    points = thin(progress.curve)
    heads = ["training steps", *(f"{steps:,}" for steps, _ in points)]
    yield table(heads, [["mean Dice of validation patches", *(f"{score:.3f}" for _, score in points)]])


def missing(curve: Curve, dice: float) -> str:
    """What a model lacks: time where its curve still rises, else data, or a larger network.

    >>> missing([(50, 0.1), (100, 0.2), (150, 0.3), (200, 0.4)], 0.3)
    'Its curve rose by 0.100 in the last quarter of 200 steps: time is missing.'
    >>> missing([(50, 0.1), (100, 0.7), (150, 0.8), (200, 0.8)], 0.6).partition(", ")[2]
    'and the Dice of training cases is 0.200 above that of test cases: data are missing.'
    """
    quarters = _quarters([score for _, score in curve])
    gain, above = quarters[-1] - quarters[-2], quarters[-1] - dice
    if gain >= RISING:
        return f"Its curve rose by {gain:.3f} in the last quarter of {curve[-1][0]:,} steps: time is missing."
    flat = f"Its curve rose by only {gain:.3f} in the last quarter of {curve[-1][0]:,} steps"
    if above >= RISING:
        return f"{flat}, and the Dice of training cases is {above:.3f} above that of test cases: data are missing."
    return f"{flat}, on training cases, too: the network is too small, or its recipe poor."


def thin(curve: Curve) -> list[tuple[int, float]]:
    """Means over equal parts of a curve, at the last step of each, as single epochs are noisy."""
    count = min(POINTS, len(curve))
    edges = [round(index * len(curve) / count) for index in range(count + 1)]
    parts = [curve[start:stop] for start, stop in pairwise(edges)]
    return [(part[-1][0], sum(score for _, score in part) / len(part)) for part in parts]


def _quarters(scores: Sequence[float]) -> list[float]:
    edges = [round(index * len(scores) / 4) for index in range(5)]
    parts = [scores[start:stop] or scores[-1:] for start, stop in pairwise(edges)]
    return [sum(part) / len(part) for part in parts]
