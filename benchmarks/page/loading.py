"""What ``run.py`` has written, read again: rows, sessions and experiments of every data set."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.registry import Dataset, load_dataset
from benchmarks.page.findings import Row, Summary, summarise
from coarse2fine.errors import C2FError

PICTURE = "pareto.png"
AGENT = re.compile(r"(?:gains|policy)(?:-\w+)?-seed\d+")
"""How ``assign.py`` names the agents that it trains."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment's results.

    Attributes:
        title: What was asked.
        about: Data set, case and measure, as far as it says.
        repeat: How often everything was measured.
        rows: Flat; keys are columns.
        slopes: Numbers that belong to no row, by name.
        file: JSON file.
        pictures: PNG files beside it: of the rows, and of the case itself.
    """

    title: str
    about: Row
    repeat: int
    rows: Sequence[Row]
    slopes: Mapping[str, Any]
    file: Path
    pictures: Sequence[Path]

    @property
    def agents(self) -> list[str]:
        """Trained agents that are named in rows, sorted."""
        texts = {value for row in self.rows for value in row.values() if isinstance(value, str)}
        return sorted(text for text in texts if AGENT.fullmatch(text))


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured on a data set.

    Attributes:
        dataset: What the registry says.
        folder: Where its results lie.
        summary: Its rows.
        tolerance: Of its surface Dice, in the unit of the spacing.
        sessions: What was run, when and on what.
        experiments: By name.
    """

    dataset: Dataset
    folder: Path
    summary: Summary
    tolerance: float
    sessions: Sequence[Row]
    experiments: Sequence[Experiment]

    @property
    def picture(self) -> Path | None:
        """Where the picture of the rows belongs; None if there is nothing to show."""
        return self.folder / PICTURE if self.summary.judged else None


def load_results(folder: Path) -> list[Results]:
    """Everything below a results folder. Folders without ``results.json`` and ``experiments/`` are no data sets.

    Raises:
        C2FError: If there is nothing, a file cannot be read, or the registry does not know a data set.
    """
    folders = [
        one for one in sorted(folder.glob("*")) if any((one / it).exists() for it in ("results.json", "experiments"))
    ]
    if not folders:
        raise C2FError(f"there are no results in {folder}", "Make some by benchmarks/run.py, or name other --results.")
    return [_load(one) for one in folders]


def _load(folder: Path) -> Results:
    dataset = load_dataset(folder.name)
    rows, sessions = (read_json(folder / name, list) for name in ("results.json", "environment.json"))
    files = [*sorted((folder / "experiments").rglob("*.json")), *folder.glob("growth.json")]
    try:
        summary = summarise(dataset.name, dataset.quality, rows)
    except (KeyError, TypeError, AttributeError) as error:
        raise C2FError(f"{folder / 'results.json'} holds no rows: {error!r}", "Make it anew by run.py.") from None
    tolerance = next((row["tolerance"] for row in summary.rows if row["tolerance"]), dataset.tolerance)
    return Results(dataset, folder, summary, tolerance, sessions, [_experiment(file) for file in files])


def _experiment(file: Path) -> Experiment:
    content = read_json(file, dict)
    title = content.get("title") or {"growth": "How time and memory grow with the volume"}.get(file.stem, file.stem)
    pictures = [one for one in (file.with_suffix(".png"), file.with_name(f"{file.stem}_case.jpg")) if one.is_file()]
    slopes = content.get("slopes") or {}
    about = {key: content[key] for key in ("dataset", "case", "measure") if key in content}
    return Experiment(title, about, content.get("repeat") or 1, content.get("rows") or [], slopes, file, pictures)


def read_json(file: Path, kind: type) -> Any:
    """A JSON file's content; empty if there is no such file.

    Raises:
        C2FError: If it is not what it should be.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else kind()
    except ValueError as error:
        raise C2FError(f"{file} is no JSON: {error}", "Make it anew by benchmarks/run.py.") from None
    if not isinstance(content, kind):
        raise C2FError(f"{file} holds no {kind.__name__}", "Make it anew by benchmarks/run.py.")
    return content
