"""Commands of the pages about few labels are such that their parsers take them."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[3] / "docs"
PAGES = ("pretraining", "finetuning", "explain", "records")
COMMANDS = [
    line
    for page in PAGES
    for block in re.findall(r"^```\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if line.startswith("c2f-")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_build_parser__command_of_a_page__is_taken(line: str) -> None:
    """An option that was renamed or left out would be refused."""
    program, *words = shlex.split(line, comments=True)
    module = importlib.import_module(f"coarse2fine.cli.{program.removeprefix('c2f-')}")
    assert vars(module.build_parser().parse_args(words))


def test_pages__all__have_commands() -> None:
    """As many as were read when this was written, so that a page of another layout is noticed."""
    assert len(COMMANDS) >= 19
