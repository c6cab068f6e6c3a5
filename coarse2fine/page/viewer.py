"""NiiVue in a page: the volume itself, to be looked at from all sides."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from coarse2fine.page.reduction import Reduced
from coarse2fine.page.thumbnail import COLOURS


@dataclass(frozen=True, slots=True)
class Viewer:
    """What a page needs for it.

    Attributes:
        library, script: NiiVue, and what starts it.
        licences: Of NiiVue and what it holds.
        data: What is shown: image and labels, what is black and white, the labels' colours, where to begin (RAS), and
            whether there is a patient, whose sides are marked.
        words: How much it was reduced.
    """

    library: str
    script: str
    licences: str
    data: Mapping[str, Any]
    words: str

    @property
    def policy(self) -> str:
        """What browsers may run and load for it: these two scripts, and data that they hold."""
        hashes = " ".join(f"'sha256-{_digest(text)}'" for text in (self.library, self.script))
        return f"script-src {hashes}; connect-src data: blob:; worker-src blob:; font-src data:"


def make_viewer(volume: Reduced, names: Mapping[int, str], place: Sequence[float], *, patient: bool) -> Viewer:
    """The viewer of a volume.

    Args:
        volume: What is shown.
        names: Of label values; their order decides their colours, as in outlines.
        place: Where it begins, x, y, z in RAS.
        patient: Whether it is known where the patient's front and right are.
    """
    library, script, licences = _assets()
    data = {
        "image": volume.image,
        "labels": volume.labels,
        "low": volume.low,
        "high": volume.high,
        "colours": label_colours(names),
        "place": list(place),
        "patient": patient,
    }
    return Viewer(library, script, licences, data, _words(volume))


def label_colours(names: Mapping[int, str]) -> dict[str, list[Any]]:
    """A table of colours for NiiVue: red, green, blue, opacity, value and name of each label, background first."""
    colours = [bytes.fromhex(COLOURS[rank % len(COLOURS)][1:]) for rank in range(len(names))]
    red, green, blue = ([0, *(colour[part] for colour in colours)] for part in range(3))
    order = sorted(names)
    return {
        "R": red,
        "G": green,
        "B": blue,
        "A": [0, *(255 for _ in order)],
        "I": [0, *order],
        "labels": ["", *(names[value] for value in order)],
    }


def _words(volume: Reduced) -> str:
    if volume.factors == (1, 1, 1):
        return "The volume is shown as it is."
    along = " x ".join(map(str, volume.factors))
    return f"The volume was reduced: one voxel stands for {along} (z, y, x), labels are the largest among them."


@cache
def _assets() -> tuple[str, str, str]:
    folder = files("coarse2fine.page")
    library = gzip.decompress((folder / "niivue" / "niivue.umd.js.gz").read_bytes()).decode("utf-8")
    script = (folder / "templates" / "viewer.js").read_text(encoding="utf-8")
    return library, script, (folder / "niivue" / "LICENSE.txt").read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
