"""Who chooses: rules by name, agents that fit, and agents that do not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import blobs, write_agent

from assignnet import RULES
from assignnet.learn.agent import load_agent
from canvas import Box
from coarse2fine.coarse.heatmap import CoarseStage, predict_heatmap
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.reader import load_config
from coarse2fine.errors import ModelError
from coarse2fine.fine.sizes import plan_sizes
from coarse2fine.nnunet.loading import load_model
from coarse2fine.pipeline import preset
from coarse2fine.preprocessing.working_grid import open_view
from coarse2fine.regions.search_grid import Place
from coarse2fine.selection import selector as choose_module
from coarse2fine.selection.features import FeatureSettings, tree_features
from coarse2fine.selection.selector import Selector, cost_model_of, find_selector, find_tree, grow_tree, roi_settings
from coarse2fine.system.timing import RunClock, Stage

SPACING = (2.0, 1.0, 1.0)
Folders = tuple[Path, Path]


@pytest.fixture(scope="module")
def folders(model_folder: Callable[..., Path]) -> Folders:
    """A coarse and a fine model."""
    return model_folder(spacing=(4.0, 2.0, 2.0), seed=5), model_folder(seed=6)


def find(models: Folders, overrides: Sequence[str]) -> Selector:
    coarse, fine = (load_model(model) for model in models)
    config = load_config(None, overrides)
    return find_selector(config, plan_sizes(config, fine), coarse, fine)


def assert_remedied(folder: Path, models: Folders) -> None:
    """An agent that takes the place of a broken one is found, and so is the rule."""
    write_agent(folder, models)
    assert find(models, [f"assign.agent={folder}"]).kind == "gains"
    assert find(models, ["assign.agent=greedy"]).kind == "rule"


@pytest.mark.parametrize("name", RULES)
def test_find_selector__name_of_a_rule__is_that_rule(name: str, folders: Folders) -> None:
    """Rules look at boxes only, and there is nothing to warn of."""
    selector = find(folders, [f"assign.agent={name}", "assign.lambda=7"])
    assert (selector.name, selector.kind, selector.assigner) == (name, "rule", RULES[name])
    assert selector.features.source == "none"
    assert selector.warnings == ()


@pytest.mark.parametrize("kind", ["gains", "policy"])
@pytest.mark.parametrize("source", ["none", "coarse", "fine"])
def test_choose__agent_that_fits__chooses_by_the_features_of_its_card(
    kind: str, source: Any, folders: Folders, tmp_path: Path
) -> None:
    """The choice is the agent's for this tree, this lambda and features computed as its card says."""
    settings = FeatureSettings(source, "resize", "mean", global_info=True)
    folder = write_agent(tmp_path / "agent", folders, features=settings, kind=kind)
    coarse, fine = (load_model(model) for model in folders)
    config = load_config(None, [f"assign.agent={folder}", "rois.threshold=0.55", "assign.lambda=0.02"])
    plan, image = plan_sizes(config, fine), (blobs((24, 48, 48)),)
    selector, clock = find_selector(config, plan, coarse, fine), RunClock()
    assert (selector.kind, selector.features, selector.warnings) == (kind, settings, ())

    view, coarse_view = open_view(image, SPACING, fine), open_view(image, SPACING, coarse)
    looked = predict_heatmap(CoarseStage(coarse, fine, config.coarse, source == "coarse"), coarse_view)
    scene = Scene(view, looked)
    tree = find_tree(config, plan, looked.heatmap, view)
    chosen = selector.choose(tree, scene, fine, clock)
    features = tree_features(settings, tree, scene, fine, plan.slot)
    assert chosen == load_agent(folder)(tree, cost_model_of(config, plan), features)
    assert 0 < len(chosen) <= len(tree.leaves)
    assert (Stage.ASSIGN.passes in clock.seconds) == (source == "fine")
    nothing = replace(selector, cost_model=replace(selector.cost_model, budget=0.0))
    assert nothing.choose(tree, scene, fine, clock) == ()


