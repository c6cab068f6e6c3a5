"""The page of a folder's cases, made of what their own pages say of themselves.

It is made anew whenever a run ends. Cases that an earlier run has done, or other parts of the same folder, are in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from coarse2fine.io import atomic_write
from coarse2fine.page import words
from coarse2fine.page.render import MADE_BY, render

_HEAD = 1 << 19  # bytes of a page in which its summary stands
_SUMMARY = re.compile(r'<script type="application/json" id="summary">(.*?)</script>', re.DOTALL)
_IMAGE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


@dataclass(frozen=True, slots=True)
class Summary:
    """What a case's page says of itself.

    Attributes:
        finding: What was found.
        warnings: How many there are.
        seconds: What the run took.
        thumbnail: A small picture, PNG as a data URL.
        alt: The same in words.
    """

    finding: str
    warnings: int
    seconds: float
    thumbnail: str
    alt: str


@dataclass(frozen=True, slots=True)
class Line:
    """A case in an index; without a summary it failed, or was not done yet."""

    name: str
    link: str
    summary: Summary | None
    failure: str | None


def is_page(path: Path) -> bool:
    """Whether a file is a page of ours, which may be made anew."""
    with suppress(OSError), path.open("rb") as stream:
        return MADE_BY.encode() in stream.read(4096)
    return False


def read_summary(path: Path) -> Summary | None:
    """What a case's page says of itself; None if there is no such page, or somebody else wrote it."""
    with suppress(OSError, ValueError, TypeError), path.open("rb") as stream:
        found = _SUMMARY.search(stream.read(_HEAD).decode("utf-8", "replace"))
        if found:
            summary = Summary(**json.loads(found[1]))
            fits = isinstance(summary.finding, str) and isinstance(summary.alt, str)
            numbers = isinstance(summary.warnings, int) and isinstance(summary.seconds, int | float)
            return summary if fits and numbers and _IMAGE.fullmatch(summary.thumbnail) else None
    return None


def write_index(path: Path, title: str, pages: Mapping[str, Path], failures: Mapping[str, str]) -> None:
    """Write the index of a folder, atomically.

    Args:
        path: The HTML file.
        title: What its heading says.
        pages: The page of each case, by name; below the folder of ``path``.
        failures: Why a case has none, by name.

    Raises:
        OutputError: If it cannot be written.
    """
    lines = [
        Line(name, _link(page, path), None if name in failures else read_summary(page), failures.get(name))
        for name, page in pages.items()
    ]
    with atomic_write(path) as temporary:
        temporary.write_text(
            render("index.html", title=title, state=_state(lines), lines=lines, plural=words.plural), encoding="utf-8"
        )


def _link(page: Path, index: Path) -> str:
    return quote(page.relative_to(index.parent).as_posix())


def _state(lines: Sequence[Line]) -> str:
    done, failed = sum(line.summary is not None for line in lines), sum(line.failure is not None for line in lines)
    parts = [f"{done:,} of {words.plural(len(lines), 'case')} done"]
    if failed:
        parts.append(f"{failed:,} failed")
    warned = sum(line.summary is not None and line.summary.warnings > 0 for line in lines)
    if warned:
        parts.append(f"{warned:,} with warnings")
    return ", ".join(parts)
