"""Indexes of folders, made of what cases' pages say of themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pages import EVIL, result, scan

from coarse2fine.nnunet.model import Model
from coarse2fine.page.case import write_case_page
from coarse2fine.page.index import is_page, read_summary, write_index


@pytest.fixture
def pages(tmp_path: Path, model: Model) -> dict[str, Path]:
    """The pages of three cases, of which only the first is written; the second has a name to be quoted."""
    folder = tmp_path / "all_files"
    folder.mkdir()
    write_case_page(scan(), result(), model, folder / "a.html")
    return {"a": folder / "a.html", "b #1": folder / "b #1.html", "c": folder / "c.html"}


def test_read_summary__page_of_a_case__says_what_the_page_says(pages: dict[str, Path]) -> None:
    """Finding, warnings and seconds of the run; the finding has a stranger's name in it."""
    summary = read_summary(pages["a"])
    assert summary is not None
    assert summary.finding.replace("\xa0", " ").startswith("2 labels, 4.66 ml in all: lesion 2.86 ml")
    assert EVIL in summary.finding
    assert (summary.warnings, summary.seconds) == (2, 3.5)
    assert summary.alt == "case 7: Slice 7 of 40 with outlines of lesion"


@pytest.mark.parametrize(
    "changed",
    [
        {"thumbnail": "https://example.org/a.png"},
        {"thumbnail": 'data:image/png;base64,AA=="><script>'},
        {"warnings": "many"},
        {"more": 1},
        {"finding": None},
        None,
    ],
)
def test_read_summary__somebody_elses__is_none(changed: dict | None, pages: dict[str, Path]) -> None:
    """An address, markup, other types, other keys, no JSON, or no page at all."""
    page = pages["a"]
    head, _, rest = page.read_text(encoding="utf-8").partition('id="summary">')
    old, _, rest = rest.partition("</script>")

    def rewrite(text: str) -> None:
        escaped = text.replace("</", "<\\/")
        page.write_text(f'{head}id="summary">{escaped}</script>{rest}', encoding="utf-8")

    rewrite(json.dumps(json.loads(old)))
    assert read_summary(page) is not None
    rewrite("{" if changed is None else json.dumps(json.loads(old) | changed))
    assert read_summary(page) is None
    assert read_summary(pages["c"]) is None


def test_write_index__done_failed_and_open_cases__are_all_there(
    pages: dict[str, Path], tmp_path: Path, model: Model
) -> None:
    """Links are relative and quoted; what went wrong is text."""
    index = tmp_path / "all.html"
    write_index(index, "scans", pages, {"b #1": EVIL})
    html = index.read_text(encoding="utf-8")
    assert "1 of 3 cases done, 1 failed, 1 with warnings" in html
    assert '<a href="all_files/a.html">a</a>' in html
    assert "<script>document" not in html
    assert html.count("Not done yet") == 1
    write_case_page(scan(), result(warnings=()), model, pages["b #1"])
    write_index(index, "scans", pages, {})
    assert '<a href="all_files/b%20%231.html">b #1</a>' in index.read_text(encoding="utf-8")


def test_is_page__ours_and_others__are_told_apart(pages: dict[str, Path], tmp_path: Path) -> None:
    """Neither a file of somebody else nor one that is not there is ours."""
    write_index(tmp_path / "all.html", "scans", pages, {})
    other = tmp_path / "other.html"
    other.write_text("<!doctype html><title>mine</title>")
    assert is_page(pages["a"])
    assert is_page(tmp_path / "all.html")
    assert not is_page(other)
    assert not is_page(pages["c"])
