"""A search for settings: what is chosen and why, what is dropped, how long it takes, and what is never done twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import blobs

from coarse2fine.calibration import passes
from coarse2fine.calibration.candidates import CALIBRATED, TWO_STAGE, WIDE_TWO_STAGE, Candidate
from coarse2fine.calibration.cases import CalibrationCase, find_calibration_cases
from coarse2fine.calibration.measure import measure
from coarse2fine.calibration.search import Budget, search
from coarse2fine.calibration.trial import ONE_STAGE, Bench, Trial
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import Config
from coarse2fine.evaluation.masks import dice
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import Pipeline

SHAPE = (12, 32, 32)
CAREFUL = "a lower threshold"


@dataclass
class Lab:
    """Models and cases."""

    coarse: Model
    fine: Model
    data: Path

    @property
    def cases(self) -> list[tuple[CalibrationCase, Model]]:
        return [(case, self.coarse) for case in find_calibration_cases(self.data, self.fine)]


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 2.0))
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def lab(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    data = tmp_path_factory.mktemp("raw")
    for index in range(3):
        save(data / "imagesTr" / f"c{index}_0000.nii", blobs((12 + 4 * index, 32, 32), seed=index))
    return Lab(
        load_model(model_folder(seed=5, spacing=(4.0, 2.0, 2.0))),
        load_model(model_folder(seed=10, mirror_axes=(2,))),
        data,
    )


class Clock:
    """Time that only passes when somebody says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Judge:
    """Says what each way of segmenting yields, by name, and books the seconds that it takes.

    Attributes:
        dice: One-stage mode's and each candidate's; the same in all cases, but for a little that all share.
        seconds: Likewise, of a case of 1 byte.
    """

    dice: Mapping[str, float]
    seconds: Mapping[str, float]
    clock: Clock = field(default_factory=Clock)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, case: CalibrationCase, *_: Any) -> Any:
        size = sum(path.stat().st_size for path in case.images)

        def trial(name: str) -> Trial:
            self.asked.append((case.name, name))
            seconds = size * self.seconds.get(name, 0.5)
            self.clock.now += seconds
            noise = 0.0001 * (crc32(f"{case.name} {name}".encode()) % 7)
            return Trial(case.name, self.dice.get(name, 0.5) - noise, 0.5, seconds, size)

        class Told:
            one_stage = staticmethod(lambda: trial(ONE_STAGE))
            candidate = staticmethod(lambda candidate: trial(candidate.name))

        return Told()


@pytest.fixture
def sized(tmp_path: Path) -> Callable[..., list[tuple[CalibrationCase, Any]]]:
    """Cases whose files have these numbers of bytes."""

    def write(*sizes: int) -> list[tuple[CalibrationCase, Any]]:
        cases = []
        for index, size in enumerate(sizes):
            path = tmp_path / f"case{index}"
            path.write_bytes(b" " * size)
            cases.append((CalibrationCase(path.name, (path,), path), None))
        return cases

    return write


def find(lab: Lab, cases: list[tuple[CalibrationCase, Any]], judge: Judge, seconds: float = 1e9, **options: Any) -> Any:
    config = load_config(None, ["rois.threshold=0.5"])
    return search(cases, config, lab.fine, Path("nowhere"), Budget(seconds, judge.clock), bench=judge, **options)


def test_search__several_candidates_lose_little__the_fastest_wins(lab: Lab, sized: Callable[..., Any]) -> None:
    """Its settings are in the result, and the reason says of how many cases, how much it loses, and how fast it is."""
    judge = Judge({ONE_STAGE: 0.7, CALIBRATED: 0.7, "without growth": 0.7}, {ONE_STAGE: 1, "without growth": 0.1})
    found = find(lab, sized(10, 10, 10, 10, 10), judge)
    assert found.winner == "without growth"
    assert found.config.fine.grow == 0
    assert found.ratio == pytest.approx(10)
    assert "n = 5: mean loss" in found.reason
    assert "with 95 % confidence" in found.reason
    assert "10 times as fast as one-stage mode (Dice against true labels)" in found.reason
    json.dumps(found.to_dict(), allow_nan=False)


