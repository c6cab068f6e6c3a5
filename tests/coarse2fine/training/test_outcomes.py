"""Training instances: what is counted of regions is what the pipeline yields when it processes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs

from assignnet import RULES
from assignnet.value.instance import Instance
from canvas import share_of_volume
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import Config
from coarse2fine.errors import VolumeError
from coarse2fine.evaluation.masks import dice
from coarse2fine.io import Grid, Volume
from coarse2fine.pipeline import Pipeline
from coarse2fine.selection.features import FeatureSettings
from coarse2fine.training.outcomes import Labels, OutcomeSettings, measure_outcomes, perturbed, random_boxes

SHAPE, SPACING = (24, 48, 48), (2.0, 1.0, 1.0)
# Each crop is a network input of its own, so that what a region yields does not depend on what else is selected.
ALONE = ["canvas.enabled=false", "canvas.norm=canvas", "fine.mirroring=false", "fine.grow=0", "rois.threshold=0.58"]
TREE = ["rois.window_step=0.5", "canvas.packing=same_size"]
ONE = OutcomeSettings(variants=1, regions=0)


@pytest.fixture(scope="module")
def models(model_folder: Callable[..., Path]) -> list[str]:
    """A coarse and a fine model with other axes and voxels than the volume."""
    fine = model_folder(seed=6, transpose=(1, 0, 2), spacing=(1.0, 2.0, 1.0))
    coarse = model_folder(seed=5, spacing=(4.0, 2.0, 2.0))
    return [f"coarse.model={coarse}", f"fine.model={fine}"]


@pytest.fixture(scope="module")
def volume() -> Volume:
    image = blobs(SHAPE)
    return Volume((image,), Grid(image.shape, SPACING), "blobs")


@pytest.fixture(scope="module")
def reference(volume: Volume) -> Labels:
    image = volume.channels[0]
    return (image > np.percentile(image, 80)).astype(np.uint8)


def configured(models: Sequence[str], *overrides: str) -> Config:
    return load_config(None, [*models, *ALONE, *TREE, *overrides])


def teach(
    models: Sequence[str],
    volume: Volume,
    reference: Labels,
    settings: OutcomeSettings,
    *overrides: str,
    **options: object,
) -> list[Instance]:
    config = configured(models, *overrides)
    pipeline = Pipeline.from_config(config)
    assert pipeline.coarse is not None
    features = FeatureSettings("coarse")
    return list(
        measure_outcomes(volume, reference, pipeline.coarse, pipeline.fine, config, features, settings, **options)
    )


@pytest.mark.long
@pytest.mark.parametrize("outside", ["background", "coarse"])
@pytest.mark.parametrize("rule", ["all_parents", "all_children", "greedy"])
def test_teach_case__any_selection__has_the_quality_of_a_real_run(
    models: list[str], volume: Volume, reference: Labels, rule: str, outside: str
) -> None:
    """Counted Dice is that of the pipeline's own labels: exactly where regions are apart, else within the bounds."""
    override = f"fine.outside={outside}"
    instance = teach(models, volume, reference, ONE, override)[0]
    labels = Pipeline.from_config(configured(models, override, f"assign.agent={rule}", "assign.lambda=0.5"))(volume)
    measured = dice(labels.labels > 0, reference > 0)
    selection = RULES[rule](instance.tree, instance.weighted(0.5).cost_model)
    chosen = instance.chosen(selection)
    low, high = instance.outcomes.bounds(chosen, "dice")
    assert low - 1e-9 <= measured <= high + 1e-9
    assert low - 1e-9 <= instance.outcomes.quality(chosen, "dice") <= high + 1e-9
    boxes = [roi.box for roi in selection]
    if share_of_volume(boxes, instance.tree.volume) * np.prod(instance.tree.volume) == sum(box.volume for box in boxes):
        assert low == pytest.approx(high)
    assert high - low < 0.2, "bounds that hold for everything prove nothing"
    nothing = instance.outcomes.quality(np.zeros(len(chosen), bool), "dice")
    assert abs(measured - nothing) > 0.01, "processing regions makes a difference"


