"""The reference of commands and options, and links between pages."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from conftest import benchmark_module

ROOT = Path(__file__).parents[3]
FILES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "configs/README.md", ROOT / "benchmarks/RESULTS.md"]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in FILES)

make_reference = benchmark_module("assets.make_reference")


def test_page__docs_reference__is_what_the_parsers_say(make_reference: ModuleType) -> None:
    """Mended by ``python -m benchmarks.assets.make_reference``."""
    text = make_reference.page()
    assert make_reference.PAGE.read_text(encoding="utf-8") == text
    for command in make_reference.COMMANDS:
        parser = command.build_parser()
        names = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
        assert all(f"`{name}" in text or f", {name}" in text for name in names)


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", title).lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_pages__every_link__leads_somewhere(name: str) -> None:
    """To a file of the repository, and to a heading of it; links to the outside are not followed."""
    file = ROOT / name
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (file.parent / path).resolve() if path else file
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), target