@pytest.mark.parametrize(
    ("options", "overrides", "says"),
    [
        ({}, ["canvas.packing=same_size"], "problem.packing is 'same_size'"),
        ({}, ["canvas.enabled=false"], "problem.packing is 'same_size'"),
        ({}, ["fine.large_boxes=native"], "problem.large is 'native'"),
        ({"features": FeatureSettings("fine")}, [], "another fine model"),
        ({}, [], "another coarse model"),
    ],
    ids=["packing", "no canvas", "large boxes", "fine model", "coarse model"],
)
def test_find_selector__agent_of_another_setting__is_refused_with_folder_and_remedy(
    options: dict, overrides: list[str], says: str, folders: Folders, tmp_path: Path, model_folder: Callable[..., Path]
) -> None:
    """An agent that would not know what it looks at does not run; the message names what differs."""
    folder, models = write_agent(tmp_path / "agent", folders, **options), folders
    if not overrides:
        models = model_folder(spacing=(4.0, 2.0, 2.0), seed=7), model_folder(seed=8)
    with pytest.raises(ModelError) as caught:
        find(models, [f"assign.agent={folder}", *overrides])
    assert str(folder) in caught.value.problem
    assert says in caught.value.problem
    assert "that it was trained with, train one for these (c2f-train), or choose by a rule" in caught.value.remedy
    assert find(folders, [f"assign.agent={folder}"]).kind == "gains"
    anew = write_agent(tmp_path / "anew", models, overrides, **options)
    assert find(models, [f"assign.agent={anew}", *overrides]).kind == "gains"
    assert find(models, ["assign.agent=greedy", *overrides]).kind == "rule"
    if not overrides:
        which = "fine" if options else "coarse"
        assert str(models[which == "fine"]) in caught.value.problem


LABELS = {"background": 0, "a": 1, "b": 2}