def test_search__faster_candidate_loses_too_much__is_not_chosen(lab: Lab, sized: Callable[..., Any]) -> None:
    """However fast; nor one that is good and slower than one-stage mode."""
    quality = {ONE_STAGE: 0.7, CALIBRATED: 0.7, "without growth": 0.68, CAREFUL: 0.7}
    judge = Judge(quality, {ONE_STAGE: 1, CALIBRATED: 0.4, "without growth": 0.1, CAREFUL: 1.5})
    found = find(lab, sized(*[10] * 6), judge)
    assert found.winner == CALIBRATED
    tried = {one.name: one for one in found.tried}
    assert not tried["without growth"].qualifies
    assert tried["without growth"].mean_loss == pytest.approx(0.02, abs=0.001)
    assert find(lab, sized(*[10] * 6), judge, loss=0.03).winner == "without growth"
    slow = Judge({**quality, CALIBRATED: 0.5}, judge.seconds)
    assert find(lab, sized(*[10] * 6), slow).winner == ONE_STAGE


def test_search__only_two_stage_qualifies__says_why_nothing_else_does(lab: Lab, sized: Callable[..., Any]) -> None:
    """With the candidate that came closest, and its figures; the same where one-stage mode is all that is left."""
    judge = Judge({ONE_STAGE: 0.7, TWO_STAGE: 0.7, CALIBRATED: 0.65}, {ONE_STAGE: 1})
    found = find(lab, sized(*[10] * 4), judge)
    assert found.winner == TWO_STAGE == found.config.mode
    assert found.reason.startswith("it is the fastest whose loss is within 0.005: n = 4: mean loss ")
    assert f"; the closest accelerated one, {CALIBRATED}: n = 4: mean loss 0.0" in found.reason
    faster = Judge({ONE_STAGE: 0.7, TWO_STAGE: 0.7, CALIBRATED: 0.7}, {ONE_STAGE: 1, TWO_STAGE: 0.1, CALIBRATED: 0.5})
    found = find(lab, sized(*[10] * 8), faster)
    assert found.winner == TWO_STAGE
    wider = Judge({ONE_STAGE: 0.7, WIDE_TWO_STAGE: 0.7}, {ONE_STAGE: 1})
    assert "; the closest accelerated one, " in find(lab, sized(*[10] * 4), wider).reason
    why = found.reason.partition(f"; the closest accelerated one, {CALIBRATED}: n = 8: ")[2]
    assert "dropped after 8 cases: takes 5 times as long as two-stage" in why
    none = find(lab, sized(*[10] * 4), Judge({ONE_STAGE: 0.9}, {ONE_STAGE: 1}))
    assert none.winner == ONE_STAGE == none.config.mode
    assert none.ratio == 1
    assert "no candidate is both faster than one-stage mode and within a loss of 0.005" in none.reason


def test_search__one_case__proves_nothing(lab: Lab, sized: Callable[..., Any]) -> None:
    """No bound, no candidate; the figures are there all the same."""
    found = find(lab, sized(10), Judge({ONE_STAGE: 0.5}, {ONE_STAGE: 1}))
    assert found.winner == ONE_STAGE
    assert "n = 1" in found.reason
    assert "no bound" in found.reason
    json.dumps(found.to_dict(), allow_nan=False)