def test_teach_case__ignore_label__is_neither_right_nor_wrong(
    model_folder: Callable[..., Path], volume: Volume, reference: Labels
) -> None:
    """Where the reference says ``ignore`` nothing counts: Dice is that of all other voxels."""
    labels = {"background": 0, "lesion": 1, "ignore": 2}
    fine = model_folder(seed=6, labels=labels, transpose=(1, 0, 2), spacing=(1.0, 2.0, 1.0))
    coarse = model_folder(seed=5, labels=labels, spacing=(4.0, 2.0, 2.0))
    models = [f"coarse.model={coarse}", f"fine.model={fine}"]
    partly = reference.copy()
    partly[:, : partly.shape[1] // 2] = 2
    instance = teach(models, volume, partly, ONE)[0]
    found = Pipeline.from_config(configured(models, "assign.agent=all_parents"))(volume).labels
    counts = partly != 2
    assert (found[~counts] == 1).any(), "there is something to ignore"
    chosen = instance.chosen(RULES["all_parents"](instance.tree, instance.cost_model))
    low, high = instance.outcomes.bounds(chosen, "dice")
    assert low - 1e-9 <= dice(found[counts] == 1, partly[counts] == 1) <= high + 1e-9
    outcomes = instance.outcomes
    assert 2 not in outcomes.truth
    assert outcomes.count.sum() <= counts.sum(), "what is ignored is not even counted"


@pytest.mark.long
def test_teach_case__sub_volumes__lie_in_their_part_and_count_its_voxels(
    models: list[str], volume: Volume, reference: Labels
) -> None:
    """Instances for training and validation come from parts of the volume that do not touch."""
    parts = (("train", (0.0, 0.6)), ("validation", (0.6, 1.0)))
    instances = teach(models, volume, reference, OutcomeSettings(variants=2, regions=4), parts=parts, seed=3)
    whole = teach(models, volume, reference, ONE)[0]
    cases = {instance.case for instance in instances}
    assert cases == {"blobs/train", "blobs/validation"}
    assert len({instance.name for instance in instances}) == len(instances)
    longest = max(whole.tree.volume)
    for case, most in (("blobs/train", 0.6), ("blobs/validation", 0.4)):
        lengths = [max(instance.tree.volume) for instance in instances if instance.case == case]
        assert max(lengths) <= round(most * longest) + 1 or max(lengths) <= sorted(whole.tree.volume)[1]
    true = [int(instance.outcomes.confusion(np.zeros(len(instance.tree.rois), bool)).true[0]) for instance in instances]
    assert all(0 <= count < int(reference.sum()) for count in true)
    features = {instance.features.nodes.shape[1] for instance in instances}
    assert features == {4 * 8}
    assert all(len(instance.features.nodes) == len(instance.tree.rois) for instance in instances)


@pytest.mark.long
def test_teach_case__same_seed__gives_the_same(models: list[str], volume: Volume, reference: Labels) -> None:
    """Instances can be made again."""
    settings = OutcomeSettings(variants=2, regions=2)
    first, second = (teach(models, volume, reference, settings, seed=1) for _ in range(2))
    assert [one.tree for one in first] == [one.tree for one in second]
    assert len({one.tree for one in first}) > 2


def test_teach_case__labels_of_another_shape__is_an_error(models: list[str], volume: Volume, reference: Labels) -> None:
    """Labels that do not fit the image are refused."""
    with pytest.raises(VolumeError, match="blobs"):
        teach(models, volume, reference[1:], ONE)


def test_perturbed__first__is_as_configured_but_does_not_grow(models: list[str]) -> None:
    """One tree is that of a real run; the others have other thresholds."""
    config = configured(models, "fine.grow=2")
    variants = list(perturbed(config, 4, np.random.default_rng(0)))
    assert variants[0].rois == config.rois
    assert {variant.fine.grow for variant in variants} == {0}
    assert len({variant.rois.threshold for variant in variants}) == 4


def test_random_boxes__any_part__stay_inside() -> None:
    """Sub-volumes lie inside of the part that they are drawn from."""
    from canvas import Box

    part = Box((3, 5, 7), (13, 9, 8))
    boxes = list(random_boxes(part, 50, np.random.default_rng(0)))
    assert len(set(boxes)) > 10
    assert all(part.contains(box) and box.volume for box in boxes)
