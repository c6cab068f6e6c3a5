"""What thresholds miss of a case, against runs with these thresholds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from math import inf, prod
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs
from scipy import ndimage
from skimage.transform import resize

from canvas import triple
from coarse2fine.calibration.calibrate import Asked, calibrate, check_asked
from coarse2fine.calibration.misses import MeasuredCase, Miss, MissedObject, jointly, measure_case
from coarse2fine.config.reader import load_config
from coarse2fine.errors import ConfigError, VolumeError
from coarse2fine.fine.writeback import LabelWriter
from coarse2fine.io import Grid, Volume
from coarse2fine.pipeline import Pipeline
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.promise.likeness import Likeness

SHAPE, SPACING = (12, 32, 32), (2.5, 0.8, 1.3)
LIKE = Likeness((1.0, 1.0, 1.0), (0.0,), (1.0,), 1.0)


@pytest.fixture(scope="module")
def models(model_folder: Callable[..., Path]) -> list[str]:
    coarse, fine = model_folder(spacing=(4.0, 2.0, 2.0), seed=5), model_folder(seed=6)
    return [f"coarse.model={coarse}", f"fine.model={fine}", "fine.mirroring=false", "fine.grow=0"]


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("rois.window_step=0.5", "assign.lambda=0.5", "canvas.packing=same_size"),
        pytest.param(("mode=two-stage", "coarse.spacing=[3, 3, 3]"), marks=pytest.mark.long),
    ],
)
def test_measure_case__any_threshold__misses_what_a_run_with_it_misses(
    models: list[str], settings: tuple[str, ...]
) -> None:
    """Foreground is counted on the volume's own voxels, outside of the boxes that a run really segments."""
    image = np.pad(blobs(SHAPE), 2)  # of which nnU-Net crops the rim
    volume = Volume((image,), Grid(image.shape, SPACING), "blobs")
    truth = np.random.default_rng(0).random(image.shape) < 0.01
    thresholds = (0.3, 0.55, 0.6)
    segmenter = Pipeline.from_config(load_config(None, [*models, *settings])).segmenter
    assert segmenter is not None
    measured = measure_case(segmenter, volume, truth, thresholds)
    assert [miss.threshold for miss in measured.misses] == list(thresholds)
    assert measured.foreground == truth.sum()
    seen = set()
    for miss in measured.misses:
        pipeline = Pipeline.from_config(load_config(None, [*models, *settings, f"rois.threshold={miss.threshold}"]))
        result = pipeline(volume)
        view = view_volume(volume, pipeline.fine)
        writer, inside = LabelWriter(view, pipeline.fine), np.zeros(view.crop.shape, bool)
        for box in result.boxes:
            inside[writer.native(box).slices] = True
        outside = np.ones(image.shape, bool)
        outside[view.crop.slices] = ~inside
        assert miss.missed == pytest.approx((truth & outside).sum() / truth.sum())
        assert miss.boxes == pytest.approx(result.report.coverage.volume)
        seen.add(round(miss.missed, 3))
    assert len(seen) >= 3  # some thresholds miss something, others more


def test_measure_case__several_objects__names_the_one_that_the_lowest_threshold_misses_most(
    model_folder: Callable[..., Path],
) -> None:
    """In voxels of the volume, whatever the models' axes; SciPy counts objects, and a run says where boxes are."""
    coarse = model_folder(spacing=(2.0, 2.0, 4.0), transpose=(1, 2, 0), seed=5)
    fine = model_folder(spacing=(1.0, 1.0, 2.0), transpose=(1, 2, 0), seed=6)
    models = [f"coarse.model={coarse}", f"fine.model={fine}", "fine.mirroring=false", "fine.grow=0"]
    image = np.pad(blobs(SHAPE), ((1, 0), (2, 0), (0, 3)))
    volume = Volume((image,), Grid(image.shape, SPACING), "blobs")
    truth = np.zeros(image.shape, bool)
    truth[1:, 2:, :-3] = ndimage.binary_dilation(np.random.default_rng(0).random(SHAPE) < 0.004)
    pipeline = Pipeline.from_config(load_config(None, [*models, "rois.threshold=0.58"]))
    assert pipeline.segmenter is not None
    view, outside = view_volume(volume, pipeline.fine), np.ones(image.shape, bool)
    for box in pipeline(volume).boxes:
        np.asarray(view.turn.array(outside))[view.crop.slices][LabelWriter(view, pipeline.fine).native(box).slices] = 0
    objects, count = ndimage.label(truth, np.ones((3, 3, 3)))
    missed = np.bincount(objects[truth & outside], minlength=count + 1)
    assert len(set(missed[missed > 0])) > 1
    own = np.argwhere(objects == missed.argmax())
    measured = measure_case(pipeline.segmenter, volume, truth, (0.58, 0.6))
    expected = MissedObject(len(own), missed.max(), triple(own.mean(0).round().astype(int)))
    assert measured.hardest == expected
    assert MeasuredCase.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured
    found = measure_case(pipeline.segmenter, volume, truth & ~outside, (0.58, 0.6))
    assert found.hardest is None
    assert jointly([found, measured]).hardest == expected


