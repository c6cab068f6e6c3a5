"""Agents and rules on cases that no agent has learned from: made-up trees, and tiny cases with tiny models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from assign_examples import random_instance
from conftest import benchmark_module, blobs
from raw_data import save_case
from rich.console import Console

from assignnet import RULES
from assignnet.value.instance import Instance
from assignnet.value.oracle import oracle

script = benchmark_module("decide")
QUIET = Console(quiet=True)


def outcome(script: ModuleType, policy: str, case: str, reward: float, seed: int | None = None) -> Any:
    """What somebody earned in a case at lambda 0.1, of which the oracle would earn 1."""
    return script.Outcome(policy, seed, case, 0.1, reward, 1.0, 0.5, 3.0)


def test_decide__made_up_cases__agents_never_learn_from_the_case_that_they_choose_in(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each case has a row of everybody; an agent's rows are those of the part that it has not learned from."""
    instances = [random_instance(seed) for seed in range(5)]
    learned: list[tuple[str, int, set[str]]] = []

    def learn(kind: str, seed: int, train: Sequence[Instance], *_: Any) -> Any:
        learned.append((kind, seed, {one.case for one in train}))
        return RULES["all_children"]

    monkeypatch.setattr(script, "learn", learn)
    found = script.decide(instances, "dice", (0.1, 0.5), ("gains",), (0, 7), 2, QUIET)
    cases = [one.case for one in instances]
    assert learned == [("gains", seed, {*cases} - {*cases[fold::2]}) for fold in range(2) for seed in (0, 7)]
    names = [("oracle", None), *((name, None) for name in (*RULES, "greedy_drop")), ("gains", 0), ("gains", 7)]
    assert sorted((one.policy, str(one.seed), one.case, one.weight) for one in found) == sorted(
        (name, str(seed), case, weight) for name, seed in names for case in cases for weight in (0.1, 0.5)
    )
    for one in found:
        instance = instances[cases.index(one.case)]
        assert one.best == pytest.approx(oracle(instance, "dice", one.weight).reward)
        if one.policy == "gains":
            assert one.reward == pytest.approx(instance.reward(instance.tree.leaves, "dice", one.weight))
        if one.policy == "oracle":
            assert one.reward == pytest.approx(one.best)


@pytest.mark.long
def test_learn__cases_alike__choose_better_than_at_random(script: ModuleType) -> None:
    """A real, short training of gains on made-up cases."""
    instances = [random_instance(seed, families=8) for seed in range(6)]
    agent = script.learn("gains", 0, instances[:5], "dice", False)
    held = instances[5]
    chosen = agent(held.tree, held.weighted(0.1).cost_model, script.shown_to("gains", [held])[0].features)
    random = np.mean(
        [held.reward(RULES["random"](held.tree, held.weighted(0.1).cost_model), "dice", 0.1) for _ in range(10)]
    )
    assert held.reward(chosen, "dice", 0.1) > random


@pytest.mark.long
def test_learn__policy__chooses_regions_of_a_tree(script: ModuleType) -> None:
    """One round of reinforcement learning on few small trees."""
    instances = [random_instance(seed, families=2) for seed in range(3)]
    agent = script.learn("policy", 0, instances, "dice", True)
    held = script.shown_to("policy", [random_instance(3, families=3)])[0]
    assert {*agent(held.tree, held.cost_model, held.features)} <= {*held.tree.rois}


