"""The page of one case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from coarse2fine.io import Volume, atomic_write
from coarse2fine.measures import Measure, measure
from coarse2fine.nnunet.model import Model
from coarse2fine.page import words
from coarse2fine.page.index import Summary
from coarse2fine.page.montage import Montage, Panel, make_montage
from coarse2fine.page.orientation import is_oblique
from coarse2fine.page.pictures import as_source
from coarse2fine.page.projections import heat_legend, project
from coarse2fine.page.reduction import affine_of, reduce_volume
from coarse2fine.page.render import render
from coarse2fine.page.viewer import Viewer, make_viewer
from coarse2fine.pipeline import Result
from coarse2fine.report import RunReport

_MOST_NAMES = 6  # labels that the caption of a slice names
_MOST_BYTES, _OTHERS, _FEWEST_BYTES = 20_000_000, 3_500_000, 1_000_000
"""Of a page with a viewer; of all but pictures of slices and the volume; of the volume in any case."""
_CT = "CTNormalization"
_STAGES = {
    "read": "read the files",
    "coarse": "coarse network, everywhere",
    "rois": "find boxes",
    "assign": "choose boxes",
    "pack": "pack them",
    "fine": "fine network, in the boxes",
    "account": "count what was found",
    "write": "write the labels",
}


@dataclass(frozen=True, slots=True)
class Caption:
    """Of a slice.

    Attributes:
        words: For those who do not see the picture.
        names: Values and names of the labels in it.
        more: How many labels it has besides.
    """

    words: str
    names: tuple[tuple[int, str], ...]
    more: str


@dataclass(frozen=True, slots=True)
class VolumeRow:
    """A line of the table of volumes; ``rank`` picks the outline's colour, None for one that has none of its own."""

    name: str
    volume: str
    voxels: str
    components: str
    rank: int | None


@dataclass(frozen=True, slots=True)
class TimeRow:
    """A line of the table of times; shares are of the whole, in percent, None where no bar is drawn."""

    name: str
    seconds: str
    network: str
    share: float | None = None
    network_share: float = 0.0


def write_case_page(
    volume: Volume[Any],
    result: Result,
    model: Model,
    path: Path | str,
    *,
    viewer: bool = False,
    maps: Sequence[tuple[str, bytes]] = (),
) -> None:
    """Write the page of one case, atomically.

    Args:
        volume: The image.
        result: What came of it.
        model: The fine model.
        path: The HTML file.
        viewer: Whether the volume itself is in it.
        maps: Of what the network looked at: words and a picture (PNG) of each.

    Raises:
        OutputError: If it cannot be written.
    """
    with atomic_write(Path(path)) as temporary:
        temporary.write_text(case_page(volume, result, model, viewer=viewer, maps=maps), encoding="utf-8")


def case_page(
    volume: Volume[Any],
    result: Result,
    model: Model,
    *,
    viewer: bool = False,
    maps: Sequence[tuple[str, bytes]] = (),
) -> str:
    """The page of one case, as HTML; arguments as of ``write_case_page``."""
    report, look, unit = result.report, result.look, volume.grid.unit
    ct = model.schemes[0].name == _CT
    measures = measure(result.labels, volume, model.labels.values_of)
    montage = make_montage(volume, result.labels, look, ct=ct)
    values = {value for one in measures for value in one.values} | set(map(int, report.labels))
    names = words.names_of(measures, values)
    ranks = {value: rank for rank, value in enumerate(sorted(names))}
    found = words.finding(measures, sum(report.labels.values()) * prod(volume.grid.spacing), unit)
    captions = [_caption(panel, names, montage.slices) for panel in montage.panels]
    alt = f"{report.case}: {captions[montage.main].words}"
    summary = Summary(found, len(report.warnings), report.timing_s.total, montage.thumbnail, alt)
    shown = _viewer(volume, result, montage, names, ct) if viewer else None
    return render(
        "case.html",
        policy=shown.policy if shown else "",
        viewer=shown,
        case=report.case,
        finding=found,
        summary=asdict(summary),
        warnings_words=f"{words.plural(len(report.warnings), 'warning')}.",
        report=report,
        montage=montage,
        captions=captions,
        about_slices=_about_slices(volume, model, montage.window.words, montage.factor, montage.seen, montage.objects),
        ranks=ranks,
        volumes=[_volume_row(one, ranks, unit) for one in measures if one.voxels],
        absent=", ".join(words.label(one) for one in measures if not one.voxels),
        unit=words.volume_unit(unit),
        looked=words.looked_at(report),
        look=look,
        sides=project(volume, look) if look else (),
        heat_legend=heat_legend(),
        maps=[(told, as_source(picture)) for told, picture in maps],
        times=_times(report),
        effort=words.effort(report),
        settings=[*words.flat(report.config), *(("agent " + key, value) for key, value in report.agent.items())],
        versions=list(report.versions.items()),
    )


