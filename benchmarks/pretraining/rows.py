"""What a study of pretraining measures, and by how much methods differ from their baseline.

A gain is a mean of differences over seeds and test cases, both of which are samples. Its interval is that of the
analysis of several readers and cases, seeds in the place of readers (Dorfman, Berbaum and Metz, Investigative Radiology
1992), with Satterthwaite's degrees of freedom, but no fewer than seeds give. Where cases do not matter it is Student's
paired interval over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

CONFIDENCE = 0.95

Baselines = Mapping[str, tuple[str, ...]]
"""For each measure the methods that others are compared with."""


@dataclass(frozen=True, slots=True)
class Row:
    """One training, measured on the test cases.

    Attributes:
        method: What was trained, and how.
        labels: How much of the labels it saw, such as ``2`` cases or ``10 %``.
        seed: Of everything random in it.
        measure: What ``value`` is.
        value: Over all test cases.
        cases: Of each test case, patient or other independent unit, always in the same order; of a measure that is no
            mean over cases, its ``pseudo_values``; empty if there are none.
        less: Whether less is better.
    """

    method: str
    labels: str
    seed: int
    measure: str
    value: float
    cases: tuple[float, ...] = ()
    less: bool = False


@dataclass(frozen=True, slots=True)
class Gain:
    """How much better a method is than its baseline.

    Attributes:
        baseline: The baseline's method.
        by_seed: At each seed; above 0 is better, also where less is.
        mean: Over seeds and cases.
        interval: That covers the true gain with 95 %; None with fewer than two seeds.
    """

    baseline: str
    by_seed: Mapping[int, float]
    mean: float
    interval: tuple[float, float] | None


def gains(rows: Sequence[Row], baselines: Baselines) -> dict[tuple[str, str, str], Gain]:
    """Gains of all methods that have a baseline at the same measure and labels, and seeds in common with it.

    Of several baselines the best mean counts. It is chosen on the test cases, which favours the baseline.

    Returns:
        By measure, labels and method.
    """
    groups: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in rows:
        groups.setdefault((row.measure, row.labels, row.method), {})[row.seed] = row
    found = {}
    for (measure, labels, method), ours in groups.items():
        names = baselines.get(measure, ())
        others = {name: groups[key] for name in names if (key := (measure, labels, name)) in groups}
        if method not in names and others:
            name = best_of(others)
            if ours.keys() & others[name].keys():
                found[measure, labels, method] = gain_of(name, ours, others[name])
    return found


def best_of(methods: Mapping[str, Mapping[int, Row]]) -> str:
    """The method whose mean over seeds is best."""

    def goodness(name: str) -> float:
        rows = methods[name].values()
        return float(np.mean([-row.value if row.less else row.value for row in rows]))

    return max(methods, key=goodness)


def gain_of(baseline: str, ours: Mapping[int, Row], theirs: Mapping[int, Row]) -> Gain:
    """By how much some rows are better than a baseline's, at the seeds that both have.

    Raises:
        ValueError: If cases are not the same.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    sign = -1.0 if ours[seeds[0]].less else 1.0
    by_seed = {seed: sign * (ours[seed].value - theirs[seed].value) for seed in seeds}
    counts = {len(row.cases) for seed in seeds for row in (ours[seed], theirs[seed])}
    if len(counts) != 1:
        raise ValueError(f"{ours[seeds[0]].method} and {baseline} have different numbers of cases: {sorted(counts)}")
    if counts == {0}:
        differences = np.array([[by_seed[seed]] for seed in seeds])
    else:
        differences = sign * np.array([np.subtract(ours[seed].cases, theirs[seed].cases) for seed in seeds])
    return Gain(baseline, by_seed, float(np.mean([*by_seed.values()])), interval_of(differences))


def interval_of(differences: NDArray[np.floating], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """The interval of a mean over seeds and cases, both drawn at random.

    Args:
        differences: Shape (seeds, cases).
        confidence: Chance that it covers the true mean.

    Returns:
        None with a single seed, which cannot tell how much seeds matter.
    """
    seeds, cases = differences.shape
    if seeds < 2:
        return None
    mean = differences.mean()
    of_seeds, of_cases = differences.mean(1) - mean, differences.mean(0) - mean
    parts = [(cases * (of_seeds**2).sum() / (seeds - 1), seeds - 1)]  # mean squares, and their degrees of freedom
    if cases > 1:
        rest = ((differences - mean - of_seeds[:, None] - of_cases) ** 2).sum() / ((seeds - 1) * (cases - 1))
        between_cases = seeds * (of_cases**2).sum() / (cases - 1)
        if between_cases > rest:
            parts += [(between_cases, cases - 1), (-rest, (seeds - 1) * (cases - 1))]
    variance = sum(square for square, _ in parts)  # of the mean, times seeds and cases
    if not variance > 0:
        return float(mean), float(mean)
    freedom = max(1 / sum((square / variance) ** 2 / free for square, free in parts), seeds - 1)
    half = student.ppf((1 + confidence) / 2, freedom) * np.sqrt(variance / (seeds * cases))
    return float(mean - half), float(mean + half)


def pseudo_values(measure: Callable[[NDArray[np.bool_]], float], patients: Sequence[object]) -> tuple[float, ...]:
    """What each patient contributes to a measure that is no mean, such as an area under a curve: the jackknife.

    Args:
        measure: Of the cases that a mask keeps, shape (cases,).
        patients: Of each case; numbers or names.

    Returns:
        One value for each patient, in their order; their mean is close to the measure of all.
    """
    of_case = np.asarray(patients)
    there = np.unique(of_case)
    whole = measure(np.ones(len(of_case), bool))
    return tuple(len(there) * whole - (len(there) - 1) * measure(of_case != one) for one in there)


def to_json(rows: Iterable[Row], baselines: Baselines) -> list[dict[str, object]]:
    """Rows as files hold them, each with the baseline's value and the gain at its seed, and the gain's interval.

    ``gain_interval`` is that of the mean gain over all seeds, and the same at each of them.
    """
    rows = list(rows)
    found = gains(rows, baselines)
    values = {(row.measure, row.labels, row.method, row.seed): row.value for row in rows}
    lines: list[dict[str, object]] = []
    for row in rows:
        gain = found.get((row.measure, row.labels, row.method))
        has = gain is not None and row.seed in gain.by_seed
        against = gain.baseline if gain is not None and has else None
        line: dict[str, object] = {"method": row.method, "labels": row.labels, "seed": row.seed}
        line |= {"measure": row.measure, "value": row.value, "against": against}
        line["baseline"] = values[row.measure, row.labels, against, row.seed] if against is not None else None
        line["gain"] = gain.by_seed[row.seed] if gain is not None and has else None
        line["gain_interval"] = list(gain.interval) if gain is not None and has and gain.interval else None
        lines.append(line | {"less_is_better": row.less, "cases": list(row.cases)})
    return lines


def from_json(lines: Iterable[Mapping[str, object]]) -> list[Row]:
    """The inverse; what was computed from other rows is left out."""
    known = ("method", "labels", "seed", "measure", "value")
    return [
        Row(**{name: line[name] for name in known}, cases=tuple(line["cases"]), less=bool(line["less_is_better"]))  # type: ignore[arg-type]
        for line in lines
    ]
