"""Whether an agent could pay: trees that leave something to choose, and what the best choice would gain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import blobs

from assignnet import RULES, check_selection
from assignnet.value.oracle import oracle
from coarse2fine.calibration import agent_worth as module
from coarse2fine.calibration.agent_worth import agent_worth
from coarse2fine.calibration.cases import CalibrationCase
from coarse2fine.config.reader import load_config
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.labels import read_labels
from coarse2fine.selection.features import FeatureSettings
from coarse2fine.training.outcomes import OutcomeSettings, measure_outcomes

SHAPE = (12, 32, 32)
# Windows that overlap merge into parents with several children.
MANY = ["rois.threshold=0.55", "rois.window=[4, 6, 6]", "rois.window_step=0.5", "rois.nmm_threshold=0.2"]


@pytest.fixture(scope="module")
def models(model_folder: Callable[..., Path]) -> tuple[Model, Model]:
    return load_model(model_folder(spacing=(4.0, 2.0, 2.0), seed=5)), load_model(model_folder(seed=6))


@pytest.fixture
def case(tmp_path: Path) -> CalibrationCase:
    image, paths = blobs(SHAPE), [tmp_path / "image.nii", tmp_path / "labels.nii"]
    for path, array in zip(paths, (image, (image > 110).astype(np.uint8)), strict=True):
        written = sitk.GetImageFromArray(array)
        written.SetSpacing((1.0, 1.0, 2.0))
        sitk.WriteImage(written, str(path))
    return CalibrationCase("c", (paths[0],), paths[1])


def test_agent_worth__nothing_to_choose__is_not_measured(
    models: tuple[Model, Model], case: CalibrationCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No region is segmented where nearly every object has one box, or the settings say who chooses."""
    coarse, fine = models
    monkeypatch.setattr(module, "measure_outcomes", None)
    whole = load_config(None, ["rois.threshold=0.001", "rois.window=[12, 32, 32]"])
    found = agent_worth([(case, coarse)], whole, fine, tmp_path)
    assert (found.families, found.gain, found.worth) == (0, None, False)
    assert "at most 0 regions that could be cut" in found.statement
    assert not agent_worth([(case, coarse)], load_config(None, ["mode=two-stage"]), fine, tmp_path).worth
    unlabelled = CalibrationCase("u", case.images, None)
    found = agent_worth([(unlabelled, coarse)], load_config(None, MANY), fine, tmp_path)
    assert found.families >= module.FEW_FAMILIES
    assert "no labels to learn from" in found.statement


def test_agent_worth__large_trees__says_what_the_best_choice_would_gain(
    models: tuple[Model, Model], case: CalibrationCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle less rule on the case's own tree; measured once."""
    coarse, fine = models
    config = load_config(None, [*MANY, "fine.mirroring=false", "canvas.norm=canvas"])
    found = agent_worth([(case, coarse)], config, fine, tmp_path)
    assert case.labels is not None
    volume = case.read(coarse, fine)
    (instance,) = measure_outcomes(
        volume,
        read_labels(case.labels, fine, volume),
        coarse,
        fine,
        config,
        FeatureSettings("none"),
        OutcomeSettings(variants=1, regions=0),
    )
    rule = RULES["greedy"](instance.tree, instance.cost_model)
    check_selection(instance.tree, rule)
    best = oracle(instance, "dice", 0.05)
    assert found.gain == pytest.approx(best.reward - instance.reward(rule, "dice", 0.05))
    assert found.families == sum(len(children) > 1 for children in instance.tree.children)
    assert found.worth == (found.gain >= module.LITTLE)
    monkeypatch.setattr(module, "measure_outcomes", None)
    assert agent_worth([(case, coarse)], config, fine, tmp_path) == found
    monkeypatch.setattr(module, "LITTLE", 10.0)
    assert "earns only" in agent_worth([(case, coarse)], config, fine, tmp_path).statement