def test_measure_case__boxes_with_a_margin__miss_less(models: list[str]) -> None:
    """What the message about a coarse model that is the limit advises."""
    volume = Volume((blobs(SHAPE),), Grid(SHAPE, SPACING), "blobs")
    truth = blobs(SHAPE, seed=3) > 60
    missed = []
    for margin in ([0, 0, 0], [4, 8, 8]):
        segmenter = Pipeline.from_config(load_config(None, [*models, f"rois.margin={margin}"])).segmenter
        assert segmenter is not None
        missed.append(measure_case(segmenter, volume, truth, (0.58,)).misses[0].missed)
    assert missed[0] > 0.1
    assert missed[1] < missed[0] / 2


@pytest.mark.parametrize(("empty", "missed"), [("background", 1.0), ("one-stage", 0.0)])
def test_measure_case__no_boxes__misses_all_unless_a_run_looks_everywhere_then(
    empty: str, missed: float, models: list[str]
) -> None:
    """What a run does where the heatmap is empty decides."""
    volume, truth = Volume((blobs(SHAPE),), Grid(SHAPE, SPACING), "blobs"), blobs(SHAPE) != 0
    segmenter = Pipeline.from_config(load_config(None, [*models, f"rois.empty={empty}"])).segmenter
    assert segmenter is not None
    some, none = measure_case(segmenter, volume, truth, (0.55, 0.999)).misses
    assert 0 < some.boxes < 1
    assert (none.missed, none.boxes) == (missed, 1 - missed)


def test_measure_case__nothing_to_find_or_another_shape__is_said(models: list[str]) -> None:
    """Nothing can be missed where there is nothing."""
    segmenter = Pipeline.from_config(load_config(None, models)).segmenter
    assert segmenter is not None
    volume = Volume((blobs(SHAPE),), Grid(SHAPE, SPACING), "blobs")
    with pytest.raises(VolumeError, match="blobs has no foreground"):
        measure_case(segmenter, volume, np.zeros(SHAPE, bool))
    with pytest.raises(VolumeError, match=r"labels of shape \(1, 2, 3\)") as caught:
        measure_case(segmenter, volume, np.ones((1, 2, 3), bool))
    assert caught.value.remedy.startswith("Resample the labels to the image's grid")
    assert measure_case(segmenter, volume, resize(np.ones((1, 2, 3)), SHAPE, 0) > 0, (0.5,)).foreground == prod(SHAPE)


def test_measure_case__little_foreground_in_one_corner__is_counted_there_alone(models: list[str]) -> None:
    """The same as the share of the foreground that a count over the whole volume finds outside of boxes."""
    volume = Volume((blobs(SHAPE),), Grid(SHAPE, SPACING), "blobs")
    pipeline = Pipeline.from_config(load_config(None, [*models, "rois.threshold=0.58"]))
    assert pipeline.segmenter is not None
    view, inside = view_volume(volume, pipeline.fine), np.zeros(SHAPE, bool)
    writer = LabelWriter(view, pipeline.fine)
    for box in pipeline(volume).boxes:
        inside[view.crop.slices][writer.native(box).slices] = True
    edge = np.argwhere(inside & ~np.roll(inside, -1, 1))[-1]  # so that the box begins before the foreground
    truth = np.zeros(SHAPE, bool)
    truth[tuple(slice(max(at - 2, 0), at + 3) for at in edge)] = True
    missed = measure_case(pipeline.segmenter, volume, truth, (0.58,)).misses[0].missed
    assert 0 < missed < 1
    assert missed == pytest.approx((truth & ~inside).sum() / truth.sum())


def test_measure_case__fine_model_turns_volumes__foreground_is_turned_with_them(
    models: list[str], model_folder: Callable[..., Path]
) -> None:
    """Foreground is given with the axes of the file, boxes are found with those of the network."""
    image = np.pad(blobs(SHAPE), ((1, 0), (0, 3), (2, 1)))
    volume, truth = Volume((image,), Grid(image.shape, SPACING), "blobs"), image > 110
    fine = model_folder(spacing=(1.0, 2.0, 1.0), patch=(16, 8, 16), transpose=(2, 0, 1), seed=6)
    pipeline = Pipeline.from_config(load_config(None, [*models, f"fine.model={fine}", "rois.threshold=0.58"]))
    assert pipeline.segmenter is not None
    view = view_volume(volume, pipeline.fine)
    writer, inside = LabelWriter(view, pipeline.fine), np.zeros(view.full, bool)
    for box in pipeline(volume).boxes:
        inside[view.crop.slices][writer.native(box).slices] = True
    missed = measure_case(pipeline.segmenter, volume, truth, (0.58,)).misses[0].missed
    assert 0 < missed < 1
    assert missed == pytest.approx((truth & ~view.turn.inverse.array(inside)).sum() / truth.sum())


