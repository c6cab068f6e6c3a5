"""Runs with a deadline, under a clock that only networks move: when they end, and what becomes of each box."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import blobs, write_agent
from slow_models import SHAPE, SPACING, SlowRun

from canvas import Box
from coarse2fine.config.reader import load_config
from coarse2fine.errors import ConfigError, DeadlineError
from coarse2fine.io import Grid, Volume
from coarse2fine.pipeline import Result

Models = tuple[Path, Path]


@pytest.fixture(scope="module")
def tiny(model_folder: Callable[..., Path]) -> Models:
    """A coarse and a fine model with the same labels."""
    return model_folder(spacing=(4.0, 2.0, 2.0), seed=5), model_folder(seed=6)


@pytest.fixture(scope="module")
def strangers(model_folder: Callable[..., Path], tiny: Models) -> Models:
    """Models whose labels differ."""
    organs = {"background": 0, "liver": 1, "spleen": 2}
    return tiny[0], model_folder(seed=6, labels=organs)


def allowed(asked: float) -> float:
    """When a run with a deadline has to be over at the latest."""
    return asked + max(0.05 * asked, 0.5)


def marked(shape: Sequence[int], boxes: Sequence[Any]) -> np.ndarray:
    """Where boxes of the file lie, given by start and stop."""
    inside = np.zeros(shape, bool)
    for box in boxes:
        inside[tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))] = True
    return inside


def in_file(boxes: Sequence[Box]) -> list[Box]:
    """Boxes of the working grid in voxels of the file, where both differ by a border of zeros only."""
    return [box.shift(np.argwhere(blobs(SHAPE)).min(0).tolist()) for box in boxes]


@pytest.mark.parametrize(
    "settings",
    [
        ["canvas.norm=case", "fine.grow=2"],
        ["canvas.packing=same_size", "assign.lambda=0.5"],
        ["mode=two-stage", "rois.threshold=0.6"],
        pytest.param(["fine.outside=coarse", "assign.order=random"], marks=pytest.mark.long),
        ["canvas.norm=slot", "assign.order=space", "rois.threshold=0.6"],
    ],
)
def test_run__deadline_far_away__gives_what_a_run_without_one_gives(tiny: Models, settings: list[str]) -> None:
    """The same labels, boxes and counts, and nothing to warn of."""
    free, timed = (SlowRun(tiny, [*settings, *more])() for more in ([], ["deadline=10h"]))
    np.testing.assert_array_equal(timed.labels, free.labels)
    assert timed.report.labels
    assert set(timed.boxes) == set(free.boxes)
    same = ("boxes", "canvases", "coverage", "labels", "warnings")
    assert all(getattr(timed.report, name) == getattr(free.report, name) for name in same)
    assert free.report.deadline is None
    kept = timed.report.deadline
    assert kept is not None
    assert kept.left == ()
    assert kept.heatmap_mass == 0


@pytest.mark.parametrize("settings", [["fine.grow=2"], ["canvas.norm=case"], ["mode=two-stage", "rois.threshold=0.6"]])
@pytest.mark.parametrize("late", [(), (1, 1, 6)])
def test_run__not_enough_time__ends_in_time_with_boxes_left(
    tiny: Models, settings: list[str], late: Sequence[float]
) -> None:
    """Whatever is asked for; also if the first canvas takes six times as long as its trial and others say."""
    run = SlowRun(tiny, settings)
    run()
    for share in (0.4, 0.7):
        asked = share * run.time
        timed = SlowRun(tiny, [*settings, f"deadline={asked}"], late=late, large=500)
        report = timed().report
        assert timed.time <= allowed(asked)
        assert report.deadline is not None
        assert 0 < len(report.deadline.left) <= report.deadline.boxes
        assert f"left no time for {len(report.deadline.left)} of {report.deadline.boxes} box" in report.warnings[0]
        if not late:
            assert timed.time >= asked - 2 * max(timed.passes) / 1000


def coarse_only(models: Models) -> np.ndarray:
    """The coarse labels of the whole volume."""
    return SlowRun(models, ["fine.outside=coarse", "rois.min_voxels=1e9"])().labels


def test_run__boxes_left__keep_the_coarse_labels_there_and_nowhere_else(tiny: Models) -> None:
    """Where a box was left and the fine network decided nothing the coarse labels stand, elsewhere nothing changes."""
    free, timed = (SlowRun(tiny, more)() for more in ([], ["deadline=10"]))
    kept = timed.report.deadline
    assert kept is not None
    assert kept.filled_with == "coarse"
    reached, left = marked(SHAPE, in_file(timed.boxes)), marked(SHAPE, kept.left)
    assert (left & ~reached).any()
    expected = np.where(left, coarse_only(tiny), 0)
    assert (expected[left & ~reached] != 0).any()
    np.testing.assert_array_equal(timed.labels[~reached], expected[~reached])
    alone = reached & ~left & ~marked(SHAPE, in_file([box for box in free.boxes if box not in timed.boxes]))
    np.testing.assert_array_equal(timed.labels[alone], free.labels[alone])
    everywhere = SlowRun(tiny, ["deadline=10", "fine.outside=coarse"])()
    np.testing.assert_array_equal(everywhere.labels[~reached], coarse_only(tiny)[~reached])


def test_run__boxes_left__are_listed_with_their_mass(tiny: Models) -> None:
    """The heatmap's sum in each, where nothing else was segmented, and the share in all of them together."""
    run = SlowRun(tiny, ["deadline=10"])
    timed = run()
    kept, coverage = timed.report.deadline, timed.report.coverage
    assert kept is not None
    whole = SlowRun(tiny, [])()
    assert {(box.start, box.stop) for box in [*kept.left, *in_file(timed.boxes)]} == {
        (box.start, box.stop) for box in in_file(whole.boxes)
    }
    assert coverage.heatmap_mass + kept.heatmap_mass == pytest.approx(whole.report.coverage.heatmap_mass)
    assert sum(box.mass for box in kept.left) > 0
    assert f"hold {100 * kept.heatmap_mass:.3g} % of the heatmap's mass" in timed.report.warnings[0]