def test_search__candidates_that_are_clearly_behind__are_dropped_and_say_why(
    lab: Lab, sized: Callable[..., Any]
) -> None:
    """After two cases the worse half, after four half of the rest; what is about as good and as fast stays."""
    seconds = {ONE_STAGE: 1, CALIBRATED: 0.2, "without growth": 0.205, CAREFUL: 0.9, TWO_STAGE: 0.95}
    quality = {ONE_STAGE: 0.7, CALIBRATED: 0.7, "without growth": 0.7, CAREFUL: 0.7, TWO_STAGE: 0.4}
    judge = Judge(quality, seconds)
    found = find(lab, sized(*[10] * 5), judge)
    runs = {one.name: len(one.trials) for one in found.tried}
    assert runs[CALIBRATED] == runs["without growth"] == 5
    assert (runs[TWO_STAGE], runs[CAREFUL]) == (2, 4)
    why = {one.name: one.dropped for one in found.tried}
    assert f"after 4 cases: takes 4.5 times as long as {CALIBRATED}" in str(why[CAREFUL])
    assert re.match(r"after 2 cases: loses 0\.(3|299\d*), while as calibrated loses", str(why[TWO_STAGE]))
    assert why[CALIBRATED] is None
    assert not any(one.qualifies for one in found.tried if one.dropped)  # it was looked at on fewer cases
    assert len(judge.asked) == 5 + sum(runs.values())


def test_search__nothing_is_faster_than_one_stage_mode__ends_after_two_cases(
    lab: Lab, sized: Callable[..., Any]
) -> None:
    """No time is spent on what cannot be chosen; the reason has the one that came closest."""
    judge = Judge({}, {ONE_STAGE: 0.1, CALIBRATED: 0.2})
    found = find(lab, sized(*[10] * 5), judge)
    assert found.winner == ONE_STAGE
    assert {len(one.trials) for one in found.tried} == {len(found.one_stage)} == {2}
    assert found.left_out == 0  # there was time
    assert all("times as long as one-stage mode" in str(one.dropped) for one in found.tried)
    assert "n = 2" in found.reason


def test_search__time_is_short__takes_cases_from_small_to_large(lab: Lab, sized: Callable[..., Any]) -> None:
    """At least three, then as many as would be done in time by their sizes; the rest is counted."""
    sizes = (40, 10, 80, 20, 30, 50)
    judge = Judge({}, {})  # seconds: half of the size, for each of the ways
    ways = len(find(lab, sized(10), Judge({}, {})).tried) + 1
    short = find(lab, sized(*sizes), Judge({}, {}), seconds=1)
    assert [trial.case for trial in short.one_stage] == ["case1", "case3", "case4"]
    assert short.left_out == 3
    # The ways that are left after two cases decide what the others cost.
    found = find(lab, sized(*sizes), judge, seconds=ways * (10 + 20 + 30 + 40) / 2 + 1)
    assert [trial.case for trial in found.one_stage] == ["case1", "case3", "case4", "case0"]
    assert judge.clock.now - 100 <= ways * (10 + 20 + 30 + 40) / 2 + 1


def test_search__time_is_over_after_the_first_case__only_the_best_goes_on(lab: Lab, sized: Callable[..., Any]) -> None:
    """Three cases are looked at whatever that takes, but not with everything."""
    judge = Judge({ONE_STAGE: 0.7, CALIBRATED: 0.7}, {ONE_STAGE: 1, CALIBRATED: 0.1})
    found = find(lab, sized(10, 10, 10, 10), judge, seconds=5.0)
    assert [name for case, name in judge.asked if case != "case0"] == [ONE_STAGE, CALIBRATED] * 2
    assert {tried.dropped for tried in found.tried} == {None, "after 1 case(s): the time was over"}
    assert found.winner == CALIBRATED


@pytest.mark.long
def test_bench__candidate__is_what_a_run_gives(lab: Lab, tmp_path: Path) -> None:
    """Agreement with one-stage mode's result where there are no labels; inputs are mirrored only where asked for."""
    case, _ = lab.cases[0]
    config = load_config(None, ["rois.threshold=0.55", "canvas.norm=canvas", "fine.grow=0"])
    bench = Bench(case, config, lab.coarse, lab.fine, tmp_path)
    plain = bench.one_stage()
    assert plain.dice == plain.iou == 1
    trial = bench.candidate(Candidate("it", {}, config))
    volume = case.read(lab.coarse, lab.fine)
    unmirrored = load_config(None, ["rois.threshold=0.55", "canvas.norm=canvas", "fine.grow=0", "fine.mirroring=false"])
    result = Pipeline(unmirrored, lab.coarse, lab.fine)(volume)
    reference = Pipeline(unmirrored.model_copy(update={"mode": "one-stage"}), None, lab.fine)(volume)
    assert trial.dice == pytest.approx(dice(result.labels == 1, reference.labels == 1))
    assert 0.1 < trial.dice < 1
    assert trial.network_voxels == result.report.canvases.network_voxels
    assert trial.seconds > 0
    mirrored = load_config(None, ["rois.threshold=0.55", "canvas.norm=canvas", "fine.grow=0", "fine.mirroring=true"])
    assert Bench(case, mirrored, lab.coarse, lab.fine, tmp_path).candidate(Candidate("it", {}, mirrored)) != trial


