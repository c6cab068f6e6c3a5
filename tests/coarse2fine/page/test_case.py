"""What the page of a case says, and that strangers' names do nothing on it."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from pages import EVIL, found, result, scan, stored_as

from canvas import Box
from coarse2fine.io import Grid, Volume
from coarse2fine.look import Look
from coarse2fine.nnunet.model import Model
from coarse2fine.page import case
from coarse2fine.page.case import case_page, write_case_page
from coarse2fine.page.montage import make_montage
from coarse2fine.page.projections import project
from coarse2fine.page.reduction import affine_of
from coarse2fine.promise.statement import Promised
from coarse2fine.report import DeadlineKept, LeftBox

VOID = {"meta", "img", "input", "rect", "line", "image", "path", "use"}
LOADING = {"src", "href", "srcset", "action", "data", "poster", "background", "xlink:href"}


class Reader(HTMLParser):
    """Collects text, headings, and every address; each tag must be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.unnamed: list[str] = []
        self.words = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.addresses += [value or "" for name, value in attributes if name in LOADING]
        assert not [name for name in values if name.startswith("on") or name == "style"]
        if tag == "script":
            self.scripts.append(values)
        if (tag == "img" and "alt" not in values) or (values.get("role") == "img" and not values.get("aria-label")):
            self.unnamed.append(tag)
        if re.fullmatch(r"h\d", tag):
            self.headings.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.words += " " * (tag in {"td", "th", "li", "summary"})

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            while self.open.pop() != tag:
                assert tag in {"ul", "table", "figure"}  # whose parts close with them

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "script" not in self.open:
            self.words += data

    @property
    def text(self) -> str:
        return " ".join(self.words.split())


@pytest.fixture(scope="module")
def page(model: Model) -> Reader:
    return Reader(case_page(scan(), result(), model))


def test_case_page__strangers_names__are_text(page: Reader) -> None:
    """A label and a warning that look like scripts are shown, and the only script is data."""
    assert page.text.count(EVIL) >= 3
    assert page.scripts == [{"type": "application/json", "id": "summary"}]


def test_case_page__any__loads_nothing(page: Reader, model: Model) -> None:
    """Every address is data or a place on the page, and browsers are told to load nothing else."""
    assert page.addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in unescape(case_page(scan(), result(), model))


def test_case_page__any__is_sane_for_screen_readers(page: Reader) -> None:
    """One main heading, the others below it, and every picture has words."""
    assert page.headings[0] == "h1"
    assert set(page.headings[1:]) == {"h2"}
    assert page.unnamed == []


def test_case_page__two_labels__says_how_much_of_what(page: Reader) -> None:
    """Millilitres are voxels times 9 mm3; components as scipy counts them in ``found``."""
    labels = found()
    first, second = ((labels == value).sum() * 9e-3 for value in (1, 2))
    assert f"2 labels, {first + second:.3g} ml in all: lesion {first:.3g} ml, {EVIL} {second:.3g} ml" in page.text
    assert re.search(rf"lesion {first:.3g} {(labels == 1).sum()} 2 ", page.text)


def test_case_page__accelerated_run__says_what_was_looked_at_and_promised(page: Reader) -> None:
    """Shares, regions that were not chosen, and the promise in the kit's words."""
    for words in (
        "looked at 5 % of the volume, which holds 97 % of what the coarse network suspects",
        "3 regions were found, 2 boxes chosen; 1 region not chosen",
        "Promised: of a new case, at most 1 % lies outside.",
        "2 warnings. Read them below",
        "coarse network, everywhere 1.0 0.8",
        "in all 3.5 2.3",
        "1 input of the fine network, 80% filled with boxes; at most 0.7 GB of memory",
        "rois.threshold 0.3",
    ):
        assert words in page.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "one-stage", "promise": None}, "Everything: the fine network looked at the whole volume"),
        ({"promise": None}, "Nothing is promised of what lies outside of the boxes"),
        ({"promise": Promised("S", False, ("A", "B"))}, "does not cover this case (A; B). For others it says: S."),
        (
            {"deadline": DeadlineKept(30, 1, "gain", 5, (LeftBox((0, 0, 0), (9, 9, 9), 1.0),), 0.25, "coarse")},
            "1 box was not reached in 30 s and filled with coarse labels: 25 % of what the coarse network suspects",
        ),
        ({"warnings": ()}, "case 7 2 labels"),
    ],
)
def test_case_page__other_runs__say_so(changes: dict, words: str, model: Model) -> None:
    """One-stage, no kit, a promise that does not hold, boxes that a deadline left, nothing to warn of."""
    text = Reader(case_page(scan(), result(**changes), model)).text
    assert words in text
    assert ("Warnings" in text) == (changes.get("warnings") != ())
    assert ("Heatmap" in text) == (changes.get("mode") != "one-stage")


def test_case_page__nothing_found__shows_where_the_heatmap_is_highest(model: Model) -> None:
    """That is heatmap slice 1 of 10, so slice 6 of 40 from the feet."""
    empty = Reader(case_page(scan(), result(np.zeros((40, 48, 56), np.uint8)), model))
    assert "Nothing was found" in empty.text
    assert "Slice 7 of 40" in empty.text
    assert f"Not found: lesion, {EVIL}." in empty.text
    nowhere = replace(result(np.zeros((40, 48, 56), np.uint8)), look=None)
    assert "Slice 21 of 40" in Reader(case_page(scan(), nowhere, model)).text