def test_run__models_with_other_labels__boxes_left_are_background_and_the_warning_says_so(strangers: Models) -> None:
    """A coarse label means something else there."""
    timed = SlowRun(strangers, ["deadline=9"])()
    kept = timed.report.deadline
    assert kept is not None
    assert kept.filled_with == "background"
    assert not timed.labels[marked(SHAPE, kept.left) & ~marked(SHAPE, in_file(timed.boxes))].any()
    assert (
        "they are background, as the labels of the coarse model are not those of the fine one"
        in (timed.report.warnings[0])
    )


@pytest.mark.parametrize("order", ["doubt", "mass", "score", "space", "random", "agent"])
def test_run__any_order__ends_in_time(tiny: Models, order: str) -> None:
    """And the report names it."""
    run = SlowRun(tiny, ["deadline=9", f"assign.order={order}"])
    kept = run().report.deadline
    assert run.time <= allowed(9)
    assert kept is not None
    assert kept.order == order


def test_run__by_mass__leaves_less_of_it_than_at_random(tiny: Models) -> None:
    """What comes first under a deadline depends on the order."""
    shares = {}
    for order in ("mass", "random"):
        kept = SlowRun(tiny, ["deadline=8", f"assign.order={order}", "canvas.packing=same_size"])().report.deadline
        assert kept is not None
        shares[order] = kept.heatmap_mass
    assert shares["mass"] < shares["random"]


def test_run__deadline_too_short_for_the_coarse_pass__names_one_that_works(tiny: Models) -> None:
    """With the value of the message the run ends in time, though the fine network gets nothing to do perhaps."""
    with pytest.raises(DeadlineError, match="too short") as caught:
        SlowRun(tiny, ["deadline=1"])()
    least = caught.value.remedy.rpartition("--deadline ")[2].rstrip(".")
    run = SlowRun(tiny, [f"deadline={least}"])
    assert run().report.deadline is not None
    assert run.time <= allowed(float(least.removesuffix("s")))


def test_run__statistics_cannot_be_measured_in_time__fine_network_is_left_alone(tiny: Models) -> None:
    """Without them no canvas could run; all boxes are left."""
    run = SlowRun(tiny, ["deadline=8", "canvas.norm=case"])
    report = run().report
    assert report.deadline is not None
    assert len(report.deadline.left) == report.boxes.selected
    assert report.canvases.count == 0
    assert run.time < 6