def counted(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> dict[str, int]:
    """Passes over whole cases, by kind; Ctrl-C comes with the fine stage that follows ``stop_after`` others."""
    from coarse2fine.calibration import trial as trial_module
    from coarse2fine.segmenter import Segmenter

    counts = {"coarse": 0, "one-stage": 0, "fine": 0}
    heatmap, one_stage, segment = Segmenter.heatmap, passes.segment_one_stage, trial_module._segment

    def look(*arguments: Any) -> Any:
        counts["coarse"] += 1
        return heatmap(*arguments)

    def everywhere(*arguments: Any) -> Any:
        counts["one-stage"] += 1
        return one_stage(*arguments)

    def boxes(*arguments: Any) -> Any:
        if counts["fine"] == stop_after:
            raise KeyboardInterrupt
        counts["fine"] += 1
        return segment(*arguments)

    monkeypatch.setattr(Segmenter, "heatmap", look)
    monkeypatch.setattr(passes, "segment_one_stage", everywhere)
    monkeypatch.setattr(trial_module, "_segment", boxes)
    return counts


@pytest.mark.long
def test_search__cut_short__runs_no_network_twice(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One coarse pass and one one-stage pass over each case, shared with the calibration, whatever comes between."""
    config: Config = load_config(None, ["rois.threshold=0.58", "canvas.norm=canvas", "fine.grow=0"])
    cases = lab.cases[:2]
    counts = counted(monkeypatch, stop_after=3)
    for case, coarse in cases:
        assert measure(case, config, coarse, lab.fine, tmp_path) is not None
    assert counts == {"coarse": 2, "one-stage": 2, "fine": 0}
    with pytest.raises(KeyboardInterrupt):
        search(cases, config, lab.fine, tmp_path, Budget(1e9))
    assert counts == {"coarse": 2, "one-stage": 2, "fine": 3}
    (tmp_path / ".c2f-half.json").write_text("{")
    monkeypatch.undo()
    again = counted(monkeypatch)
    found = search(cases, config, lab.fine, tmp_path, Budget(1e9))
    runs = sum(len(one.trials) for one in found.tried)
    assert again == {"coarse": 0, "one-stage": 0, "fine": runs - 3}
    assert search(cases, config, lab.fine, tmp_path, Budget(1e9)) == found
    assert again["fine"] == runs - 3
    changed = Path(cases[0][0].images[0])
    changed.touch()  # another file by its time: what is known of it does not count
    search(cases, config, lab.fine, tmp_path, Budget(1e9))
    assert (again["coarse"], again["one-stage"]) == (1, 1)


def test_search__threshold_loses_the_object__is_not_chosen(lab: Lab, tmp_path: Path) -> None:
    """Real networks, agreement with the fine model: boxes that hold nothing lose everything."""
    config = load_config(None, ["rois.threshold=0.9", "canvas.norm=canvas", "fine.grow=0", "canvas.context=[0, 0, 0]"])
    found = search(lab.cases, config, lab.fine, tmp_path, Budget(1e9))
    tried = {one.name: one for one in found.tried}
    assert not tried[CALIBRATED].qualifies
    assert tried[CALIBRATED].mean_loss == 1
    assert found.winner not in (CALIBRATED, TWO_STAGE)
    assert "the fine model's own one-stage results" in found.reason