@pytest.mark.parametrize("source", ["none", "coarse"])
@pytest.mark.parametrize(
    ("trained", "run", "fits"),
    [
        ("null", "null", True),
        ("null", "[b, a]", True),  # all labels
        ("[a, b]", "null", True),
        ("[b]", "[b]", True),
        ("null", "[b]", False),
        ("[b]", "null", False),
        ("[a]", "[b]", False),
    ],
)
def test_find_selector__agent_and_labels_that_count__must_be_those_of_its_training(
    source: Any, trained: str, run: str, fits: bool, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The heatmap decides what regions an agent is shown, and their scores; another one is another problem."""
    models = model_folder(labels=LABELS, seed=5), model_folder(seed=6)
    settings = FeatureSettings(source)
    folder = write_agent(tmp_path / "agent", models, [f"coarse.foreground={trained}"], features=settings)
    named = f"assign.agent={folder}"
    if fits:
        assert find(models, [named, f"coarse.foreground={run}"]).warnings == ()
        return
    with pytest.raises(ModelError) as caught:
        find(models, [named, f"coarse.foreground={run}"])
    words = {"null": "null (all labels)", "[a]": "['a']", "[b]": "['b']"}
    says = f"it was trained with coarse.foreground: {words[trained]}, this run has coarse.foreground: {words[run]}"
    assert says in caught.value.problem
    assert "the coarse.foreground that it was trained with" in caught.value.remedy
    assert find(models, [named, f"coarse.foreground={trained}"]).kind == "gains"
    assert find(models, ["assign.agent=greedy", f"coarse.foreground={run}"]).kind == "rule"


@pytest.mark.long
def test_find_selector__card_that_says_nothing_of_labels__was_trained_with_all(
    folders: Folders, tmp_path: Path
) -> None:
    """As agents of earlier versions were."""
    folder = write_agent(tmp_path / "agent", folders)
    document = json.loads((folder / "agent.json").read_text())
    del document["features"]["foreground"]
    (folder / "agent.json").write_text(json.dumps(document))
    assert find(folders, [f"assign.agent={folder}"]).warnings == ()
    assert find(folders, [f"assign.agent={folder}", "coarse.foreground=[lesion]"]).warnings == ()


def test_find_selector__agent_of_other_feature_settings__is_refused(folders: Folders, tmp_path: Path) -> None:
    """A card that asks for fewer numbers than the network takes does not fit any run."""
    card = {"source": "none", "fingerprint": None}
    folder = write_agent(tmp_path / "agent", folders, features=FeatureSettings("coarse"))
    document = json.loads((folder / "agent.json").read_text())
    (folder / "agent.json").write_text(json.dumps(document | {"features": card}))
    with pytest.raises(ModelError, match="number of features per region is 0, but the agent was trained with 32"):
        find(folders, [f"assign.agent={folder}"])


def test_find_selector__strange_feature_settings__are_refused(folders: Folders, tmp_path: Path) -> None:
    """A stranger's card may hold anything."""
    folder = write_agent(tmp_path / "agent", folders)
    document = json.loads((folder / "agent.json").read_text())
    document["features"]["pooling_mode"] = ["max"]
    (folder / "agent.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match=r"features: pooling_mode is \['max'\]") as caught:
        find(folders, [f"assign.agent={folder}"])
    assert caught.value.remedy.startswith("Copy the agent's folder again, train it anew")
    assert_remedied(folder, folders)


@pytest.mark.parametrize("content", [None, b"", b"junk", b"{}"])
def test_find_selector__broken_folder__is_a_model_error(
    content: bytes | None, folders: Folders, tmp_path: Path
) -> None:
    """Whatever is wrong with an agent's files is told in one message that names the file."""
    if content is not None:
        (tmp_path / "agent.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"agent\.json") as caught:
        find(folders, [f"assign.agent={tmp_path}/"])
    assert re.search("name the folder of an agent|check the folder's name|train the agent anew", caught.value.problem)
    assert caught.value.remedy == "Or choose by a rule: assign.agent: greedy."
    assert_remedied(tmp_path, folders)


def test_find_selector__beyond_the_agents_experience__warns(folders: Folders, tmp_path: Path) -> None:
    """Another lambda or slot than in training still works, with a warning for each."""
    folder = write_agent(tmp_path / "agent", folders, ["canvas.size=[16, 16, 16]"])
    assert find(folders, [f"assign.agent={folder}", "canvas.size=[16, 16, 16]"]).warnings == ()
    slot, native = find(folders, [f"assign.agent={folder}", "assign.lambda=0.5"]).warnings
    assert "a slot size of [8, 8, 8] voxels, this run has [4, 8, 8]" in slot
    assert "a native size of [14, 14, 14] voxels" in native
    high, low = (
        find(folders, [f"assign.agent={folder}", "canvas.size=[16, 16, 16]", f"assign.lambda={weight}"]).warnings
        for weight in (0.51, 0)
    )
    assert [len(high), len(low)] == [1, 1]
    assert high[0].startswith("assign.lambda 0.51 is outside of 0.01 to 0.5")


@pytest.mark.parametrize(
    ("overrides", "box", "slots"),
    [
        # patch 8x16x16, so the slot is 4x8x8; context is half a voxel of the patch's sixteenths: 0, 1, 1
        (["canvas.packing=same_scale"], (4, 6, 6), 1.0),
        (["canvas.packing=same_scale"], (8, 14, 14), 8.0),
        (["canvas.packing=same_scale"], (80, 140, 140), 8.0),
        (["canvas.packing=same_size"], (4, 6, 6), 1.0),
        (["canvas.packing=same_size"], (8, 14, 14), 1.0),
        (["canvas.packing=same_size", "fine.large_boxes=native"], (8, 16, 16), 27.0),
        (["canvas.enabled=false"], (8, 14, 14), 1.0),
        (["mode=two-stage"], (8, 16, 16), 1.0),
        (["mode=two-stage"], (12, 16, 16), 2.0),
    ],
)
def test_problem_of__any_packing__costs_what_the_fine_stage_spends(
    overrides: list[str], box: tuple[int, int, int], slots: float, folders: Folders
) -> None:
    """Cost counts the room on canvases, in slots."""
    config = preset(load_config(None, ["assign.budget=3", "assign.keep=5", "assign.lambda=0.2", *overrides]))
    cost_model = cost_model_of(config, plan_sizes(config, load_model(folders[1])))
    assert cost_model.slots(Box.whole(box)) == slots
    assert (cost_model.budget, cost_model.keep, cost_model.weight, cost_model.drop) == (3, 5, 0.2, False)


def test_roi_settings__every_setting__reaches_the_search_or_the_tree(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under its own name; none is left at a default of the function that takes it."""
    given = {
        "threshold": 0.3,
        "heatmap_voxel": (1, 2, 3),
        "min_edge": 2.5,
        "min_voxels": 7.0,
        "margin": (1, 0, 2),
        "window_step": 0.7,
        "nms_threshold": 0.6,
        "nms_overlap": "ios",
        "nmm_threshold": 0.4,
        "nmm_overlap": "iou",
        "nmm_merging": "transitive",
    }
    config = load_config(None, [f"rois.{name}={list(v) if isinstance(v, tuple) else v}" for name, v in given.items()])
    plan, place = plan_sizes(config, load_model(folders[1])), Place((0, 0, 1), (2, 2, 3))
    settings = roi_settings(config, plan)
    searched = {name: value for name, value in given.items() if not name.startswith("nm")}
    assert {name: getattr(settings, name) for name in searched} == searched
    assert settings.window == plan.window
    merged: dict[str, Any] = {}
    monkeypatch.setattr(choose_module, "build_tree", lambda *args, **options: merged.update(options, args=args))
    grow_tree(config, [], np.zeros((2, 2, 2), np.float32), (2, 2, 3), place)
    assert merged.pop("args")[2] == (2, 2, 3)
    assert merged == {name: value for name, value in given.items() if name not in searched} | {
        "threshold": 0.3,
        "place": place,
    }