def test_run__nothing_found__a_deadline_changes_nothing(tiny: Models) -> None:
    """There is no box to be left."""
    report = SlowRun(tiny, ["deadline=10", "rois.threshold=0.999"])().report
    assert report.deadline is not None
    assert report.deadline.left == ()
    assert len(report.warnings) == 1


def test_run__thin_volume_whose_regions_share_tiles__ends_in_time(tiny: Models) -> None:
    """A region of which one tile was not reached counts as left."""
    image = blobs((6, 60, 60))
    volume = Volume((image,), Grid(image.shape, SPACING), "thin")
    free = SlowRun(tiny, [])
    labels = free(volume).labels
    far = SlowRun(tiny, ["deadline=10h"])
    np.testing.assert_array_equal(far(volume).labels, labels)
    asked = 0.6 * free.time
    timed = SlowRun(tiny, [f"deadline={asked}"])
    report = timed(volume).report
    assert timed.time <= allowed(asked)
    assert report.deadline is not None
    assert 0 < len(report.deadline.left) <= report.boxes.selected


def test_run__trained_agent_and_cascade__end_in_time(
    tiny: Models, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Whoever chooses, and whatever the network takes as input."""
    agent = write_agent(tmp_path / "agent", tiny, kind="policy")
    cascade = (tiny[0], model_folder(cascade=True, seed=7))
    for models, more in ((tiny, [f"assign.agent={agent}"]), (cascade, ["fine.use_prior=true"])):
        run = SlowRun(models, ["deadline=9", *more], coarse_s=0)
        assert run().report.deadline is not None
        assert run.time <= allowed(9)


@pytest.mark.parametrize(("trained", "order"), [({}, "doubt"), ({"settings": {"anytime": True}}, "agent")])
def test_run__agent_trained_for_an_order__puts_boxes_in_its_own(
    tiny: Models, tmp_path: Path, trained: dict[str, Any], order: str
) -> None:
    """Another agent's boxes are put in order by the rule; the settings have the last word."""
    agent = write_agent(tmp_path / "agent", tiny, training=trained)
    for more, expected in (([], order), (["assign.order=score"], "score")):
        kept = SlowRun(tiny, ["deadline=9", f"assign.agent={agent}", *more], coarse_s=0)().report.deadline
        assert kept is not None
        assert kept.order == expected


def test_report__with_a_deadline__is_json(tiny: Models) -> None:
    """Scripts find boxes and shares in it."""
    report: Result = SlowRun(tiny, ["deadline=9"])()
    kept = json.loads(json.dumps(dataclasses.asdict(report.report)))["deadline"]
    assert kept["asked_s"] == 9
    assert set(kept["left"][0]) == {"start", "stop", "mass"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("30s", 30), ("1.5", 1.5), ("5m", 300), ("1h", 3600), ("0.5 h", 1800), ('"2 m"', 120), ("null", None)],
)
def test_deadline__with_or_without_unit__is_taken(text: str, seconds: float | None) -> None:
    """A bare number is seconds."""
    assert load_config(None, [f"deadline={text}"]).deadline == seconds


@pytest.mark.parametrize("text", ["0", "-3", "0s", "3 days", "1h30m", ".inf", ".nan", "1e", "true", "ms", "[3]", "''"])
def test_deadline__that_is_no_time__is_refused(text: str) -> None:
    """The message says what would be one."""
    with pytest.raises(ConfigError, match="expected a time above 0, as 30"):
        load_config(None, [f"deadline={text}"])


@pytest.mark.parametrize("setting", ["mode=one-stage", "rois.empty=one-stage"])
def test_deadline__where_everything_is_looked_at__is_refused_with_a_remedy(setting: str) -> None:
    """Leaving out the deadline, or the setting, is enough."""
    with pytest.raises(ConfigError, match="cannot stop early") as caught:
        load_config(None, ["deadline=3", setting])
    load_config(None, [setting, "deadline=null"])
    instead = str(caught.value).split("or ")[-1].split("\n")[0].removeprefix("choose ").removeprefix("set ")
    load_config(None, ["deadline=3", instead.replace(": ", "=")])