def test_compare__agents_ahead_level_and_behind__are_told_apart(script: ModuleType) -> None:
    """The best rule of all cases is what agents are compared with, case by case, over seeds."""
    cases = [f"case_{index}" for index in range(6)]
    noise = np.linspace(-0.1, 0.1, 6)
    rows = [outcome(script, "oracle", case, 1.0) for case in cases]
    rows += [outcome(script, name, case, 0.3) for name in (*RULES, "greedy_drop") for case in cases]
    rows += [outcome(script, "top_k", case, 0.5) for case in cases]
    rows = [one for one in rows if one.policy != "top_k" or one.reward == 0.5]
    for seed, shift in ((0, -0.1), (1, 0.1)):  # seeds are averaged before cases are compared
        for kind, more in (("ahead", 0.2), ("level", 0.0), ("behind", -0.2)):
            rows += [
                outcome(script, kind, case, 0.5 + more + shift + wobble, seed)
                for case, wobble in zip(cases, noise, strict=True)
            ]
    (summary,) = script.compare(rows, ("ahead", "level", "behind"))
    assert (summary["lambda"], summary["best_rule"]) == (0.1, "top_k")
    assert summary["shares"] == pytest.approx(
        {"oracle": 1, **dict.fromkeys((*RULES, "greedy_drop"), 0.3), "top_k": 0.5, "ahead": 0.7, "level": 0.5}
        | {"behind": 0.3}
    )
    found = summary["agents"]
    assert {kind: one["verdict"] for kind, one in found.items()} == {kind: kind for kind in found}
    low, high = found["level"]["interval"]
    assert -0.1 < low < 0 < high < 0.1
    assert script.verdict(None) == "unknown"


@pytest.fixture
def tiny(model_folder: Callable[..., Path], tmp_path: Path) -> list[str]:
    """Four tiny cases, whose label 2 is the models' 1, and models in the place of those of the brains; the options."""
    data, models = tmp_path / "data", tmp_path / "models" / "Dataset511_BrainTiny"
    for index in range(4):
        image = np.roll(blobs((24, 48, 48)), 7 * index, 1)
        save_case(data, "Ts", f"brain_{index}", image, 2 * (image > np.percentile(image, 80)))
    shutil.copytree(model_folder(seed=5, spacing=(4.0, 2.0, 2.0)), models / "coarse_of_kit")
    shutil.copytree(model_folder(seed=6), models / "nnUNetTrainer__smallPlans__3d_fullres")
    settings = ["rois.threshold=0.58", "rois.window_step=0.5", "fine.grow=0"]
    options = ["--data", str(data), "--models", str(tmp_path / "models"), "--dataset", "brain_tiny"]
    return [*options, *(part for setting in settings for part in ("--set", setting))]


@pytest.mark.long
def test_main__four_tiny_cases__every_case_is_judged_by_agents_that_have_not_seen_it(
    script: ModuleType, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Agents are trained for a step and compared; instances are built once."""
    out, work = tmp_path / "out.json", tmp_path / "work"
    command = [*tiny, "--out", str(out), "--quick", "--seeds", "3", "--variants", "1", "--regions", "1"]
    kinds = ("gains", "gains_coarse")  # a round of reinforcement learning takes a minute
    command += ["--folds", "2", "--kinds", *kinds]
    assert script.main([*command, "--work", str(work)]) == 0
    results = json.loads(out.read_text())
    assert (results["cases"], results["folds"], len(results["summary"])) == (4, 2, len(script.QUICK_LAMBDAS))
    judged = {(row["policy"], row["seed"], row["case"]) for row in results["rows"]}
    cases = {row["case"] for row in results["rows"]}
    assert {one for one in judged if one[0] in script.KINDS} == {(kind, 3, case) for kind in kinds for case in cases}
    assert len(cases) == 4
    assert "gains_coarse less" in capsys.readouterr().err
    file = next(work.glob("*.h5"))
    before = file.stat().st_mtime_ns
    assert script.main([*command, "--work", str(work), "--kinds", "gains"]) == 0
    assert file.stat().st_mtime_ns == before


def test_main__one_case__names_how_many_are_needed(
    script: ModuleType, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Agents that have seen the case would say nothing about it."""
    for path in (tmp_path / "data").rglob("brain_[123]*"):
        path.unlink()
    assert script.main([*tiny, "--out", str(tmp_path / "out.json"), "--variants", "1", "--regions", "0"]) != 0
    assert "1 test cases have regions, and 4 are needed" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