def _viewer(volume: Volume[Any], result: Result, montage: Montage, names: Mapping[int, str], ct: bool) -> Viewer:
    """The volume, begun at the middle of the largest object."""
    window = montage.window.low, montage.window.high
    most = max(_MOST_BYTES - _OTHERS - sum(len(panel.image) for panel in montage.panels), _FEWEST_BYTES)
    reduced = reduce_volume(np.asarray(volume.channels[0]), result.labels, volume.grid, window, ct=ct, most=most)
    place = affine_of(volume.grid, (1, 1, 1)) @ [*montage.centre[::-1], 1.0]
    return make_viewer(reduced, names, place[:3].tolist(), patient=montage.patient)


def _caption(panel: Panel, names: Mapping[int, str], slices: int) -> Caption:
    seen = [(value, names[value]) for value in panel.outlines]
    more = f" and {len(seen) - _MOST_NAMES} more" if len(seen) > _MOST_NAMES else ""
    listed = ", ".join(name for _, name in seen[:_MOST_NAMES]) + more
    outlined = f" with outlines of {listed}" if seen else ""
    return Caption(f"Slice {panel.number} of {slices}{outlined}", tuple(seen[:_MOST_NAMES]), more)


def _about_slices(volume: Volume[Any], model: Model, window: str, factor: int, seen: int, objects: int) -> str:
    """What the pictures are, beside their captions."""
    channels = len(volume.channels)
    name = dict(model.dataset.get("channel_names") or {}).get("0")
    parts = [window[0].upper() + window[1:]]
    if channels > 1:
        parts.append(f"first of {channels} channels{f' ({name})' if name else ''}")
    if seen < objects:
        parts.append(f"{seen:,} of {words.plural(objects, 'component')} are seen well in these slices")
    if factor > 1:
        parts.append(f"slices reduced by {factor} along each edge")
    if is_oblique(volume.grid):
        parts.append("the volume is oblique: slices run along its own axes, and letters name the nearest side")
    return "; ".join(parts) + "."


def _volume_row(one: Measure, ranks: Mapping[int, int], unit: str) -> VolumeRow:
    rank = ranks[one.values[0]] if len(one.values) == 1 else None
    components = "" if one.components is None else f"{one.components:,}"
    return VolumeRow(words.label(one), words.volume_number(one.volume, unit), f"{one.voxels:,}", components, rank)


def _times(report: RunReport) -> list[TimeRow]:
    total = report.timing_s.total or 1.0
    rows = []
    for stage, name in _STAGES.items():
        seconds, network = getattr(report.timing_s, stage), getattr(report.network_s, stage, None)
        if seconds:
            spent = "" if network is None else f"{network:.1f}"
            if report.mode == "one-stage" and stage == "fine":
                name = "fine network, everywhere"
            rows.append(TimeRow(name, f"{seconds:.1f}", spent, 100 * seconds / total, 100 * (network or 0.0) / total))
    return [*rows, TimeRow("in all", f"{report.timing_s.total:.1f}", f"{report.network_s.total:.1f}")]
