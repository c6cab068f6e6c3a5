"""The Dockerfile, as far as it can be checked without installing what it installs (CI does that)."""

from __future__ import annotations

import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
from dockerfile import run, steps

ROOT = Path(__file__).parents[2]
SMALL = """
ARG BASE=3
FROM python:${BASE} AS build
WORKDIR /build
COPY data.txt ./
COPY folder folder
RUN cat data.txt \\
    folder/*.txt > made

FROM python:${BASE}
ARG WORD=
WORKDIR /place
COPY --from=build /build/made made
RUN test "$HOME" != /nowhere && echo "${WORD:-none}" >> made
ENV HOME=/nowhere
ENTRYPOINT ["c2f", "infer"]
"""


def test_run__two_stages__are_folders_that_get_what_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments come from outside or are the default; a step that fails ends it."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.txt").write_text("b\n")
    (tmp_path / "data.txt").write_text("a\n")
    (tmp_path / "Dockerfile").write_text(SMALL)
    stage = run(tmp_path / "Dockerfile", tmp_path / "one")
    assert (tmp_path / "one" / "1" / "place" / "made").read_text() == "a\nb\nnone\n"
    assert stage.entry == ["c2f", "infer"]
    monkeypatch.setenv("WORD", "given")
    run(tmp_path / "Dockerfile", tmp_path / "two")
    assert (tmp_path / "two" / "1" / "place" / "made").read_text().endswith("given\n")
    (tmp_path / "Dockerfile").write_text(SMALL.replace("cat data.txt", "cat nothing.txt"))
    with pytest.raises(subprocess.CalledProcessError):
        run(tmp_path / "Dockerfile", tmp_path / "three")


def test_dockerfile__what_it_copies__is_there_and_not_ignored() -> None:
    """What .dockerignore keeps out would be missing in the image only."""
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [step.arguments.split()[:-1] for step in steps((ROOT / "Dockerfile").read_text()) if step.name == "COPY"]
    names = {name for names in copied if not names[0].startswith("--") for name in names}
    assert names == set(kept)
    assert all((ROOT / name).exists() for name in names)
    assert not any(fnmatch(name, ".*") for name in names)
