"""Pages in a real browser: nothing is loaded, nothing complains, and they fit screens of every width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import Tab, browser
from pages import EVIL, result, scan

from canvas import Box
from coarse2fine.nnunet.model import Model
from coarse2fine.page.case import write_case_page
from coarse2fine.page.index import write_index


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    """A folder with an index, ``all.html``, and the page of a case."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "all_files").mkdir()
    pages = {"a": folder / "all_files" / "a.html", EVIL: folder / "all_files" / "b.html"}
    write_case_page(scan(), result(), model, pages["a"])
    write_index(folder / "all.html", "scans", pages, {EVIL: EVIL})
    return folder


@pytest.mark.long
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["all.html", "all_files/a.html"])
def test_page__any_screen__loads_nothing_and_fits(name: str, dark: bool, tab: Tab, site: Path) -> None:
    """Only the file itself is asked for; nothing is wider than the screen, and nobody's script has run."""
    for width in (400, 1280):
        tab.open(site / name, width=width, dark=dark)
        assert tab.problems == []
        assert [url for url in tab.requests if not url.startswith("data:")] == [(site / name).as_uri()]
        assert tab.run("document.documentElement.scrollWidth") <= width  # innerWidth grows with what is too wide
        assert tab.run("document.title") != "owned"
        loaded = "[...document.images].every(one => one.complete && one.naturalWidth > 0)"
        assert tab.run(loaded)
        paper = tab.run("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")


@pytest.mark.long
def test_page__hostile_page__is_seen_by_the_browser(tab: Tab, tmp_path: Path) -> None:
    """What the other tests look for is found where it is: requests, complaints, and what is too wide."""
    page = tmp_path / "a.html"
    page.write_text("<!doctype html><img src='b.png'><p style='width:3000px'>a<script>console.error('bad')</script>")
    tab.open(page, width=400)
    assert any("b.png" in url for url in tab.requests)
    assert any("bad" in problem for problem in tab.problems)
    assert tab.run("document.documentElement.scrollWidth") > 400


@pytest.mark.long
def test_page__keyboard_alone__reaches_outlines_warnings_and_settings(tab: Tab, site: Path) -> None:
    """Tab goes from the warnings' link to the switch of outlines and on; space and Enter work them."""
    tab.open(site / "all_files" / "a.html")
    focused = "document.activeElement.id || document.activeElement.textContent"
    tab.press("Tab")
    assert tab.run(focused) == "Read them below"
    tab.press("Enter")
    assert tab.run("location.hash") == "#warnings"
    tab.open(site / "all_files" / "a.html")
    tab.press("Tab")
    tab.press("Tab")
    assert tab.run(focused) == "outlines"
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    seen = "getComputedStyle(document.querySelector('.outline')).visibility"
    assert tab.run(seen) == "visible"
    tab.press(" ")
    assert tab.run(seen) == "hidden"
    for _ in range(20):
        tab.press("Tab")
        if tab.run("document.activeElement.tagName") == "SUMMARY":
            break
    tab.press("Enter")
    assert tab.run("document.querySelector('details').open")


@pytest.mark.long
def test_page__pictures__lie_the_right_way_round(tab: Tab, site: Path) -> None:
    """Outlines are where labels are: label 1 spans columns 20 to 30 of 56, and rows 10 to 16 of 48."""
    tab.open(site / "all_files" / "a.html")
    box = tab.run("(b => [b.x, b.y, b.width, b.height])(document.querySelector('.outline').getBBox())")
    assert box == pytest.approx([30, 20, 15, 12])
    whole = tab.run("document.querySelector('.montage svg').viewBox.baseVal.width")
    assert whole == pytest.approx(84)


@pytest.mark.long
def test_page__frames__lie_where_they_say(tab: Tab, tmp_path: Path, model: Model) -> None:
    """On the screen, in shares of their picture: boxes that were looked at, dropped, and not reached in time."""
    run = result()
    assert run.look is not None
    late = replace(run.look, left=(Box((5, 5, 5), (20, 30, 40)),))
    write_case_page(scan(), replace(run, look=late), model, tmp_path / "a.html")
    tab.open(tmp_path / "a.html")
    shares = """(() => [...document.querySelectorAll('.picture rect.frame')].map(frame => {
        const svg = frame.ownerSVGElement, whole = svg.getBoundingClientRect(), part = frame.getBoundingClientRect();
        const scale = svg.viewBox.baseVal.width / whole.width, said = frame.getBBox();
        return [frame.className.baseVal, (part.x - whole.x) * scale - said.x, (part.y - whole.y) * scale - said.y];
    }))()"""
    frames = tab.run(shares)
    assert {kind for kind, _, _ in frames} == {"frame seen", "frame dropped", "frame late"}
    assert all(abs(x) < 0.01 and abs(y) < 0.01 for _, x, y in frames)


READY = "document.documentElement.dataset.viewer"


@pytest.mark.long
def test_viewer__any_volume__begins_at_the_largest_object_and_moves_by_keys(
    tab: Tab, tmp_path: Path, model: Model
) -> None:
    """NiiVue runs on what the page holds and asks for nothing; the crosshair is on label 1, and goes where keys say."""
    page = tmp_path / "a.html"
    write_case_page(scan(), result(), model, page, viewer=True)
    tab.open(page)
    tab.wait_for(READY)
    assert tab.run(READY) == "ready"
    assert tab.problems == []
    assert [url for url in tab.requests if not url.startswith("data:")] == [page.as_uri()]
    place = "(v => Array.from(v.frac2mm(v.scene.crosshairPos)).slice(0, 3))(c2fViewer)"
    start = tab.run(place)
    label = "(v => v.volumes[1].getValue(...v.volumes[1].mm2vox(v.frac2mm(v.scene.crosshairPos))))(c2fViewer)"
    assert tab.run(label) == 1
    tab.run("document.getElementById('volume').focus()")
    tab.press("ArrowLeft")
    tab.press("PageUp")
    moved = tab.run(place)
    # Left on the screen is the patient's right, which is where x grows in RAS.
    assert [b - a for a, b in zip(start, moved, strict=True)] == pytest.approx([1.5, 0, 3], abs=1e-3)
    tab.run("document.querySelector('[value=sliceTypeAxial]').click()")
    assert tab.run("c2fViewer.opts.sliceType === c2fViewer.sliceTypeAxial")
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.long
def test_viewer__no_webgl__says_so(tab: Tab, tmp_path: Path, model: Model) -> None:
    """A message, and nothing that does not work."""
    page = tmp_path / "a.html"
    write_case_page(scan(), result(), model, page, viewer=True)
    blind = "HTMLCanvasElement.prototype.getContext = () => null"
    script = tab.call("Page.addScriptToEvaluateOnNewDocument", source=blind)["identifier"]
    tab.open(page)
    tab.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)
    assert "no WebGL 2" in tab.run("document.getElementById('viewer-message').innerText")
    assert tab.run("document.getElementById('viewer-controls').hidden && document.getElementById('volume').hidden")
    assert tab.problems == []
