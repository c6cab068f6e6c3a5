"""A kit's page."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from coarse2fine.calibration.page import kit_page

EVIL = '<script>alert("x")</script>'


def calibration(search: bool) -> dict[str, Any]:
    misses = [{"threshold": 0.1, "missed": 0.0, "boxes": 0.5}, {"threshold": 0.2, "missed": 0.3, "boxes": 0.4}]
    trial = {"case": EVIL, "dice": 0.5, "iou": 0.4, "seconds": 1.0, "network_voxels": 9}
    tried = {
        "name": EVIL,
        "changes": {"fine.grow": 0},
        "trials": [trial],
        "losses": [0.001],
        "mean_loss": 0.001,
        "bound": None,
        "worst": 0.001,
        "seconds": 1.0,
        "ratio": 2.5,
        "dropped": None,
        "qualifies": True,
    }
    found = {
        "winner": EVIL,
        "reason": EVIL,
        "loss": 0.005,
        "confidence": 0.95,
        "left_out": 2,
        "labelled": True,
        "mirrored": False,
        "ratio": 2.5,
        "one_stage": [trial],
        "tried": [tried],
    }
    return {
        "result": {"threshold": 0.1, "rank": 1, "probability": 0.8, "boxes": 0.5, "missed": {EVIL: 0.0}, "limit": None},
        "cases": [{"name": EVIL, "foreground": 12345, "misses": misses}],
        "empty": [EVIL],
        "search": found if search else None,
        "agent": {"statement": EVIL} if search else None,
        "spacings": [{"factor": 2, "spacing": [1, 1, 1], "limit": None, "cost": 1.0}],
    }


ABOUT = {
    "promise": EVIL,
    "foreground": "one-stage",
    "fine_model": EVIL,
    "cases": [EVIL],
    "trained_on": {"kit": [EVIL]},
    "looked_at_by": {EVIL: EVIL},
    "coarse": "trained",
    "coarse_spacing": [4, 2, 2],
    "seed": 0,
    "minutes": 3.2,
    "resumed": True,
    "ways_out": None,
    "asked": {"miss": 0.01, "probability": None, "loss": 0.005},
}


class Tags(HTMLParser):
    """Which elements and attributes a page has."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_kit_page__coarse_model_is_the_limit__says_of_what_and_what_may_help() -> None:
    """Then there is no threshold of the kit."""
    values = calibration(search=False)
    values["result"]["limit"] = f"even 0.1 misses {EVIL}"
    page = kit_page("kit", values, ABOUT | {"ways_out": "a wider margin"})
    assert f"One-stage mode is all that is left: even 0.1 misses {html.escape(EVIL)}." in page
    assert "What may help: a wider margin." in page
    assert "The lowest threshold that was tried is 0.1" in page
    assert "kit's threshold" not in page


@pytest.mark.parametrize("search", [True, False])
def test_kit_page__names_of_strangers__are_text(search: bool) -> None:
    """No script, nothing from elsewhere; with and without a search, and of which kind the foreground is."""
    page = kit_page(EVIL, calibration(search), ABOUT)

    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.names
    assert all(source.startswith("data:image/png;base64,") for source in tags.sources)
    assert len(tags.sources) == (2 if search else 1)
    assert ("2.5 times as fast" in page) == search
    assert "There were no labels" in page
    assert re.search(r"<td class=n>12,345</td>", page)