def test_case_page__electron_microscopy__has_no_patient(model: Model) -> None:
    """No letters, planes as stored, cubic micrometres; so for a file that does not say how it lies, in millilitres."""
    text = Reader(case_page(scan("nm"), result(), model)).text
    assert "um³" in text or "µm³" in text
    assert "From the feet" not in text
    assert "Along z" in text
    unknown = Reader(case_page(scan(direction=None), result(), model)).text
    assert "From the feet" not in unknown
    assert "ml in all" in unknown
    assert "From the feet" in Reader(case_page(scan(), result(), model)).text


def test_case_page__oblique_volume__says_that_slices_are_its_own(model: Model) -> None:
    """Thirty degrees about the patient's long axis."""
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turned = scan(direction=(c, -s, 0, s, c, 0, 0, 0, 1))
    assert "the volume is oblique" in Reader(case_page(turned, result(), model)).text
    assert "the volume is oblique" not in Reader(case_page(scan(), result(), model)).text


@pytest.mark.parametrize("code", ["RAS", "PIL", "SLA", "AIR"])
def test_make_montage__other_storage__is_the_same(code: str) -> None:
    """The same slices, pixels, outlines, close-ups and place as of a volume in the patient's own order."""
    volume, labels = scan(), found()
    stored, mask = stored_as(volume, labels, code)
    montages = [make_montage(*scene, None, ct=False) for scene in ((volume, labels), (stored, mask))]
    first, second = (replace(montage, centre=(0, 0, 0)) for montage in montages)
    assert first == second
    places = [
        affine_of(grid, (1, 1, 1)) @ [*montage.centre[::-1], 1]
        for grid, montage in zip((volume.grid, stored.grid), montages, strict=True)
    ]
    np.testing.assert_allclose(*places)


def test_make_montage__three_objects__are_all_seen_and_the_largest_is_the_main_one() -> None:
    """Each in a slice of its own, from the feet; the largest lies in slices 5 to 9."""
    montage = make_montage(scan(), found(), None, ct=False)
    assert [panel.number for panel in montage.panels] == [7, 23, 32]
    assert (montage.seen, montage.objects, montage.main, montage.slices) == (3, 3, 0, 40)
    assert [list(panel.outlines) for panel in montage.panels] == [[1], [2], [1]]


def test_project__known_boxes__lie_where_radiologists_look_for_them() -> None:
    """The patient's left is on the right from feet and front, the front on top or left, the head on top."""
    look = replace(result().look, boxes=(Box((36, 0, 50), (40, 4, 56)),), dropped=(), left=(Box((0, 0, 0), (4, 4, 4)),))
    feet, front, left = project(scan(), look)
    (box, late) = feet.frames
    assert (box.left, box.top, box.width, box.height, box.kind) == (75, 0, 9, 8, "seen")
    assert late.kind == "late"
    assert (front.frames[0].left, front.frames[0].top) == (75, 0)
    assert (left.frames[0].left, left.frames[0].top) == (0, 0)
    assert (front.frames[1].left, front.frames[1].top) == (0, 108)
    assert [side.marks for side in (feet, front, left)] == ["APRL", "SIRL", "SIAP"]
    stored = [side.frames[0].top for side in project(scan("nm"), look)]
    assert stored == [0, 108, 108]


def test_write_case_page__viewer_of_a_noisy_volume__stays_below_its_limit(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise cannot be compressed; a limit of 6 MB stands for that of 20 MB, and the page says what was reduced."""
    noise = np.random.default_rng(0).integers(0, 4000, (24, 300, 300)).astype(np.int16)
    volume = Volume((noise,), Grid(noise.shape, (3.0, 1.0, 1.0)), "noise")
    labels = np.zeros(noise.shape, np.uint8)
    labels[5:9, 100:200, 100:200] = 1
    run = replace(result(labels), look=None)
    for limit, words in ((8_000_000, "shown as it is"), (6_000_000, "one voxel stands for 1 x 2 x 2 (z, y, x)")):
        monkeypatch.setattr(case, "_MOST_BYTES", limit)
        write_case_page(volume, run, model, tmp_path / "a.html", viewer=True)
        assert 3_000_000 < (tmp_path / "a.html").stat().st_size < limit
        assert words in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert case_page(volume, run, model).count("<script") == 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 50), (60, 2, 2), (2, 2, 1500)])
@pytest.mark.parametrize("value", [7.0, np.nan, np.inf])
def test_case_page__odd_volumes__have_pages(shape: tuple[int, int, int], value: float, model: Model) -> None:
    """Single slices, rods and single voxels, constant or without a single number."""
    image = np.full(shape, value, np.float32)
    labels = np.zeros(shape, np.uint8)
    labels[0, 0, 0] = 1
    seen = Look(np.full((1, 1, 1), 0.5, np.float32), Box.whole(shape), (Box.whole(shape),))
    with np.errstate(all="ignore"):  # their mean and deviation are no numbers either
        html = case_page(
            Volume((image,), Grid(shape, (1.0, 1.0, 1.0)), "odd"), replace(result(labels), look=seen), model
        )
    assert "1 component of lesion" in html