def test_jointly__several_settings__misses_what_the_worst_one_does() -> None:
    """At each threshold by itself; boxes are those of the first settings."""
    first, second = case("a", 0.0, 0.3, 0.3), case("a", 0.1, 0.2, 0.5)
    joint = jointly(
        [
            first,
            dataclasses.replace(second, misses=tuple(dataclasses.replace(miss, boxes=1.0) for miss in second.misses)),
        ]
    )
    assert [miss.missed for miss in joint.misses] == [0.1, 0.3, 0.5]
    assert [miss.boxes for miss in joint.misses] == [miss.boxes for miss in first.misses]
    assert joint.limit(0.2) == min(first.limit(0.2), second.limit(0.2))


def case(name: str, *missed: float) -> MeasuredCase:
    """A case that misses these shares at thresholds of 0.1, 0.2, ..."""
    return MeasuredCase(
        name, 10, tuple(Miss((i + 1) / 10, share, 0.5 - i / 10) for i, share in enumerate(missed)), LIKE
    )


def test_limit__a_higher_threshold_misses_less_again__does_not_count() -> None:
    """What is promised for a threshold holds for every lower one."""
    assert case("a", 0.0, 0.2, 0.0, 0.3).limit(0.1) == 0.1
    assert case("a", 0.0, 0.05, 0.1, 0.3).limit(0.1) == 0.3
    assert case("a", 0.2, 0.0).limit(0.1) == -inf


def test_calibrate__some_cases__takes_the_kth_lowest_limit() -> None:
    """Without a wish, the lowest limit, and the probability that it supports; else what the wish allows."""
    cases = [case(str(i), *[0.0] * i, *[1.0] * (9 - i)) for i in range(1, 10)]
    result = calibrate(cases, Asked())
    assert (result.threshold, result.rank, result.probability) == (0.1, 1, pytest.approx(0.9))
    assert result.boxes == 0.5
    large = [dataclasses.replace(other, misses=(Miss(0.1, 0.0, 0.9),)) for other in cases[:2]]
    assert calibrate([*large, *cases[2:]], Asked()).boxes == 0.5  # the median
    assert result.missed == {str(i): 0.0 for i in range(1, 10)}
    assert calibrate(cases, Asked(confidence=0.8)).probability == pytest.approx(0.2 ** (1 / 9))
    less = calibrate(cases, Asked(probability=0.7))
    assert (less.threshold, less.rank, less.probability) == (0.3, 3, 0.7)
    assert calibrate(cases, Asked(probability=0.75)).probability == 0.75  # what was asked for, though 0.8 is supported
    assert [less.missed[name] for name in "123"] == [1.0, 1.0, 0.0]


def test_calibrate__coarse_model_sees_nothing_of_a_case__names_it_unless_it_may_be_left_out() -> None:
    """The message has the case and its share; with enough others the promise is made without it."""
    blind = dataclasses.replace(case("blind", 0.4, 1.0), hardest=MissedObject(8, 3, (1, 2, 3)))
    cases = [blind, *(case(str(i), 0.0, 0.0) for i in range(9))]
    result = calibrate(cases, Asked())
    assert result.threshold == 0.1
    assert result.limit is not None
    assert result.limit.startswith("the coarse model is the limit: even the threshold 0.1 misses more than 1 % of the")
    assert result.limit.endswith(
        "of 1 of 10 cases: blind (40 % missed, most of it 3 of the 8 voxels of the object around voxel [1, 2, 3] "
        "(z, y, x))"
    )
    for asked, threshold in ((Asked(probability=0.8), 0.2), (Asked(miss=0.5), 0.1)):
        result = calibrate(cases, asked)
        assert (result.threshold, result.limit) == (threshold, None)
    many = calibrate([case(str(index), 1.0) for index in range(9)], Asked()).limit
    assert many is not None
    assert many.endswith("4 (100 % missed) and 4 more")


@pytest.mark.parametrize(
    ("asked", "cases", "needed"),
    [
        (Asked(probability=0.9), 8, 9),
        (Asked(probability=0.9, confidence=0.9), 21, 22),
        (Asked(probability=0.95), 18, 19),
        (Asked(probability=0.99999), 50, None),  # more than anybody measures
    ],
)
def test_check_asked__too_few_cases__names_what_would_do(asked: Asked, cases: int, needed: int | None) -> None:
    """Both ways out of the message work: so many cases, or the probability that it names."""
    with pytest.raises(ConfigError) as caught:
        check_asked(asked, cases)
    assert caught.value.remedy.startswith(f"Give {needed} cases, or ask" if needed else "Ask for less: --probability")
    assert needed is None or check_asked(asked, needed) == 1
    most = float(caught.value.remedy.partition("--probability ")[2].split()[0])
    assert check_asked(dataclasses.replace(asked, probability=most), cases) == 1
    with pytest.raises(ConfigError, match=r"2 case\(s\)"):
        check_asked(Asked(), 2)
