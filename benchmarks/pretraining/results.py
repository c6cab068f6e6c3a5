"""A study's file of results: written after every row, and gone on with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common.machine import environment
from benchmarks.pretraining.jobs import spread
from benchmarks.pretraining.rows import Row, from_json, to_json
from benchmarks.pretraining.studies import Setup, find
from coarse2fine.errors import ConfigError, OutputError
from coarse2fine.io import atomic_write


@dataclass(frozen=True, slots=True)
class Results:
    """A file of results.

    Attributes:
        study: Its name.
        steps: Of trainings, if not the study's own; other steps belong into another file.
        rows: So far.
        seconds: That they took, over all runs.
        finished: Whether these are all.
        seeds, command, environment: Of the last run.
        bf16: See ``Setup``.
    """

    study: str
    steps: int | None
    rows: Sequence[Row] = ()
    seconds: float = 0.0
    finished: bool = False
    seeds: Sequence[int] = ()
    command: str = ""
    environment: Any = None
    bf16: bool = False

    def to_json(self) -> dict[str, Any]:
        """As the file holds it."""
        about = {name: getattr(self, name) for name in self.__slots__ if name != "rows"}
        return about | {"rows": to_json(self.rows, find(self.study).BASELINES)}


def load(path: Path) -> Results:
    """Read a file of results.

    Raises:
        ConfigError: If it is none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Results(**{**document, "rows": from_json(document["rows"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} holds no results of a study ({error!r})", "Name another file (--out).") from None


def run(
    name: str, out: Path, setup: Setup, command: str, *, jobs: int = 1, told: Callable[[Row], None] = lambda row: None
) -> Results:
    """Run a study, or go on with it.

    Args:
        name: One of ``STUDIES``.
        out: File of results.
        setup: How; rows that are done are those of the file.
        command: That does this.
        jobs: Seeds at once, in processes of their own.
        told: Of each new row.

    Raises:
        C2FError: If the file is another study's or cannot be written, or something that the study needs is missing.
    """
    known = load(out) if out.exists() else Results(name, setup.steps, bf16=setup.bf16)
    there, wanted = (_about(one, of) for one, of in ((known, known.study), (setup, name)))
    if there != wanted:
        raise ConfigError(f"{out} holds results of {there}, not of {wanted}", "Name another file (--out).")
    rows, began, before = list(known.rows), time.monotonic(), known.seconds

    def write(*, finished: bool) -> Results:
        taken = round(before + time.monotonic() - began, 1)
        seeds, where = list(setup.seeds), environment()
        results = Results(name, setup.steps, rows, taken, finished, seeds, command, where, setup.bf16)
        with atomic_write(out) as path:
            path.write_text(json.dumps(results.to_json(), indent=1) + "\n", encoding="utf-8")
        return results

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        setup.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {error.filename}: {error.strerror}", "Choose other folders.") from error
    setup = replace(setup, done=tuple(known.rows))
    for found in spread(name, setup, jobs) if jobs > 1 else find(name).study(setup):
        rows += found
        write(finished=False)
        for row in found:
            told(row)
    return known if known.finished and len(rows) == len(known.rows) else write(finished=True)


def _about(one: Setup | Results, study: str) -> str:
    steps = "its own steps" if one.steps is None else f"--steps {one.steps}"
    return f"{study} with {steps}{' and --bf16' if one.bf16 else ''}"
