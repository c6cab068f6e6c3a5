"""The Dockerfile's steps without Docker: each stage is a folder, and PATH has the Python that its image would have.

python tests/support/dockerfile.py Dockerfile FOLDER       # runs the steps; prints the last stage's entry point
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """An instruction with its arguments."""

    name: str
    arguments: str


@dataclass
class Stage:
    """What stands for one stage's file system and settings."""

    root: Path
    work: str = "/"
    variables: dict[str, str] = field(default_factory=dict)
    entry: list[str] = field(default_factory=list)

    def path(self, name: str) -> Path:
        """Where something of the stage lies."""
        return self.root / (name if name.startswith("/") else f"{self.work}/{name}").lstrip("/")


def steps(text: str) -> Iterator[Step]:
    """The instructions of a Dockerfile; lines that end in a backslash go on."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, arguments = line.strip().partition(" ")
            yield Step(name, re.sub(r"\s+", " ", arguments.strip()))


def run(dockerfile: Path, folder: Path) -> Stage:
    """Do what the Dockerfile says, in ``folder``; returns the last stage.

    Raises:
        ValueError: If an instruction is not known here.
        subprocess.CalledProcessError: If a step fails.
    """
    stages: dict[str, Stage] = {}
    stage = Stage(folder / "before")  # an ARG may come before the first image
    for step in steps(dockerfile.read_text()):
        match step.name:
            case "FROM":
                _, _, name = step.arguments.partition(" AS ")
                stage = stages[name or str(len(stages))] = Stage(folder / (name or str(len(stages))))
            case "ARG" | "ENV":
                key, _, value = step.arguments.partition("=")
                if step.name == "ENV" or key not in os.environ:
                    stage.variables[key] = value
            case "WORKDIR":
                stage.work = step.arguments
                stage.path(".").mkdir(parents=True, exist_ok=True)
            case "COPY":
                _copy(step, dockerfile.parent, stage, stages)
            case "RUN":
                # HOME is this account's own until the image runs.
                wanted = {key: value for key, value in stage.variables.items() if key != "HOME"}
                command = ["bash", "-euo", "pipefail", "-c", step.arguments]
                subprocess.run(command, check=True, cwd=stage.path("."), env=os.environ | wanted, stdout=sys.stderr)
            case "ENTRYPOINT":
                stage.entry = json.loads(step.arguments)
            case "CMD":
                pass
            case _:
                raise ValueError(f"no way to do {step.name} without Docker")
    return stage


def _copy(step: Step, context: Path, stage: Stage, stages: dict[str, Stage]) -> None:
    *names, target = step.arguments.split()
    source = context
    if names[0].startswith("--from="):
        source = stages[names.pop(0).removeprefix("--from=")].root
    for name in names:
        origin = source / name.lstrip("/")
        into = stage.path(target) / (origin.name if target.endswith("/") else "")
        into.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, into, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, into)


if __name__ == "__main__":
    sys.stdout.write(" ".join(run(Path(sys.argv[1]), Path(sys.argv[2])).entry))
